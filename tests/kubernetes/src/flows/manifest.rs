//! What is shipped, before the judge that it is written for.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::operations::used;
use crate::{
    bed::{Bed, text},
    driver::{self, CONTROLLER, NAMESPACE},
    plane,
    stage::Stage,
};

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

pub(super) async fn without_snapshot_crds_it_is_installed_and_gives_volumes(stage: &mut Stage<'_>) -> Result<()> {
    let bed = &mut *stage.bed;
    let snapshots = bed.kubectl.list(&["volumesnapshots,volumesnapshotcontents", "-A"]).await?;
    ensure!(snapshots.is_empty(), "there are snapshots, which would go: {snapshots:?}");
    let shipped = driver::documents(bed, &bed.parts.repository.join("deploy/kubernetes.yaml")).await?;
    driver::uninstall(bed).await?;
    let gone = plane::end_snapshots(&mut bed.processes, &bed.parts.programs, &bed.kubectl).await;
    let shown = match gone {
        Ok(()) => installed_without(stage, &shipped).await,
        Err(error) => Err(error),
    };
    let restored = restore(stage.bed).await.context("putting the snapshots back");
    shown.and(restored)
}

async fn installed_without(stage: &Stage<'_>, shipped: &[Value]) -> Result<()> {
    let bed = &*stage.bed;
    // As the README says it: it fails, since one object is refused, and the rest is taken.
    let apply = "! kubectl apply -f deploy/kubernetes.yaml 2>&1 >/dev/null";
    let complaint = bed.type_in(&bed.parts.repository, apply, &[]).await?;
    let advice = "ensure CRDs are installed first";
    let refused: Vec<_> = complaint.lines().filter(|line| !line.is_empty() && *line != advice).collect();
    let one = refused.len() == 1 && refused[0].contains("no matches for kind \"VolumeSnapshotClass\"");
    ensure!(one, "not the VolumeSnapshotClass alone is refused, but {refused:?}");
    let rest: Vec<_> = shipped.iter().filter(|object| text(object, "/kind") != "VolumeSnapshotClass").collect();
    ensure!(rest.len() + 1 == shipped.len(), "more than one object, or none, is a VolumeSnapshotClass");
    let rest: Vec<_> = rest.into_iter().map(Value::to_string).collect();
    bed.kubectl.with_manifest(&["get"], &rest.join("\n---\n")).await?;
    driver::is_ready(bed).await?;
    used(stage, "data").await?;

    // It may complain, and must not end, which would keep the pod from being ready.
    let pod = driver::controller_pod();
    let restarts = ".status.containerStatuses[?(@.name==\"csi-snapshotter\")].restartCount";
    let restarts = bed.kubectl.field(&["pod", "-n", NAMESPACE, &pod], restarts).await?;
    let told = bed.kubectl.run(&["logs", "-n", NAMESPACE, &pod, "-c", "csi-snapshotter"]).await?;
    let complaints: Vec<_> =
        told.lines().filter(|line| line.contains("could not find the requested resource")).collect();
    ensure!(restarts == "0", "the snapshotter was started again {restarts} times:\n{told}");
    let last = complaints.last().with_context(|| format!("the snapshotter complains of nothing:\n{told}"))?;
    println!("  the snapshotter runs, and has complained {} times: {last}", complaints.len());
    Ok(())
}

/// The snapshots, and the driver as it is shipped.
async fn restore(bed: &mut Bed) -> Result<()> {
    plane::start_snapshots(&mut bed.processes, &bed.parts.programs, &bed.dir, &bed.kubectl).await?;
    driver::install(bed).await?;
    // Its sidecars look for the snapshots' resources again at once, and not when their pause is over.
    driver::restart(bed, &format!("statefulset/{CONTROLLER}")).await?;
    driver::is_ready(bed).await
}
