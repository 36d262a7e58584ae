#!/usr/bin/env bash
# Builds weft-proxy and weft-control as static binaries for an image.
#
#   deploy/static.sh amd64|arm64 OUT
#
# OUT gets both binaries, and `state`, the empty directory of the images. For the other
# architecture the cross compiler of Debian is needed: gcc-aarch64-linux-gnu and
# libc6-dev-arm64-cross, or gcc-x86-64-linux-gnu and libc6-dev-amd64-cross.
set -euo pipefail

usage() { echo "usage: deploy/static.sh amd64|arm64 OUT" >&2; exit 2; }
[ $# = 2 ] || usage
case $1 in
    amd64) machine=x86_64 ;;
    arm64) machine=aarch64 ;;
    *) usage ;;
esac
mkdir -p "$2"
out=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."

triple=$machine-unknown-linux-gnu
if [ "$(uname -m)" != "$machine" ]; then
    compiler=$machine-linux-gnu-gcc
    command -v "$compiler" >/dev/null || { echo "error: $compiler is not installed" >&2; exit 1; }
    rustup target add "$triple"
    upper=$(echo "$triple" | tr 'a-z-' 'A-Z_')
    export "CC_${triple//-/_}=$compiler" "CARGO_TARGET_${upper}_LINKER=$compiler"
fi
# Kernels of arm64 may have pages of 64 KiB; the allocator must know the largest when it is built.
[ "$machine" = x86_64 ] || export JEMALLOC_SYS_WITH_LG_PAGE=16
# Static with glibc: names are resolved by its own files and dns, which are built in.
export RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static --remap-path-prefix=$PWD=/src --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
cargo build --locked --profile dist --target "$triple" -p weft-proxy -p weft-control
for binary in weft-proxy weft-control; do
    install -m 0755 "${CARGO_TARGET_DIR:-target}/$triple/dist/$binary" "$out/$binary"
done
mkdir -p "$out/state"
