#!/usr/bin/env bash
# A real S3 object store for integration tests: Ceph (one ceph-mon, one ceph-osd with
# BlueStore on a sparse file, one radosgw), all on 127.0.0.1. Idempotent: run it again
# to start whatever is not running; the data in DATADIR is kept.
#   eval "$(./up.sh [-d DATADIR] [-p PORT] [-s SIZE_GB] [-m])"    stop: ./down.sh [-d DATADIR] [-x]
# -m keeps objects in memory: requests take half the time or less, a crash loses the data.
# stdout: only the export line; progress and errors: stderr. PORT is radosgw's; the mon
# takes PORT+1 and the osd PORT+10..PORT+49 (these are fixed when DATADIR is first created).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../own_folder.sh"
D=${S3_DATA_DIR:-${TMPDIR:-/tmp}/spin-s3} PORT=${S3_PORT:-7480} GB=${S3_SIZE_GB:-10}
STORE=bluestore REGION=us-east-1
# for a server that others than this machine reach, as in a container
HOST=${S3_HOST:-127.0.0.1} AK=${S3_ACCESS_KEY:-spinkey} SK=${S3_SECRET_KEY:-spinsecret} BUCKET=${S3_BUCKET:-spin}
while getopts d:p:s:m o; do case $o in d) D=$OPTARG;; p) PORT=$OPTARG;; s) GB=$OPTARG;; m) STORE=memstore;; *) exit 2;; esac; done
say() { echo "s3: $*" >&2; }
die() { say "$*"; tail -n 5 "$D"/log/*.log >&2 2>/dev/null || :; exit 1; }

make_own_folder "$D"; D=$(cd "$D" && pwd -P); C=$D/ceph.conf LOG=$D/log/setup.log
need=(); have() { command -v "$1" >/dev/null || need+=("$2"); }
PATH=$PATH:/usr/sbin:/sbin
have ceph-mon ceph-mon; have ceph-osd ceph-osd; have radosgw radosgw; have ceph ceph-common
have monmaptool ceph-base; have curl curl; have flock util-linux
if ((${#need[@]})); then
  SUDO=; ((EUID)) && SUDO=sudo
  say "installing ${need[*]}"
  $SUDO apt-get update -q >&2 || say "apt-get update failed; trying to install all the same"
  $SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${need[@]}" >&2
fi

[[ ${#D} -le 80 && $D != *[[:space:]]* ]] || die "DATADIR: at most 80 characters (unix sockets), no blanks"
exec 9>"$D/lock"; flock -w 120 9 || die "another up.sh holds $D/lock"
uuid() { cat /proc/sys/kernel/random/uuid; }
cmdline() { local p; p=$(cat "$D/run/$1.pid" 2>/dev/null) && [ -n "$p" ] && tr '\0' ' ' 2>/dev/null <"/proc/$p/cmdline"; }
running() { [[ "$(cmdline "$1" 2>/dev/null)" == *"-c $C "* ]]; } # a live process with our conf
in_use() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

if [ ! -e "$D/created" ]; then           # first time: write the cluster's files
  for n in mon.a osd.0 client.rgw; do ! running $n || die "a half-made cluster runs in $D: down.sh first"; done
  ! in_use $((PORT+1)) || die "port $((PORT+1)) is in use"
  CLS=$(dirname "$(dpkg -L ceph-base ceph-osd | grep -m1 '/libcls_rgw\.so')")
  [ -e "$CLS/libcls_rgw.so" ] || die "libcls_rgw.so not found"
  rm -rf "$D"/{mon,osd,rgw,run,log,keyring,ceph.conf}; mkdir -p "$D"/{mon,osd,rgw,run,log}
  MON="v2:127.0.0.1:$((PORT+1))" FSID=$(uuid)
  cat >"$C" <<CONF
[global]
fsid = $FSID
mon host = [$MON]
mon initial members = a
keyring = $D/keyring
log file = $D/log/\$name.log
admin socket = $D/run/\$name.asok
run dir = $D/run
pid file = $D/run/\$name.pid
crash dir = $D/run
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
ms bind msgr1 = false
ms bind port min = $((PORT+10))
ms bind port max = $((PORT+49))
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
# with "on", a pool starts with 1 pg and needs a mgr
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
# a full BlueStore aborts the osd, so writes get 403 QuotaExceeded at half of SIZE_GB;
# the other half is for what is deleted and not collected yet (10 to 20 s)
rgw user default quota max size = $((GB<<29))
[mon]
mon data = $D/mon
mon allow pool size one = true
mon data avail warn = 2
mon data avail crit = 1
mon max pg per osd = 1000
# each of radosgw's pools waits for this; default 1 s
paxos propose interval = 0.05
paxos min wait = 0.01
auth allow insecure global id reclaim = false
[osd]
osd data = $D/osd
osd objectstore = $STORE
memstore device bytes = $((GB<<30))
bluestore block create = true
bluestore block size = $((GB<<30))
bluestore cache autotune = false
bluestore cache size = 134217728
osd op queue = wpq
# Debian's built-in value is a relative path: no cls, radosgw dies with EOPNOTSUPP
osd class dir = $CLS
[client.rgw]
rgw data = $D/rgw
rgw enable apis = s3, admin
rgw thread pool size = 64
rgw run sync thread = false
rgw override bucket index max shards = 1
rgw dynamic resharding = false
rgw gc obj min wait = 10
rgw gc processor period = 10
rgw gc processor max time = 10
CONF
  (umask 077; ceph-authtool -C "$D/keyring" -n mon. --gen-key --cap mon 'allow *' >>"$LOG")
  ceph-authtool "$D/keyring" -n client.admin --gen-key --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
  ceph-authtool "$D/keyring" -n osd.0 --gen-key --cap mon 'allow profile osd' --cap osd 'allow *' --cap mgr 'allow profile osd'
  ceph-authtool "$D/keyring" -n client.rgw --gen-key --cap mon 'allow rw' --cap osd 'allow rwx' --cap mgr 'allow rw'
  monmaptool --create --addv a "[$MON]" --fsid "$FSID" "$D/run/monmap" >>"$LOG"
  ceph-mon -c "$C" -i a --mkfs --monmap "$D/run/monmap" >>"$LOG" 2>&1 || die "mon mkfs failed"
  ceph-mon -c "$C" -i a >>"$LOG" 2>&1 9>&- || die "ceph-mon did not start"
  OU=$(uuid)
  [ "$(ceph -c "$C" --connect-timeout 20 osd new "$OU" 2>>"$LOG" 9>&-)" = 0 ] || die "no osd id 0 from the mon"
  ceph-osd -c "$C" -i 0 --mkfs --osd-uuid "$OU" >>"$LOG" 2>&1 9>&- || die "osd mkfs failed"
  touch "$D/created"
fi

start() { # name, then the command (it puts itself in the background)
  local n=$1; shift; running "$n" && return 0
  rm -f "$D/run/$n.pid" "$D/run/$n.asok"; say "starting $n"
  "$@" >>"$LOG" 2>&1 9>&- || die "$n did not start"
}
wait_for() { # what, name, then a command that says yes: up to 60 s
  local w=$1 n=$2 i; shift 2
  for i in $(seq 240); do
    "$@" >/dev/null 2>&1 9>&- && return 0
    ((i < 12)) || running "$n" || die "$n ended"
    sleep .25
  done; die "$n: not $w after 60 s"
}
osd_active() { timeout 10 ceph --admin-daemon "$D/run/osd.0.asok" status | grep -q '"state": "active"'; }
if ! running client.rgw; then ! in_use "$PORT" || die "port $PORT is in use"
elif [[ "$(cmdline client.rgw)" != *"endpoint=$HOST:$PORT "* ]]; then die "radosgw of $D runs on another port"; fi
start mon.a ceph-mon -c "$C" -i a
start osd.0 ceph-osd -c "$C" -i 0
wait_for active osd.0 osd_active         # no pool can be made before
start client.rgw radosgw -c "$C" -n client.rgw --rgw-frontends "beast endpoint=$HOST:$PORT tcp_nodelay=1"
URL=http://127.0.0.1:$PORT
s3() { curl -s -m 30 --noproxy '*' --aws-sigv4 "aws:amz:$REGION:s3" -u "$AK:$SK" "$@"; }
wait_for answering client.rgw curl -sf -m 5 --noproxy '*' "$URL/"
if [ "$(s3 -o /dev/null -w '%{http_code}' "$URL/")" != 200 ]; then
  radosgw-admin -c "$C" -n client.admin user create --uid spin --display-name spin \
    --access-key "$AK" --secret-key "$SK" >/dev/null 2>>"$LOG" 9>&- || die "could not create the user"
fi
s3 -f -o /dev/null -X PUT "$URL/$BUCKET" || die "could not create bucket $BUCKET"
if [ ! -e "$D/small" ]; then             # a bucket that is soon full
  s3 -f -o /dev/null -X PUT "$URL/$BUCKET-small" || die "could not create bucket $BUCKET-small"
  quota() { radosgw-admin -c "$C" -n client.admin quota "$@" --quota-scope=bucket --bucket="$BUCKET-small" >>"$LOG" 2>&1 9>&-; }
  quota set --max-size=$((4<<20)) && quota enable || die "could not limit bucket $BUCKET-small"
  touch "$D/small"
fi
X=$(uuid); s3 -f -o /dev/null -X PUT --data-binary "$X" "$URL/$BUCKET/.up" || die "PUT failed"
[ "$(s3 -f "$URL/$BUCKET/.up")" = "$X" ] || die "GET is not what was PUT"
s3 -f -o /dev/null -X DELETE "$URL/$BUCKET/.up" || die "DELETE failed"
echo "export AWS_ACCESS_KEY_ID=$AK AWS_SECRET_ACCESS_KEY=$SK AWS_ENDPOINT_URL=$URL AWS_DEFAULT_REGION=$REGION"
