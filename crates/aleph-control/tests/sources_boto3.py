"""What boto3 makes of a node's schedules and event sources: unmodified, as its users write it.

    sources_boto3.py ENDPOINT SIGNED_ENDPOINT ARCHIVE NATS

The first endpoint takes requests of everybody on this host, the second those that are signed with
the key below. The functions behind both do what their handlers are called (ScriptedRunner).
"""

import datetime
import json
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

ENDPOINT, SIGNED, ARCHIVE, NATS = sys.argv[1:]
ROLE = "arn:aws:iam::000000000000:role/any"
ONCE = Config(retries={"total_max_attempts": 1})
OFF = {"Mode": "OFF"}


def client(service, endpoint=ENDPOINT, key="any", secret="any"):
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=ONCE,
    )


def create(aws, name):
    made = aws.create_function(
        FunctionName=name,
        Runtime="python3.11",
        Role=ROLE,
        Handler="app.handler",
        Code={"ZipFile": open(ARCHIVE, "rb").read()},
    )
    aws.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.05, "MaxAttempts": 3000})
    return made["FunctionArn"]


def refused(kind, call, status=None, says="", **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        assert error.response["Error"]["Code"] == kind, error
        assert says in error.response["Error"]["Message"], error
        code = error.response["ResponseMetadata"]["HTTPStatusCode"]
        assert status in (None, code), (status, error)
        assert isinstance(error, getattr(call.__self__.exceptions, kind)), error
        return
    raise AssertionError(f"{kind} was not raised")


def schedules(aws, scheduler):
    arn = create(aws, "tick")
    target = {"Arn": arn, "RoleArn": ROLE, "Input": json.dumps({"at": "<aws.scheduler.scheduled-time>"}),
              "RetryPolicy": {"MaximumRetryAttempts": 3, "MaximumEventAgeInSeconds": 600},
              "DeadLetterConfig": {"Arn": arn}}
    start = datetime.datetime(2100, 1, 1, tzinfo=datetime.timezone.utc)
    every = dict(
        Name="noon", ScheduleExpression="cron(0 12 ? * MON-FRI *)",
        ScheduleExpressionTimezone="Europe/Berlin", StartDate=start,
        EndDate=start + datetime.timedelta(days=30), Description="at noon", State="DISABLED",
        FlexibleTimeWindow={"Mode": "FLEXIBLE", "MaximumWindowInMinutes": 15},
        ActionAfterCompletion="DELETE", Target=target)
    made = scheduler.create_schedule(**every)
    noon = "arn:aws:scheduler:us-east-1:000000000000:schedule/default/noon"
    assert made["ScheduleArn"] == noon, made
    shown = scheduler.get_schedule(Name="noon", GroupName="default")
    for key, value in every.items():
        assert shown[key] == value, (key, shown[key])
    assert shown["Arn"] == noon and shown["GroupName"] == "default", shown
    assert isinstance(shown["CreationDate"], datetime.datetime), shown
    refused("ConflictException", scheduler.create_schedule, 409, **every)
    # The same request once more is the same request.
    again = dict(every, Name="again", ClientToken="x")
    for _ in range(2):
        assert scheduler.create_schedule(**again)["ScheduleArn"].endswith("/again")
    scheduler.delete_schedule(Name="again")
    changed = dict(every, ScheduleExpression="rate(5 minutes)", State="ENABLED")
    changed.pop("Description")
    assert scheduler.update_schedule(**changed)["ScheduleArn"] == noon
    shown = scheduler.get_schedule(Name="noon")
    assert (shown["ScheduleExpression"], shown["Description"]) == ("rate(5 minutes)", ""), shown
    for n in range(3):
        scheduler.create_schedule(Name=f"z-{n}", ScheduleExpression="rate(1 days)", StartDate=start,
                                  FlexibleTimeWindow=OFF, Target={"Arn": arn, "RoleArn": ROLE})
    pages = scheduler.get_paginator("list_schedules").paginate(
        GroupName="default", PaginationConfig={"PageSize": 2})
    names = [one["Name"] for page in pages for one in page["Schedules"]]
    assert names == ["noon", "z-0", "z-1", "z-2"], names
    some = scheduler.list_schedules(NamePrefix="z", State="ENABLED", MaxResults=2)
    assert [one["Name"] for one in some["Schedules"]] == ["z-0", "z-1"] and some["NextToken"], some
    assert some["Schedules"][0]["Target"] == {"Arn": arn}, some
    groups = scheduler.list_schedule_groups()["ScheduleGroups"]
    assert [group["Name"] for group in groups] == ["default"], groups
    assert scheduler.get_schedule_group(Name="default")["State"] == "ACTIVE"
    missing = "ResourceNotFoundException"
    for call in (scheduler.get_schedule, scheduler.delete_schedule):
        refused(missing, call, 404, Name="none")
    refused(missing, scheduler.get_schedule, 404, Name="noon", GroupName="other")
    refused(missing, scheduler.get_schedule_group, 404, Name="other")
    for says, wrong in (
        ("rate", {"ScheduleExpression": "rate(5)"}),
        ("day of month and day of week", {"ScheduleExpression": "cron(0 12 * * * *)"}),
        ("time zone", {"ScheduleExpressionTimezone": "Nowhere"}),
        ("queue", {"Target": dict(target, DeadLetterConfig={"Arn": "arn:aws:sqs:us-east-1:000000000000:q"})}),
        ("ARN of a function", {"Target": dict(target, Arn="arn:aws:sqs:us-east-1:000000000000:q")}),
        ("JSON", {"Target": dict(target, Input="{")}),
    ):
        refused("ValidationException", scheduler.create_schedule, 400, says,
                **dict(every, Name="wrong", **wrong))
    refused("ValidationException", scheduler.create_schedule_group, 400, "group", Name="mine")
    for name in names:
        scheduler.delete_schedule(Name=name)
    assert scheduler.list_schedules()["Schedules"] == []


def state(aws, uuid, wanted):
    for _ in range(2000):
        shown = aws.get_event_source_mapping(UUID=uuid)
        if shown["State"] == wanted:
            return shown
        time.sleep(0.01)
    raise AssertionError(shown)


def sources(aws):
    arn = create(aws, "listen")
    source = dict(FunctionName="listen", Topics=["orders.>"], BatchSize=10,
                  MaximumBatchingWindowInSeconds=1,
                  SelfManagedEventSource={"Endpoints": {"NATS_SERVERS": [NATS]}})
    made = aws.create_event_source_mapping(**source)
    uuid = made["UUID"]
    assert made["State"] == "Creating" and made["FunctionArn"] == arn, made
    assert made["ResponseMetadata"]["HTTPStatusCode"] == 202, made
    shown = state(aws, uuid, "Enabled")
    assert shown["Topics"] == ["orders.>"] and shown["BatchSize"] == 10, shown
    assert shown["SelfManagedEventSource"] == source["SelfManagedEventSource"], shown
    assert shown["LastProcessingResult"] == "No records processed", shown
    assert isinstance(shown["LastModified"], datetime.datetime), shown
    refused("ResourceConflictException", aws.create_event_source_mapping, 409, uuid, **source)
    stream = aws.create_event_source_mapping(
        FunctionName=arn, Topics=["jetstream:NONE/orders.new"], StartingPosition="LATEST",
        MaximumRetryAttempts=2, ParallelizationFactor=2, Enabled=False,
        FunctionResponseTypes=["ReportBatchItemFailures"],
        SelfManagedEventSource={"Endpoints": {"NATS_SERVERS": [NATS]}})
    assert stream["State"] == "Disabled" and stream["StartingPosition"] == "LATEST", stream
    assert stream["MaximumRetryAttempts"] == 2, stream
    answers = aws.create_event_source_mapping(
        FunctionName="listen", Topics=["ask"], FunctionResponseTypes=["Reply"],
        SelfManagedEventSource={"Endpoints": {"NATS_SERVERS": [NATS]}})
    assert answers["FunctionResponseTypes"] == ["Reply"], answers
    pages = aws.get_paginator("list_event_source_mappings").paginate(
        FunctionName="listen", PaginationConfig={"PageSize": 1})
    found = {one["UUID"] for page in pages for one in page["EventSourceMappings"]}
    assert found == {uuid, stream["UUID"], answers["UUID"]}, found
    refused("InvalidParameterValueException", aws.create_event_source_mapping, 400, "[functions] nats",
            **dict(source, SelfManagedEventSource={"Endpoints": {"NATS_SERVERS": ["10.0.0.1:4222"]}}))
    aws.update_event_source_mapping(UUID=uuid, Enabled=False)
    state(aws, uuid, "Disabled")
    aws.update_event_source_mapping(UUID=uuid, Enabled=True, BatchSize=5)
    assert state(aws, uuid, "Enabled")["BatchSize"] == 5
    for one in found:
        assert aws.delete_event_source_mapping(UUID=one)["State"] == "Deleting"
        refused("ResourceNotFoundException", aws.get_event_source_mapping, 404, UUID=one)


def signed():
    key = ("AKIDTEAM", "se/cr+et")
    team = client("scheduler", SIGNED, *key)
    arn = create(client("lambda", SIGNED, *key), "tick")
    team.create_schedule(Name="mine", ScheduleExpression="at(2100-01-01T00:00:00)",
                         FlexibleTimeWindow=OFF, Target={"Arn": arn, "RoleArn": ROLE})
    assert [one["Name"] for one in team.list_schedules()["Schedules"]] == ["mine"]
    other = client("scheduler", SIGNED, "AKIDOTHER", "secret")
    assert other.list_schedules()["Schedules"] == []
    refused("ResourceNotFoundException", other.delete_schedule, 404, Name="mine")
    # A function of somebody else is none.
    refused("ValidationException", other.create_schedule, 400, "ARN of a function", Name="theirs",
            ScheduleExpression="rate(1 days)", FlexibleTimeWindow=OFF,
            Target={"Arn": arn, "RoleArn": ROLE})
    forged = client("scheduler", SIGNED, "AKIDTEAM", "wrong")
    try:
        forged.list_schedules()
    except ClientError as error:
        assert error.response["Error"]["Code"] == "InvalidSignatureException", error
    else:
        raise AssertionError("a wrong signature was taken")
    # The server of the node is one that this account may not name.
    refused("InvalidParameterValueException",
            client("lambda", SIGNED, *key).create_event_source_mapping, 400, "[functions] nats",
            FunctionName="tick", Topics=["a"],
            SelfManagedEventSource={"Endpoints": {"NATS_SERVERS": [NATS]}})
    team.delete_schedule(Name="mine")


schedules(client("lambda"), client("scheduler"))
sources(client("lambda"))
signed()
