#!/usr/bin/env python3
"""A function that is an HTTP server: what Python has, and no client of anything.

`/events` answers with its event, or does what it is called: `exit`, `hang`, `fail`. `/stream`
answers in as many lines as its query says; any other path tells what was asked for.
"""

import json
import os
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

served = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "a=1")
        self.end_headers()
        self.wfile.write(body)

    def read(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        global served
        served += 1
        body = self.read()
        if self.path != "/events":
            return self.tell(body)
        event = json.loads(body)
        if event == "exit":
            os._exit(3)
        if event == "hang":
            for _ in range(3600):
                time.sleep(1)
        if event == "fail":
            return self.answer(503, {"why": "as asked"})
        self.answer(200, {"event": event, "served": served})

    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path != "/stream":
            return self.tell(self.read())
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in range(int(query)):
            piece = b"%1023d\n" % line
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    do_PUT = do_GET

    def tell(self, body):
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.answer(201, {"method": self.command, "path": self.path, "headers": headers,
                          "body": body.decode()})


if __name__ == "__main__":
    port = int(os.environ["PORT"])
    print("listening on port", port, flush=True)
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()
