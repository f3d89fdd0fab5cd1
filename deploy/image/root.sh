#!/usr/bin/env bash
# Lays out what the image has besides the driver, for an architecture: root.sh ARCHITECTURE FOLDER
# Debian's packages for it are downloaded and unpacked, not installed; what is wanted of them is copied, with the libraries
# that it needs, and with the licences of every package that something was copied from.
set -euo pipefail
arch=$1 image=$2
case $arch in
    amd64) gnu=x86_64-linux-gnu ;;
    arm64) gnu=aarch64-linux-gnu ;;
    *) echo "no such architecture: $arch" >&2; exit 64 ;;
esac
# What the driver runs on a node; it looks for all of them at its start.
programs=(blkid blockdev btrfs cryptsetup e2fsck fstrim mkfs.btrfs mkfs.ext4 mkfs.xfs resize2fs xfs_growfs)
# What the driver itself is linked to
libraries=(libc.so.6 libgcc_s.so.1 libm.so.6)
packages=(base-files btrfs-progs ca-certificates cryptsetup-bin e2fsprogs libgcc-s1 util-linux xfsprogs)

work=$(mktemp -d)
all=$work/all
mkdir -p "$work"/{lists,debs}/partial "$all"/usr/{bin,sbin,lib,lib64} "$image"
# As if nothing were installed, so that all that the packages depend on comes along.
touch "$work/status"
cat >"$work/apt.conf" <<TEXT
#clear APT::Architectures;
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
APT::Sandbox::User "root";
Dir::State::status "$work/status";
Dir::State::lists "$work/lists";
Dir::Cache::archives "$work/debs";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
TEXT
export APT_CONFIG=$work/apt.conf
apt-get update -q
apt-get install -q -y --no-install-recommends --download-only "${packages[@]}"

# merged PATH: where a file is, as Debian's packages name some of them by the old folders
merged() { sed -E 's#^(\./)?/?((bin|sbin|lib|lib64)/)#usr/\2#; s#^\./##; s#^/##' <<<"$1"; }
declare -A owner
for folder in bin sbin lib lib64; do ln -s "usr/$folder" "$all/$folder"; done
for deb in "$work"/debs/*.deb; do
    package=$(dpkg-deb -f "$deb" Package)
    dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$all"
    while read -r path; do owner[$path]=$package; done < <(dpkg-deb --fsys-tarfile "$deb" | tar -t |
        sed -E 's#^\./##; s#^(bin|sbin|lib|lib64)/#usr/&#; /(^|\/)$/d')
done

declare -A used
# add PATH: copies a file, what it links to, and the libraries that it needs
add() {
    local path target needed folder found
    path=$(merged "$1")
    [ ! -e "$image/$path" ] && [ ! -L "$image/$path" ] || return 0
    [ -n "${owner[$path]:-}" ] || { echo "no package has /$path" >&2; exit 1; }
    used[${owner[$path]}]=1
    mkdir -p "$image/${path%/*}"
    cp -P --preserve=mode "$all/$path" "$image/$path"
    if [ -L "$all/$path" ]; then
        target=$(readlink "$all/$path")
        case $target in /*) ;; *) target=$(realpath -m --no-symlinks "/${path%/*}/$target") ;; esac
        add "$target"
        return
    fi
    [ "$(head -c 4 "$all/$path" | tail -c 3)" = ELF ] || return 0
    while read -r needed; do
        found=
        for folder in "usr/lib/$gnu" usr/lib usr/lib64; do
            if [ -e "$all/$folder/$needed" ]; then found=$folder/$needed; break; fi
        done
        [ -n "$found" ] || { echo "/$path needs $needed, which is in none of the packages" >&2; exit 1; }
        add "$found"
    done < <(readelf -d "$all/$path" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
    needed=$(readelf -l "$all/$path" | sed -n 's/.*program interpreter: \(.*\)\]/\1/p')
    [ -z "$needed" ] || add "$needed"
}
mkdir -p "$image"/{csi,dev,etc/ssl/certs,proc,run,sys,tmp,usr/{bin,lib,lib64,local/bin,sbin}}
chmod 1777 "$image/tmp"
for folder in bin sbin lib lib64; do ln -s "usr/$folder" "$image/$folder"; done
for program in "${programs[@]}"; do
    if [ -e "$all/usr/sbin/$program" ]; then add "usr/sbin/$program"; else add "usr/bin/$program"; fi
done
for library in "${libraries[@]}"; do add "usr/lib/$gnu/$library"; done
add etc/mke2fs.conf
for profile in "$all"/usr/share/xfsprogs/mkfs/*.conf; do add "${profile#"$all/"}"; done

used[ca-certificates]=1
find "$all/usr/share/ca-certificates/mozilla" -name '*.crt' | LC_ALL=C sort | xargs cat >"$image/etc/ssl/certs/ca-certificates.crt"
ln -s /proc/self/mounts "$image/etc/mtab"
cat >"$image/etc/passwd" <<'TEXT'
root:x:0:0:root:/:/sbin/nologin
nonroot:x:65532:65532:nonroot:/:/sbin/nologin
TEXT
cat >"$image/etc/group" <<'TEXT'
root:x:0:
nonroot:x:65532:
TEXT
# The licences, and of what their sources are: Debian keeps every version at snapshot.debian.org.
mkdir -p "$image/usr/share/doc" "$image/usr/share/common-licenses"
cp -P "$all"/usr/share/common-licenses/* "$image/usr/share/common-licenses/"
for deb in "$work"/debs/*.deb; do
    package=$(dpkg-deb -f "$deb" Package)
    [ -n "${used[$package]:-}" ] || continue
    mkdir -p "$image/usr/share/doc/$package"
    cp -L "$all/usr/share/doc/$package/copyright" "$image/usr/share/doc/$package/copyright"
    # shellcheck disable=SC2016 # the braces are dpkg's
    dpkg-deb -W --showformat='${Package} ${Version} ${source:Package} ${source:Version}\n' "$deb"
done | LC_ALL=C sort >"$image/usr/share/doc/packages"
rm -rf "$work"
