#!/usr/bin/env bash
# The nightly run on a Ray cluster, here of one machine; on a real cluster only the address differs.
# Needs the project of `make quickstart`. Paths are absolute, since they are resolved on the nodes of the cluster.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH" RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265
project="$PWD/runs/quickstart"

ray start --head --num-cpus 4 --dashboard-host 127.0.0.1 >/dev/null
trap 'ray stop >/dev/null' EXIT
cd "$project" # of which the settings file alone is sent to the cluster

spin submit classify settings.yaml --input "$project/tonight.parquet" --output "$project/nights" --set "store=$project"
spin jobs
