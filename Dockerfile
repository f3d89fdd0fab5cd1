# The driver's image: docker build -t cloud-block-csi .
# From nothing, with the driver, the programs that it runs and their libraries: no shell, no package manager. Nothing of
# another architecture is run while it is built, so that `docker buildx build --platform linux/arm64` needs no emulation.
FROM --platform=$BUILDPLATFORM docker.io/library/rust:1-slim-bookworm AS base

FROM base AS root
ARG TARGETARCH
COPY deploy/image/root.sh /
RUN /root.sh "$TARGETARCH" /image

# All but the driver
FROM scratch AS platform
COPY --from=root /image/ /
COPY LICENSE /usr/share/doc/cloud-block-csi/copyright
LABEL org.opencontainers.image.title="cloud-block-csi" \
      org.opencontainers.image.description="A CSI driver that maps Kubernetes volumes onto cloud block storage" \
      org.opencontainers.image.source="https://github.com/cloud-block-csi/cloud-block-csi" \
      org.opencontainers.image.licenses="Apache-2.0 AND GPL-2.0-or-later AND LGPL-2.1-or-later" \
      org.opencontainers.image.base.name="scratch"
# The controller needs nothing more; the node's pod says that it is root.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/cloud-block-csi"]

FROM base AS build
ARG TARGETARCH
WORKDIR /build
COPY . .
# What has been downloaded and compiled is kept from one build to the next.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/target \
    deploy/image/driver.sh "$TARGETARCH" /cloud-block-csi

FROM platform
COPY --from=build /cloud-block-csi /usr/local/bin/cloud-block-csi
