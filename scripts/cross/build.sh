#!/bin/sh
# Build the programs static for other machines, the same bytes from the same
# source wherever it lies, check each and print a table of sizes.
#
#   scripts/cross/build.sh [ARCH...]       all of them without a word
#
#   DIST=dir       where to, dist/ by default: DIST/ARCH/PROGRAM
#   PROGRAMS=list  what, "qpcd qpc" by default
#   VERSION=text   what `qpcd version` says; the file VERSION by default
set -eu
cd "$(dirname "$0")/../.."

# name        GOARCH and the one setting that matters, for which machines
#   arm_5       no floating point unit (Kirkwood); arm_6 VFPv2; arm_7 VFPv3
#   mips        big endian (ath79, lantiq), mipsle little (ramips); neither has
#               a floating point unit
#   386         sse2: every processor since 2003 (the geode lacks it)
all="amd64 386 arm64 arm_5 arm_6 arm_7 mips mipsle riscv64"
settings() {
	case $1 in
	amd64) echo GOARCH=amd64 GOAMD64=v1 ;;
	386) echo GOARCH=386 GO386=sse2 ;;
	arm64) echo GOARCH=arm64 ;;
	arm_5) echo GOARCH=arm GOARM=5 ;;
	arm_6) echo GOARCH=arm GOARM=6 ;;
	arm_7) echo GOARCH=arm GOARM=7 ;;
	mips) echo GOARCH=mips GOMIPS=softfloat ;;
	mipsle) echo GOARCH=mipsle GOMIPS=softfloat ;;
	riscv64) echo GOARCH=riscv64 ;;
	*)
		echo "build.sh: \"$1\" is no architecture; there are $all" >&2
		exit 2
		;;
	esac
}

dist=${DIST:-dist}
programs=${PROGRAMS:-qpcd qpc}
version=${VERSION:-$(cat VERSION)}
[ $# -gt 0 ] || eval "set -- $all"
for arch in "$@"; do
	settings "$arch" >/dev/null # a wrong word ends it before an hour of work
done

built=
for arch in "$@"; do
	for program in $programs; do
		out=$dist/$arch/$program
		mkdir -p "$dist/$arch"
		# shellcheck disable=SC2046 # words
		env CGO_ENABLED=0 GOOS=linux GOFLAGS= GOEXPERIMENT= $(settings "$arch") \
			go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$version" -o "$out" "./cmd/$program"
		built="$built $out"
	done
done
# shellcheck disable=SC2086 # words
CGO_ENABLED=0 go run ./scripts/cross/inspect $built
