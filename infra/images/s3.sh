#!/usr/bin/env bash
# Runs infra/s3/up.sh in a container, with the port and the credentials of compose.yaml, until the container is stopped.
# Objects are kept in memory: containers may not make the system calls by which Ceph writes to a disk.
set -euo pipefail
export S3_HOST=0.0.0.0 S3_ACCESS_KEY=${AWS_ACCESS_KEY_ID:?} S3_SECRET_KEY=${AWS_SECRET_ACCESS_KEY:?} S3_BUCKET=local
trap 'down.sh -d /data; exit' TERM INT
up.sh -d /data -p 8333 -m >/dev/null # it prints the credentials
while kill -0 "$(cat /data/run/client.rgw.pid)" 2>/dev/null; do sleep 1 & wait $!; done
echo "s3: radosgw ended" >&2
exit 1
