#!/usr/bin/env bash
# Installs Debian's kustomize, with which the tests render infra/k8s; `kubectl kustomize` works too. Idempotent.
# stdout: nothing; progress and errors: stderr.
set -euo pipefail
say() { echo "kustomize: $*" >&2; }

command -v kustomize kubectl >/dev/null && exit
SUDO=; ((EUID)) && SUDO=sudo
say "installing kustomize"
$SUDO apt-get update -q >&2 || say "apt-get update failed; trying to install all the same"
$SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends kustomize >&2
