#!/usr/bin/env bash
# Checks what is needed and installs by apt-get what is missing: tests/tools.sh demo|test
# Rust and Go are yours to install; for the rest root is needed only where something is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
purpose=${1:?demo or test}
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# at_least HAVE WANTED: whether version HAVE is WANTED or later
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }
# there_is TOOL VERSION: says what was found
there_is() { if [ -n "$2" ]; then echo "there is $2"; else echo "there is no $1 in the PATH"; fi; }
missing=0
want_rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
have_rust=$( (cargo --version 2>/dev/null || true) | awk '{print $2}')
if [ -z "$have_rust" ] || ! at_least "${have_rust%%-*}" "$want_rust"; then
    missing=1
    cat >&2 <<TEXT
Rust $want_rust or later is needed; $(there_is cargo "$have_rust"). To install it:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y && . "\$HOME/.cargo/env"
or, if rustup is there already: rustup update stable
TEXT
fi
if [ "$purpose" = test ]; then
    if [ "$missing" = 0 ] && ! { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1; then
        missing=1
        echo "rustfmt and clippy are needed: rustup component add rustfmt clippy" >&2
    fi
    want_go=$(sed -n 's/^go //p' tests/deploy/go.mod)
    have_go=$( (go env GOVERSION 2>/dev/null || true) | sed 's/^go//; s/[ -].*//')
    if [ -z "$have_go" ] || ! at_least "$have_go" "$want_go"; then
        missing=1
        cat >&2 <<TEXT
Go $want_go or later is needed by make test (make demo does without); $(there_is go "$have_go"). To install it:
    curl -fsSL "https://go.dev/dl/\$(curl -fsSL 'https://go.dev/VERSION?m=text' | head -n 1).linux-$(dpkg --print-architecture 2>/dev/null || echo amd64).tar.gz" | sudo tar -C /usr/local -xz
    export PATH=\$PATH:/usr/local/go/bin
TEXT
    fi
fi
[ "$missing" = 0 ] || exit 1

# missing_of ARRAY: reads lines "tool (or file) package" and adds the packages to ARRAY whose tool is not there
missing_of() {
    local -n into=$1
    local tool package
    while read -r tool package; do
        case $tool in
            /*) [ -e "$tool" ] || into+=("$package") ;;
            *) command -v "$tool" >/dev/null || into+=("$package") ;;
        esac
    done
}
packages=()
missing_of packages <<'TABLE'
cc gcc
/usr/include/stdio.h libc6-dev
/etc/ssl/certs/ca-certificates.crt ca-certificates
losetup mount
mount mount
setpriv util-linux
blkid util-linux
mkfs.ext4 e2fsprogs
mkfs.xfs xfsprogs
mkfs.btrfs btrfs-progs
cryptsetup cryptsetup-bin
TABLE
# For the virtual machine of the tests (tests/guest).
if [ "$purpose" = test ] && [ "$(uname -m)" = x86_64 ]; then
    missing_of packages <<'TABLE'
dmsetup dmsetup
qemu-system-x86_64 qemu-system-x86
busybox busybox-static
cpio cpio
depmod kmod
TABLE
    # For the image, which is built without a registry.
    missing_of packages <<'TABLE'
buildah buildah
debootstrap debootstrap
qemu-aarch64-static qemu-user-static
TABLE
    # For Kubernetes; what would start services of its own is unpacked by tests/kubernetes/prepare.sh, and not installed.
    missing_of packages <<'TABLE'
ip iproute2
openssl openssl
pgrep procps
python3 python3
ssh openssh-client
unshare util-linux
TABLE
fi
# What foreign disks are made with, for the table of disks that are refused. Where a release has one of them no more,
# its rows are skipped by name.
foreign=()
[ "$purpose" != test ] || missing_of foreign <<'TABLE'
mkfs.ext2 e2fsprogs
mkfs.ext3 e2fsprogs
mkswap util-linux
wipefs util-linux
mkfs.minix util-linux
mkfs.bfs util-linux
mkfs.cramfs util-linux
pvcreate lvm2
make-bcache bcache-tools
sgdisk gdisk
fdisk fdisk
sfdisk fdisk
parted parted
mkfs.vfat dosfstools
mkfs.exfat exfatprogs
mkntfs ntfs-3g
mkudffs udftools
mkfs.f2fs f2fs-tools
mkfs.jfs jfsutils
mkreiserfs reiserfsprogs
mkfs.nilfs2 nilfs-tools
mkfs.ocfs2 ocfs2-tools
mkfs.gfs2 gfs2-utils
genisoimage genisoimage
mksquashfs squashfs-tools
mkfs.erofs erofs-utils
cmp diffutils
TABLE
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
        echo "root is needed for: $*; there is no sudo, so run it as root" >&2
        exit 1
    fi
}
if [ ${#packages[@]} -gt 0 ] && ! command -v apt-get >/dev/null; then
    echo "please install what is in the Debian packages: ${packages[*]}" >&2
    exit 1
fi
if [ $((${#packages[@]} + ${#foreign[@]})) -gt 0 ] && command -v apt-get >/dev/null; then
    as_root apt-get update -q
    for package in "${foreign[@]}"; do
        # A package that is installed without the tool would be asked for again and again.
        if ! apt-cache show "$package" >/dev/null 2>&1 || dpkg -s "$package" >/dev/null 2>&1; then continue; fi
        packages+=("$package")
    done
    if [ ${#packages[@]} -gt 0 ]; then
        mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
        echo "installing by apt-get: ${packages[*]}"
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${packages[@]}"
    fi
fi
[ -e /dev/loop-control ] || as_root modprobe loop || true
[ -e /dev/loop-control ] || {
    echo "there is no /dev/loop-control: in a container, run it with --privileged" >&2
    exit 1
}
