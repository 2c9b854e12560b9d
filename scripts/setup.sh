#!/bin/sh
# Installs what the tests use and this machine lacks. Without root it says what
# is missing; the tests that need it then skip, and say so too.
set -eu
missing=
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need ip iproute2
need qemu-mips-static qemu-user-static
need shellcheck shellcheck
need sqlite3 sqlite3
need strace strace
need tmux tmux
need node nodejs
need npm npm
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
	echo "setup: not installed, so that some tests skip:$missing" >&2
	exit 0
fi
echo "setup: installing$missing"
apt-get update -qq
# shellcheck disable=SC2086 # a list of packages
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
