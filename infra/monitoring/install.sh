#!/usr/bin/env bash
# Unpacks Debian's Prometheus, promtool and Pushgateway into a folder, for tests and experiments. Nothing is installed
# on the machine and no service is started. Idempotent; needs apt-get and dpkg-deb, but no root.
#   eval "$(./install.sh [-d FOLDER])"       puts them on the PATH
# stdout: only the export line; progress and errors: stderr.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
D=${MONITORING_DIR:-$here/../../build/monitoring}
while getopts d: o; do case $o in d) D=$OPTARG;; *) exit 2;; esac; done
say() { echo "monitoring: $*" >&2; }

PROGRAMS=(prometheus promtool prometheus-pushgateway)
missing() { for program in "${PROGRAMS[@]}"; do [ -x "$D/usr/bin/$program" ] || { echo "$program"; return; }; done; }
mkdir -p "$D"; D=$(cd "$D" && pwd -P)
exec 9>"$D/lock"; flock -w 120 9 || { say "another install.sh holds $D/lock"; exit 1; }
if [ -n "$(missing)" ]; then
  say "unpacking ${PROGRAMS[*]} into $D"
  download=$(mktemp -d "$D/download.XXXXXX"); trap 'rm -rf "$download"' EXIT
  fetch() { (cd "$download" && apt-get download -q "${PROGRAMS[@]}" >&2); }
  fetch || { SUDO=; ((EUID)) && SUDO=sudo; $SUDO apt-get update -q >&2; fetch; }
  for package in "$download"/*.deb; do dpkg-deb -x "$package" "$D"; done
fi
[ -z "$(missing)" ] || { say "$(missing) is not in Debian's packages; install it by hand"; exit 1; }
echo "export PATH=$D/usr/bin:\$PATH"
