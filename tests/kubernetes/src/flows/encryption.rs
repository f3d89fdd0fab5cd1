//! A claim whose disk is encrypted.

use std::io::Read;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    bed::text,
    stage::{Pod, Stage, claim, class},
};

/// The class of the flow, and the Secret that it names.
const LUKS: &str = "luks";

pub(super) async fn an_encrypted_disk_takes_its_key_alone_and_grows_and_moves(stage: &mut Stage<'_>) -> Result<()> {
    let mut parameters = json!({"encrypted": "true"});
    for call in ["node-stage", "node-expand"] {
        parameters[format!("csi.storage.k8s.io/{call}-secret-name")] = json!(LUKS);
        parameters[format!("csi.storage.k8s.io/{call}-secret-namespace")] = json!("${pvc.namespace}");
    }
    stage.with_class(&class(LUKS, &parameters), opens_to_its_key).await
}

async fn opens_to_its_key(stage: &Stage<'_>) -> Result<()> {
    let (first, second) = (stage.first(), stage.second()?);
    stage.make(&[key("the right one"), claim("data", LUKS, 10)]).await?;
    stage.run(&Pod::new("writer").on(&first).with("data")).await?;
    stage.sh("writer", "echo kept > /data/file && sync /data/file").await?;
    stage.end("writer").await?;
    let header = header(stage).await?;
    ensure!(header.starts_with(b"LUKS\xba\xbe\x00\x02"), "the disk begins with {:?}", header.get(..8));
    // With the wrong key the pod waits, and nothing happens to the disk.
    stage.make(&[key("a wrong one"), Pod::new("refused").on(&first).with("data").object]).await?;
    stage.told("refused", "does not unlock the disk").await?;
    let refused = stage.get("pod/refused").await?;
    let phase = text(&refused, "/status/phase");
    ensure!(phase == "Pending", "with a wrong key the pod is {phase}");
    let mappings = stage.bed.node(&first)?.run("ls /dev/mapper").await?;
    ensure!(mappings.trim() == "control", "with a wrong key there are mappings: {mappings}");
    stage.end("refused").await?;
    ensure!(self::header(stage).await? == header, "the disk's header has changed");
    // With the right one it opens, and grows while it is in use.
    stage.make(&[key("the right one")]).await?;
    stage.run(&Pod::new("reader").on(&first).with("data")).await?;
    holds(stage, "reader", 10).await?;
    stage.grow("data", 20).await?;
    stage.has_grown("data", 20).await?;
    holds(stage, "reader", 20).await?;
    // It moves as any other.
    stage.end("reader").await?;
    stage.run(&Pod::new("moved").on(&second).with("data")).await?;
    holds(stage, "moved", 20).await?;
    stage.end("moved").await?;
    stage.delete("pvc/data").await
}

fn key(passphrase: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": LUKS}, "stringData": {"passphrase": passphrase},
    })
}

/// What the disk begins with: both headers of LUKS2 and the key slots.
async fn header(stage: &Stage<'_>) -> Result<Vec<u8>> {
    let file = stage.bed.cloud.volume(&stage.volume("data").await?)?.disk_file.context("the disk has no file")?;
    let mut header = Vec::new();
    std::fs::File::open(file)?.take(16 << 20).read_to_end(&mut header)?;
    Ok(header)
}

async fn holds(stage: &Stage<'_>, pod: &str, gib: u64) -> Result<()> {
    let read = stage.sh(pod, "cat /data/file").await?;
    ensure!(read == "kept", "{pod}: it holds '{read}'");
    let size = stage.size_mib(pod, "/data").await?;
    ensure!((gib * 900..=gib * 1024).contains(&size), "{pod}: {gib} GiB were claimed, {size} MiB are there");
    Ok(())
}
