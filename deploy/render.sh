#!/usr/bin/env bash
# Renders the chart with its defaults, for people without Helm: deploy/render.sh > deploy/kubernetes.yaml
# HELM says which helm is used. For the oldest Kubernetes that the driver runs on, so that it fits all of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
cat <<'TEXT'
# cloud-block-csi for Vultr block storage, in one file. Kubernetes 1.26 or later.
#
#   kubectl -n kube-system create secret generic vultr-csi --from-file=api-key=TOKEN-FILE
#   kubectl apply -f kubernetes.yaml
#
# The token's file holds nothing else. A cluster without the snapshot CRDs refuses the VolumeSnapshotClass, and takes the
# rest. Where the cluster has StorageClasses of these names, leave those out:
#
#   kubectl apply -f kubernetes.yaml -l 'app.kubernetes.io/component != storage-class'
#
# Settings of the driver go into a ConfigMap, by the names of their environment variables; then restart the pods:
#
#   kubectl -n kube-system create configmap cloud-block-csi --from-literal=CSI_LOG_LEVEL=debug
#
# README.md beside this file says more: other kubelet folders, two controllers, upgrades, and how to take it away. In place
# of Vultr's own driver: migration.md.
#
# Rendered from the chart by render.sh: change it there.
TEXT
"${HELM:-helm}" template cloud-block-csi chart --namespace kube-system --kube-version 1.26.0 \
    --api-versions snapshot.storage.k8s.io/v1/VolumeSnapshotClass | grep -v '^# Source: '
