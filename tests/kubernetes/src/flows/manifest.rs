//! What is shipped, before the judge that it is written for.

use anyhow::{Context, Result, ensure};

use crate::{bed::Bed, driver, stage::Stage};

/// Settings that change more than a value in an object: the kubelet's folders of the README, two controllers, leases that
/// their holders make, and the rest of what is optional.
const SETTINGS: [&[&str]; 6] = [
    &[],
    &["kubeletDir=/var/lib/k0s/kubelet"],
    &["kubeletDir=/var/snap/microk8s/common/var/lib/kubelet"],
    &["controller.replicas=2"],
    &["controller.replicas=2", "leases.made=components"],
    &[
        "node.startupTaint=block.csi.vultr.com/agent-not-ready",
        "node.metricsAddress=127.0.0.1",
        "sidecars.snapshotter.enabled=false",
        "volumeSnapshotClass.create=never",
        "clusterId=one",
        "region=EWR",
        "logLevel=debug",
        "otlpEndpoint=http://collector.observability:4318",
    ],
];

pub(super) async fn the_manifest_is_valid_for_the_server(stage: &mut Stage<'_>) -> Result<()> {
    let bed = &*stage.bed;
    let shipped = std::fs::read_to_string(bed.parts.repository.join("deploy/kubernetes.yaml"))?;
    is_valid(bed, &shipped).await?;
    let misspelt = shipped.replace("terminationGracePeriodSeconds", "terminationGraceSeconds");
    ensure!(misspelt != shipped, "the manifest has nothing to misspell");
    let refused = is_valid(bed, &misspelt).await.err().context("the server takes a field that there is not")?;
    let refusal = "unknown field \"spec.template.spec.terminationGraceSeconds\"";
    ensure!(refused.to_string().contains(refusal), "it refuses another field: {refused}");
    for settings in SETTINGS {
        is_valid(bed, &driver::rendered(bed, settings).await?).await?;
    }
    Ok(())
}

/// Asks the server, which has defaults, schemas and admission, and warns of what it won't take for long.
async fn is_valid(bed: &Bed, manifest: &str) -> Result<()> {
    let ask = ["apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors"];
    bed.kubectl.with_manifest(&ask, manifest).await.map(drop)
}
