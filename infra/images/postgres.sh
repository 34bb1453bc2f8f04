#!/usr/bin/env bash
# Runs PostgreSQL in a container as the public image does: the first start makes the user, the database and what the SQL
# files of /docker-entrypoint-initdb.d describe, before the server listens on TCP.
set -euo pipefail
D=${PGDATA:-/var/lib/postgresql/data}
: "${POSTGRES_USER:?}" "${POSTGRES_DB:?}" "${POSTGRES_PASSWORD:?}"
if [ ! -e "$D/PG_VERSION" ]; then
  initdb -D "$D" -U "$POSTGRES_USER" --pwfile=<(printf %s "$POSTGRES_PASSWORD") -A scram-sha-256 --auth-local=trust \
    -E UTF8 --locale=C.UTF-8
  pg_ctl -D "$D" -w -o "-c listen_addresses= -c unix_socket_directories=/tmp" start
  createdb -h /tmp -U "$POSTGRES_USER" "$POSTGRES_DB"
  for file in /docker-entrypoint-initdb.d/*.sql; do
    psql -h /tmp -U "$POSTGRES_USER" -d "$POSTGRES_DB" -v ON_ERROR_STOP=1 -f "$file"
  done
  pg_ctl -D "$D" -m fast -w stop
  echo "host all all all scram-sha-256" >>"$D/pg_hba.conf"
fi
exec postgres -D "$D" -c listen_addresses='*' -c unix_socket_directories=/tmp
