//! Who may use a volume, and how.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    bed::text,
    stage::{CLASS, Pod, Stage, claim},
};

pub(super) async fn read_write_once_pod_is_for_one_pod(stage: &mut Stage<'_>) -> Result<()> {
    let node = stage.first();
    let mut alone = claim("data", CLASS, 10);
    alone["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
    stage.make(&[alone]).await?;
    stage.run(&Pod::new("first").on(&node).with("data")).await?;
    stage.sh("first", "echo kept > /data/file && sync /data/file").await?;
    // The same node, where ReadWriteOnce would let it in
    stage.make(&[Pod::new("second").on(&node).with("data").object]).await?;
    stage.has_no_node("second", "ReadWriteOncePod").await?;
    let second = stage.get("pod/second").await?;
    let phase = text(&second, "/status/phase");
    ensure!(phase == "Pending", "beside the first pod the second is {phase}");
    stage.sh("first", "echo again >> /data/file && sync /data/file").await?;
    stage.end("first").await?;
    stage.runs("second").await?;
    let read = stage.sh("second", "cat /data/file").await?;
    ensure!(read == "kept\nagain", "it holds '{read}'");
    stage.end("second").await?;
    stage.delete("pvc/data").await
}

pub(super) async fn what_is_read_only_is_read_and_not_written(stage: &mut Stage<'_>) -> Result<()> {
    let node = stage.first();
    stage.make(&[claim("data", CLASS, 10)]).await?;
    stage.run(&Pod::new("writer").on(&node).with("data")).await?;
    stage.sh("writer", "echo kept > /data/file && sync /data/file").await?;
    // Beside the writer: once by the container's mount, once by the pod's volume
    let mut by_mount = Pod::new("by-mount").on(&node).with("data");
    by_mount.object["spec"]["containers"][0]["volumeMounts"][0]["readOnly"] = json!(true);
    let source = json!({"persistentVolumeClaim": {"claimName": "data", "readOnly": true}});
    let by_volume = Pod::new("by-volume").on(&node).with_volume("data", source);
    for pod in [&by_mount, &by_volume] {
        stage.run(pod).await?;
        only_reads(stage, pod.name()).await?;
    }
    is_mounted_read_only(stage, &node, "by-volume").await?;
    stage.sh("writer", "echo kept > /data/file && rm /data/file && echo kept > /data/file && sync /data/file").await?;
    // Alone, so that it is staged for nobody else
    for pod in [&by_mount, &by_volume] {
        stage.end(pod.name()).await?;
    }
    stage.end("writer").await?;
    stage.run(&by_volume).await?;
    only_reads(stage, "by-volume").await?;
    is_mounted_read_only(stage, &node, "by-volume").await?;
    stage.end("by-volume").await?;
    // And nothing of that sticks to the volume
    stage.run(&Pod::new("writer").on(&node).with("data")).await?;
    stage.sh("writer", "echo more >> /data/file").await?;
    stage.end("writer").await?;
    stage.delete("pvc/data").await
}

/// The pod can't tell by whom: the kubelet makes the container's mount of it read-only as well.
async fn is_mounted_read_only(stage: &Stage<'_>, node: &str, pod: &str) -> Result<()> {
    let uid = text(&stage.get(&format!("pod/{pod}")).await?, "/metadata/uid").to_owned();
    let options = format!(r#"awk '$5 ~ "/pods/{uid}/volumes/kubernetes.io~csi/" {{ print $6 }}' /proc/self/mountinfo"#);
    let found = stage.bed.node(node)?.run(&options).await?;
    let options: Vec<_> = found.trim().split(',').collect();
    ensure!(options[0] == "ro", "{pod}: the driver mounted the volume with '{found}'");
    Ok(())
}

async fn only_reads(stage: &Stage<'_>, pod: &str) -> Result<()> {
    let read = stage.sh(pod, "cat /data/file").await?;
    ensure!(read == "kept", "{pod}: it holds '{read}'");
    for attempt in ["touch /data/other", "rm /data/file", "echo lost > /data/file"] {
        let told = stage.sh(pod, &format!("({attempt}) 2>&1 && echo done || true")).await?;
        ensure!(told.contains("Read-only file system"), "{pod}: '{attempt}' says '{told}'");
    }
    Ok(())
}

pub(super) async fn an_fs_group_gets_the_volume(stage: &mut Stage<'_>) -> Result<()> {
    let node = stage.first();
    stage.make(&[claim("data", CLASS, 10)]).await?;
    let pod = |name: &str, group: u32, policy: &str| {
        let context = json!({
            "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": group, "fsGroupChangePolicy": policy,
        });
        Pod::new(name).on(&node).with("data").set("securityContext", context)
    };
    stage.run(&pod("first", 2000, "Always")).await?;
    has_groups(stage, "first", "2000").await?;
    stage.sh("first", "touch /data/file /data/other && chgrp 1000 /data/other && sync /data/file /data/other").await?;
    has_groups(stage, "first", "2000 2000 1000").await?;
    stage.end("first").await?;
    // The root has the group, so the rest is left as it is
    stage.run(&pod("same", 2000, "OnRootMismatch")).await?;
    has_groups(stage, "same", "2000 2000 1000").await?;
    stage.sh("same", "echo more >> /data/file").await?;
    stage.end("same").await?;
    // It has not, so all of it is given
    stage.run(&pod("changed", 3000, "OnRootMismatch")).await?;
    has_groups(stage, "changed", "3000 3000 3000").await?;
    stage.sh("changed", "echo more >> /data/other").await?;
    stage.end("changed").await?;
    stage.delete("pvc/data").await
}

/// The groups of the volume's root and of the files in it. The root's group may write there, and what is made there is its.
async fn has_groups(stage: &Stage<'_>, pod: &str, wanted: &str) -> Result<()> {
    let places = "/data $(ls -d /data/file /data/other 2>/dev/null)";
    let groups = stage.sh(pod, &format!("stat -c %g {places}")).await?;
    ensure!(groups.split_whitespace().eq(wanted.split(' ')), "{pod}: the groups are {groups:?}, not {wanted}");
    let mode = stage.sh(pod, "stat -c %A /data").await?;
    ensure!(mode.get(4..7) == Some("rws"), "{pod}: the root's mode is {mode}");
    Ok(())
}
