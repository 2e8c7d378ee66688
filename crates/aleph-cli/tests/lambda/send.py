"""Sends two events as the SDK of CloudEvents makes them, and prints each in its JSON.

    send.py URL TRACEPARENT
"""

import json
import sys
import urllib.request

from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

URL, TRACEPARENT = sys.argv[1:]

for number, mode in enumerate((to_binary_event, to_structured_event)):
    event = CloudEvent(
        {"id": str(number), "source": "/shop", "type": "com.example.paid", "specversion": "1.0",
         "datacontenttype": "application/json", "traceparent": TRACEPARENT},
        {"order": number, "for": "Zoë"})
    message = mode(event)
    request = urllib.request.Request(URL, data=message.body, headers=message.headers)
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 202, answer.status
    print(json.dumps(json.loads(to_structured_event(event).body)))
