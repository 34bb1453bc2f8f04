#!/usr/bin/env bash
# Tries an image that build.sh has built: who it runs as, what its layers hold, and what it is for. Run it by podman.sh.
#   smoke.sh TARGET IMAGE PATHS      PATHS: a file with the paths that must not be in the image, one per line
# Its containers have no network. stdout: nothing; progress and errors: stderr.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd) target=$1 image=$2 paths=$3
say() { echo "images: $target: $*" >&2; }
die() { say "$*"; exit 1; }
work=$(mktemp -d "${TMPDIR:-/tmp}/spin-smoke.XXXXXX") server=
trap '[ -z "$server" ] || podman rm --force --time 0 "$server" >/dev/null; rm -rf "$work"' EXIT
try() { podman run --rm --network none --cap-drop all --security-opt no-new-privileges "$@"; }

[ "$(try "$image" id -u)" = 10001 ] || die "runs as uid $(try "$image" id -u); expected 10001"
[ -n "$(podman image inspect "$image" --format '{{.HealthCheck}}')" ] || die "has no health check"
podman save --quiet --format docker-archive "$image" | tar -C "$work" -x
while IFS= read -r layer; do tar -tf "$work/$layer"; done < <(cd "$work" && ls -- *.tar) | sed 's/^\.*\/*//; s/\/$//' | sort -u >"$work/files"
rm -f "$work"/*.tar
{
  grep -xE 'etc/pip\.conf|(etc/xdg|root/\.config|root|home/spin/\.config)/\.?pip(/.*)?|run/secrets.*|.*/\.cache/pip(/.*)?' "$work/files" || :
  while IFS= read -r path; do
    case $path in "" | */ca-certificates.crt) ;; # the base has certificates of its own
      *) grep -xF "${path#/}" "$work/files" || : ;;
    esac
  done <"$paths"
} >"$work/leaks"
[ ! -s "$work/leaks" ] || die "a layer has what pip alone should see: $(tr '\n' ' ' <"$work/leaks"); expected nothing of it;" \
  "if another build with mounts left it in the cache, delete that by podman image prune, and build again"
for program in gcc cc make git; do ! grep -qx "usr/bin/$program" "$work/files" || die "has $program"; done

case $target in
  cpu)
    try "$image" spin --help >/dev/null || die "spin --help failed"
    try "$image" python -c 'import openvino' || die "has no OpenVINO; expected it with the extra pipelines"
    mkdir -m 777 "$work/saved"
    model() { try --env PYTHONPATH=/repository --env SPIN_CACHE=/tmp/cache --volume "$root/infra:/repository/infra:ro" \
      --volume "$root/tests:/repository/tests:ro" "$@"; }
    model --volume "$work/saved:/saved" "$image" python -m infra.images.smoke_model save /saved >&2 || die "training failed"
    model --volume "$work/saved:/saved:ro" --read-only "$image" python -m infra.images.smoke_model predict /saved >&2 ||
      die "no predictions from a saved folder"
    ;;
  mlflow)
    server=$(podman run --detach --network none "$image" mlflow server --host 127.0.0.1 --port 5000 --workers 1 \
      --backend-store-uri sqlite:////tmp/mlflow.db)
    for _ in $(seq 120); do # by the check of the image itself
      podman healthcheck run "$server" >/dev/null 2>&1 && exit
      [ "$(podman inspect "$server" --format '{{.State.Running}}')" = true ] || break
      sleep 0.5
    done
    podman logs "$server" 2>&1 | tail -n 20 >&2
    die "mlflow server does not answer /health"
    ;;
esac
