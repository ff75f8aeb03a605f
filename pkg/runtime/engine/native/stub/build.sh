#!/bin/sh
# Builds the stub for each architecture that a compiler is there for, and records the hash of the source that the
# binaries were made from. The binaries are committed: `go build` needs no C compiler.
set -eu
cd "$(dirname "$0")"
out=${1:-.}
flags="-static -nostdlib -Os -Wall -Wextra -Werror -std=gnu11 -fno-stack-protector -fno-asynchronous-unwind-tables
-fno-ident -ffreestanding -fno-tree-loop-distribute-patterns -fno-pie -no-pie -fcf-protection=none
-Wl,--build-id=none,-z,noseparate-code,-z,norelro,-z,noexecstack -s"
for t in amd64:x86_64-linux-gnu arm64:aarch64-linux-gnu; do
	arch=${t%%:*} cc=${t#*:}-gcc
	command -v "$cc" >/dev/null || { echo "no $cc: stub_$arch left as it is" >&2; continue; }
	f=$flags
	[ "$arch" = amd64 ] || f=$(echo "$flags" | sed 's/-fcf-protection=none/-mbranch-protection=none -mno-outline-atomics/')
	# shellcheck disable=SC2086
	"$cc" $f -o "$out/stub_$arch" stub.c
done
[ "$out" != . ] || sha256sum stub.c become.h stub.h build.sh stub_amd64 stub_arm64 >SHA256SUMS
