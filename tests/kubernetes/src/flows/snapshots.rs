//! A volume's content at one time, in another volume.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    bed::text,
    eventually::eventually,
    stage::{POD, Pod, Stage, claim, class},
};

/// The class of the flow: a file system that the host can grow, too.
const XFS: &str = "xfs-copies";

pub(super) async fn a_snapshot_is_restored_and_a_claim_cloned(stage: &mut Stage<'_>) -> Result<()> {
    let xfs = class(XFS, &json!({"csi.storage.k8s.io/fstype": "xfs"}));
    stage.with_class(&xfs, copies).await
}

async fn copies(stage: &Stage<'_>) -> Result<()> {
    // All on one node, where the three file systems have one UUID
    let node = stage.first();
    stage.make(&[claim("data", XFS, 10)]).await?;
    stage.run(&Pod::new("source").on(&node).with("data")).await?;
    stage.sh("source", "echo one > /data/file && sync /data/file").await?;
    stage.make(&[snapshot("taken", "data")]).await?;
    is_ready(stage, "taken").await?;
    stage.sh("source", "echo two > /data/file && sync /data/file").await?;
    let of_snapshot = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "taken"});
    let of_claim = json!({"kind": "PersistentVolumeClaim", "name": "data"});
    stage.make(&[copy("restored", 20, &of_snapshot), copy("cloned", 10, &of_claim)]).await?;
    stage.run(&Pod::new("copies").on(&node).with("restored").with("cloned")).await?;
    for (pod, name, wanted, gib) in [
        ("source", "data", "two", 10),
        // Larger than the snapshot, and the file system as large, in the first pod that has it
        ("copies", "restored", "one", 20),
        ("copies", "cloned", "two", 10),
    ] {
        holds(stage, pod, name, wanted).await?;
        let size = stage.size_mib(pod, &format!("/{name}")).await?;
        ensure!((gib * 900..=gib * 1024).contains(&size), "{name}: {gib} GiB were claimed, {size} MiB are there");
        let sold = stage.bed.cloud.volume(&stage.volume(name).await?)?.size_gb;
        ensure!(u64::from(sold) == gib, "{name}: the cloud has {sold} GiB, not {gib}");
    }
    // Each has its own from now on.
    for (pod, name) in [("source", "data"), ("copies", "restored"), ("copies", "cloned")] {
        stage.sh(pod, &format!("echo of {name} > /{name}/file && sync /{name}/file")).await?;
    }
    for (pod, name) in [("source", "data"), ("copies", "restored"), ("copies", "cloned")] {
        holds(stage, pod, name, &format!("of {name}")).await?;
    }
    // The snapshot outlives its volume.
    stage.end("source").await?;
    stage.end("copies").await?;
    for name in ["data", "restored", "cloned"] {
        stage.delete(&format!("pvc/{name}")).await?;
    }
    stage.make(&[copy("again", 10, &of_snapshot)]).await?;
    stage.run(&Pod::new("again").on(&node).with("again")).await?;
    holds(stage, "again", "again", "one").await?;
    stage.end("again").await?;
    stage.delete("pvc/again").await?;
    stage.delete("volumesnapshot/taken").await
}

fn snapshot(name: &str, of: &str) -> Value {
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
        "spec": {"volumeSnapshotClassName": "vultr-block-storage", "source": {"persistentVolumeClaimName": of}},
    })
}

fn copy(name: &str, gib: u32, of: &Value) -> Value {
    let mut claim = claim(name, XFS, gib);
    claim["spec"]["dataSource"] = of.clone();
    claim
}

async fn is_ready(stage: &Stage<'_>, snapshot: &str) -> Result<()> {
    eventually(&format!("the snapshot {snapshot} can be used"), POD, async || {
        let found = stage.get(&format!("volumesnapshot/{snapshot}")).await?;
        let status = &found["status"];
        ensure!(status["readyToUse"] == json!(true), "its status is {status}");
        ensure!(text(status, "/restoreSize") == "10Gi", "its status is {status}");
        Ok(())
    })
    .await
}

async fn holds(stage: &Stage<'_>, pod: &str, name: &str, wanted: &str) -> Result<()> {
    let read = stage.sh(pod, &format!("cat /{name}/file")).await?;
    ensure!(read == wanted, "{name} holds '{read}', not '{wanted}'");
    Ok(())
}
