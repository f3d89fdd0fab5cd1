//! A volume's content at one time, in another volume.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    bed::text,
    driver,
    eventually::eventually,
    stage::{CLASS, POD, Pod, Stage, claim, class},
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

/// What the sidecar writes on a content for as long as it waits for the driver's answer, during which it deletes nothing.
const BEING_CREATED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-created";

pub(super) async fn a_snapshot_deleted_as_it_gets_ready_goes_soon(stage: &mut Stage<'_>) -> Result<()> {
    stage.make(&[claim("data", CLASS, 10)]).await?;
    stage.run(&Pod::new("source").with("data")).await?;
    stage.make(&[snapshot("brief", "data")]).await?;
    is_ready(stage, "brief").await?;
    let kubectl = &stage.bed.kubectl;
    let found = stage.get("volumesnapshot/brief").await?;
    let content = text(&found, "/status/boundVolumeSnapshotContentName");
    // As when the deletion comes before the sidecar has taken its mark away. It does that then, and takes no notice of the
    // change, which is its own.
    let mark = format!("{BEING_CREATED}=yes");
    let mark = ["annotate", "--overwrite", "volumesnapshotcontent", content, &mark];
    kubectl.run(&mark).await?;
    let (pod, sidecar) = (driver::controller_pod(), "csi-snapshotter");
    let deleted = async {
        driver::signal(stage.bed, &pod, sidecar, "SIGSTOP").await?;
        kubectl.run(&["delete", "volumesnapshot", "brief", "-n", &stage.namespace, "--wait=false"]).await?;
        eventually("the content is to go", POD, async || {
            let found = kubectl.get(&["volumesnapshotcontent", content]).await?;
            ensure!(found["metadata"]["deletionTimestamp"].is_string(), "it is {found}");
            // Whoever deletes it writes all marks anew, and may not have seen this one.
            kubectl.run(&mark).await
        })
        .await
    }
    .await;
    let goes_on = driver::signal(stage.bed, &pod, sidecar, "SIGCONT").await;
    deleted?;
    goes_on?;
    eventually("the snapshot is gone with its content", POD, async || {
        let there = kubectl.list(&["volumesnapshotcontents"]).await?;
        ensure!(there.iter().all(|one| text(one, "/metadata/name") != content), "{content} is there");
        Ok(())
    })
    .await
}

pub(super) async fn a_snapshot_that_was_retained_goes_with_its_content(stage: &mut Stage<'_>) -> Result<()> {
    let class = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass", "metadata": {"name": "retained"},
        "driver": driver::NAME, "deletionPolicy": "Retain",
    });
    stage.with_class(&class, retained).await
}

async fn retained(stage: &Stage<'_>) -> Result<()> {
    stage.make(&[claim("data", CLASS, 10)]).await?;
    stage.run(&Pod::new("source").with("data")).await?;
    let mut kept = snapshot("kept", "data");
    kept["spec"]["volumeSnapshotClassName"] = json!("retained");
    stage.make(&[kept]).await?;
    is_ready(stage, "kept").await?;
    let found = stage.get("volumesnapshot/kept").await?;
    let content = text(&found, "/status/boundVolumeSnapshotContentName");
    let in_the_cloud = |wanted: usize| -> Result<()> {
        let there = stage.bed.cloud.leftovers()?.snapshots;
        ensure!(there.len() == wanted, "the cloud has {there:?}");
        Ok(())
    };
    stage.delete("volumesnapshot/kept").await?;
    in_the_cloud(1)?;
    // So is a content left, too, whose policy becomes this just before its snapshot is deleted.
    let policy = ["--type=merge", "--patch={\"spec\":{\"deletionPolicy\":\"Delete\"}}"];
    stage.bed.kubectl.run(&[&["patch", "volumesnapshotcontent", content], &policy[..]].concat()).await?;
    stage.bed.kubectl.delete(&["volumesnapshotcontent", content], POD).await?;
    in_the_cloud(0)
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
