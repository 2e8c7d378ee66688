#!/bin/sh
# Becomes the function's own program: the first of these that is there.
for program in "${LAMBDA_TASK_ROOT:-/var/task}/bootstrap" /opt/bootstrap; do
    [ ! -x "$program" ] || exec "$program" "$@"
    [ ! -e "$program" ] || { echo "$program is not executable" >&2; exit 126; }
done
echo "there is no bootstrap in /var/task or /opt" >&2
exit 127
