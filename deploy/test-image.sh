#!/usr/bin/env bash
# Proves the images: built twice they are the same bytes, they are small, and they run under
# runc without a capability on a read-only root. It needs root, umoci, runc, iproute2, python3,
# jq and curl.
#
#   deploy/test-image.sh BINARIES
set -euo pipefail

[ $# = 1 ] || { echo "usage: deploy/test-image.sh BINARIES" >&2; exit 2; }
binaries=$(cd "$1" && pwd)
cd "$(dirname "$0")"
for tool in umoci runc ip python3 jq curl; do
    command -v "$tool" >/dev/null || { echo "SKIPPED: $tool is not installed" >&2; exit 77; }
done
[ "$(id -u)" = 0 ] || { echo "SKIPPED: runc and network namespaces need root" >&2; exit 77; }

most=$((12 * 1000 * 1000))
work=$(mktemp -d)
net=wfimg$$
ids=()
helper=
cleanup() {
    for id in "${ids[@]}"; do runc delete --force "$id" 2>/dev/null || true; done
    [ -z "$helper" ] || kill "$helper" 2>/dev/null || true
    ip netns delete "$net" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }
pass() { echo "ok: $*"; }

# Waits up to 10 s for a command to succeed.
await() {
    local what=$1 deadline=$((SECONDS + 10))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || fail "waited 10 s for $what"
        read -rt 0.05 <> <(:) || true
    done
}

./image.sh "$binaries" "$work/one"
./image.sh "$binaries" "$work/two"
diff -r "$work/one" "$work/two" || fail "two builds of the same binaries differ"
pass "the same binaries give the same bytes"

for name in weft-proxy weft-control; do
    compressed=$(umoci stat --image "$work/one:$name" --json | jq '[.history[].layer.size // 0] | add')
    unpacked=$(stat -c %s "$binaries/$name")
    [ "$compressed" -lt "$most" ] || fail "$name has $compressed bytes, more than $most"
    pass "$name: $compressed bytes to pull, $unpacked unpacked"
done

for name in weft-proxy weft-control; do
    config=$(umoci stat --image "$work/one:$name" --json >/dev/null && umoci unpack --image "$work/one:$name" "$work/$name" 2>/dev/null && cat "$work/$name/config.json")
    [ "$(jq -c '[.process.user.uid, .process.user.gid]' <<<"$config")" = '[14020,14020]' ] || fail "$name is not of user 14020"
    [ "$(stat -c %u:%g:%a "$work/$name/rootfs/var/lib/weft")" = 14020:14020:700 ] || fail "$name: /var/lib/weft is not its own"
done
pass "both run as 14020 and own their state"

# bundle NAME ID ARGS [ENV...]: a container without a capability, on a read-only root, in our
# network namespace.
bundle() {
    local name=$1 id=$2 args=$3
    shift 3
    mkdir "$work/$id"
    ln -s "$work/$name/rootfs" "$work/$id/rootfs"
    printf '%s\n' "$@" | jq -R . | jq -s . >"$work/$id/env.json"
    jq --arg net "/run/netns/$net" --argjson args "$args" --slurpfile env "$work/$id/env.json" \
        --arg root "$work/$name/rootfs" --arg resolv "$work/resolv.conf" '
        .process.args = $args | .process.terminal = false | .process.noNewPrivileges = true
        | .process.env = ($env[0] | map(select(. != "")))
        | .process.capabilities = {bounding: [], effective: [], inheritable: [], permitted: [], ambient: []}
        | .root = {path: $root, readonly: true}
        | .mounts += [
            {destination: "/var/lib/weft", type: "tmpfs", source: "tmpfs", options: ["uid=14020", "gid=14020", "mode=0700"]},
            {destination: "/etc/resolv.conf", type: "bind", source: $resolv, options: ["bind", "ro"]}]
        | .linux.namespaces |= (map(select(.type != "network" and .type != "user")) + [{type: "network", path: $net}])
        | del(.linux.uidMappings, .linux.gidMappings)' \
        "$work/$name/config.json" >"$work/$id/config.json"
    ids+=("$id")
}
inside() { ip netns exec "$net" "$@"; }

ip netns add "$net"
inside ip link set lo up
echo "nameserver 127.0.0.1" >"$work/resolv.conf"
# Mount points have to be there: the root is read-only.
for name in weft-proxy weft-control; do
    mkdir -p "$work/$name/rootfs/etc"
    touch "$work/$name/rootfs/etc/resolv.conf"
done

bundle weft-proxy "$net-version" '["/weft-proxy", "version"]'
version=$(runc run --bundle "$work/$net-version" "$net-version")
[[ $version == "weft-proxy "* ]] || fail "version says: $version"
pass "$version, without capabilities, read-only"

# A name server that knows one name, and a control plane that only takes the connection.
cat >"$work/helper.py" <<'PYTHON'
import socket, sys, threading

def names():
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    while True:
        query, peer = server.recvfrom(512)
        end = query.index(b"\0", 12) + 5
        kind = int.from_bytes(query[end - 4:end - 2], "big")
        known = query[12:end - 4].lower() == b"\x07control\x04test\0" and kind == 1
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4" + bytes([127, 0, 0, 7]) if known else b""
        head = query[:2] + b"\x81\x80\0\1\0" + bytes([known]) + b"\0\0\0\0"
        server.sendto(head + query[12:end] + answer, peer)

threading.Thread(target=names, daemon=True).start()
server = socket.create_server(("127.0.0.7", 14012))
while True:
    connection, _ = server.accept()
    with open(sys.argv[1], "a") as seen:
        seen.write("connected\n")
    connection.close()
PYTHON
ip netns exec "$net" python3 "$work/helper.py" "$work/seen" &
helper=$!

token=$(printf '0%.0s' {1..64}).a.b
bundle weft-proxy "$net-run" '["/weft-proxy", "run"]' \
    WEFT_PROXY_WORKLOAD=default/web WEFT_PROXY_CONTROL=control.test:14012 "WEFT_PROXY_TOKEN=$token"
runc run --detach --bundle "$work/$net-run" "$net-run" >"$work/out" 2>&1 </dev/null
await "/live" inside curl -sf http://127.0.0.1:14020/live
await "the control plane to be found by name" test -s "$work/seen"
pass "the sidecar runs and finds the control plane by its name"
pid=$(runc state "$net-run" | jq .pid)
for set in CapEff CapPrm CapBnd; do
    grep -q "^$set:[[:space:]]*0*$" "/proc/$pid/status" || fail "$set is not empty"
done
runc kill "$net-run" TERM
stopped() { [ "$(runc state "$net-run" | jq -r .status)" = stopped ]; }
await "the sidecar to end after SIGTERM" stopped
pass "it has no capability, and ends on SIGTERM"

mkdir "$work/mesh"
chmod 0755 "$work" "$work/mesh"
bundle weft-control "$net-control" '["/weft-control", "serve", "--config=/etc", "--data=/var/lib/weft/data", "--admin=127.0.0.1:14014", "--join-token=default/web=/var/lib/weft/token"]'
runc run --detach --bundle "$work/$net-control" "$net-control" >"$work/control" 2>&1 </dev/null
await "/ready of the control plane" inside curl -sf http://127.0.0.1:14014/ready
pid=$(runc state "$net-control" | jq .pid)
[ -s "/proc/$pid/root/var/lib/weft/token" ] || fail "the control plane wrote no join token"
cp "/proc/$pid/root/var/lib/weft/token" "$work/token"
pass "the control plane runs and writes join tokens"

bundle weft-proxy "$net-joined" '["/weft-proxy", "run"]' \
    WEFT_PROXY_WORKLOAD=default/web WEFT_PROXY_CONTROL=127.0.0.1:14012 "WEFT_PROXY_TOKEN=$(cat "$work/token")"
runc run --detach --bundle "$work/$net-joined" "$net-joined" >"$work/out" 2>&1 </dev/null
joined() { inside curl -sf http://127.0.0.1:14000/certs | grep -q /ns/default/sa/web; }
await "the sidecar to have a certificate" joined
pass "a sidecar joins with that token"

bundle weft-proxy "$net-init" '["/weft-proxy", "init", "--mode=redirect", "--exclude-inbound-ports=9187,9188", "--exclude-outbound-ports=25", "--exclude-outbound-cidrs=169.254.0.0/16,fd00:ec2::/32"]'
jq '.process.user = {uid: 0, gid: 0} | .process.capabilities |= (.bounding = ["CAP_NET_ADMIN"] | .effective = ["CAP_NET_ADMIN"] | .permitted = ["CAP_NET_ADMIN"])' \
    "$work/$net-init/config.json" >"$work/init.json"
mv "$work/init.json" "$work/$net-init/config.json"
runc run --bundle "$work/$net-init" "$net-init" >"$work/init" 2>&1 </dev/null || fail "init says: $(cat "$work/init")"
pass "init sets up the capture as root with NET_ADMIN only"
