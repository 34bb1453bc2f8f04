#!/usr/bin/env bash
# Stops exactly the three processes that up.sh started in DATADIR (by pid file, checked
# against the process's command line). The data stays; -x removes DATADIR as well.
#   ./down.sh [-d DATADIR] [-x]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../own_folder.sh"
D=${S3_DATA_DIR:-${TMPDIR:-/tmp}/spin-s3} X=0
while getopts d:x o; do case $o in d) D=$OPTARG;; x) X=1;; *) exit 2;; esac; done
[ -d "$D" ] || exit 0
own_folder "$D"
D=$(cd "$D" && pwd -P)
ours() { tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null | grep -qF -- "-c $D/ceph.conf "; }
for n in client.rgw osd.0 mon.a; do     # in this order: the osd says goodbye to the mon
  p=$(cat "$D/run/$n.pid" 2>/dev/null) || continue
  [ -n "$p" ] && ours "$p" || { rm -f "$D/run/$n.pid"; continue; }
  kill "$p" || :
  for _ in $(seq 100); do ours "$p" || break; sleep .1; done
  if ours "$p"; then echo "s3: $n ($p) did not end in 10 s, kill -9" >&2; kill -9 "$p" || :; fi
  rm -f "$D/run/$n.pid"
done
if [ "$X" = 1 ] && [ -e "$D/ceph.conf" ]; then rm -rf "$D"; fi
