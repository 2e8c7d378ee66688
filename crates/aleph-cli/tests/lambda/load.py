"""Sends events for which nobody waits, one after another, and says which were accepted.

    load.py ENDPOINT FUNCTION FILE

A line of the file is the id of an event that the node has promised to carry out, and its number.
It goes on until its standard input ends, and a node that is away does not end it.
"""

import json
import select
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

ENDPOINT, FUNCTION, FILE = sys.argv[1:]

aws = boto3.client(
    "lambda",
    endpoint_url=ENDPOINT,
    region_name="us-east-1",
    aws_access_key_id="any",
    aws_secret_access_key="any",
    config=Config(retries={"total_max_attempts": 1}),
)


def is_over():
    return bool(select.select([sys.stdin], [], [], 0)[0])


number = 0
with open(FILE, "a", buffering=1) as accepted:
    while not is_over():
        number += 1
        try:
            done = aws.invoke(FunctionName=FUNCTION, InvocationType="Event",
                              Payload=json.dumps({"number": number}))
        except (BotoCoreError, ClientError):
            # Nobody has promised anything; while nobody is there a little patience is enough.
            time.sleep(0.05)
            continue
        assert done["StatusCode"] == 202, done
        accepted.write(f"{done['ResponseMetadata']['RequestId']} {number}\n")
        # All of them have to be over in the end, on however slow a host.
        time.sleep(0.05)
