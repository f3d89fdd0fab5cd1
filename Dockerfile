# The driver's image: docker build -t cloud-block-csi .
FROM rust:1-slim-bookworm AS build
RUN apt-get update -q && apt-get install -q -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN cargo build --release --locked --package cloud-block-csi

FROM debian:bookworm-slim
RUN apt-get update -q \
    && apt-get install -q -y --no-install-recommends btrfs-progs ca-certificates cryptsetup-bin e2fsprogs mount util-linux xfsprogs \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /build/target/release/cloud-block-csi /usr/local/bin/cloud-block-csi
ENTRYPOINT ["/usr/local/bin/cloud-block-csi"]
