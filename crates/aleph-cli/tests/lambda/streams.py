"""What boto3 makes of responses that come piece by piece, and of functions that are HTTP servers.

    streams.py ENDPOINT DAEMON_PID FOLDER

In the folder are the archives echo.zip (native, over the runtime API), node.zip, server.zip (a
native HTTP server) and python_server.zip. The functions that are made here are deleted here.
"""

import base64
import json
import re
import sys
import time

import boto3
from botocore.config import Config

ENDPOINT, DAEMON, FOLDER = sys.argv[1:]
ROLE = "arn:aws:iam::000000000000:role/any"
# More than all buffers between a function and its caller hold, and less than a response may be.
MUCH = {"pieces": 300, "size": 60_000}
# Looks often, and gives up after ten minutes.
PATIENT = {"Delay": 0.2, "MaxAttempts": 3000}

aws = boto3.client(
    "lambda",
    endpoint_url=ENDPOINT,
    region_name="us-east-1",
    aws_access_key_id="any",
    aws_secret_access_key="any",
    config=Config(retries={"total_max_attempts": 1}, read_timeout=120),
)


def create(name, runtime, handler, code, **more):
    with open(f"{FOLDER}/{code}.zip", "rb") as file:
        aws.create_function(FunctionName=name, Runtime=runtime, Role=ROLE, Handler=handler,
                            Code={"ZipFile": file.read()}, **more)


def stream(name, event):
    done = aws.invoke_with_response_stream(
        FunctionName=name, Payload=json.dumps(event), LogType="Tail")
    assert done["StatusCode"] == 200 and done["ExecutedVersion"] == "$LATEST", done
    assert done["ResponseStreamContentType"] == "application/vnd.amazon.eventstream", done
    return done


def read(frames):
    """What the frames hold that still come, and the last one."""
    pieces = []
    for frame in frames:
        if "PayloadChunk" not in frame:
            return b"".join(pieces), frame["InvokeComplete"]
        pieces.append(frame["PayloadChunk"]["Payload"])
    raise AssertionError("there is no last frame")


def whole(name, event):
    body, complete = read(stream(name, event)["EventStream"])
    assert "ErrorCode" not in complete, complete
    log = base64.b64decode(complete["LogResult"]).decode()
    assert "REPORT RequestId: " in log, log
    return body


def invoke(name, event):
    done = aws.invoke(FunctionName=name, Payload=json.dumps(event))
    return done, done["Payload"].read()


def lines(count, size):
    return b"".join(b"%*d\n" % (size - 1, n) for n in range(count))


def most_memory():
    """The most memory that the daemon has had, in bytes."""
    with open(f"/proc/{DAEMON}/status") as status:
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read()).group(1)) * 1024


def once_free(name, event):
    """The answer of a function that runs one at a time, once it runs none."""
    for _ in range(600):
        try:
            return invoke(name, event)
        except aws.exceptions.TooManyRequestsException:
            time.sleep(0.1)
    raise AssertionError(f"{name} is never free")


def is_busy(name):
    try:
        invoke(name, {"n": 1})
    except aws.exceptions.TooManyRequestsException:
        return True
    return False


def order():
    """The beginning is there before the end is written: the function still runs, and nothing else
    of it may."""
    aws.put_function_concurrency(FunctionName="native", ReservedConcurrentExecutions=1)
    before = most_memory()
    frames = iter(stream("native", {"stream": MUCH})["EventStream"])
    begins = next(frames)["PayloadChunk"]["Payload"]
    assert is_busy("native"), "all of it was written before any of it was read"
    rest, complete = read(frames)
    assert "ErrorCode" not in complete, complete
    prelude, _, body = (begins + rest).partition(bytes(8))
    prelude = json.loads(prelude)
    assert prelude["statusCode"] == 200, prelude
    assert prelude["headers"]["content-type"] == "application/octet-stream", prelude
    assert body == lines(MUCH["pieces"], MUCH["size"]), len(body)
    grown = most_memory() - before
    # Of 18 MB a few pieces are under way.
    assert grown < 8 << 20, grown


def absent_reader():
    """Who goes away holds nothing: the function runs to its end."""
    events = stream("native", {"stream": MUCH})["EventStream"]
    next(iter(events))
    events.close()
    done, answer = once_free("native", {"n": 2})
    assert json.loads(answer) == {"n": 2}, done


def slow_reader():
    """Who does not read holds a function for its time, and no longer."""
    aws.put_function_concurrency(FunctionName="short", ReservedConcurrentExecutions=1)
    frames = iter(stream("short", {"stream": MUCH})["EventStream"])
    next(frames)
    assert is_busy("short")
    done, answer = once_free("short", {"n": 3})
    assert json.loads(answer) == {"n": 3}, done
    _, complete = read(frames)
    assert complete["ErrorCode"] == "Unhandled", complete
    assert "Sandbox.Timedout" in complete["ErrorDetails"], complete


def native():
    body = whole("native", {"stream": {"pieces": 3, "size": 10}})
    assert body.partition(bytes(8))[2] == lines(3, 10), body
    event = {"stream": {"pieces": 3, "size": 10, "exit": 7}}
    body, complete = read(stream("native", event)["EventStream"])
    assert body.endswith(b"\n"), body
    assert complete["ErrorCode"] == "Unhandled", complete
    details = json.loads(complete["ErrorDetails"])
    assert details["errorType"] == "Runtime.ExitError" and "7" in details["errorMessage"], details
    done, body = invoke("native", {"stream": {"pieces": 3, "size": 10}})
    assert "FunctionError" not in done and body.partition(bytes(8))[2] == lines(3, 10), body


def node():
    assert whole("node", {"pieces": 3, "size": 10}) == lines(3, 10)
    assert whole("node", {"pieces": 2000, "size": 1000}) == lines(2000, 1000)
    prelude, _, body = whole("node", {"pieces": 1, "size": 5, "status": 418}).partition(bytes(8))
    want = {"statusCode": 418, "headers": {"x-own": "1"}, "cookies": ["a=1"]}
    assert (json.loads(prelude), body) == (want, lines(1, 5)), prelude
    event = {"pieces": 2, "size": 10, "fail": "as asked"}
    body, complete = read(stream("node", event)["EventStream"])
    assert body == lines(2, 10) and complete["ErrorCode"] == "RangeError", (body, complete)
    assert json.loads(complete["ErrorDetails"])["errorMessage"] == "as asked", complete
    # Who waits for all of it has all of it, or the error.
    done, body = invoke("node", {"pieces": 3, "size": 10})
    assert "FunctionError" not in done and body == lines(3, 10), body
    done, body = invoke("node", event)
    assert done["FunctionError"] == "Unhandled", done
    assert json.loads(body)["errorMessage"] == "as asked", body
    done, body = invoke("node", {"pieces": 7000, "size": 1000})
    assert json.loads(body)["errorType"] == "Function.ResponseSizeTooLarge", body[:500]


def http(method, path, query=""):
    return {
        "version": "2.0", "rawPath": path, "rawQueryString": query,
        "headers": {"x-one": "1", "host": "own.example"}, "cookies": ["c=2"],
        "requestContext": {"http": {"method": method, "path": path}},
        "body": base64.b64encode(b"hello").decode(), "isBase64Encoded": True,
    }


def servers():
    done, body = invoke("web", {"n": [1, "é"]})
    assert "FunctionError" not in done and json.loads(body) == {"n": [1, "é"]}, (done, body)
    done, body = invoke("pyweb", {"n": [1, "é"]})
    assert json.loads(body) == {"event": {"n": [1, "é"]}, "served": 1}, body
    done, body = invoke("pyweb", 2)
    assert json.loads(body) == {"event": 2, "served": 2}, body
    done, body = invoke("pyweb", http("PUT", "/a/b", "x=1"))
    answer = json.loads(body)
    assert answer["statusCode"] == 201 and answer["cookies"] == ["a=1"], answer
    assert answer["headers"]["content-type"] == "application/json", answer
    told = json.loads(answer["body"])
    assert (told["method"], told["path"], told["body"]) == ("PUT", "/a/b?x=1", "hello"), told
    headers = told["headers"]
    assert headers["x-one"] == "1" and headers["cookie"] == "c=2", headers
    assert headers["x-amzn-request-id"] == done["ResponseMetadata"]["RequestId"], headers
    context = json.loads(headers["x-amzn-lambda-context"])
    assert context["env_config"]["function_name"] == "pyweb", context
    assert 0 < context["deadline"] / 1000 - time.time() <= 11, context
    for name, path, query in (("pyweb", "/stream", "2000"), ("web", "/stream/2000/1024", "")):
        prelude, _, body = whole(name, http("GET", path, query)).partition(bytes(8))
        assert json.loads(prelude)["statusCode"] == 200 and body == lines(2000, 1024), prelude
    for event, kind in (("fail", "HTTP 503"), ("exit", "Runtime.ExitError"),
                        ("hang", "Sandbox.Timedout")):
        done, body = invoke("pyweb", event)
        assert done["FunctionError"] == "Unhandled", (event, done)
        assert json.loads(body)["errorType"] == kind, (event, body)
        done, body = invoke("pyweb", 3)
        answer = json.loads(body)
        # What breaks its clone is followed by one that has served nothing.
        assert answer["event"] == 3 and (answer["served"] == 1) == (event != "fail"), (event, answer)


def main():
    create("native", "provided.al2023", "bootstrap", "echo", Timeout=60)
    create("short", "provided.al2023", "bootstrap", "echo", Timeout=4)
    create("node", "nodejs18.x", "index.stream", "node", Timeout=30)
    create("web", "provided.al2023", "bootstrap", "server", Timeout=30)
    create("pyweb", "python3.11", "server.py", "python_server", Timeout=10)
    names = ["native", "short", "node", "web", "pyweb"]
    for name in names:
        waiter = aws.get_waiter("function_active_v2")
        waiter.wait(FunctionName=name, WaiterConfig=PATIENT)
    for part in (native, order, absent_reader, slow_reader, node, servers):
        began = time.time()
        part()
        print(f"{part.__name__}: {time.time() - began:.1f} s", flush=True)
    for name in names:
        aws.delete_function(FunctionName=name)


main()
