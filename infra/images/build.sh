#!/usr/bin/env bash
# Builds the images of infra/Dockerfile, and those of services.Dockerfile for compose.local.yaml, without Docker and
# without a registry, and tries cpu and mlflow. Run it by podman.sh, as `make images` does.
#   build.sh [TARGET...]      default: cpu mlflow cuda
# BASE is the image to build on, by default one that base.sh makes with $PYTHON, and TORCH_INDEX the index that has
# torch for processors, by default PyTorch's if it answers, else pip's own. stdout: size and seconds of each image.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PYTHON=${PYTHON:-python3} PYTORCH=https://download.pytorch.org/whl/cpu
say() { echo "images: $*" >&2; }
die() { say "$*"; exit 1; }
(($#)) || set -- cpu mlflow cuda
for target; do [[ $target =~ ^(cpu|mlflow|cuda)$ ]] || die "no target $target; expected cpu, mlflow or cuda"; done
show() { printf '%-28s %8.2f GB %6d s\n' "$1" "$(podman image inspect "$1" --format '{{.Size}}' | awk '{print $1 / 1e9}')" "$took"; }
list_containers() { podman ps --all --external --quiet --filter ancestor="$BASE" 2>/dev/null | sort || :; }
finish() { # an interrupted build leaves its containers
  list_containers | comm -13 <(echo "$before") - | xargs -r podman rm --force >/dev/null
  rm -rf "$work"
}

before=
work=$(mktemp -d "${TMPDIR:-/tmp}/spin-images.XXXXXX")
trap finish EXIT
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/pyproject.toml")
if [ -z "${BASE:-}" ]; then
  BASE=localhost/spin-base:python$("$PYTHON" -Ic 'import sys; print("%d.%d" % sys.version_info[:2])')
  if ! podman image exists "$BASE"; then
    "$here/base.sh" "$BASE"
    took=$SECONDS
    show "$BASE"
  fi
fi
before=$(list_containers)

# pip installs from where it installs on this machine: its configuration is a secret, what that names is mounted
"$PYTHON" "$here/pip_config.py" "$work/pip.conf" >"$work/paths"
if [ -z "${TORCH_INDEX:-}" ] && curl -sfI -m 20 -o /dev/null "$PYTORCH/torch/"; then TORCH_INDEX=$PYTORCH; fi
# else buildah asks for more than a process without CAP_SYS_RESOURCE may have
limit() { local value; value=$(ulimit -H"$1"); echo "${value/unlimited/-1}"; }
common=(--format docker --build-arg BASE="$BASE" --ulimit nofile="$(limit n):$(limit n)" --ulimit nproc="$(limit u):$(limit u)")
options=("${common[@]}" --layers --build-arg TORCH_INDEX="${TORCH_INDEX:-}") mounts=()
while IFS= read -r path; do [ -z "$path" ] || mounts+=(--volume "$path:$path:ro"); done <"$work/paths"

build() { # a name, then what podman builds; the output is shown if it fails
  local name=$1 start=$SECONDS; shift
  say "building $name"
  podman build "$@" >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; die "$name could not be built"; }
  took=$((SECONDS - start))
}

# first what is common to the images, without mounts, each of which would leave an empty folder in it
build "their common part" "${options[@]}" --file "$root/infra/Dockerfile" --target run "$root"
for target; do
  build "$target" "${options[@]}" --secret id=pip,src="$work/pip.conf" "${mounts[@]}" \
    --file "$root/infra/Dockerfile" --target "$target" --tag "spin:$version-$target" "$root"
  show "localhost/spin:$version-$target"
  [ "$target" = cuda ] || "$here/smoke.sh" "$target" "localhost/spin:$version-$target" "$work/paths"
done
for target in postgres s3; do
  build "$target" "${common[@]}" --file "$here/services.Dockerfile" --target $target --tag "spin-$target:local" "$root/infra"
  show "localhost/spin-$target:local"
done
