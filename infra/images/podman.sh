#!/usr/bin/env bash
# Runs a command with podman, which needs no daemon, and what the images and compose.yaml need beside it:
#   podman.sh COMMAND [ARG...]
# Installs the Debian packages that are missing. Progress and errors: stderr.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
say() { echo "podman: $*" >&2; }

need=(); have() { command -v "$1" >/dev/null || need+=("$2"); }
PATH=$PATH:/usr/sbin:/sbin
have podman podman; have runc runc; have catatonit catatonit; have nft nftables; have iptables iptables
have docker-compose docker-compose; have debootstrap debootstrap
for helper in netavark aardvark-dns; do [ -x "/usr/lib/podman/$helper" ] || need+=("$helper"); done
if ((${#need[@]})); then
  SUDO=; ((EUID)) && SUDO=sudo
  say "installing ${need[*]}"
  $SUDO apt-get update -q >&2 || say "apt-get update failed; trying to install all the same"
  $SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${need[@]}" >&2
fi
export CONTAINERS_CONF_OVERRIDE=$here/containers.conf
export PODMAN_IGNORE_CGROUPSV1_WARNING=1 # only a notice; runc runs under both
exec "$@"
