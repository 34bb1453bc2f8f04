#!/usr/bin/env bash
# A real MLflow server: basic authentication, its data in a PostgreSQL of its own (Unix socket only), artifacts
# through the server to S3 where AWS_ENDPOINT_URL names one (infra/s3), else to a folder. On 127.0.0.1. Idempotent:
# run it again to start whatever is not running; the data in DATADIR is kept.
#   eval "$(./up.sh [-d DATADIR] [-p PORT] [-a ARTIFACTS])"    stop: ./down.sh [-d DATADIR] [-x]
# stdout: only the export line; progress and errors: stderr. ARTIFACTS, a folder or s3:// prefix, is fixed when
# DATADIR is first created. MLFLOW is the mlflow to run, by default that of .venv or of the PATH.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../own_folder.sh"
D=${MLFLOW_DATA_DIR:-${TMPDIR:-/tmp}/spin-mlflow} PORT=${MLFLOW_PORT:-5000} ARTIFACTS=
while getopts d:p:a: o; do case $o in d) D=$OPTARG;; p) PORT=$OPTARG;; a) ARTIFACTS=$OPTARG;; *) exit 2;; esac; done
say() { echo "mlflow: $*" >&2; }
die() { say "$*"; tail -n 5 "$D"/log/*.log >&2 2>/dev/null || :; exit 1; }

make_own_folder "$D"; D=$(cd "$D" && pwd -P)
for m in "${MLFLOW:-}" "$here/../../.venv/bin/mlflow" "$(command -v mlflow || :)"; do [ -x "$m" ] && break; done
[ -x "$m" ] || die "no mlflow in .venv or on the PATH: make setup, or set MLFLOW"
MLFLOW=$(cd "$(dirname "$m")" && pwd)/mlflow
"$(dirname "$MLFLOW")/python" -c 'import flask_wtf, psycopg2' 2>/dev/null ||
  die "$MLFLOW lacks its server's packages: pip install 'spin-neurons[server]'"
SUDO=; ((EUID)) && SUDO=sudo
pg_bin() { ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1; }
if [ ! -x "$(pg_bin)/initdb" ]; then
  say "installing postgresql"             # without the cluster that Debian would make and start
  quiet=/etc/postgresql-common/createcluster.d/spin.conf
  $SUDO mkdir -p "${quiet%/*}"; echo "create_main_cluster = false" | $SUDO tee "$quiet" >/dev/null
  $SUDO apt-get update -q >&2 || say "apt-get update failed; trying to install all the same"
  $SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends postgresql >&2 || :
  $SUDO rm -f "$quiet"
  [ -x "$(pg_bin)/initdb" ] || die "postgresql could not be installed"
fi
PG=$(pg_bin)

[[ ${#D} -le 80 && $D != *[^A-Za-z0-9/._-]* ]] || die "DATADIR: at most 80 characters (unix sockets), of A-Za-z0-9/._-"
umask 077
exec 9>"$D/lock"; flock -w 120 9 || die "another up.sh holds $D/lock"
db() { "$@"; }                           # PostgreSQL does not run as root
if ((EUID == 0)); then
  db() { (cd / && exec runuser -u postgres -- "$@"); }
  chmod 711 "$D"; db test -x "$D" || die "the user postgres may not enter $D: choose another DATADIR (-d)"
fi
secret() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; }
server() { local p; p=$(cat "$D/mlflow.pid" 2>/dev/null) && [ -n "$p" ] && tr '\0' ' ' 2>/dev/null <"/proc/$p/cmdline"; }
running() { [[ "$(server)" == *"host=$D/pg "* ]]; } # a live process with our database
in_use() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

if [ ! -e "$D/created" ]; then           # first time: the databases, the passwords, where artifacts go
  ! running || die "a half-made server runs in $D: down.sh first"
  say "making the databases"
  rm -rf "$D"/{pg,log,artifacts,secrets,pgpass,auth.ini}; mkdir -p "$D/log"
  if [ -z "$ARTIFACTS" ]; then
    ARTIFACTS=$D/artifacts
    [ -z "${AWS_ENDPOINT_URL:-}" ] || ARTIFACTS=s3://spin/mlflow-$(cat /proc/sys/kernel/random/uuid)
  fi
  DATABASE=$(secret)
  printf '%s\n' "ADMIN=$(secret)" "FLASK=$(secret)" "ARTIFACTS=$(printf %q "$ARTIFACTS")" >"$D/secrets"
  echo "*:*:*:mlflow:$DATABASE" >"$D/pgpass"
  cat >"$D/auth.ini" <<INI
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = postgresql://mlflow@/mlflow_auth?host=$D/pg
# one worker, so that no other still accepts a password that was changed
auth_cache_ttl_seconds = 60
INI
  mkdir "$D/pg"; ((EUID)) || chown postgres: "$D/pg"
  db "$PG/initdb" -D "$D/pg" -U postgres -A reject -E UTF8 --locale=C.UTF-8 --no-sync >"$D/log/setup.log" 2>&1 ||
    die "initdb failed"
  echo "local mlflow,mlflow_auth mlflow scram-sha-256" >"$D/pg/pg_hba.conf"
  cat >>"$D/pg/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$D/pg'
shared_buffers = 32MB
# a crash of the machine may lose the last transactions, but damages nothing
synchronous_commit = off
CONF
  db "$PG/postgres" --single -D "$D/pg" postgres >>"$D/log/setup.log" 2>&1 <<SQL || die "the databases could not be made"
CREATE ROLE mlflow LOGIN PASSWORD '$DATABASE'
CREATE DATABASE mlflow OWNER mlflow
CREATE DATABASE mlflow_auth OWNER mlflow
SQL
  touch "$D/created"
fi

. "$D/secrets"
URL=http://127.0.0.1:$PORT
if ! running; then ! in_use "$PORT" || die "port $PORT is in use"
elif [[ "$(server)" != *"--port $PORT "* ]]; then die "the server of $D runs on another port"; fi
if ! db "$PG/pg_ctl" -D "$D/pg" status >/dev/null; then
  say "starting postgresql"
  db "$PG/pg_ctl" -D "$D/pg" -l "$D/pg/server.log" -w -t 60 start >>"$D/log/setup.log" 2>&1 9>&- ||
    die "postgresql did not start; see $D/pg/server.log"
fi
if ! running; then
  say "starting mlflow"
  PGPASSFILE=$D/pgpass MLFLOW_AUTH_CONFIG_PATH=$D/auth.ini MLFLOW_AUTH_ADMIN_USERNAME=spin MLFLOW_AUTH_ADMIN_PASSWORD=$ADMIN \
    MLFLOW_FLASK_SERVER_SECRET_KEY=$FLASK MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true \
    setsid "$MLFLOW" server --app-name basic-auth --backend-store-uri "postgresql://mlflow@/mlflow?host=$D/pg" \
    --artifacts-destination "$ARTIFACTS" --host 127.0.0.1 --port "$PORT" --workers 1 \
    --allowed-hosts "127.0.0.1:$PORT,localhost:$PORT" >>"$D/log/mlflow.log" 2>&1 </dev/null 9>&- &
  echo $! >"$D/mlflow.pid"
fi
get() { curl -sf -m 10 --noproxy '*' -o /dev/null "$@"; }
for _ in $(seq 1200); do                 # up to 2 minutes
  get "$URL/health" && break
  kill -0 "$(cat "$D/mlflow.pid")" 2>/dev/null || die "mlflow ended"
  sleep .1
done
get -K - "$URL/api/2.0/mlflow/experiments/search?max_results=1" <<<"user = \"spin:$ADMIN\"" || die "mlflow does not answer"
echo "export MLFLOW_TRACKING_URI=$URL MLFLOW_TRACKING_USERNAME=spin MLFLOW_TRACKING_PASSWORD=$ADMIN"
