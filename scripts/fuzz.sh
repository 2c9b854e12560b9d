#!/bin/sh
# Runs every fuzz target of the module for the time given, one after the other.
set -eu
cd "$(dirname "$0")/.."
time=${1:-10s}
failed=$(mktemp)
trap 'rm -f "$failed"' EXIT
git ls-files '*_test.go' | xargs grep -Ho '^func Fuzz[A-Za-z0-9_]*' | while IFS=: read -r file match; do
	dir=$(dirname "$file")
	target=${match#func }
	echo "fuzz: $dir $target for $time"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 1x "./$dir" || echo "$dir $target" >>"$failed"
done
[ ! -s "$failed" ] || { echo "fuzz: findings in:" >&2; cat "$failed" >&2; exit 1; }
