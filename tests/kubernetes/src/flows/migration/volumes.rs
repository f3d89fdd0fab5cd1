//! What pods write to the volumes, and what becomes of these.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::{
    bed::text,
    eventually::eventually,
    stage::{POD, Pod, Stage},
};

/// A pod that is called as its claim, writes to it every second, and fails when it can't.
pub(super) fn writer(claim: &str) -> Pod {
    let mut pod = Pod::new(claim).with(claim).set("restartPolicy", json!("Never"));
    let beat = format!("echo beat >> /{claim}/beats && sync /{claim}/beats");
    let write = format!("trap exit TERM; while sleep 1; do {beat} || exit 1; done");
    pod.object["spec"]["containers"][0]["command"] = json!(["sh", "-c", write]);
    pod
}

/// How often it wrote.
pub(super) async fn beats(stage: &Stage<'_>, pod: &str, claim: &str) -> Result<u64> {
    let beats = stage.sh(pod, &format!("wc -l < /{claim}/beats")).await?;
    beats.parse().with_context(|| format!("wc says {beats}"))
}

/// Looks that another pod finds what was written, which was so much at least.
pub(super) async fn has_beats(stage: &Stage<'_>, pod: &str, claim: &str, written: u64) -> Result<()> {
    let beats = beats(stage, pod, claim).await?;
    ensure!(written > 0 && beats >= written, "{pod} finds {beats} lines in {claim}, which had {written}");
    Ok(())
}

/// Waits until the writer has written more.
pub(super) async fn goes_on(stage: &Stage<'_>, claim: &str) -> Result<()> {
    let before = beats(stage, claim, claim).await?;
    eventually(&format!("{claim} is written to"), POD, async || {
        let after = beats(stage, claim, claim).await?;
        ensure!(after > before, "{before} times before, {after} now");
        Ok(())
    })
    .await
}

/// Ends the pods that have a claim's volume, the first of which shows what was written, and looks that `next` finds it after
/// the volume was detached.
pub(super) async fn moves(stage: &Stage<'_>, claim: &str, pods: &[&str], next: &Pod) -> Result<()> {
    let written = beats(stage, pods[0], claim).await?;
    for pod in pods {
        stage.end(pod).await?;
    }
    is_detached(stage, claim).await?;
    stage.run(next).await?;
    has_beats(stage, next.name(), claim, written).await
}

/// Writes to a file of each of a pod's volumes.
pub(super) async fn keep(stage: &Stage<'_>, pod: &str, claims: &[&str]) -> Result<()> {
    for claim in claims {
        stage.sh(pod, &format!("echo kept > /{claim}/file && sync /{claim}/file")).await?;
    }
    is_kept(stage, pod, claims).await
}

/// Looks that it is there.
pub(super) async fn is_kept(stage: &Stage<'_>, pod: &str, claims: &[&str]) -> Result<()> {
    for claim in claims {
        let found = stage.sh(pod, &format!("cat /{claim}/file")).await?;
        ensure!(found == "kept", "{pod} reads '{found}' in {claim}");
    }
    Ok(())
}

/// Waits until no instance has a claim's volume, and no attachment is left of its PersistentVolume.
pub(super) async fn is_detached(stage: &Stage<'_>, claim: &str) -> Result<()> {
    let (volume, persistent) = (stage.volume(claim).await?, persistent(stage, claim).await?);
    eventually(&format!("the volume of {claim} is detached"), POD, async || {
        let cloud = stage.bed.cloud.leftovers()?;
        let attached = cloud.attachments.iter().find(|attachment| attachment.contains(&volume));
        ensure!(attached.is_none(), "in the cloud there is {attached:?}");
        let attachments = stage.bed.kubectl.list(&["volumeattachments"]).await?;
        let of_it = attachments.iter().find(|one| text(one, "/spec/source/persistentVolumeName") == persistent);
        ensure!(of_it.is_none(), "there is {of_it:?}");
        Ok(())
    })
    .await
}

/// Deletes a claim, and waits until its volume is gone, in the cluster and in the cloud.
pub(super) async fn goes_with_its_claim(stage: &Stage<'_>, claim: &str) -> Result<()> {
    let (volume, persistent) = (stage.volume(claim).await?, persistent(stage, claim).await?);
    stage.delete(&format!("pvc/{claim}")).await?;
    eventually(&format!("the volume of {claim} is gone with it"), POD, async || {
        ensure!(stage.bed.cloud.volume(&volume).is_err(), "the cloud has it");
        let left = stage.bed.kubectl.run(&["get", "pv", &persistent, "--ignore-not-found", "-o", "name"]).await?;
        ensure!(left.trim().is_empty(), "{left} is there");
        Ok(())
    })
    .await
}

/// The name of a claim's PersistentVolume.
async fn persistent(stage: &Stage<'_>, claim: &str) -> Result<String> {
    stage.bed.kubectl.field(&["-n", &stage.namespace, "pvc", claim], ".spec.volumeName").await
}
