//! A claim becomes a raw device in a pod.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::{
    eventually::eventually,
    stage::{CLASS, POD, Pod, Stage, claim},
};

/// What a workload writes, far from the beginning too.
const WRITE: &str = "
    yes written-by-a-pod | head -c 2097152 > /tmp/pattern
    dd if=/tmp/pattern of=/dev/data bs=1M conv=fsync 2>&1
    dd if=/tmp/pattern of=/dev/data bs=1M seek=9000 conv=fsync 2>&1
";
/// The sums of what was written.
const READ: &str = "
    for place in 0 9000; do
        dd if=/dev/data bs=1M skip=$place count=2 2>/dev/null | sha256sum
    done
    yes written-by-a-pod | head -c 2097152 | sha256sum
";

pub(super) async fn a_claim_becomes_a_raw_device(stage: &mut Stage<'_>) -> Result<()> {
    let node = stage.first();
    let mut raw = claim("data", CLASS, 10);
    raw["spec"]["volumeMode"] = json!("Block");
    stage.make(&[raw]).await?;
    stage.run(&Pod::new("writer").on(&node).with_device("data")).await?;
    ensure!(bytes(stage, "writer").await? == 10 << 30, "10 GiB were claimed");
    // Nobody made a file system on it, or wrote anything else there
    let found = stage.sh("writer", "dd if=/dev/data bs=1M count=16 2>/dev/null | tr -d '\\000' | wc -c").await?;
    ensure!(found == "0", "{found} bytes of a new disk are not zero");
    stage.sh("writer", WRITE).await?;
    // The same disk in another pod
    stage.end("writer").await?;
    stage.run(&Pod::new("reader").on(&node).with_device("data")).await?;
    holds(stage, "reader").await?;
    // Growth is seen by who has the device open
    stage.grow("data", 20).await?;
    stage.has_grown("data", 20).await?;
    eventually("the pod's device has grown", POD, async || {
        let bytes = bytes(stage, "reader").await?;
        ensure!(bytes == 20 << 30, "it has {bytes} bytes");
        Ok(())
    })
    .await?;
    holds(stage, "reader").await?;
    let end = "echo end | dd of=/dev/data bs=1M seek=20479 conv=fsync 2>/dev/null && dd if=/dev/data bs=1M skip=20479 2>/dev/null | head -c 3";
    let read = stage.sh("reader", end).await?;
    ensure!(read == "end", "what was written into the new part reads as '{read}'");
    stage.end("reader").await?;
    stage.delete("pvc/data").await
}

async fn bytes(stage: &Stage<'_>, pod: &str) -> Result<u64> {
    let told = stage.sh(pod, "blockdev --getsize64 /dev/data").await?;
    told.parse().with_context(|| format!("blockdev says {told}"))
}

async fn holds(stage: &Stage<'_>, pod: &str) -> Result<()> {
    let sums = stage.sh(pod, READ).await?;
    let sums: Vec<_> = sums.lines().collect();
    ensure!(sums.len() == 3 && sums.iter().all(|sum| *sum == sums[2]), "read, and what was written: {sums:?}");
    Ok(())
}
