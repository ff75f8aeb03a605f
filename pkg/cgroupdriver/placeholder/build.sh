#!/bin/sh
# Builds placeholder for each architecture that a compiler is there for, beside it or into the directory given. The
# binaries are committed, so that `go build` needs no C compiler; a test there builds them anew and compares.
set -eu
cd "$(dirname "$0")"
out=${1:-.}
flags="-static -nostdlib -Os -Wall -Wextra -Werror -std=gnu11 -fno-stack-protector -fno-asynchronous-unwind-tables
-fno-ident -ffreestanding -fno-pie -no-pie -Wl,--build-id=none,-z,noseparate-code,-z,norelro,-z,noexecstack -s"
for t in amd64:x86_64-linux-gnu:-fcf-protection=none arm64:aarch64-linux-gnu:-mbranch-protection=none; do
	arch=${t%%:*} rest=${t#*:}
	cc=${rest%%:*}-gcc
	command -v "$cc" >/dev/null || { echo "no $cc: placeholder_$arch left as it is" >&2; continue; }
	# shellcheck disable=SC2086
	"$cc" $flags "${rest#*:}" -o "$out/placeholder_$arch" placeholder.c
done
sha256sum placeholder.c build.sh >"$out/SHA256SUMS"
