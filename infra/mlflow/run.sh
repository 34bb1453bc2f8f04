#!/usr/bin/env bash
# Runs a command with a real MLflow server started for it, and stops the server afterwards: run.sh COMMAND [ARG...]
# Within infra/s3/run.sh its artifacts are stored in S3. MLFLOW is the mlflow to run, by default the one next to COMMAND.
# If the server cannot be installed, the command runs without it: tests that need it are skipped, and fail in CI.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
data=$(mktemp -d "${TMPDIR:-/tmp}/spin-mlflow.XXXXXX")
trap '"$here"/down.sh -d "$data" -x || :; rm -rf "$data"' EXIT
beside=${1%/*}/mlflow
[ -x "$beside" ] || beside=
free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
for port in $(seq 5000 7 5700); do free "$port" && break; done
if settings=$(MLFLOW=${MLFLOW:-$beside} "$here"/up.sh -d "$data" -p "$port"); then eval "$settings"; else echo "mlflow: no server; going on without" >&2; fi
"$@"
