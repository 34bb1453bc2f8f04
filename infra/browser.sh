#!/usr/bin/env bash
# Installs Debian's Chromium, in which the tests open the pages that SPIN writes. Idempotent.
# stdout: nothing; progress and errors: stderr.
set -euo pipefail
say() { echo "browser: $*" >&2; }

command -v chromium >/dev/null && exit
SUDO=; ((EUID)) && SUDO=sudo
say "installing chromium"
$SUDO apt-get update -q >&2 || say "apt-get update failed; trying to install all the same"
$SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium >&2
