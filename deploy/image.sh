#!/usr/bin/env bash
# Makes the images of deploy/Dockerfile without Docker, from static binaries that are there
# already: an OCI layout with one tag for each image. The same binaries give the same bytes.
#
#   deploy/image.sh [--arch amd64|arm64] BINARIES LAYOUT
#
# BINARIES is the directory that deploy/static.sh fills; LAYOUT must not exist. It needs umoci
# and GNU tar. Time stamps are SOURCE_DATE_EPOCH, or that of the last commit.
#
# Then, for example: skopeo copy oci:LAYOUT:weft-proxy docker://registry.example/weft-proxy:0.1.0
set -euo pipefail

usage() { echo "usage: deploy/image.sh [--arch amd64|arm64] BINARIES LAYOUT" >&2; exit 2; }
arch=
if [ "${1-}" = --arch ]; then
    [ $# -ge 2 ] || usage
    arch=$2
    shift 2
fi
[ $# = 2 ] || usage
binaries=$1 layout=$2
case ${arch:-$(uname -m)} in
    amd64 | x86_64) arch=amd64 machine='Advanced Micro Devices X86-64' ;;
    arm64 | aarch64) arch=arm64 machine='AArch64' ;;
    *) usage ;;
esac
fail() { echo "error: $*" >&2; exit 1; }
for tool in umoci tar readelf; do
    command -v "$tool" >/dev/null || fail "$tool is not installed"
done
[ ! -e "$layout" ] || fail "$layout exists: remove it, or name another directory"

here=$(cd "$(dirname "$0")/.." && pwd)
epoch=${SOURCE_DATE_EPOCH:-$(git -C "$here" log -1 --format=%ct)}
created=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$here/Cargo.toml" | head -1)
[ -n "$version" ] || fail "no version in Cargo.toml"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A layer with the binary, of root, and the state directory, of the image's user.
layer() {
    local root=$work/$1
    mkdir -p "$root/var/lib/weft"
    chmod 0755 "$root" "$root/var" "$root/var/lib"
    chmod 0700 "$root/var/lib/weft"
    install -m 0755 "$binaries/$1" "$root/$1"
    local tar=(tar -C "$root" --format=ustar --numeric-owner --mtime="@$epoch" --no-recursion)
    "${tar[@]}" --owner=0 --group=0 -cf "$work/$1.tar" "$1" var var/lib
    "${tar[@]}" --owner=14020 --group=14020 -rf "$work/$1.tar" var/lib/weft
}

image() {
    local name=$1 description=$2 command=$3
    shift 3
    [ -f "$binaries/$name" ] || fail "$binaries/$name is missing: deploy/static.sh builds it"
    readelf -h "$binaries/$name" | grep -q "Machine: *$machine" || fail "$binaries/$name is not for $arch"
    if readelf -l "$binaries/$name" | grep -q INTERP; then
        fail "$binaries/$name is not static: deploy/static.sh builds it"
    fi
    layer "$name"
    umoci new --image "$layout:$name"
    umoci raw add-layer --image "$layout:$name" --history.created "$created" \
        --history.created_by "deploy/image.sh $name" "$work/$name.tar"
    local ports=() port
    for port in "$@"; do ports+=(--config.exposedports "$port/tcp"); done
    umoci config --image "$layout:$name" --no-history \
        --created "$created" --os linux --architecture "$arch" \
        --config.user 14020:14020 --config.entrypoint "/$name" --config.cmd "$command" \
        "${ports[@]}" \
        --config.label "org.opencontainers.image.title=$name" \
        --config.label "org.opencontainers.image.description=$description" \
        --config.label "org.opencontainers.image.licenses=Apache-2.0" \
        --config.label "org.opencontainers.image.version=$version"
}

umoci init --layout "$layout"
image weft-proxy "The sidecar of the Weft service mesh" run 14020
image weft-control "The control plane of the Weft service mesh" serve 14012 14014
umoci gc --layout "$layout"
echo "$layout: weft-proxy and weft-control $version for $arch, of $created"
