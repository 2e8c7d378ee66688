"""Sends events as the SDK of CloudEvents makes them, and prints each in its JSON.

    lambda_cloudevents.py URL
"""

import json
import sys
import urllib.request
from datetime import datetime, timezone

from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

URL = sys.argv[1]


def event(number, data, kind, **more):
    attributes = {"id": f"{number:03}", "source": "https://example.com/a b", "type": "com.example.t",
                  "specversion": "1.0", "subject": 'Zoë "quoted" 100%', **more}
    if kind:
        attributes["datacontenttype"] = kind
    return CloudEvent(attributes, data)


def send(message):
    request = urllib.request.Request(URL, data=message.body or b"", headers=message.headers)
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 202, answer.status


EVENTS = [
    event(1, {"n": [1, 2.5, "é"]}, "application/json"),
    event(2, "plain é", "text/plain"),
    event(3, bytes(range(256)), "application/octet-stream"),
    event(4, {"n": 1}, "application/json", time=datetime(2026, 11, 28, 20, tzinfo=timezone.utc),
          myext="value"),
]

for made in EVENTS:
    send(to_binary_event(made))
    print(json.dumps(json.loads(to_structured_event(made).body)))
for made in EVENTS:
    # The same again, as other events.
    attributes = {**made.get_attributes(), "id": "1" + made.get_attributes()["id"]}
    other = CloudEvent(attributes, made.get_data())
    message = to_structured_event(other)
    send(message)
    print(json.dumps(json.loads(message.body)))
