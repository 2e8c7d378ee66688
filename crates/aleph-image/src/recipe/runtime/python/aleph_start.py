"""Starts a function: its paths, what makes a clone of it unlike the others, and AWS's client.

A snapshot is taken after a function has loaded, and resumed many times: whatever was random
before is the same in all of them, until `reseed` has run. The client runs it once the runtime
API has answered `restore/next`, before the function's own hooks and before any event.

What `reseed` cannot reach: instances of `random.Random` and of other generators that a function
keeps, as numpy's; libraries that carry an OpenSSL of their own, as cryptography's wheels do; the
seed of `hash()` of strings; and values that were drawn before, such as ids kept in variables. A
function with those registers a hook of its own: `snapshot_restore_py.register_after_restore`.
"""

import os
import sys


def reseed():
    """Gives the generators of the standard library what only this clone has."""
    modules = sys.modules
    if "random" in modules:
        modules["random"].seed()
    if "_ssl" in modules:
        # Reseeds OpenSSL's first generator from the kernel; those of threads follow it before
        # they give another byte.
        modules["_ssl"].RAND_add(os.urandom(32), 32.0)
    if "uuid" in modules:
        uuid = modules["uuid"]
        # The library of C behind this one keeps its clock sequence where nobody can reset it.
        uuid._generate_time_safe = None
        uuid._last_timestamp = None
        # Random as RFC 4122 has it (4.5): asking the system takes other programs.
        uuid._node = int.from_bytes(os.urandom(6), "big") | (1 << 40)
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None


def main():
    task_root = os.environ.setdefault("LAMBDA_TASK_ROOT", "/var/task")
    handler = os.environ.get("_HANDLER")
    if not handler:
        sys.exit("the environment has no _HANDLER: which function should run?")
    program = os.path.join(task_root, handler)
    if os.path.isfile(program) and os.access(program, os.X_OK):
        # A server, or a script that starts one: it needs no client.
        os.execv(program, [program])
    runtime = sys.path[0]
    layers = ["/opt/python/lib/python3.11/site-packages", "/opt/python"]
    # A function's modules come first, as in Lambda, and the client's last.
    rest = [path for path in sys.path if path != runtime]
    sys.path[:] = [task_root, *layers, *rest, runtime]
    if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start":
        from snapshot_restore_py import register_after_restore

        register_after_restore(reseed)
    from awslambdaric.__main__ import main as run

    run([sys.argv[0], handler])
