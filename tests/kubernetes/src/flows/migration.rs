//! From Vultr's own driver to this one and back, by the commands of deploy/migration.md as they stand there.

mod guide;
mod old;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vultr_sim::{Fault, Operation, When};

use crate::{
    bed::{Bed, text},
    driver,
    eventually::eventually,
    stage::{CLASS, POD, Pod, Stage, claim},
};

/// What the newer provisioner marks volumes with.
const MARK: &str = "external-provisioner.volume.kubernetes.io/finalizer";

pub(super) async fn a_cluster_of_vultrs_driver_comes_and_can_go_back(stage: &mut Stage<'_>) -> Result<()> {
    let folder = stage.bed.dir.join("migration");
    let shown = comes_and_goes(stage, &folder).await;
    let restored = restore(stage, &folder).await.context("putting the driver back");
    shown.and(restored)
}

async fn comes_and_goes(stage: &mut Stage<'_>, folder: &Path) -> Result<()> {
    old_cluster(stage, folder).await?;
    let (first, second) = (stage.first(), stage.second().unwrap_or_else(|_| stage.first()));
    guide::watch(stage.bed)?;
    let checks = guide::blocks(stage.bed, "check")?;
    let (afterwards, checks) = checks.split_last().context("there are no checks")?;
    volumes_to_mind_are_told(stage, folder, checks).await?;
    for pull in guide::blocks(stage.bed, "pull")? {
        guide::follow(stage.bed, folder, &pull).await?;
    }
    let steps = guide::blocks(stage.bed, "migrate")?;
    // The old driver is in the middle of a creation, too, for whose answer it waits 30 s.
    stage.bed.cloud.add_fault(Fault::delay(Operation::CreateBlock, When::After, Duration::from_secs(600)).times(1));
    stage.make(&[claim("midway", CLASS, 10)]).await?;
    let midway = eventually("the cloud has the fourth volume", POD, async || {
        let volumes = stage.bed.cloud.view().volumes;
        ensure!(volumes.len() == 4, "it has {}", volumes.len());
        Ok(volumes[3].clone())
    })
    .await?;
    stage.is_pending("midway").await?;
    let before = guide::objects(stage, "midway").await?;
    let looks = |step: &str| step.contains("{ ! grep");
    ensure!(
        steps.iter().filter(|step| looks(step)).count() == 1,
        "the guide looks for pods of the old driver: {steps:?}"
    );
    for step in &steps {
        if looks(step) {
            what_is_left_is_in_the_way(stage, folder, step).await?;
        }
        guide::follow(stage.bed, folder, step).await?;
    }
    driver::is_ready(stage.bed).await?;
    old::is_gone(stage.bed).await?;
    guide::follow(stage.bed, folder, afterwards).await?;
    guide::unchanged(stage, &before, "midway").await?;

    old::let_stage(stage, "waits").await?;
    for pod in ["made", "by-hand"] {
        goes_on(stage, pod).await?;
    }
    // On the node where the old driver mounted it, on another one by an attachment of our own, and to its end
    stage.run(&Pod::new("joins").on(&first).with("made")).await?;
    let written = beats(stage, "made", "made").await?;
    has_beats(stage, "joins", "made", written).await?;
    let made = stage.volume("made").await?;
    for pod in ["joins", "made"] {
        stage.end(pod).await?;
    }
    is_detached(stage, &made, "pvc-of-made").await?;
    stage.run(&Pod::new("moved").on(&second).with("made")).await?;
    has_beats(stage, "moved", "made", written).await?;
    stage.end("moved").await?;
    stage.delete("pvc/made").await?;
    eventually("the cloud's volume is gone with its claim", POD, async || {
        ensure!(stage.bed.cloud.volume(&made).is_err(), "it is there");
        Ok(())
    })
    .await?;
    stage.grow("by-hand", 20).await?;
    stage.has_grown("by-hand", 20).await?;
    let size = stage.size_mib("by-hand", "/by-hand").await?;
    ensure!(size > 19_000, "it has grown to 20 GiB, and {size} MiB are there");

    // New ones, by the classes that were there
    stage.make(&[claim("fresh", CLASS, 10)]).await?;
    for claim in ["fresh", "midway"] {
        stage.is_bound(claim).await?;
    }
    let bound = stage.volume("midway").await?;
    ensure!(bound == midway.id, "the volume {} that was being made was not taken, but {bound}", midway.id);
    let volumes = stage.bed.cloud.view().volumes.len();
    ensure!(volumes == 4, "four claims have {volumes} volumes");
    stage.run(&Pod::new("new").on(&first).with("fresh").with("midway")).await?;
    // Attached by the old driver, mounted by this one
    stage.runs("waits").await?;
    stage.sh("waits", "echo kept > /waits/file && sync /waits/file").await?;
    driver::is_refused_nothing(stage.bed).await?;

    goes_back(stage, folder).await?;
    guide::never_both(stage.bed).await
}

/// A cluster with the old driver, two volumes of it, pods that write to them, and one that is attached and not yet mounted.
async fn old_cluster(stage: &mut Stage<'_>, folder: &Path) -> Result<()> {
    driver::uninstall(stage.bed).await?;
    tokio::fs::create_dir(folder).await?;
    tokio::fs::symlink(stage.bed.parts.repository.join("deploy"), folder.join("deploy")).await?;
    tokio::fs::write(manifest(folder), old::manifest(stage.bed).await?).await?;
    stage.bed.kubectl.run(&["apply", "-f", &manifest(folder).display().to_string()]).await?;
    old::is_ready(stage.bed).await?;
    let node = stage.first();
    let label = stage.bed.kubectl.field(&["node", &node], ".metadata.labels.region").await?;
    ensure!(label == "EWR", "the old driver's kubelets label their nodes region=EWR, and this one '{label}'");
    for (claim, fs_type, by_hand) in [("made", "ext4", false), ("by-hand", "xfs", true)] {
        old::volume(stage, claim, fs_type, by_hand).await?;
        stage.run(&writer(claim).on(&node)).await?;
    }
    old::volume(stage, "waits", "ext4", false).await?;
    old::keep_from_staging(stage, "waits").await?;
    stage.make(&[Pod::new("waits").on(&node).with("waits").object]).await?;
    stage.told("waits", "AttachVolume.Attach succeeded").await?;
    old::forget_context(stage.bed).await
}

async fn goes_back(stage: &mut Stage<'_>, folder: &Path) -> Result<()> {
    let before = guide::objects(stage, "").await?;
    let marked = marked(stage.bed).await?;
    ensure!(!marked.is_empty(), "no volume has the mark that the guide takes away");
    let blocks = guide::blocks(stage.bed, "back")?;
    raw_volumes_are_in_the_way(stage, folder, &blocks[0]).await?;
    let (last, blocks) = blocks.split_last().context("there is no way back")?;
    for block in blocks {
        guide::follow(stage.bed, folder, block).await?;
    }
    let marked = self::marked(stage.bed).await?;
    ensure!(marked.is_empty(), "they have the mark still: {marked:?}");
    guide::follow(stage.bed, folder, last).await?;
    old::is_ready(stage.bed).await?;
    guide::unchanged(stage, &before, "").await?;
    goes_on(stage, "by-hand").await?;
    let written = beats(stage, "by-hand", "by-hand").await?;
    stage.end("by-hand").await?;
    let node = stage.second().unwrap_or_else(|_| stage.first());
    stage.run(&Pod::new("back").on(&node).with("by-hand")).await?;
    has_beats(stage, "back", "by-hand", written).await
}

/// A PersistentVolume of 10 GiB by hand, for a disk that isn't there.
fn persistent_volume(name: &str, mode: &str, claim: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"}, "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain", "volumeMode": mode, "claimRef": claim,
            "csi": {"driver": driver::NAME, "volumeHandle": "00000000-0000-4000-8000-000000000000"},
        },
    })
}

/// The guide's checks print a volume that names no file system and whose claim no pod has, and none of the others.
async fn volumes_to_mind_are_told(stage: &Stage<'_>, folder: &Path, checks: &[String]) -> Result<()> {
    let claim = json!({"namespace": stage.namespace, "name": "overlooked"});
    stage.bed.kubectl.apply(&[persistent_volume("overlooked", "Filesystem", &claim)]).await?;
    let mut told = Vec::new();
    for block in checks {
        told.push(guide::follow(stage.bed, folder, block).await?);
    }
    stage.bed.kubectl.delete(&["persistentvolume", "overlooked"], POD).await?;
    let unused = told.first().is_some_and(|lines| lines.trim() == format!("{}/overlooked", stage.namespace));
    ensure!(unused, "of volumes that no pod has the guide's checks tell {told:?}");
    let without_type = told.get(1).is_some_and(|lines| lines.trim() == "overlooked");
    ensure!(without_type, "of volumes without a file system's name the guide's checks tell {told:?}");
    Ok(())
}

/// The guide goes no further while there is a pod of the old driver, wherever that is.
async fn what_is_left_is_in_the_way(stage: &Stage<'_>, folder: &Path, step: &str) -> Result<()> {
    let left = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "left", "namespace": stage.namespace},
        "spec": {
            // Its image isn't here.
            "schedulingGates": [{"name": "example.com/never"}],
            "containers": [{"name": "csi-vultr-plugin", "image": "docker.io/vultr/vultr-csi:v0.18.0"}],
        },
    });
    stage.bed.kubectl.apply(&[left]).await?;
    let followed = guide::follow(stage.bed, folder, step).await;
    stage.bed.kubectl.delete(&["pod", "left", "-n", &stage.namespace], POD).await?;
    ensure!(followed.is_err(), "the guide goes on though there is a pod of the old driver");
    Ok(())
}

/// The old driver may format a raw volume, so the guide's first step back fails where there is one.
async fn raw_volumes_are_in_the_way(stage: &Stage<'_>, folder: &Path, step: &str) -> Result<()> {
    stage.bed.kubectl.apply(&[persistent_volume("raw", "Block", &Value::Null)]).await?;
    let followed = guide::follow(stage.bed, folder, step).await;
    stage.bed.kubectl.delete(&["persistentvolume", "raw"], POD).await?;
    ensure!(followed.is_err(), "the guide goes on though there is a raw volume");
    Ok(())
}

/// Puts this driver back, and takes away what the namespace doesn't take with it.
async fn restore(stage: &mut Stage<'_>, folder: &Path) -> Result<()> {
    let bed = &mut *stage.bed;
    bed.processes.end(guide::WATCH).await?;
    bed.cloud.clear_faults();
    if manifest(folder).exists() {
        bed.kubectl.delete(&["-f", &manifest(folder).display().to_string()], POD).await?;
        driver::have_ended(bed, [old::CONTROLLER, old::NODE]).await?;
    }
    if folder.exists() {
        tokio::fs::remove_dir_all(folder).await?;
    }
    driver::install(bed).await?;
    bed.kubectl.delete(&["namespace", &stage.namespace], POD).await?;
    bed.kubectl.delete(&["persistentvolume", "pvc-of-by-hand", "overlooked", "raw"], POD).await?;
    if let Ok(volume) = bed.cloud.volume("pvc-of-by-hand") {
        bed.cloud.delete(&volume.id).await?;
    }
    for node in &bed.nodes {
        node.run(&format!("rm -rf {}", old::RECORDS)).await?;
    }
    Ok(())
}

/// The old driver's manifest, as the guide calls it.
fn manifest(folder: &Path) -> PathBuf {
    folder.join("vultr-csi.yml")
}

/// A pod that is called as its claim, writes to it every second, and fails when it can't.
fn writer(claim: &str) -> Pod {
    let mut pod = Pod::new(claim).with(claim).set("restartPolicy", json!("Never"));
    let beat = format!("echo beat >> /{claim}/beats && sync /{claim}/beats");
    let write = format!("trap exit TERM; while sleep 1; do {beat} || exit 1; done");
    pod.object["spec"]["containers"][0]["command"] = json!(["sh", "-c", write]);
    pod
}

/// How often it wrote.
async fn beats(stage: &Stage<'_>, pod: &str, claim: &str) -> Result<u64> {
    let beats = stage.sh(pod, &format!("wc -l < /{claim}/beats")).await?;
    beats.parse().with_context(|| format!("wc says {beats}"))
}

/// Looks that another pod finds what was written, which was so much at least.
async fn has_beats(stage: &Stage<'_>, pod: &str, claim: &str, written: u64) -> Result<()> {
    let beats = beats(stage, pod, claim).await?;
    ensure!(written > 0 && beats >= written, "{pod} finds {beats} lines in {claim}, which had {written}");
    Ok(())
}

/// Waits until the writer has written more.
async fn goes_on(stage: &Stage<'_>, claim: &str) -> Result<()> {
    let before = beats(stage, claim, claim).await?;
    eventually(&format!("{claim} is written to"), POD, async || {
        let after = beats(stage, claim, claim).await?;
        ensure!(after > before, "{before} times before, {after} now");
        Ok(())
    })
    .await
}

/// Waits until no instance has a volume, and no attachment is left of its PersistentVolume.
async fn is_detached(stage: &Stage<'_>, volume: &str, persistent: &str) -> Result<()> {
    eventually("the volume is detached", POD, async || {
        let attached = stage.bed.cloud.volume(volume)?.attached_to;
        ensure!(attached.is_none(), "{attached:?} has it");
        let attachments = stage.bed.kubectl.list(&["volumeattachments"]).await?;
        let of_it = attachments.iter().find(|one| text(one, "/spec/source/persistentVolumeName") == persistent);
        ensure!(of_it.is_none(), "there is {of_it:?}");
        Ok(())
    })
    .await
}

/// The volumes that the newer provisioner has marked.
async fn marked(bed: &Bed) -> Result<Vec<String>> {
    let volumes = bed.kubectl.list(&["persistentvolumes"]).await?;
    let has_mark = |marks: &Vec<Value>| marks.iter().any(|mark| mark == MARK);
    let marked = volumes.iter().filter(|volume| volume["metadata"]["finalizers"].as_array().is_some_and(has_mark));
    Ok(marked.map(|volume| text(volume, "/metadata/name").to_owned()).collect())
}
