//! A volume grows under the pod that uses it.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::stage::{CLASS, Pod, Stage, claim, class};

pub(super) async fn xfs_grows_under_a_running_pod(stage: &mut Stage<'_>) -> Result<()> {
    grows_with_class(stage, "xfs").await
}

pub(super) async fn btrfs_grows_under_a_running_pod(stage: &mut Stage<'_>) -> Result<()> {
    grows_with_class(stage, "btrfs").await
}

pub(super) async fn ext4_grows_under_a_running_pod(stage: &mut Stage<'_>) -> Result<()> {
    grows(stage, CLASS, "ext4").await
}

async fn grows_with_class(stage: &Stage<'_>, fs_type: &str) -> Result<()> {
    let name = format!("{fs_type}-grows");
    let class = class(&name, &json!({"csi.storage.k8s.io/fstype": fs_type}));
    stage.with_class(&class, async |stage| grows(stage, &name, fs_type).await).await
}

async fn grows(stage: &Stage<'_>, class: &str, fs_type: &str) -> Result<()> {
    stage.make(&[claim("data", class, 10)]).await?;
    stage.run(&Pod::new("user").with("data")).await?;
    let mounted = stage.sh("user", "grep ' /data ' /proc/mounts").await?;
    ensure!(mounted.split(' ').nth(2) == Some(fs_type), "it is mounted as {mounted}");
    let before = stage.size_mib("user", "/data").await?;
    ensure!((9_000..=10_240).contains(&before), "10 GiB were claimed, {before} MiB are there");
    stage.sh("user", "echo kept > /data/file && sync /data/file").await?;
    let identity = identity(stage).await?;
    stage.grow("data", 20).await?;
    stage.has_grown("data", 20).await?;
    let after = stage.size_mib("user", "/data").await?;
    ensure!((19_000..=20_480).contains(&after), "20 GiB were asked for, {after} MiB are there");
    let sold = stage.bed.cloud.volume(&stage.volume("data").await?)?.size_gb;
    ensure!(sold == 20, "the cloud has {sold} GiB");
    let read = stage.sh("user", "cat /data/file && touch /data/more").await?;
    ensure!(read == "kept", "it holds '{read}'");
    let now = self::identity(stage).await?;
    ensure!(now == identity, "the pod was {identity} and is {now}: it has been restarted");
    stage.end("user").await?;
    stage.delete("pvc/data").await
}

/// Which pod, and which run of its container.
async fn identity(stage: &Stage<'_>) -> Result<String> {
    let pod = stage.get("pod/user").await?;
    Ok(format!("{} {}", pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["containerID"]))
}
