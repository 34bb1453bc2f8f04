#!/usr/bin/env bash
# Makes the image that the others are built on, where no registry offers one: Debian by debootstrap, with a Python that
# has the module venv, as in the public image python:*-slim-trixie. Run it by podman.sh.
#   base.sh TAG
# The Python is that of $PYTHON (default: python3): Debian's package if it is Debian's, else a copy of its installation
# without the packages in it. MIRROR is a mirror of Debian. stdout: nothing; progress and errors: stderr.
set -euo pipefail
TAG=$1 PYTHON=${PYTHON:-python3} SUITE=trixie MIRROR=${MIRROR:-http://deb.debian.org/debian}
say() { echo "images: $*" >&2; }
die() { say "$*"; exit 1; }

((EUID == 0)) || die "debootstrap needs root: run as root, or set BASE to an image of a registry"
interpreter=$("$PYTHON" -Ic 'import os, sys; print(os.path.realpath(sys.executable))')
read -r version prefix < <("$interpreter" -Ic 'import sys; print("%d.%d" % sys.version_info[:2], sys.base_prefix)')
case $version in
  3.11 | 3.12 | 3.13) ;;
  *) die "$PYTHON is Python $version; set PYTHON to one from 3.11 to 3.13" ;;
esac

packages=ca-certificates copied=
if dpkg -S "$interpreter" >/dev/null 2>&1; then
  packages+=,python3,python3-venv
else # and the libraries that its modules are linked with
  copied=1
  libraries=$(find "$prefix/lib/python$version/lib-dynload" -name '*.so' ! -name '_tkinter*' ! -name '_dbm*' ! -name '_gdbm*' \
    -exec ldd {} + | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p' | sort -u | xargs -n 1 readlink -f | grep -v "^$prefix/")
  packages+=,$(xargs dpkg -S <<<"$libraries" | cut -d: -f1 | sort -u | paste -sd,)
fi

root=$(mktemp -d "${TMPDIR:-/tmp}/spin-base.XXXXXX")
trap 'rm -rf --one-file-system "$root" "$root.log"' EXIT
say "making $TAG: Debian $SUITE with Python $version"
debootstrap --variant=minbase --include="$packages" "$SUITE" "$root" "$MIRROR" >"$root.log" 2>&1 || {
  tail -n 20 "$root.log" >&2
  die "debootstrap failed; is there a Debian mirror at $MIRROR? Set MIRROR to another"
}
local=$root/usr/local
if [ "$copied" ]; then
  tar -C "$prefix" -c --exclude=site-packages --exclude=__pycache__ --exclude=test --exclude=tests --exclude=idlelib \
    --exclude=tkinter --exclude=turtledemo --exclude='config-*' --exclude='*.a' "lib/python$version" |
    tar -C "$local" -x --no-same-owner
  mkdir "$local/lib/python$version/site-packages"
  cp -P "$prefix/lib/libpython$version".so* "$local/lib/" 2>/dev/null || : # none, if it is in the program itself
  cp "$prefix/bin/python$version" "$local/bin/"
  ln -s "python$version" "$local/bin/python3"
  chroot "$root" ldconfig
  chroot "$root" python3 -m compileall -q "/usr/local/lib/python$version" >/dev/null 2>&1 || : # some are for lib2to3
  ln -s python3 "$local/bin/python"
else
  ln -s /usr/bin/python3 "$local/bin/python"
fi
chroot "$root" python -Ic 'import bz2, ctypes, hashlib, lzma, sqlite3, ssl, venv, zlib' ||
  die "the Python of $prefix lacks modules in the image; set PYTHON to another"
chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/usr/share/{doc,man,info,locale}/* "$root"/etc/{hostname,resolv.conf}
tar -C "$root" -c --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' . |
  podman import --quiet --change ENV=PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin \
    --change ENV=LANG=C.UTF-8 --change 'CMD ["python3"]' - "$TAG" >/dev/null
