#!/usr/bin/env bash
# Makes a virtual worker's disk and takes its kernel out of a debootstrapped tree:
#     build.sh ROOT KUBELET IMAGES OUT
# It has no tools for disks but what Debian cannot do without: the driver brings its own.
set -euo pipefail
root=$1 kubelet=$2 images=$3 out=$4
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

echo worker >"$root/etc/hostname"
# Without a password: it is on a network that nobody else is on, and sshd lets keys in alone.
sed -i 's/^root:[^:]*:/root::/' "$root/etc/shadow"
echo '/dev/vda / ext4 defaults,noatime 0 1' >"$root/etc/fstab"
printf '%s\n' overlay br_netfilter dm_crypt virtiofs >"$root/etc/modules-load.d/bed.conf"
printf '%s\n' net.ipv4.ip_forward=1 vm.overcommit_memory=1 kernel.panic=10 kernel.panic_on_oops=1 >"$root/etc/sysctl.d/90-bed.conf"
echo 'SUBSYSTEM=="net", ACTION=="add", DRIVERS=="virtio_net", NAME="eth0"' >"$root/etc/udev/rules.d/10-eth0.rules"
mkdir -p "$root"/{bed,etc/containerd,etc/cni/net.d,etc/ssh/sshd_config.d}
cp "$here/containerd.toml" "$root/etc/containerd/config.toml"
cp "$here/bed.service" "$here/kubelet.service" "$root/etc/systemd/system/"
install -m 755 "$here/bed-setup" "$root/usr/local/sbin/bed-setup"
install -m 755 "$kubelet" "$root/usr/local/bin/kubelet"
printf '%s\n' 'UseDNS no' 'UsePAM no' 'AuthorizedKeysFile /bed/authorized_keys' 'StrictModes no' >"$root/etc/ssh/sshd_config.d/bed.conf"

wanted=$root/etc/systemd/system/multi-user.target.wants
mkdir -p "$wanted"
for unit in bed kubelet; do ln -sf "/etc/systemd/system/$unit.service" "$wanted/$unit.service"; done
for unit in containerd ssh; do ln -sf "/lib/systemd/system/$unit.service" "$wanted/$unit.service"; done
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    man-db.timer systemd-networkd.service systemd-pstore.service systemd-resolved.service systemd-timesyncd.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

# The containers' images are unpacked here once, and not by each worker at each start on an emulated processor.
unshare --mount --pid --fork --kill-child --mount-proc bash -euo pipefail -s -- "$root" "$images" <<'INSIDE'
root=$1 images=$2
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
printf '%s\n' 'version = 2' "root = \"$root/var/lib/containerd\"" "state = \"$state\"" 'disabled_plugins = ["io.containerd.grpc.v1.cri"]' \
    '[grpc]' "  address = \"$state/socket\"" >"$state/config.toml"
containerd --config "$state/config.toml" --log-level warn &
for _ in {1..100}; do ! ctr --address "$state/socket" version >/dev/null 2>&1 || break; sleep 0.1; done
for image in "$images"/*.tar; do ctr --address "$state/socket" --namespace k8s.io images import "$image"; done
kill %1
wait || true
INSIDE

rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*
mv "$root"/boot/vmlinuz-* "$out/vmlinuz"
mv "$root"/boot/initrd.img-* "$out/initrd"
mke2fs -q -t ext4 -O ^has_journal,^metadata_csum -m 0 -L worker -d "$root" "$out/disk" 4G
