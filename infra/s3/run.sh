#!/usr/bin/env bash
# Runs a command with a real S3 server started for it, which keeps its data in memory, and stops the server afterwards:
# run.sh COMMAND [ARG...]
# If the server cannot be installed, the command runs without it: tests that need it are skipped, and fail in CI.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
data=$(mktemp -d "${TMPDIR:-/tmp}/spin-s3.XXXXXX")
trap '"$here"/down.sh -d "$data" -x || :; rm -rf "$data"' EXIT
free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
for port in $(seq 7480 60 8380); do free "$port" && free $((port + 1)) && break; done
if settings=$("$here"/up.sh -d "$data" -p "$port" -m); then eval "$settings"; else echo "s3: no server; going on without" >&2; fi
"$@"
