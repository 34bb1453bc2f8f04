#!/usr/bin/env bash
# Stops exactly the server and the PostgreSQL that up.sh started in DATADIR (the server by its process group, checked
# against each process's environment). The data stays; -x removes DATADIR as well, but nothing from S3.
#   ./down.sh [-d DATADIR] [-x]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../own_folder.sh"
D=${MLFLOW_DATA_DIR:-${TMPDIR:-/tmp}/spin-mlflow} X=0
while getopts d:x o; do case $o in d) D=$OPTARG;; x) X=1;; *) exit 2;; esac; done
[ -d "$D" ] || exit 0
own_folder "$D"
D=$(cd "$D" && pwd -P)
p=$(cat "$D/mlflow.pid" 2>/dev/null || :)
ours() { # pids of the server and its workers
  local q; [ -n "$p" ] || return 0
  for q in $(pgrep -g "$p"); do grep -qzxF "PGPASSFILE=$D/pgpass" "/proc/$q/environ" 2>/dev/null && echo "$q"; done || :
}
left=$(ours); [ -z "$left" ] || kill $left || :
for _ in $(seq 100); do left=$(ours); [ -n "$left" ] || break; sleep .1; done
if [ -n "$left" ]; then echo "mlflow: $(echo $left) did not end in 10 s, kill -9" >&2; kill -9 $left || :; fi
rm -f "$D/mlflow.pid"
if [ -e "$D/pg/postmaster.pid" ]; then
  ctl=("$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)/pg_ctl" -D "$D/pg" -m fast -w -t 30 stop)
  ((EUID)) || ctl=(runuser -u postgres -- "${ctl[@]}")
  (cd / && "${ctl[@]}" >/dev/null) || :
fi
if [ "$X" = 1 ] && [ -e "$D/secrets" ]; then rm -rf "$D"; fi
