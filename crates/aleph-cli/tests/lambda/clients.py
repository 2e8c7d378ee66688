"""What boto3 makes of functions that run in VMs.

    clients.py ENDPOINT DAEMON_PID FOLDER

In the folder are the archives app.zip and app2.zip (app.py, which says VERSION), echo.zip (native)
and node.zip. The functions that are made here are deleted here.
"""

import base64
import io
import json
import re
import sys
import threading
import time

import boto3
from botocore.config import Config
from botocore.exceptions import WaiterError

ENDPOINT, DAEMON, FOLDER = sys.argv[1:]
ROLE = "arn:aws:iam::000000000000:role/any"
CROWD = 12
# Looks often, and gives up after ten minutes.
PATIENT = {"Delay": 0.2, "MaxAttempts": 3000}
ARN = "arn:aws:lambda:us-east-1:000000000000:function:"

aws = boto3.client(
    "lambda",
    endpoint_url=ENDPOINT,
    region_name="us-east-1",
    aws_access_key_id="any",
    aws_secret_access_key="any",
    config=Config(retries={"total_max_attempts": 1}, read_timeout=120, max_pool_connections=CROWD),
)


def archive(name):
    with open(f"{FOLDER}/{name}.zip", "rb") as file:
        return file.read()


def create(name, runtime, handler, code, **more):
    made = aws.create_function(
        FunctionName=name, Runtime=runtime, Role=ROLE, Handler=handler,
        Code={"ZipFile": archive(code)}, **more)
    assert made["State"] == "Pending", made


def active(name):
    aws.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig=PATIENT)


def updated(name):
    aws.get_waiter("function_updated_v2").wait(FunctionName=name, WaiterConfig=PATIENT)


def invoke(name, event, **more):
    done = aws.invoke(FunctionName=name, Payload=json.dumps(event), **more)
    done["Payload"] = json.load(done["Payload"])
    return done


def ask(name, do, **event):
    """The answer of a function that succeeds."""
    done = invoke(name, {"do": do, **event})
    assert "FunctionError" not in done, done
    return done["Payload"]


def log(done):
    return base64.b64decode(done["LogResult"]).decode()


def fails(name, kinds, do, **event):
    """The error of a function that fails, of one of these kinds, with the log's end; afterwards it serves as before."""
    done = invoke(name, {"do": do, **event}, LogType="Tail")
    assert done["StatusCode"] == 200 and done["FunctionError"] == "Unhandled", done
    assert done["Payload"]["errorType"] in kinds.split(" or "), done
    assert done["Payload"]["errorMessage"], done
    request = done["ResponseMetadata"]["RequestId"]
    assert f"REPORT RequestId: {request}" in log(done), log(done)
    assert ask(name, "version") == "one"
    return done["Payload"], log(done)


def most_memory():
    """The most memory that the daemon has had, in bytes."""
    with open(f"/proc/{DAEMON}/status") as status:
        kib = re.search(r"VmHWM:\s*(\d+) kB", status.read()).group(1)
    return int(kib) * 1024


def answers():
    for name, event in (("native", {"n": [1, "é"]}), ("node", {"n": [1, "é"]}),
                        ("py", {"do": "echo", "n": [1, "é"]})):
        done = invoke(name, event, LogType="Tail")
        assert "FunctionError" not in done and done["Payload"] == event, (name, done)
        assert done["StatusCode"] == 200 and done["ExecutedVersion"] == "$LATEST", done
        request = done["ResponseMetadata"]["RequestId"]
        lines = log(done)
        assert lines.startswith(f"START RequestId: {request} Version: $LATEST\n"), lines
        assert f"\nEND RequestId: {request}\n" in lines, lines
        report = lines.splitlines()[-1]
        size, used = re.search(r"Memory Size: (\d+) MB\tMax Memory Used: (\d+) MB", report).groups()
        assert 0 < int(used) <= int(size), report
        form = (rf"REPORT RequestId: {request}\tDuration: [\d.]+ ms\tBilled Duration: \d+ ms\t"
                r"Memory Size: \d+ MB\tMax Memory Used: \d+ MB\tRestore Duration: [\d.]+ ms")
        assert re.fullmatch(form, report), report
        if name != "native":
            assert f"handling {request}" in lines, lines
    assert ask("py", "served") == 2, "one event follows another in one clone"


def contract():
    found = ask("py", "env")
    assert found["cwd"] == "/var/task", found
    expected = {
        "AWS_LAMBDA_FUNCTION_NAME": "py",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
        "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/py",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start",
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.11",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "_HANDLER": "app.handler",
        "LAMBDA_TASK_ROOT": "/var/task",
        "LAMBDA_RUNTIME_DIR": "/var/runtime",
        "TZ": ":UTC",
        "MINE": "my own",
    }
    for name, value in expected.items():
        assert found["env"].get(name) == value, (name, found["env"])
    for name in ("AWS_LAMBDA_RUNTIME_API", "AWS_LAMBDA_LOG_STREAM_NAME", "PATH", "LD_LIBRARY_PATH"):
        assert found["env"].get(name), (name, found["env"])
    client = {"custom": {"tenant": "Zoë", "line": "a\nb"}, "client": {"app_title": "söme"}}
    text = json.dumps(client, ensure_ascii=False, indent=1).encode()
    done = invoke("py", {"do": "context"}, ClientContext=base64.b64encode(text).decode())
    about = done["Payload"]
    assert about["request"] == done["ResponseMetadata"]["RequestId"], about
    assert about["custom"] == client["custom"] and about["app"] == "söme", about
    assert (about["name"], about["version"], about["memory"]) == ("py", "$LATEST", "128"), about
    assert about["arn"] == ARN + "py", about
    assert about["group"] == "/aws/lambda/py" and about["stream"], about
    # The deadline is of this invocation: of 30 s a part is left, by a clock that is about right.
    assert 0 < about["left"] <= 31_000, about
    assert abs(about["now"] - time.time()) < 5, about
    about = invoke("py", {"do": "context"})["Payload"]
    assert about["custom"] is None, about


def errors():
    error, lines = fails("py", "ValueError", "error")
    assert error["errorMessage"] == "as asked", error
    assert any("do_error" in line for line in error["stackTrace"]), error
    assert "[ERROR] ValueError: as asked" in lines, lines
    error, _ = fails("py", "Runtime.ExitError", "crash")
    assert "3" in error["errorMessage"], error
    fails("py", "Runtime.ExitError", "leave")
    error, _ = fails("py", "Runtime.ExitError", "kill")
    assert "signal" in error["errorMessage"].lower() or "kill" in error["errorMessage"].lower(), error
    # A crash costs the clone: what comes next meets one that has served nothing.
    assert ask("py", "served") == 2
    done = invoke("native", {"error": "as asked"})
    assert done["FunctionError"] == "Unhandled", done
    assert done["Payload"]["errorMessage"] == "as asked", done
    done = invoke("native", {"exit": 7})
    assert done["Payload"]["errorType"] == "Runtime.ExitError", done
    assert invoke("native", {"a": 1})["Payload"] == {"a": 1}


def hostile():
    error, lines = fails("short", "Sandbox.Timedout", "hang")
    assert "Task timed out after 10.00 seconds" in error["errorMessage"], error
    assert "\tStatus: timeout" in lines, lines
    assert ask("short", "served") == 2, "the clone that hung is gone"
    # Its time ends it; or the kernel of the guest, which has no memory for so many.
    fails("short", "Sandbox.Timedout or Runtime.ExitError", "fork")
    assert ask("short", "served") == 2, "the clone with the bomb is gone"
    # More memory than there is: the kernel of the guest ends it, or its time does.
    done = invoke("py", {"do": "memory"})
    assert done["FunctionError"] == "Unhandled", done
    assert ask("py", "version") == "one"
    full = ask("py", "fill")
    # It is in memory, of which it may have a part.
    assert full["errno"] == 28 and 16 << 20 < full["written"] <= 64 << 20, full
    before = most_memory()
    done = invoke("py", {"do": "logs", "bytes": 100 << 20}, LogType="Tail")
    assert done["Payload"] == "written", done
    lines = log(done)
    assert len(lines) == 4096 and "the last line\nEND RequestId" in lines, lines[-600:]
    grown = most_memory() - before
    # Of 100 MiB a window of 256 KiB is under way and a tail of 4 KiB is kept; the rest is what an
    # allocator keeps of the pieces.
    assert grown < 16 << 20, grown
    # However much is under way when it answers, the end of it is in the log of this very event.
    for size in (10_000, 40_000, 70_000, 200_000, 500_000) * 4:
        done = invoke("py", {"do": "logs", "bytes": size}, LogType="Tail")
        assert "the last line\nEND RequestId" in log(done), (size, log(done)[-600:])
    error, _ = fails("py", "Function.ResponseSizeTooLarge", "big", bytes=7 << 20)
    assert "exceeded maximum allowed payload size" in error["errorMessage"], error
    # The longest that is allowed comes through, both ways.
    assert len(ask("py", "big", bytes=(6 << 20) - 2)) == (6 << 20) - 2
    event = {"long": "x" * ((6 << 20) - 12)}
    done = invoke("native", event)
    assert len(json.dumps(event)) == 6 << 20 and done["Payload"] == event, str(done)[:500]
    # Nobody waits for one that writes on and on.
    assert ask("py", "chatter") == "answered"
    fails("py", "Runtime.ExitError", "crash")


def crowd():
    """Many at once, some of whom break what they are given: each has an answer of its own."""
    answers = {}

    def one(number):
        do = ["echo", "echo", "crash", "error"][number % 4]
        answers[number] = invoke("py", {"do": do, "number": number})

    for _ in range(3):
        answers.clear()
        threads = [threading.Thread(target=one, args=[number]) for number in range(CROWD)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == CROWD, answers
        ids = {done["ResponseMetadata"]["RequestId"] for done in answers.values()}
        assert len(ids) == CROWD, ids
        for number, done in answers.items():
            if number % 4 < 2:
                assert done["Payload"] == {"do": "echo", "number": number}, done
            else:
                kind = "Runtime.ExitError" if number % 4 == 2 else "ValueError"
                assert done["Payload"]["errorType"] == kind, done


def changes():
    first = aws.publish_version(FunctionName="py")["Version"]
    aws.get_waiter("published_version_active").wait(
        FunctionName="py", Qualifier=first, WaiterConfig=PATIENT)
    aws.create_alias(FunctionName="py", Name="live", FunctionVersion=first)
    aws.update_function_code(FunctionName="py", ZipFile=archive("app2"))
    # What served before serves until what is new is ready, and nobody is turned away meanwhile.
    seen = []
    while not seen or seen[-1] == "one":
        seen.append(ask("py", "version"))
    assert set(seen) <= {"one", "two"}, seen
    updated("py")
    assert {ask("py", "version") for _ in range(4)} == {"two"}
    done = invoke("py", {"do": "context"}, Qualifier="live")
    assert done["ExecutedVersion"] == "1", done
    assert (done["Payload"]["version"], done["Payload"]["arn"]) == ("1", ARN + "py:live"), done
    assert ask("py:live", "version") == "one"
    assert ask(ARN + "py:1", "version") == "one"


def hold(name, seconds):
    """Begins an event of a function that runs one at a time, and waits until another is refused.

    Gives the thread that waits for its answer, the answer once it is there, and the refusal."""
    held, refused = [], None

    def begin():
        while not held:
            try:
                held.append(ask(name, "sleep", **{"for": seconds}))
            except aws.exceptions.TooManyRequestsException:
                # It came while the other one ran.
                pass

    aws.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
    holder = threading.Thread(target=begin)
    holder.start()
    while refused is None and not held:
        try:
            ask(name, "version")
        except aws.exceptions.TooManyRequestsException as error:
            refused = error.response
    return holder, held, refused


def throttled():
    holder, held, refused = hold("py", 3)
    holder.join()
    assert held == ["slept"] and refused is not None, (held, refused)
    assert refused["ResponseMetadata"]["HTTPStatusCode"] == 429, refused
    assert refused["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded", refused
    assert int(refused["ResponseMetadata"]["HTTPHeaders"]["retry-after"]) >= 1, refused
    aws.delete_function_concurrency(FunctionName="py")
    assert ask("py", "version") == "two"


def broken():
    """What cannot be initialised says why, and what is left of it goes with it."""
    create("broken", "python3.11", "absent.handler", "app")
    try:
        active("broken")
    except WaiterError as error:
        shown = error.last_response["Configuration"]
        assert shown["State"] == "Failed", shown
        assert "No module named 'absent'" in shown["StateReason"], shown
    else:
        raise AssertionError("a function without a handler is active")
    aws.delete_function(FunctionName="broken")


def deleted():
    """An event that is under way when its function is deleted is carried out."""
    holder, held, _ = hold("short", 1)
    aws.delete_function(FunctionName="short")
    holder.join()
    assert held == ["slept"], held
    try:
        aws.invoke(FunctionName="short")
    except aws.exceptions.ResourceNotFoundException:
        pass
    else:
        raise AssertionError("a function that was deleted answers")


def streamed():
    event = {"long": "x" * 300_000}
    done = aws.invoke_with_response_stream(
        FunctionName="native", Payload=json.dumps(event), LogType="Tail")
    answer, complete = io.BytesIO(), None
    for frame in done["EventStream"]:
        if "PayloadChunk" in frame:
            answer.write(frame["PayloadChunk"]["Payload"])
        else:
            complete = frame["InvokeComplete"]
    assert json.loads(answer.getvalue()) == event
    assert "ErrorCode" not in complete and "REPORT" in log(complete), complete
    done = aws.invoke_with_response_stream(FunctionName="native", Payload=b'{"error": "as asked"}')
    *_, last = done["EventStream"]
    assert last["InvokeComplete"]["ErrorCode"] == "Unhandled", last
    assert "as asked" in last["InvokeComplete"]["ErrorDetails"], last


def main():
    create("py", "python3.11", "app.handler", "app", Timeout=30, MemorySize=128,
           EphemeralStorage={"Size": 512}, Environment={"Variables": {"MINE": "my own"}})
    create("short", "python3.11", "app.handler", "app", Timeout=10)
    create("native", "provided.al2023", "bootstrap", "echo", Timeout=30)
    create("node", "nodejs18.x", "index.echo", "node", Timeout=30)
    names = ["py", "short", "native", "node"]
    for name in names:
        active(name)
    for part in (answers, contract, errors, hostile, crowd, changes, throttled, streamed, broken,
                 deleted):
        began = time.time()
        part()
        print(f"{part.__name__}: {time.time() - began:.1f} s", flush=True)
    for name in ("py", "native", "node"):
        aws.delete_function(FunctionName=name)
    assert aws.list_functions()["Functions"] == []


main()
