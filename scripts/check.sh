#!/bin/sh
# What must hold of every commit. Each line names the check that failed.
set -eu
cd "$(dirname "$0")/.."
failed=0
fail() { echo "check: $1" >&2; failed=1; }

unformatted=$(gofmt -l cmd internal pkg tools/protoc-gen-qpc testdata 2>/dev/null)
[ -z "$unformatted" ] || fail "gofmt these: $unformatted"
go vet ./... || fail "go vet"
GOOS=js GOARCH=wasm CGO_ENABLED=0 go build ./pkg/client ./pkg/e2ee ./pkg/opaque || fail "the client does not build for browsers (js/wasm)"
GOOS=linux GOARCH=mips GOMIPS=softfloat CGO_ENABLED=0 go vet ./pkg/... ./cmd/... || fail "go vet for mips"
go tool -modfile=tools/staticcheck/go.mod staticcheck ./... || fail "staticcheck"
if command -v shellcheck >/dev/null 2>&1; then
	find scripts .ci -type f \( -name '*.sh' -o -name run \) -exec shellcheck {} + || fail "shellcheck"
else
	echo "check: shellcheck is not installed; scripts are not checked" >&2
fi
(cd protos && go tool -modfile=../tools/buf/go.mod buf lint) || fail "buf lint"

# Generated files are current: making them anew in a copy changes nothing.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
mkdir "$copy/tree"
git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- --ignore-failed-read -cf - 2>/dev/null | tar -xf - -C "$copy/tree"
(cd "$copy/tree/protos" && go tool -modfile=../tools/buf/go.mod buf generate) || fail "buf generate"
(cd "$copy/tree" && go generate ./... && go mod tidy) || fail "go generate, go mod tidy"
for f in pkg/qpcpb docs/methods.md docs/configuration.md docs/metrics.md docs/running.md uci/qpcd go.mod go.sum; do
	diff -r "$f" "$copy/tree/$f" >/dev/null || fail "$f is not current: run make generate, go mod tidy"
done
exit $failed
