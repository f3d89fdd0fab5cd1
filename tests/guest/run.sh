#!/usr/bin/env bash
# Runs a program as root in a small virtual machine of its own, and ends as the program ends:
#     tests/guest/run.sh [--disk SERIAL:SIZE]... [--share TAG] [--env NAME=VALUE]... [--deadline SECONDS] PROGRAM [ARGUMENT]...
#     tests/guest/run.sh --prepare            gets the kernel, and tells whether this computer can have such a machine
# It has what a container's root or the kernel outside may lack: device-mapper, all capabilities, disks with serials in
# sysfs. With --share it has a directory of its own over virtiofs, whose tag the program finds as TEST_SHARE; where there
# can be none, it runs without. It has no udev and no network. Nobody has to be root for it. Exit codes: the program's own; 69 if there can be
# no such machine here, and the last line says why; 70 if the machine ended without a result.
set -euo pipefail
guest=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
cache=${CARGO_TARGET_DIR:-$guest/../../target}/guest
# What a node runs, and what tests use to see what it did
tools=(b2sum blkid blockdev btrfs cryptsetup dd dmsetup dumpe2fs e2fsck fsfreeze fstrim losetup mkfs.btrfs mkfs.ext3
    mkfs.ext4 mkfs.xfs mkswap mount resize2fs sha256sum tune2fs umount xfs_db xfs_growfs)
modules=(virtio_pci virtio_blk loop xfs btrfs fuse virtiofs dm_mod dm_crypt dm_flakey dm_delay)
# What makes these faster
faster=(aesni_intel xts ecb sha256_ssse3 crc32c_intel algif_skcipher algif_hash)

cannot() { echo "$*"; exit 69; }
deadline=600 disks=() share= environment=() prepare=
while [[ ${1:-} == --* ]]; do
    case $1 in
        --prepare) prepare=yes; shift; continue ;;
        --disk) disks+=("$2") ;;
        --share) share=$2 ;;
        --env) environment+=("$2") ;;
        --deadline) deadline=$2 ;;
        *) echo "no such option: $1" >&2; exit 64 ;;
    esac
    shift 2
done

[ "$(uname -sm)" = "Linux x86_64" ] || cannot "it is made for x86-64 Linux, this is $(uname -sm)"
for tool in apt-get dpkg-deb qemu-system-x86_64 busybox cpio depmod "${tools[@]}"; do
    command -v "$tool" >/dev/null || cannot "there is no $tool"
done

mkdir -p "$cache"
work=$(mktemp -d "$cache/run.XXXXXX")
qemu= served=
ended() {
    if [ -n "$qemu" ]; then
        kill "$qemu" 2>/dev/null || true
        wait "$qemu" || true
    fi
    # It ends with qemu, if it came to that.
    [ -z "$served" ] || kill "$served" 2>/dev/null || true
    rm -rf "$work"
}
trap ended EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# The kernel comes from Debian's package, and stays in the cache until that has another name.
release=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: linux-image-//p' | head -n 1)
[ -n "$release" ] || cannot "apt-get knows no linux-image-cloud-amd64, Debian's kernel for virtual machines"
kernel=$cache/$release
if [ ! -e "$kernel" ]; then
    echo "getting the kernel $release"
    (cd "$work" && apt-get download -q "linux-image-$release") >"$work/download" 2>&1 || {
        cat "$work/download"
        echo "apt-get can't download linux-image-$release"
        exit 1
    }
    dpkg-deb -x "$work"/linux-image-*.deb "$work/kernel"
    depmod -b "$work/kernel" "$release"
    # Another run may have been faster.
    mv -T "$work/kernel" "$kernel" 2>/dev/null || [ -e "$kernel" ]
fi
[ -z "$prepare" ] || exit 0
program=${1:?a program}
shift

# Serves the directory $work/share on the socket $work/share.sock, or says why not. There is a virtiofsd in C, for root
# alone, and one in Rust.
serve() {
    local virtiofsd help options
    for virtiofsd in /usr/libexec/virtiofsd /usr/lib/qemu/virtiofsd /usr/lib/virtiofsd; do
        [ ! -x "$virtiofsd" ] || break
    done
    help=$("$virtiofsd" --help 2>&1) || { echo "there is no virtiofsd"; return 1; }
    case $help in
        *--shared-dir*) options=(--shared-dir "$work/share" --sandbox none) ;;
        *) options=(-f -o "source=$work/share" -o cache=auto -o sandbox=chroot) ;;
    esac
    mkdir "$work/share"
    "$virtiofsd" "--socket-path=$work/share.sock" "${options[@]}" </dev/null >"$work/served" 2>&1 &
    served=$!
    for _ in {1..50}; do
        [ ! -S "$work/share.sock" ] || return 0
        kill -0 "$served" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 1 "$work/served"
    return 1
}
shared=()
if [ -n "$share" ]; then
    if serve; then
        environment+=("TEST_SHARE=$share")
        # The two of them work on the machine's memory.
        shared=(-machine memory-backend=memory -object memory-backend-memfd,id=memory,size=2048M,share=on
            -chardev "socket,id=share,path=$work/share.sock" -device "vhost-user-fs-pci,chardev=share,tag=$share")
    else
        echo "so the machine has no share" >&2
    fi
fi

# The machine's root is its initramfs: busybox and its init, the tools, the program, the modules.
root=$work/root
mkdir -p "$root"/usr/{bin,sbin,lib/modules,lib64} "$root/etc"
for directory in bin sbin lib lib64; do ln -s "usr/$directory" "$root/$directory"; done
# put FILE [AS]: what it is, should it be a link, and the libraries that it needs
put() {
    local file=$1 as=${2:-$1} library
    mkdir -p "$root${as%/*}"
    cp -L "$file" "$root$as"
    # ldd complains of what is no dynamic program, and that needs none.
    for library in $(ldd "$file" 2>/dev/null | grep -o '/[^ ]*'); do
        [ -e "$root$library" ] || put "$library"
    done
}
put "$(command -v busybox)" /busybox
ln -s /busybox "$root/bin/sh"
cp "$guest/init" "$root/init"
for tool in "${tools[@]}"; do put "$(command -v "$tool")" "/usr/sbin/$tool"; done
# What tools open only when they run; argon2's threads end with the help of libgcc.
threads=$(ldconfig -p | sed -n 's/.*libgcc_s\.so\.1 (.*x86-64.*) => //p' | head -n 1)
for file in /etc/mke2fs.conf /usr/share/xfsprogs/mkfs/* "$threads"; do
    [ ! -e "$file" ] || put "$file"
done
echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
put "$program" /program
strip --strip-debug "$root/program" 2>/dev/null || true
printf '%q ' env "${environment[@]}" /program "$@" >"$root/command"
# In the order of loading, each once; a newer Debian has them compressed.
files() { modprobe -d "$kernel" -S "$release" --show-depends "$1"; }
{
    for module in "${modules[@]}"; do files "$module" || exit; done
    for module in "${faster[@]}"; do files "$module" || echo "without the module $module" >&2; done
} | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r module; do
    as=/lib/modules/$(basename "${module%.xz}")
    case $module in *.xz) xz -dc "$module" ;; *) cat "$module" ;; esac >"$root$as"
    echo "$as"
done >"$root/modules"
# Not compressed: to unpack it would take an emulated processor longer than qemu takes to hand it over.
(cd "$root" && find . | cpio --quiet -o -H newc -R 0:0) >"$work/initramfs"

drives=()
for disk in "${disks[@]}"; do
    serial=${disk%%:*}
    truncate -s "${disk#*:}" "$work/$serial.img"
    drives+=(-drive "file=$work/$serial.img,if=none,id=$serial,format=raw,cache=unsafe,discard=unmap"
        -device "virtio-blk-pci,drive=$serial,serial=$serial")
done
machine=(-machine pc -nodefaults -display none -no-reboot -kernel "$kernel/boot/vmlinuz-$release")
# A /dev/kvm that opens may still not run this kernel, where this is a virtual machine itself; its first line tells.
processor=(-accel kvm -cpu host)
[ ! -w /dev/kvm ] || (
    ulimit -c 0
    timeout 5 qemu-system-x86_64 "${machine[@]}" "${processor[@]}" -m 256 -serial "file:$work/probe" \
        -append "console=ttyS0 panic=-1" || true
) </dev/null >/dev/null 2>&1
if ! grep -qs "Linux version" "$work/probe"; then
    # With AES, which the kernel and OpenSSL are much slower without, but not AVX, which is slow when emulated
    processor=(-accel "tcg,thread=multi,tb-size=512"
        -cpu "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+aes,+pclmulqdq")
fi
# The serial lines: the console, the program's output, its exit code. In the foreground, so that Ctrl-C reaches qemu.
timeout --foreground --kill-after 5 "$deadline" qemu-system-x86_64 "${machine[@]}" "${processor[@]}" -smp 2 -m 2048 \
    -initrd "$work/initramfs" -append "console=ttyS0 quiet panic=-1 mitigations=off audit=0" \
    -serial "file:$work/console" -serial stdio -serial "file:$work/code" "${drives[@]}" "${shared[@]}" </dev/null &
qemu=$!
status=0
wait "$qemu" || status=$?
qemu=
if [ -s "$work/code" ]; then exit "$(<"$work/code")"; fi
printf '\nthe end of the console:\n'
tail -n 30 "$work/console"
if [ "$status" = 124 ]; then echo "the machine had not ended after $deadline s"; else
    echo "the machine ended without a result, qemu with $status"; fi
exit 70
