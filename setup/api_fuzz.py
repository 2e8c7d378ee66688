#!/usr/bin/env python3
"""Throws malformed requests at the API of a node of its own, by schemathesis.

    setup/api_fuzz.py PROGRAM [EXAMPLES_FOR_EACH_OPERATION]

PROGRAM is run with a configuration file as its last argument, such as "target/release/aleph up -c".
It fails where an answer is not as openapi.json says, where one is a server's error, and where
the node leaves a VM behind. The module is also schemathesis' file of hooks.
"""

import http.client
import json
import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

VERSION = "4.32.5"
HERE = Path(__file__).resolve()
TARGET = HERE.parent.parent / "target"
DOCUMENT = HERE.parent.parent / "crates/aleph-control/openapi.json"
# What is asked about a job that is there: nothing that ends it.
SAFE = ("GET", "HEAD", "PUT")


def hooks():
    import schemathesis

    @schemathesis.serializer("application/x-tar")
    def tar(_context, value):
        return value if isinstance(value, bytes) else str(value).encode()

    @schemathesis.hook
    def before_call(_context, case, kwargs):
        # An operator on the Unix socket sends no token.
        for headers in (case.headers, kwargs.get("headers")):
            if headers is not None and random.random() < 0.9:
                headers.pop("Authorization", None)
        # What would stream or wait for ever does not. Parts of cases are shared: never changed.
        query = case.query if isinstance(case.query, dict) else {}
        if case.path == "/v1/events" or "follow" in query:
            case.query = {**query, "follow": "false"}
        if case.path.endswith(("/wait", "/stop", "/restart")):
            case.query = {**query, "timeout": random.choice([0, 0, 0, -1, "x"])}
        if case.path == "/v1/prune" and isinstance(case.body, dict):
            case.body = {**case.body, "dry_run": True}
        # Names made up at random lead nowhere.
        if "{job}" in case.path and random.random() < 0.5:
            names = ["made", "over"]
            if case.method.upper() in SAFE or case.path.endswith("/start"):
                names.append("live")
            case.path_parameters = {**case.path_parameters, "job": random.choice(names)}


def ask(path, method, where, body=None):
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    headers = {"content-type": "application/json"} if body else {}
    connection.request(method, where, json.dumps(body) if body else None, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def pump(source, target):
    how = socket.SHUT_WR
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        how = socket.SHUT_RDWR
    # A connection that broke on one side must not seem to live on the other.
    for end in (target,) if how == socket.SHUT_WR else (target, source):
        try:
            end.shutdown(how)
        except OSError:
            pass


def proxy(path):
    """A TCP port that leads to the socket, for schemathesis speaks no other way."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def serve():
        while True:
            client, _ = listener.accept()
            node = socket.socket(socket.AF_UNIX)
            node.connect(str(path))
            for pair in ((client, node), (node, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def tool():
    venv = TARGET / "schemathesis"
    program = venv / "bin/schemathesis"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip = [venv / "bin/pip", "install", "--quiet", f"schemathesis=={VERSION}"]
        subprocess.run(pip, check=True)
    return program


def main(program, examples):
    schemathesis = tool()
    root = Path(tempfile.mkdtemp(prefix="aleph-fuzz-"))
    # A busybox image and a kernel bundle, as tests have them; made ones may go.
    for store in ("images", "kernels"):
        shutil.copytree(TARGET / "test-root" / store, root / store, symlinks=True)
    config = root / "aleph.toml"
    config.write_text(
        f'[node]\nroot = "{root}"\n[executor]\naccel = "tcg"\n[network]\nenabled = false\n'
        '[limits]\nreserved_memory = "0m"\n'
    )
    node = subprocess.Popen([*shlex.split(program), str(config)])
    try:
        path = root / "run/aleph.sock"
        while not path.exists():
            assert node.poll() is None, "the node ended"
            time.sleep(0.05)
        jobs = {"made": ["true"], "over": ["true"], "live": ["sleep", "100000"]}
        for name, command in jobs.items():
            spec = {"name": name, "image": "busybox", "command": command}
            start = "false" if name == "made" else "true"
            status, text = ask(path, "POST", f"/v1/jobs?start={start}", spec)
            assert status == 201, text
        for name, state in (("live", "running"), ("over", "exited")):
            status, text = ask(path, "GET", f"/v1/jobs/{name}/wait?state={state}")
            assert status == 200, text
        checks = "not_a_server_error,status_code_conformance,"
        checks += "content_type_conformance,response_schema_conformance"
        command = [
            schemathesis, "run", DOCUMENT, "--url", f"http://127.0.0.1:{proxy(path)}",
            "--checks", checks, "--max-examples", examples, "--request-timeout", "60",
            "--phases", "examples,coverage,fuzzing", "--no-color",
        ]
        environment = {
            **os.environ,
            "SCHEMATHESIS_HOOKS": HERE.stem,
            "PYTHONPATH": str(HERE.parent),
        }
        failed = subprocess.run(command, env=environment).returncode
        counts = {}
        for line in ask(path, "GET", "/metrics")[1].splitlines():
            if line.startswith("aleph_api_requests_total"):
                status = line.split('status="')[1].split('"')[0]
                counts[status] = counts.get(status, 0) + int(line.split()[-1])
        print(f"{sum(counts.values())} requests, by status: {dict(sorted(counts.items()))}")
        errors = sum(n for status, n in counts.items() if status.startswith("5"))
        listed = json.loads(ask(path, "GET", "/v1/jobs?limit=1000")[1])["jobs"]
        for job in listed:
            ask(path, "DELETE", f"/v1/jobs/{job['id']}?force=true")
        left = list((root / "vms").glob("[!.]*"))
        assert not left, f"VMs are left: {left}"
        return 1 if failed or errors else 0
    finally:
        node.terminate()
        node.wait(60)
        shutil.rmtree(root)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "300"))
else:
    hooks()
