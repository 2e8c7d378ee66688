"""URLs of functions that only who signs may call, signed as botocore does.

    lambda_urls.py ENDPOINT
"""

import json
import sys
import urllib.error
import urllib.request

import boto3
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

ENDPOINT = sys.argv[1]
PORT = ENDPOINT.rsplit(":", 1)[1]
KEYS = {"AKIDTEAM": "se/cr+et", "AKIDOTHER": "secret"}


def client(key):
    return boto3.client(
        "lambda", endpoint_url=ENDPOINT, region_name="us-east-1", aws_access_key_id=key,
        aws_secret_access_key=KEYS[key], config=Config(retries={"total_max_attempts": 1}))


def call(url, key=None, method="GET", body=b"", change=None, **headers):
    """The status and the JSON of an answer. What is changed is changed once it is signed."""
    request = AWSRequest(method=method, url=url, data=body, headers=headers)
    if key:
        SigV4Auth(Credentials(key, KEYS[key]), "lambda", "us-east-1").add_auth(request)
    sent = request.prepare()
    if change:
        body = change
    # Not every resolver knows names below localhost; what is signed is the name.
    host = url.split("/")[2]
    there = url.replace(host, f"127.0.0.1:{PORT}", 1)
    plain = urllib.request.Request(
        there, data=body or None, method=method, headers={**dict(sent.headers), "Host": host})
    try:
        with urllib.request.urlopen(plain) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


aws = client("AKIDTEAM")
aws.create_function(
    FunctionName="mine", Runtime="python3.11", Role="arn:aws:iam::000000000000:role/any",
    Handler="echo", Code={"ZipFile": b"PK mine"})
aws.get_waiter("function_active_v2").wait(FunctionName="mine", WaiterConfig={"Delay": 0.1, "MaxAttempts": 3000})
url = aws.create_function_url_config(
    FunctionName="mine", AuthType="AWS_IAM",
    Cors={"AllowOrigins": ["https://app.example.com"], "AllowMethods": ["*"]})["FunctionUrl"]

for path, body in (("", b""), ("a/b%20c//d/e?z=1&a=%C3%BC&flag", b'{"a": 1}')):
    status, event = call(url + path, "AKIDTEAM", "POST" if body else "GET", body)
    assert status == 200, (path, event)
    iam = event["requestContext"]["authorizer"]["iam"]
    assert iam["accessKey"] == "AKIDTEAM", iam
    assert event["requestContext"]["accountId"] == iam["accountId"], event
    assert "authorization" not in event["headers"], event

forbidden = {"Type": "User", "Message": "Forbidden", "message": "Forbidden"}
for refused in (
    call(url),
    call(url, "AKIDOTHER"),
    call(url, "AKIDTEAM", "POST", b"1", change=b"2"),
    call(url, Authorization="Bearer x"),
):
    assert refused == (403, forbidden), refused

# Whoever has a URL that was signed needs no key.
presigned = AWSRequest(method="GET", url=url + "a?x=1")
keys = Credentials("AKIDTEAM", KEYS["AKIDTEAM"])
SigV4QueryAuth(keys, "lambda", "us-east-1", expires=60).add_auth(presigned)
status, event = call(presigned.url)
assert status == 200 and event["rawPath"] == "/a", event
assert event["requestContext"]["authorizer"]["iam"]["accessKey"] == "AKIDTEAM", event
assert call(presigned.url.replace("x=1", "x=2")) == (403, forbidden)

# A browser asks before it signs.
preflight = urllib.request.Request(
    f"http://127.0.0.1:{PORT}/", method="OPTIONS",
    headers={"Host": url.split("/")[2], "Origin": "https://app.example.com",
             "Access-Control-Request-Method": "POST"})
with urllib.request.urlopen(preflight) as answer:
    assert answer.headers["access-control-allow-methods"] == "*", answer.headers

# By its name it is that of who signs.
named = f"{ENDPOINT}/lambda-url/mine/x"
status, event = call(named, "AKIDTEAM")
assert (status, event["rawPath"]) == (200, "/x"), event
assert call(named, "AKIDOTHER")[0] == 403
assert call(named)[0] == 403

# A signature for one path is good for no other, and one that is wrong is not overlooked.
status, _ = call(f"{ENDPOINT}/lambda-url/other/../mine/x", "AKIDTEAM")
assert status == 403

# One that is open needs no key.
aws.update_function_url_config(FunctionName="mine", AuthType="NONE")
status, event = call(url)
assert status == 200 and event["requestContext"]["accountId"] == "anonymous", event
# By its name it is that of who signs, and nobody else finds it.
assert call(named, "AKIDTEAM")[0] == 200
forged = AWSRequest(method="GET", url=named)
SigV4Auth(Credentials("AKIDTEAM", "guessed"), "lambda", "us-east-1").add_auth(forged)
assert call(named, **dict(forged.prepare().headers)) == (403, forbidden)
assert call(named) == (403, forbidden)
aws.delete_function(FunctionName="mine")
assert call(url)[0] == 403
