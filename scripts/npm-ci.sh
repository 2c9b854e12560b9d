#!/bin/sh
# Install the npm packages that DIR/package-lock.json pins, once and outside of
# the tree, and print the path of their node_modules.
#
#   scripts/npm-ci.sh DIR
#
# They lie in $QPC_NODE_CACHE, by default ~/.cache/qpcd-node, in a folder named
# after the lock file's hash: another lock is another folder, and what is there
# is complete. Install scripts of packages are not run.
#
# Exit codes: 0 installed; 77 node or npm is not installed, or the registry is
# out of reach, so that a test may skip; 1 anything else, npm's words on stderr.
set -eu

skip=77
lock=${1:?usage: scripts/npm-ci.sh DIR}/package-lock.json
if [ ! -f "$lock" ]; then
	echo "npm-ci.sh: there is no $lock" >&2
	exit 1
fi
if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
	echo "node and npm are not installed (Debian: apt-get install nodejs npm)" >&2
	exit $skip
fi
cache=${QPC_NODE_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/qpcd-node}
hash=$(sha256sum <"$lock" | cut -c 1-32)
final=$cache/$hash
if [ ! -d "$final/node_modules" ]; then
	mkdir -p "$cache"
	work=$(mktemp -d "$cache/$hash.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	cp "$1/package.json" "$lock" "$work/"
	if ! (cd "$work" && npm ci --ignore-scripts --no-audit --no-fund --fetch-retries=2 \
		--fetch-retry-mintimeout=1000 --fetch-retry-maxtimeout=5000) >"$work/log" 2>&1; then
		cat "$work/log" >&2
		if grep -qE 'ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH' "$work/log"; then
			echo "the npm registry is out of reach" >&2
			exit $skip
		fi
		exit 1
	fi
	mkdir -p "$work/node_modules" # a lock without packages
	# Two may come at once. The second one's folder is dropped; where it came
	# between the test and mv, it lies inside of the first one's, and goes too.
	[ -d "$final" ] || mv "$work" "$final"
	rm -rf "${final:?}/${work##*/}"
fi
(cd "$final/node_modules" && pwd)
