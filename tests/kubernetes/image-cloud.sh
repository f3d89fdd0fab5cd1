#!/usr/bin/env bash
# Tries an image's way to the cloud, by its mounted root: image-cloud.sh ROOT. The controller runs as in its pod, and asks at
# the URL that it has by itself: its name is resolved, and its certificate proven with the image's own authorities. The DNS
# and the cloud that it finds are ours, and nobody else's. Says one line "ok: ..." for each thing that holds.
set -euo pipefail
root=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")"
for tool in ip openssl python3; do
    command -v "$tool" >/dev/null || { echo "skipped: the way to the cloud is not tried: there is no $tool"; exit 0; }
done
# In a world of its own, with a loopback and nothing else; with it ends all that is mounted and started here, however it ends.
if [ -z "${CLOUD_WORLD:-}" ]; then
    CLOUD_WORLD=1 exec setpriv --pdeathsig KILL \
        unshare --net --mount --pid --fork --kill-child --mount-proc "./${BASH_SOURCE[0]##*/}" "$root"
fi
# Of the URL that the driver has by itself
name=api.vultr.com
bundle=$root/etc/ssl/certs/ca-certificates.crt
ok() { echo "ok: $1"; }
fail() {
    tail -n 50 "$root"/tmp/*.log >&2 || true
    echo "FAILED: $1" >&2
    exit 1
}

ip link set lo up
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
# What is written there is gone afterwards, as is what a kubelet puts there.
cp -a "$root/etc" "$root/tmp/etc"
mount --bind "$root/tmp/etc" "$root/etc"
# As a pod has it: the name is tried within the cluster first.
cat >"$root/etc/resolv.conf" <<'TEXT'
search kube-system.svc.cluster.local svc.cluster.local cluster.local
nameserver 127.0.0.1
options ndots:5
TEXT
echo token >"$root/tmp/token"
cloud_log=$root/tmp/cloud.log
: >"$cloud_log"

# It has more than a hundred, and openssl can read each.
roots=$(openssl storeutl -noout -certs "$bundle" | sed -n 's/^Total found: //p')
[ "${roots:-0}" -ge 100 ] && [ "$roots" = "$(grep -c 'BEGIN CERTIFICATE' "$bundle")" ] ||
    fail "of the certificates of authorities ${roots:-0} can be read"

keys=$root/tmp/keys
mkdir -m 700 "$keys"
new=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
openssl req -x509 "${new[@]}" -days 1 -subj '/CN=an authority of a test' -keyout "$keys/ca.key" -out "$keys/ca.crt" 2>/dev/null
openssl req "${new[@]}" -subj "/CN=$name" -keyout "$keys/cloud.key" -out "$keys/cloud.csr" 2>/dev/null
openssl x509 -req -in "$keys/cloud.csr" -CA "$keys/ca.crt" -CAkey "$keys/ca.key" -CAcreateserial -days 1 \
    -out "$keys/cloud.crt" -extfile <(printf '%s\n' extendedKeyUsage=serverAuth "subjectAltName=DNS:$name") 2>/dev/null

# says PROCESS LOG PATTERN: waits for a line in the log of a process, until that ends, and for 20 s at most
says() {
    for _ in $(seq 200); do
        ! grep -qE "$3" "$2" || return 0
        kill -0 "$1" 2>/dev/null || break
        read -rt 0.1 <> <(:) || true
    done
    grep -qE "$3" "$2"
}
./image-cloud.py "$name" "$keys/cloud.crt" "$keys/cloud.key" >"$cloud_log" 2>&1 &
says $! "$cloud_log" '^serving$' || fail "the cloud that stands for the real one does not serve"

# start_driver LOG: as its pod's user, and with none of this machine's variables, of which some name proxies and authorities
start_driver() {
    : >"$1"
    env -i PATH="$PATH" chroot --userspec=65532:65532 "$root" /usr/local/bin/cloud-block-csi controller \
        --endpoint=unix:///tmp/csi.sock --token-file=/tmp/token --log-format=json >"$1" 2>&1 &
    driver=$!
}
stop_driver() {
    kill "$driver" || true
    wait "$driver" || fail "the controller ended with $?"
}
log=$root/tmp/stranger.log
start_driver "$log"
says "$driver" "$log" 'invalid peer certificate: UnknownIssuer' ||
    fail "the controller does not say that it does not know the cloud's authority"
stop_driver
! grep -q '^asked: ' "$cloud_log" || fail "the controller asked a cloud whose authority it does not know"
ok "the controller finds $name by DNS, and refuses one of an authority that is not among the image's $roots"

cat "$keys/ca.crt" >>"$bundle"
log=$root/tmp/known.log
start_driver "$log"
says "$driver" "$log" "the account's volumes are listed" || fail "the controller did not get its list of the cloud"
stop_driver
grep -q '^asked: GET /v2/blocks' "$cloud_log" || fail "the cloud was not asked for its volumes"
ok "the controller asks $name when its authority is among them"

: >"$bundle"
log=$root/tmp/without.log
start_driver "$log"
says "$driver" "$log" 'No CA certificates' || fail "the controller does not say that it has no authority at all"
ok "the controller says that it has no authority, where there is none"
