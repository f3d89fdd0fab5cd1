#!/usr/bin/env bash
# Builds what the bed runs and others wrote, or finds it in the cache; the last line is the folder:
#     tests/kubernetes/prepare.sh [host|programs|suite|images|worker]...
# host: what a node and a control plane have beside Kubernetes; programs: Kubernetes and the official sidecars; suite: the Kubernetes storage tests; images: the containers' images, made
# without a registry; worker: the disk and the kernel of the virtual workers. Each lies in a folder named after all that it
# is made of, so it is made again only when that changes.
set -euo pipefail
export HOME=${HOME:-/root}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
cache=${XDG_CACHE_HOME:-$HOME/.cache}/cloud-block-csi/kubernetes
mkdir -p "$cache"
# Two at once would take each other's folders away.
exec 9>"$cache/prepare.lock"
flock 9
say() { echo "$*" >&2; }
# version MODULE: as the go.mod of the programs has it
version() { awk -v module="$1" '$1 == module { print $2; exit }' "$here/programs/go.mod"; }
kubernetes=$(version k8s.io/kubernetes)

# once NAME KEY COMMAND...: runs the command with a new folder, which is put in its place when it is complete
once() {
    local name=$1 place=$cache/$1-$2 began=$SECONDS
    shift 2
    if [ ! -d "$place" ]; then
        say "making $name, $(date +%T)"
        rm -rf "$place.new"
        mkdir "$place.new"
        "$@" "$place.new" >&2
        mv -T "$place.new" "$place"
        say "made $name in $((SECONDS - began)) s"
    fi
    ln -sfn "$place" "$cache/$name"
    # Those of other versions, and of runs that were cut off, for as long as somebody may still use them
    touch "$place"
    find "$cache" -maxdepth 1 -type d -name "$name-*" -mtime +1 -exec rm -rf --one-file-system {} + || say "old ones of $name stay"
}
key() { cat "$@" | sha256sum | cut -c 1-16; }

# In the module's folder, and for a machine without a C library
go_build() { (cd "$here/programs" && env CGO_ENABLED=0 GOFLAGS=-mod=readonly go "$@"); }

make_programs() {
    local numbers=${kubernetes#v} flags module
    flags="-s -w -X k8s.io/component-base/version.gitVersion=$kubernetes"
    flags+=" -X k8s.io/component-base/version.gitMajor=${numbers%%.*}"
    flags+=" -X k8s.io/component-base/version.gitMinor=$(cut -d . -f 2 <<<"$numbers")"
    flags+=" -X k8s.io/component-base/version.gitCommit=0000000000000000000000000000000000000000"
    local packages
    mapfile -t packages < <(sed -n 's/^\t_ "\(.*\/cmd\/.*\|.*\/agnhost\)"$/\1/p' "$here/programs/programs.go")
    go_build build -trimpath -ldflags "$flags" -o "$1/" "${packages[@]}"
    # The resources of snapshots are in no program.
    module=$(go_build list -m -f '{{.Dir}}' github.com/kubernetes-csi/external-snapshotter/client/v8)
    mkdir "$1/crds"
    cp "$module"/config/crd/snapshot.storage.k8s.io_*.yaml "$1/crds/"
    chmod -R u+w "$1"
}

# Out of Debian's packages, which are not installed: that would start their services on this machine.
make_host() {
    local package
    (cd "$1" && apt-get download -q etcd-server containerd containernetworking-plugins runc)
    for package in "$1"/*.deb; do dpkg-deb -x "$package" "$1"; done
    rm "$1"/*.deb
}

make_suite() { go_build test -c -trimpath -ldflags '-s -w' -o "$1/storage.test" ./suite; }

# What a sidecar's image is called, and the program in it
sidecars() {
    echo "csi-provisioner $(version github.com/kubernetes-csi/external-provisioner/v6)"
    echo "csi-attacher $(version github.com/kubernetes-csi/external-attacher/v4)"
    echo "csi-resizer $(version github.com/kubernetes-csi/external-resizer/v2)"
    echo "csi-snapshotter $(version github.com/kubernetes-csi/external-snapshotter/v8)"
}
make_images() {
    local name tag agnhost suite=registry.k8s.io/e2e-test-images
    agnhost=$(agnhost_name "$suite")
    cc -static -Os -o "$1/pause" "$here/images/pause.c"
    while read -r name tag; do
        "$here/images/image.py" "$1/$name.tar" "registry.k8s.io/sig-storage/$name:$tag" "/$name" "$cache/programs/$name=/$name"
    done < <(sidecars)
    "$here/images/image.py" "$1/pause.tar" registry.k8s.io/pause:3.10 /pause "$1/pause=/pause"
    # Under the names too that the storage suite asks for
    "$here/images/image.py" --busybox "$(command -v busybox)" "$1/busybox.tar" \
        "bed.invalid/busybox:1,$suite/busybox:1.37.0-1,$suite/nginx:1.15-4,$suite/nginx:1.27-0" /bin/sh
    # This one is asked for where busybox' dd does not do, which its shell would take first.
    "$here/images/image.py" --busybox "$(command -v busybox)" "$1/glibc.tar" "$suite/glibc-dns-testing:2.0.0" /bin/sh \
        /bin/dash=/bin/sh /bin/dd=/bin/dd $(ldd /bin/dd /bin/dash | grep -o '/[^ :]* (' | sed 's/ (//; s/.*/&=&/' | sort -u)
    "$here/images/image.py" --busybox "$(command -v busybox)" "$1/agnhost.tar" \
        "$agnhost" /agnhost "$cache/programs/agnhost=/agnhost"
}
# The suite asks for one version, which its own manifest knows.
agnhost_name() {
    local source
    source=$(go_build list -f '{{.Dir}}' k8s.io/kubernetes/test/images/agnhost) || return
    echo "$1/agnhost:$(cat "$source/VERSION")"
}

# Debian's own archive, wherever this machine gets it from
mirror() { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1; }
make_worker() {
    local root=$1/root packages
    packages=$(tr '\n' , <"$here/worker/packages")
    # What it mounts goes with it, also if it is killed.
    unshare --mount debootstrap --variant=minbase "--include=${packages%,}" bookworm "$root" "$(mirror)"
    PATH=$cache/host/usr/bin:$PATH "$here/worker/build.sh" "$root" "$cache/programs/kubelet" "$cache/images" "$1"
    rm -rf "$root"
}

[ $# -gt 0 ] || set -- host programs suite images worker
for part in "$@"; do
    case $part in
        host) once host "$(declare -f make_host | key)" make_host ;;
        programs)
            once programs "$kubernetes-$(key "$here"/programs/{go.mod,go.sum,programs.go})" make_programs
            # Go's own cache keeps it, and the bed has no network to build it with.
            (cd "$here/../deploy" && CGO_ENABLED=0 go tool -n helm >/dev/null)
            ;;
        suite) once suite "$kubernetes-$(key "$here"/programs/{go.mod,go.sum,suite/*})" make_suite ;;
        images)
            once images "$({ readlink "$cache/programs"; declare -f make_images; } | key - "$here"/images/*)" make_images
            ;;
        worker) once worker "$(readlink "$cache/images" | key - "$here"/worker/*)" make_worker ;;
        *) say "no such part: $part"; exit 64 ;;
    esac
done
echo "$cache"
