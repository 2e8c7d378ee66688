#!/bin/sh
# A handler that is a program is a server, or starts one: it needs no client.
program="${LAMBDA_TASK_ROOT:-/var/task}/${_HANDLER:-}"
if [ -f "$program" ] && [ -x "$program" ]; then
    exec "$program"
fi
exec /usr/bin/node /var/runtime/aleph_start.js
