#!/bin/sh
# Builds pause for each architecture that a compiler is there for, into pkg/sandbox/pause or the directory given. The
# binaries are committed, so that `go build` needs no C compiler; a test there builds them anew and compares.
set -eu
cd "$(dirname "$0")"
out=${1:-../../pkg/sandbox/pause}
flags="-static -nostdlib -Os -Wall -Wextra -Werror -std=gnu11 -fno-stack-protector -fno-asynchronous-unwind-tables
-fno-ident -ffreestanding -fno-pie -no-pie -Wl,--build-id=none,-z,noseparate-code,-z,norelro,-z,noexecstack -s"
for t in amd64:x86_64-linux-gnu:-fcf-protection=none arm64:aarch64-linux-gnu:-mbranch-protection=none; do
	arch=${t%%:*} rest=${t#*:}
	cc=${rest%%:*}-gcc
	command -v "$cc" >/dev/null || { echo "no $cc: pause_$arch left as it is" >&2; continue; }
	# shellcheck disable=SC2086
	"$cc" $flags "${rest#*:}" -o "$out/pause_$arch" pause.c
done
sha256sum pause.c build.sh >"$out/SHA256SUMS"
