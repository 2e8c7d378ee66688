"""What boto3 makes of a node's functions: unmodified, as its users write it.

    lambda_boto3.py ENDPOINT SIGNED_ENDPOINT ARCHIVE

The first endpoint takes requests of everybody on this host, the second those that are signed with
the key below. The functions behind both do what their handlers are called (ScriptedRunner).
"""

import base64
import json
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, WaiterError

ENDPOINT, SIGNED, ARCHIVE = sys.argv[1:]
ROLE = "arn:aws:iam::000000000000:role/any"
ONCE = Config(retries={"total_max_attempts": 1})


def client(endpoint=ENDPOINT, key="any", secret="any", config=ONCE):
    return boto3.client(
        "lambda",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=config,
    )


def create(aws, name, handler, **more):
    made = aws.create_function(
        FunctionName=name,
        Runtime="python3.11",
        Role=ROLE,
        Handler=handler,
        Code={"ZipFile": open(ARCHIVE, "rb").read()},
        **more,
    )
    assert made["State"] == "Pending" and made["LastUpdateStatus"] == "InProgress", made
    aws.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.05, "MaxAttempts": 3000})
    return made


def updated(aws, name):
    aws.get_waiter("function_updated_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.05, "MaxAttempts": 3000})


def refused(kind, call, status=None, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        found = error.response["Error"]["Code"]
        assert found == kind, (found, kind, error)
        assert error.response["Error"]["Message"], error.response
        code = error.response["ResponseMetadata"]["HTTPStatusCode"]
        assert status in (None, code), (status, error)
        # The exceptions that its users catch by name.
        if hasattr(type(call.__self__), "exceptions") and kind in dir(call.__self__.exceptions):
            assert isinstance(error, getattr(call.__self__.exceptions, kind)), error
        return error.response
    raise AssertionError(f"{kind} was not raised")


def life(aws):
    made = create(aws, "hello", "app.handler", Environment={"Variables": {"A": "b"}}, Tags={"t": "1"})
    assert made["FunctionArn"] == "arn:aws:lambda:us-east-1:000000000000:function:hello", made
    refused("ResourceConflictException", aws.create_function, 409, FunctionName="hello",
            Runtime="python3.11", Role=ROLE, Handler="h", Code={"ZipFile": b"PK"})
    shown = aws.get_function(FunctionName=made["FunctionArn"])
    assert shown["Configuration"]["Environment"] == {"Variables": {"A": "b"}}, shown
    assert shown["Tags"] == {"t": "1"}, shown
    aws.tag_resource(Resource=made["FunctionArn"], Tags={"u": "2"})
    aws.untag_resource(Resource=made["FunctionArn"], TagKeys=["t"])
    assert aws.list_tags(Resource=made["FunctionArn"])["Tags"] == {"u": "2"}
    for name in ("hello", "hello:$LATEST", made["FunctionArn"], "000000000000:function:hello"):
        done = aws.invoke(FunctionName=name, Payload=json.dumps({"name": "ü"}))
        assert done["StatusCode"] == 200 and "FunctionError" not in done, done
        assert done["ExecutedVersion"] == "$LATEST", done
        assert json.load(done["Payload"]) == {"name": "ü"}, name
    assert aws.invoke(FunctionName="hello", InvocationType="DryRun")["StatusCode"] == 204
    done = aws.invoke(FunctionName="hello", InvocationType="Event", Payload=b"{}")
    assert done["StatusCode"] == 202 and done["Payload"].read() == b"", done
    changed = aws.update_function_configuration(FunctionName="hello", MemorySize=256, Timeout=7)
    assert changed["LastUpdateStatus"] == "InProgress", changed
    updated(aws, "hello")
    code = aws.update_function_code(FunctionName="hello", ZipFile=b"PK other", DryRun=True)
    assert code["CodeSize"] == 8 and code["CodeSha256"] != made["CodeSha256"], code
    assert aws.get_function_configuration(FunctionName="hello")["CodeSha256"] == made["CodeSha256"]
    aws.update_function_code(FunctionName="hello", ZipFile=b"PK other")
    updated(aws, "hello")
    now = aws.get_function_configuration(FunctionName="hello")
    assert (now["MemorySize"], now["Timeout"], now["CodeSize"]) == (256, 7, 8), now
    refused("PreconditionFailedException", aws.update_function_configuration, 412,
            FunctionName="hello", Timeout=8, RevisionId=made["RevisionId"])
    aws.delete_function(FunctionName="hello")
    refused("ResourceNotFoundException", aws.get_function, 404, FunctionName="hello")


def logs_and_errors(aws):
    create(aws, "about", "about")
    context = base64.b64encode(json.dumps({"custom": {"a": 1}}).encode()).decode()
    done = aws.invoke(FunctionName="about", LogType="Tail", ClientContext=context)
    log = base64.b64decode(done["LogResult"]).decode()
    request = done["ResponseMetadata"]["RequestId"]
    assert log.startswith(f"START RequestId: {request} ") and "hello from the log" in log, log
    about = json.load(done["Payload"])
    assert about["context"] == {"custom": {"a": 1}} and about["request"] == request, about
    create(aws, "fail", "fail")
    done = aws.invoke(FunctionName="fail")
    assert done["StatusCode"] == 200 and done["FunctionError"] == "Handled", done
    assert json.load(done["Payload"]) == {"errorType": "Error", "errorMessage": "it failed"}
    create(aws, "crash", "crash")
    assert aws.invoke(FunctionName="crash")["FunctionError"] == "Unhandled"
    create(aws, "big", "big")
    done = aws.invoke(FunctionName="big")
    assert json.load(done["Payload"])["errorType"] == "Function.ResponseSizeTooLarge"
    refused("RequestTooLargeException", aws.invoke, 413, FunctionName="about",
            Payload=json.dumps("x" * (6 << 20)))
    refused("InvalidRequestContentException", aws.invoke, 400, FunctionName="about", Payload=b"{")
    refused("InvalidParameterValueException", aws.create_function, 400, FunctionName="x",
            Runtime="python2.7", Role=ROLE, Handler="h", Code={"ZipFile": b"PK"})
    try:
        create(aws, "broken", "broken.handler")
    except WaiterError as error:
        assert error.last_response["Configuration"]["State"] == "Failed", error.last_response
        assert "Unable to import" in error.last_response["Configuration"]["StateReason"]
    else:
        raise AssertionError("what cannot be prepared is not active")
    for name in ("about", "fail", "crash", "big", "broken"):
        aws.delete_function(FunctionName=name)


def throttling(aws):
    create(aws, "full", "throttle")
    response = refused("TooManyRequestsException", aws.invoke, 429, FunctionName="full")
    assert response["Reason"] == "ConcurrentInvocationLimitExceeded", response
    assert response["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "2", response
    # With retries on it is asked again: the SDK takes the answer for what it is.
    twice = client(config=Config(retries={"total_max_attempts": 2, "mode": "standard"}))
    response = refused("TooManyRequestsException", twice.invoke, 429, FunctionName="full")
    assert response["ResponseMetadata"]["RetryAttempts"] == 1, response
    aws.put_function_concurrency(FunctionName="full", ReservedConcurrentExecutions=0)
    response = refused("TooManyRequestsException", aws.invoke, 429, FunctionName="full")
    assert response["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded", response
    shown = aws.get_function_concurrency(FunctionName="full")
    assert shown["ReservedConcurrentExecutions"] == 0, shown
    aws.delete_function_concurrency(FunctionName="full")
    shown = aws.get_function_concurrency(FunctionName="full")
    assert "ReservedConcurrentExecutions" not in shown, shown
    aws.delete_function(FunctionName="full")


def streaming(aws):
    create(aws, "echo", "app.handler")
    event = json.dumps({"long": "x" * 200_000}).encode()
    done = aws.invoke_with_response_stream(FunctionName="echo", Payload=event, LogType="Tail")
    assert done["StatusCode"] == 200 and done["ExecutedVersion"] == "$LATEST", done
    chunks, complete = [], None
    for frame in done["EventStream"]:
        if "PayloadChunk" in frame:
            chunks.append(frame["PayloadChunk"]["Payload"])
        if "InvokeComplete" in frame:
            complete = frame["InvokeComplete"]
    assert b"".join(chunks) == event and len(chunks) > 1, len(chunks)
    assert "ErrorCode" not in complete and base64.b64decode(complete["LogResult"]), complete
    create(aws, "crash", "crash")
    done = aws.invoke_with_response_stream(FunctionName="crash")
    frames = list(done["EventStream"])
    assert frames[-1]["InvokeComplete"]["ErrorCode"] == "Unhandled", frames
    create(aws, "break", "break")
    done = aws.invoke_with_response_stream(FunctionName="break")
    first, last = done["EventStream"]
    assert first["PayloadChunk"]["Payload"] == b"first", first
    assert last["InvokeComplete"]["ErrorCode"] == "Own.Kind", last
    assert json.loads(last["InvokeComplete"]["ErrorDetails"])["errorMessage"] == "it broke", last
    create(aws, "full", "throttle")
    refused("TooManyRequestsException", aws.invoke_with_response_stream, 429, FunctionName="full")
    for name in ("echo", "crash", "break", "full"):
        aws.delete_function(FunctionName=name)


def versions(aws):
    create(aws, "v", "about", Publish=True)
    aws.get_waiter("published_version_active").wait(
        FunctionName="v", Qualifier="1", WaiterConfig={"Delay": 0.05, "MaxAttempts": 3000})
    aws.update_function_configuration(FunctionName="v", Description="second")
    updated(aws, "v")
    made = aws.publish_version(FunctionName="v", Description="two")
    assert made["Version"] == "2" and made["FunctionArn"].endswith(":v:2"), made
    aws.get_waiter("published_version_active").wait(
        FunctionName="v", Qualifier="2", WaiterConfig={"Delay": 0.05, "MaxAttempts": 3000})
    pages = aws.get_paginator("list_versions_by_function").paginate(
        FunctionName="v", PaginationConfig={"PageSize": 2})
    found = [v["Version"] for page in pages for v in page["Versions"]]
    assert found == ["$LATEST", "1", "2"], found
    made = aws.create_alias(FunctionName="v", Name="live", FunctionVersion="1")
    assert made["AliasArn"].endswith(":function:v:live"), made
    assert aws.invoke(FunctionName="v", Qualifier="live")["ExecutedVersion"] == "1"
    aws.update_alias(FunctionName="v", Name="live", FunctionVersion="2",
                     RoutingConfig={"AdditionalVersionWeights": {"1": 0.5}})
    shown = aws.get_alias(FunctionName="v", Name="live")
    assert shown["RoutingConfig"] == {"AdditionalVersionWeights": {"1": 0.5}}, shown
    ran = {aws.invoke(FunctionName="v:live")["ExecutedVersion"] for _ in range(64)}
    assert ran == {"1", "2"}, ran
    assert [a["Name"] for a in aws.list_aliases(FunctionName="v")["Aliases"]] == ["live"]
    kept = aws.put_provisioned_concurrency_config(
        FunctionName="v", Qualifier="live", ProvisionedConcurrentExecutions=2)
    assert kept["Status"] == "IN_PROGRESS", kept
    shown = aws.get_provisioned_concurrency_config(FunctionName="v", Qualifier="live")
    assert shown["Status"] == "READY" and shown["AvailableProvisionedConcurrentExecutions"] == 2
    listed = aws.list_provisioned_concurrency_configs(FunctionName="v")
    assert len(listed["ProvisionedConcurrencyConfigs"]) == 1, listed
    aws.delete_provisioned_concurrency_config(FunctionName="v", Qualifier="live")
    refused("ProvisionedConcurrencyConfigNotFoundException",
            aws.get_provisioned_concurrency_config, 404, FunctionName="v", Qualifier="live")
    aws.put_function_event_invoke_config(FunctionName="v", MaximumRetryAttempts=1,
                                         MaximumEventAgeInSeconds=60)
    shown = aws.get_function_event_invoke_config(FunctionName="v")
    assert (shown["MaximumRetryAttempts"], shown["MaximumEventAgeInSeconds"]) == (1, 60), shown
    assert shown["LastModified"].year >= 2024, shown
    aws.delete_function_event_invoke_config(FunctionName="v")
    url = aws.create_function_url_config(FunctionName="v", AuthType="NONE",
                                         Cors={"AllowOrigins": ["*"]})
    assert aws.get_function_url_config(FunctionName="v")["FunctionUrl"] == url["FunctionUrl"]
    aws.update_function_url_config(FunctionName="v", AuthType="AWS_IAM")
    listed = aws.list_function_url_configs(FunctionName="v")["FunctionUrlConfigs"]
    assert [u["AuthType"] for u in listed] == ["AWS_IAM"], listed
    aws.delete_function_url_config(FunctionName="v")
    aws.delete_alias(FunctionName="v", Name="live")
    aws.delete_function(FunctionName="v", Qualifier="1")
    refused("ResourceNotFoundException", aws.invoke, 404, FunctionName="v", Qualifier="1")
    names = [f["FunctionName"] for page in aws.get_paginator("list_functions").paginate()
             for f in page["Functions"]]
    assert names == ["v"], names
    assert aws.list_event_source_mappings()["EventSourceMappings"] == []
    assert aws.get_account_settings()["AccountUsage"]["FunctionCount"] == 1
    aws.delete_function(FunctionName="v")


def signatures():
    aws = client(SIGNED, "AKIDTEAM", "se/cr+et")
    made = create(aws, "mine", "about")
    assert made["FunctionArn"] != "arn:aws:lambda:us-east-1:000000000000:function:mine", made
    # What is encoded twice where it is signed, and a query that is sorted.
    done = aws.invoke(FunctionName=made["FunctionArn"], Qualifier="$LATEST", LogType="Tail",
                      Payload=b'{"a": "~ +*"}')
    assert json.load(done["Payload"])["function"] == "mine"
    aws.tag_resource(Resource=made["FunctionArn"], Tags={"a b": "c/d"})
    aws.untag_resource(Resource=made["FunctionArn"], TagKeys=["a b", "x+y"])
    assert aws.list_tags(Resource=made["FunctionArn"])["Tags"] == {}
    assert [f["FunctionName"] for f in aws.list_functions(MaxItems=3)["Functions"]] == ["mine"]
    other = client(SIGNED, "AKIDOTHER", "secret")
    assert other.list_functions()["Functions"] == []
    refused("ResourceNotFoundException", other.invoke, 404, FunctionName="mine")
    wrong = client(SIGNED, "AKIDTEAM", "secret")
    refused("InvalidSignatureException", wrong.list_functions, 403)
    nobody = client(SIGNED, "AKIDNOBODY", "secret")
    refused("UnrecognizedClientException", nobody.list_functions, 403)
    aws.delete_function(FunctionName="mine")


def main():
    aws = client()
    life(aws)
    logs_and_errors(aws)
    throttling(aws)
    streaming(aws)
    versions(aws)
    signatures()


main()
