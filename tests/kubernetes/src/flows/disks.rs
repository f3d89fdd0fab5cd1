//! A claim becomes a disk in a pod.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::stage::{Pod, Stage, claim, class};

pub(super) async fn a_claim_becomes_ext4_in_a_pod(stage: &mut Stage<'_>) -> Result<()> {
    becomes(stage, "ext4").await
}

pub(super) async fn a_claim_becomes_xfs_in_a_pod(stage: &mut Stage<'_>) -> Result<()> {
    becomes(stage, "xfs").await
}

pub(super) async fn a_claim_becomes_btrfs_in_a_pod(stage: &mut Stage<'_>) -> Result<()> {
    becomes(stage, "btrfs").await
}

async fn becomes(stage: &mut Stage<'_>, fs_type: &str) -> Result<()> {
    let class = class(fs_type, &json!({"csi.storage.k8s.io/fstype": fs_type}));
    stage.with_class(&class, async |stage| is_kept(stage, fs_type).await).await
}

async fn is_kept(stage: &Stage<'_>, fs_type: &str) -> Result<()> {
    let node = stage.first();
    stage.make(&[claim("data", fs_type, 10)]).await?;
    stage.run(&Pod::new("writer").on(&node).with("data")).await?;
    let mounted = stage.sh("writer", "grep ' /data ' /proc/mounts").await?;
    ensure!(mounted.split(' ').nth(2) == Some(fs_type), "it is mounted as {mounted}");
    stage.sh("writer", "echo kept > /data/file && sync /data/file").await?;
    let size = stage.size_mib("writer", "/data").await?;
    ensure!((9_000..=10_240).contains(&size), "10 GiB were claimed, {size} MiB are there");
    // The same disk, staged again
    stage.end("writer").await?;
    stage.run(&Pod::new("reader").on(&node).with("data")).await?;
    let read = stage.sh("reader", "cat /data/file").await?;
    ensure!(read == "kept", "it holds '{read}'");
    stage.end("reader").await?;
    stage.delete("pvc/data").await
}
