"""A function that does what its event says: `do` names it."""

import json
import os
import sys
import threading
import time

VERSION = "one"
# What follows in one clone is counted; a new clone begins at nought.
served = 0


def handler(event, context):
    global served
    served += 1
    return globals()["do_" + event["do"]](event, context)


def do_echo(event, context):
    print("handling", context.aws_request_id)
    return event


def do_version(event, context):
    return VERSION


def do_served(event, context):
    return served


def do_error(event, context):
    raise ValueError("as asked")


def do_crash(event, context):
    os._exit(3)


def do_leave(event, context):
    sys.exit(4)


def do_kill(event, context):
    os.kill(os.getpid(), 9)


def do_hang(event, context):
    for _ in range(3600):
        time.sleep(1)


def do_sleep(event, context):
    time.sleep(event["for"])
    return "slept"


def do_fork(event, context):
    # Each child goes on as its parent does, for as long as the clone lives.
    while True:
        try:
            os.fork()
        except OSError:
            pass


def do_memory(event, context):
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20)))


def do_fill(event, context):
    written = 0
    try:
        with open("/tmp/full", "wb", buffering=0) as file:
            while True:
                written += file.write(bytes(1 << 20))
    except OSError as error:
        return {"errno": error.errno, "written": written}
    finally:
        os.unlink("/tmp/full")


def do_big(event, context):
    return "x" * event["bytes"]


def do_logs(event, context):
    line = b"y" * 1023 + b"\n"
    left = event["bytes"]
    while left > 0:
        left -= os.write(1, (line * 64)[:left])
    os.write(1, b"\n")
    print("the last line")
    return "written"


def do_chatter(event, context):
    def write():
        while True:
            os.write(1, b"z" * 4096)

    threading.Thread(target=write, daemon=True).start()
    return "answered"


def do_env(event, context):
    return {"env": dict(os.environ), "cwd": os.getcwd()}


def do_context(event, context):
    client = context.client_context
    return {
        "request": context.aws_request_id,
        "left": context.get_remaining_time_in_millis(),
        "arn": context.invoked_function_arn,
        "name": context.function_name,
        "version": context.function_version,
        "memory": context.memory_limit_in_mb,
        "group": context.log_group_name,
        "stream": context.log_stream_name,
        "custom": client and client.custom,
        "app": client and client.client and client.client.app_title,
        "trace": os.environ.get("_X_AMZN_TRACE_ID"),
        "now": time.time(),
    }


def work(event, context):
    """Carries an event out, where its number is even; what it says names the event either way."""
    said = json.dumps({"request": context.aws_request_id, "number": event["number"]})
    if event["number"] % 2:
        raise RuntimeError(said)
    return said


def witness(event, context):
    """Has what it is told of written down: an event that fails ends as a dead letter."""
    raise RuntimeError(event["requestContext"]["requestId"])


def web(event, context):
    """Answers a request to its URL."""
    http = event["requestContext"]["http"]
    if event["rawPath"] == "/error":
        raise ValueError("as asked")
    told = {
        "method": http["method"],
        "path": event["rawPath"],
        "query": event.get("queryStringParameters"),
        "body": event.get("body"),
        "encoded": event["isBase64Encoded"],
        "trace": os.environ.get("_X_AMZN_TRACE_ID"),
        "request": context.aws_request_id == event["requestContext"]["requestId"],
    }
    return {
        "statusCode": 201,
        "headers": {"Content-Type": "application/json", "X-Own": "yes"},
        "cookies": ["a=1", "b=2; Secure"],
        "body": json.dumps(told),
    }


def told(event, context):
    """Has an event that was sent to it written down: one that fails ends as a dead letter."""
    raise RuntimeError(json.dumps({
        "event": event,
        "trace": os.environ.get("_X_AMZN_TRACE_ID"),
        "request": context.aws_request_id,
    }))
def tell(event, context):
    """Has its event written down: one that fails ends as a dead letter."""
    # Long enough that what kills the daemon comes while there is an event.
    time.sleep(0.2)
    raise RuntimeError("told")


def reply(event, context):
    [record] = event["Records"]
    return {"subject": record["subject"], "data": record["data"]}
