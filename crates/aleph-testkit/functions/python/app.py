"""Functions for tests, one for each way to end."""

import os
import random
import secrets
import ssl
import sys
import time
import uuid


def echo(event, context):
    print("handling", context.aws_request_id)
    return event


def error(event, context):
    raise ValueError(event.get("message", "as asked"))


def crash(event, context):
    os._exit(3)


def hang(event, context):
    # In steps, so that one that nobody ends is no sleep for ever.
    for _ in range(3600):
        time.sleep(1)


def env(event, context):
    return {"env": dict(os.environ), "path": sys.path, "cwd": os.getcwd()}


# Everything that is drawn here is drawn before a snapshot.
random.random()
ssl.RAND_bytes(16)
uuid.uuid1()


def noise(event, context):
    """What no two clones may have in common."""
    return {
        "random": random.getrandbits(64),
        "secrets": secrets.token_hex(16),
        "urandom": os.urandom(16).hex(),
        "openssl": ssl.RAND_bytes(16).hex(),
        "uuid1": str(uuid.uuid1()),
        "uuid4": str(uuid.uuid4()),
        "node": uuid.getnode(),
    }
