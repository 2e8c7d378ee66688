"""Reads answers of a URL that streams, one of which is whole.

    stream.py PORT HOST
"""

import http.client
import sys

PORT, HOST = sys.argv[1:]


def begin(path):
    connection = http.client.HTTPConnection("127.0.0.1", int(PORT), timeout=120)
    connection.request("GET", path, headers={"Host": HOST})
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("x-own")) == (207, "1"), answer.getheaders()
    assert answer.headers.get_all("set-cookie") == ["a=1", "b=2"], answer.getheaders()
    return answer


answer = begin("/whole")
assert answer.read() == b"first of GET /whole\nsecond\n"

# What is written comes while the function still runs, which it does until its time is over.
answer = begin("/hang")
assert answer.readline() == b"first of GET /hang\n"
try:
    rest = answer.read()
except http.client.IncompleteRead as error:
    assert error.partial == b"", error.partial
else:
    raise AssertionError(f"a whole answer: {rest}")
