#!/usr/bin/env bash
# Tries an image by its mounted root: image-check.sh ROOT ARCHITECTURE. Says one line "ok: ..." for each thing that holds.
set -euo pipefail
root=$(realpath "$1") arch=$2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
driver=/usr/local/bin/cloud-block-csi
ok() { echo "ok: $1"; }
fail() { echo "FAILED: $1" >&2; exit 1; }

# What can be run is the driver and what a node looks for, by the driver's own table, and nothing else. A library is by its
# name and place, and so is the dynamic loader.
programs=$(sed -n 's/^    program(Tool::[A-Za-z0-9]*, "\([^"]*\)".*/\1/p' "$here/../../src/node/host/program.rs")
# The file that is called so, by a link perhaps
file_of() {
    { realpath -e "$root/usr/sbin/$1" || realpath -e "$root/usr/bin/$1"; } 2>/dev/null || fail "there is no $1 in the image"
}
wanted=$(echo "$root$driver"; for program in $programs; do file_of "$program"; done) || exit 1
found=$(find "$root" -type f -perm /111 ! -regex '.*/usr/lib/[^/]*/[^/]*\.so\(\.[0-9]+\)*')
different=$(comm -3 <(sort -u <<<"$wanted") <(sort <<<"$found"))
[ -z "$different" ] || fail "what can be run is not the driver and a node's programs alone: ${different//"$root"/}"
ok "the driver, the $(wc -w <<<"$programs") programs that a node looks for, and no other: no shell, no package manager"
for file in etc/mke2fs.conf etc/ssl/certs/ca-certificates.crt usr/share/xfsprogs/mkfs/lts_6.1.conf usr/share/doc/packages; do
    [ -s "$root/$file" ] || fail "/$file is missing or empty"
done
while read -r package _; do
    [ -s "$root/usr/share/doc/$package/copyright" ] || fail "$package has no licence in the image"
done <"$root/usr/share/doc/packages"
ok "$(wc -l <"$root/usr/share/doc/packages") packages, each with its licence"
[ -z "$(find "$root" -perm /6000 -type f)" ] || fail "there are setuid files"
ok "no setuid files"

# What another architecture's programs do is asked of qemu's user mode, where it is there.
inside=(chroot "$root")
if [ "$arch" != "$(dpkg --print-architecture)" ]; then
    emulator=$(command -v qemu-aarch64-static) || {
        echo "skipped: what is in the image is not run: there is no qemu-aarch64-static (Debian's qemu-user-static)"
        exit 0
    }
    cp "$emulator" "$root/qemu"
    trap 'rm -f "$root/qemu"' EXIT
    inside=(chroot "$root" /qemu)
fi
"${inside[@]}" $driver --version >/dev/null
for service in controller node; do "${inside[@]}" $driver $service --help >/dev/null; done
ok "$("${inside[@]}" $driver --version) starts"

# The file systems, each made, checked and grown, as far as that goes without a device
# run PROGRAM ARGUMENT...
run() { "${inside[@]}" "$@" >"$root/tmp/output" 2>&1 || { cat "$root/tmp/output" >&2; fail "$*"; }; }
mount --bind /dev "$root/dev"
mount --bind /proc "$root/proc"
trap 'umount "$root/dev" "$root/proc"; rm -rf "$root"/tmp/* "$root/qemu"' EXIT
for size in ext4:64M xfs:320M btrfs:256M luks:32M; do truncate -s "${size#*:}" "$root/tmp/${size%:*}"; done
run /usr/sbin/mkfs.ext4 -q /tmp/ext4
run /usr/sbin/e2fsck -f -p /tmp/ext4
truncate -s 128M "$root/tmp/ext4"
run /usr/sbin/resize2fs /tmp/ext4
run /usr/sbin/mkfs.xfs -q /tmp/xfs
run /usr/sbin/mkfs.btrfs -q /tmp/btrfs
run /usr/sbin/blkid -p /tmp/ext4 /tmp/xfs /tmp/btrfs
for kind in ext4 xfs btrfs; do grep -q "TYPE=\"$kind\"" "$root/tmp/output" || fail "blkid does not know its own $kind"; done
echo -n secret >"$root/tmp/key"
run /usr/sbin/cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /tmp/key /tmp/luks
run /usr/sbin/cryptsetup open --test-passphrase --key-file /tmp/key /tmp/luks
run /usr/bin/btrfs filesystem --help
run /usr/sbin/xfs_growfs -V
run /usr/sbin/blockdev --version
run /usr/sbin/fstrim --version
ok "the tools run: mkfs of ext4, xfs and btrfs, e2fsck, resize2fs, blkid, cryptsetup, btrfs, xfs_growfs, blockdev, fstrim"

# A node looks for all of its tools before it serves.
[ "$arch" = "$(dpkg --print-architecture)" ] || exit 0
mkdir -p "$root/tmp/node"
"${inside[@]}" $driver node --endpoint=unix:///tmp/node/csi.sock --node-id=00000000-0000-4000-8000-000000000000 --region=EWR >"$root/tmp/log" 2>&1 &
node=$!
served=
for _ in $(seq 200); do
    if [ -S "$root/tmp/node/csi.sock" ]; then served=1; break; fi
    kill -0 "$node" 2>/dev/null || break
    read -rt 0.1 <> <(:) || true
done
kill "$node" 2>/dev/null || true
status=0
wait "$node" || status=$?
[ "$status" = 0 ] || { cat "$root/tmp/log" >&2; fail "the node driver ended with $status"; }
[ -n "$served" ] || { cat "$root/tmp/log" >&2; fail "the node driver did not serve"; }
ok "the node driver finds its tools and serves"

"$here/image-cloud.sh" "$root"
