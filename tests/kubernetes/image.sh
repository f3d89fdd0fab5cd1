#!/usr/bin/env bash
# Builds the driver's image from the Dockerfile as it is, without any image registry, and tries it:
#     tests/kubernetes/image.sh [--arch amd64|arm64] [--binary DRIVER] [--possible]
# --binary puts a driver that was built already into it, which takes seconds. The archive, for `ctr -n k8s.io images import`
# or `docker load`, is the last line printed. Exit code 69: it can't be done here, and the last line says why.
# The base image is made of Debian's packages under its public name and kept in a cache; so is what cargo compiled.
set -euo pipefail
export HOME=${HOME:-/root}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
asked=("$@") arch=amd64 binary='' only_asked=''
while [ $# -gt 0 ]; do
    case $1 in
        --arch) arch=$2; shift 2 ;;
        --binary) binary=$2; shift 2 ;;
        --possible) only_asked=1; shift ;;
        *) echo "no such option: $1" >&2; exit 64 ;;
    esac
done
name=ghcr.io/cloud-block-csi/cloud-block-csi:$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
base=docker.io/library/rust:1-slim-bookworm
limit_mb=40
host=$(dpkg --print-architecture)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/cloud-block-csi
cannot() { echo "$1"; exit 69; }
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
for tool in buildah debootstrap; do command -v "$tool" >/dev/null || cannot "there is no $tool"; done
[ "$arch" = "$host" ] || [ "$host" = amd64 ] || cannot "an image for $arch is built on amd64 only"
[ -z "$only_asked" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "the image is built as root" >&2; exit 1; }
# In a world of its own, with which all that it mounts and starts ends, however it ends
if [ -z "${IMAGE_WORLD:-}" ]; then
    run=$(mktemp -d /tmp/cloud-block-csi-image.XXXXXX)
    trap 'rm -rf "$run"' EXIT
    IMAGE_WORLD=$run setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc \
        tests/kubernetes/image.sh ${asked[@]+"${asked[@]}"} &
    # It hears no other signal while it waits.
    trap 'kill -KILL $!' INT TERM HUP
    status=0
    wait $! || status=$?
    exit "$status"
fi
run=$IMAGE_WORLD
mkdir -p "$cache/images" "$cache/buildah"

# Of its own, beside whatever else uses buildah on this machine; TMPDIR is where it keeps the caches of RUN --mount.
cat >"$cache/policy.json" <<<'{"default": [{"type": "insecureAcceptAnything"}]}'
export BUILDAH_ISOLATION=chroot TMPDIR=$cache/buildah
# overlay needs a file system that can be below it
driver=overlay
[ "$(stat -f -c %T "$cache/images")" != overlayfs ] || driver=vfs
b() { buildah --root "$cache/images" --runroot "$run" --storage-driver "$driver" "$@"; }
exec 9>"$cache/images.lock"
flock 9
trap 'b rm --all >/dev/null || true' EXIT

# mirror CODENAME OTHERWISE: where this machine gets Debian from
mirror() {
    local uri
    # shellcheck disable=SC2016 # apt's own variable
    uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $1" 2>/dev/null | head -n 1)
    echo "${uri:-$2}"
}
# The rust image's stand-in: Debian, its Rust, and what this machine has to say about where to download from.
make_base() {
    local container root
    echo "making $base of Debian's packages"
    container=$(b from scratch)
    root=$(b mount "$container")
    debootstrap --variant=minbase --include=ca-certificates bookworm "$root" "$(mirror bookworm http://deb.debian.org/debian)"
    cat >"$root/etc/apt/sources.list" <<TEXT
deb $(mirror bookworm http://deb.debian.org/debian) bookworm main
deb $(mirror bookworm-security http://deb.debian.org/debian-security) bookworm-security main
TEXT
    apt-config dump | grep -E '^Acquire::(Check-Valid-Until|Check-Date|http|https)' >"$root/etc/apt/apt.conf.d/99machine" || true
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    chroot "$root" apt-get update -q
    chroot "$root" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends cargo-web gcc libc6-dev rustc-web
    chroot "$root" apt-get clean
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    mkdir -p "$root/usr/local/cargo"
    [ ! -e "$HOME/.cargo/config.toml" ] || cp "$HOME/.cargo/config.toml" "$root/usr/local/cargo/"
    b config --env CARGO_HOME=/usr/local/cargo --label "made-of=$1" "$container"
    b umount "$container" >/dev/null
    b commit --rm "$container" "$base"
}
# What runs before this one left when they were cut off
b rm --all >/dev/null
made_of=$( (declare -f make_base; echo "$driver") | sha256sum | cut -c 1-16)
found=$(b images --quiet --filter "label=made-of=$made_of")
[ -n "$found" ] || make_base "$made_of"

# Not by --platform, for which buildah would look for a base image of that architecture: the base runs here.
build=(build --signature-policy "$cache/policy.json" --pull-never --layers --file Dockerfile --build-arg "TARGETARCH=$arch")
# Named, so that they outlast the clearing up below
b "${build[@]}" --target root --tag "root-$arch" .
b "${build[@]}" --target platform --tag "platform-$arch" .
if [ -n "$binary" ]; then
    container=$(b from --pull-never "platform-$arch")
    b copy --chmod 755 "$container" "$binary" /usr/local/bin/cloud-block-csi
else
    b "${build[@]}" --tag built .
    container=$(b from --pull-never built)
fi
b config --arch "$arch" "$container"
b commit --rm "$container" "$name"
# Layers of earlier builds, of which one for another architecture has a whole compiler
b rmi --prune >/dev/null

# Not in the cache, which other checkouts use as well: a bed reads it when it starts, and that may be much later.
archive=$(realpath -m "${CARGO_TARGET_DIR:-target}/kubernetes/image-$arch.tar")
mkdir -p "${archive%/*}"
rm -f "$archive"
b push --quiet --signature-policy "$cache/policy.json" "$name" "docker-archive:$archive:$name"
container=$(b from --pull-never "$name")
tests/kubernetes/image-check.sh "$(b mount "$container")" "$arch"
compressed=$(gzip -6 <"$archive" | wc -c)
echo "$name for $arch: $((compressed / 1000000)).$((compressed / 100000 % 10)) MB compressed"
[ "$compressed" -lt $((limit_mb * 1000000)) ] || { echo "that is more than $limit_mb MB" >&2; exit 1; }
echo "$archive"
