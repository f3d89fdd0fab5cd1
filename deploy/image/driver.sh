#!/usr/bin/env bash
# Compiles the driver for an architecture, in the builder of the Dockerfile: driver.sh ARCHITECTURE FILE
set -euo pipefail
arch=$1 file=$2
case $arch in
    amd64) machine=x86_64 compiler=gcc-x86-64-linux-gnu ;;
    arm64) machine=aarch64 compiler=gcc-aarch64-linux-gnu ;;
    *) echo "no such architecture: $arch" >&2; exit 64 ;;
esac
triple=$machine-unknown-linux-gnu
if [ "$arch" != "$(dpkg --print-architecture)" ]; then
    # A compiler and a C library for it; the standard library from rustup, or from Debian where Rust is Debian's.
    packages=("$compiler" "libc6-dev-$arch-cross")
    command -v rustup >/dev/null || { dpkg --add-architecture "$arch"; packages+=("libstd-rust-web-dev:$arch"); }
    apt-get update -q
    apt-get install -q -y --no-install-recommends "${packages[@]}"
    if command -v rustup >/dev/null; then rustup target add "$triple"; fi
    variable=${triple//-/_}
    export "CARGO_TARGET_${variable^^}_LINKER=$machine-linux-gnu-gcc" "CC_$variable=$machine-linux-gnu-gcc"
fi
# The cache of what was compiled goes by the time of the files, and the sources of another checkout may be older than what
# was compiled of this one.
touch build.rs src/lib.rs src/main.rs
cargo build --release --locked --package cloud-block-csi --bin cloud-block-csi --target "$triple" --target-dir /target
cp "/target/$triple/release/cloud-block-csi" "$file"
