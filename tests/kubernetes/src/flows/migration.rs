//! From Vultr's own driver to this one and back, by the commands of deploy/migration.md as they stand there.

mod back;
mod guide;
mod old;
mod volumes;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vultr_sim::{Fault, Operation, When};

use crate::{
    driver,
    eventually::eventually,
    stage::{CLASS, POD, Pod, Stage, claim},
};

pub(super) async fn a_cluster_of_vultrs_driver_comes_and_can_go_back(stage: &mut Stage<'_>) -> Result<()> {
    let folder = stage.bed.dir.join("migration");
    let shown = comes_and_goes(stage, &folder).await;
    let restored = restore(stage, &folder).await.context("putting the driver back");
    shown.and(restored)
}

async fn comes_and_goes(stage: &mut Stage<'_>, folder: &Path) -> Result<()> {
    old_cluster(stage, folder).await?;
    guide::watch(stage.bed)?;
    let midway = comes(stage, folder).await?;
    old_volumes_go_on(stage).await?;
    new_ones_are_made(stage, &midway).await?;
    driver::is_refused_nothing(stage.bed).await?;
    back::goes_back(stage, folder).await?;
    back::volumes_go_on(stage).await?;
    guide::never_both(stage.bed).await
}

/// The way here, and the id of a volume in whose creation it began.
async fn comes(stage: &Stage<'_>, folder: &Path) -> Result<String> {
    let checks = guide::blocks(stage.bed, "check")?;
    let (afterwards, checks) = checks.split_last().context("there are no checks")?;
    volumes_to_mind_are_told(stage, folder, checks).await?;
    for pull in guide::blocks(stage.bed, "pull")? {
        guide::follow(stage.bed, folder, &pull).await?;
    }
    let steps = guide::blocks(stage.bed, "migrate")?;
    let midway = is_being_made(stage).await?;
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
    Ok(midway)
}

/// The old driver is in the middle of a creation, for whose answer it waits 30 s. The volume's id.
async fn is_being_made(stage: &Stage<'_>) -> Result<String> {
    stage.bed.cloud.add_fault(Fault::delay(Operation::CreateBlock, When::After, Duration::from_secs(600)).times(1));
    stage.make(&[claim("midway", CLASS, 10)]).await?;
    let midway = eventually("the cloud has the fourth volume", POD, async || {
        let volumes = stage.bed.cloud.view().volumes;
        ensure!(volumes.len() == 4, "it has {}", volumes.len());
        Ok(volumes[3].id.clone())
    })
    .await?;
    stage.is_pending("midway").await?;
    Ok(midway)
}

/// On the node where the old driver mounted them, on another one by an attachment of our own, and to their end.
async fn old_volumes_go_on(stage: &Stage<'_>) -> Result<()> {
    let [first, second] = nodes(stage);
    old::let_stage(stage, "waits").await?;
    for claim in ["made", "by-hand"] {
        volumes::goes_on(stage, claim).await?;
    }
    let written = volumes::beats(stage, "made", "made").await?;
    stage.run(&Pod::new("joins").on(&first).with("made")).await?;
    volumes::has_beats(stage, "joins", "made", written).await?;
    volumes::moves(stage, "made", &["made", "joins"], &Pod::new("moved").on(&second).with("made")).await?;
    stage.end("moved").await?;
    volumes::goes_with_its_claim(stage, "made").await?;

    stage.grow("by-hand", 20).await?;
    stage.has_grown("by-hand", 20).await?;
    let size = stage.size_mib("by-hand", "/by-hand").await?;
    ensure!(size > 19_000, "it has grown to 20 GiB, and {size} MiB are there");
    // It goes on being written to, now by a mount of this driver, which is what the old one finds.
    volumes::moves(stage, "by-hand", &["by-hand"], &volumes::writer("by-hand").on(&second)).await?;

    if old::has_shares(stage) {
        volumes::goes_on(stage, "shared").await?;
        let written = volumes::beats(stage, "shared", "shared").await?;
        stage.run(&Pod::new("beside").on(&second).with("shared")).await?;
        volumes::has_beats(stage, "beside", "shared", written).await?;
    }
    // Attached by the old driver, mounted by this one
    stage.runs("waits").await?;
    volumes::keep(stage, "waits", &["waits"]).await
}

/// By the classes that were there; one of them is the volume `midway`.
async fn new_ones_are_made(stage: &Stage<'_>, midway: &str) -> Result<()> {
    stage.make(&[claim("fresh", CLASS, 10)]).await?;
    for claim in ["fresh", "midway"] {
        stage.is_bound(claim).await?;
    }
    let bound = stage.volume("midway").await?;
    ensure!(bound == midway, "the volume {midway} that was being made was not taken, but {bound}");
    let volumes = stage.bed.cloud.view().volumes.len();
    ensure!(volumes == 4, "four claims have {volumes} volumes");
    stage.run(&Pod::new("new").on(&stage.first()).with("fresh").with("midway")).await?;
    volumes::keep(stage, "new", &["fresh", "midway"]).await
}

/// Where the flow begins and where it goes on, which is the same where there is one node.
fn nodes(stage: &Stage<'_>) -> [String; 2] {
    [stage.first(), stage.second().unwrap_or_else(|_| stage.first())]
}

/// A cluster with the old driver, volumes of it, pods that write to them, and one that is attached and not yet mounted.
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
        stage.run(&volumes::writer(claim).on(&node)).await?;
    }
    if old::has_shares(stage) {
        old::share(stage, "shared").await?;
        stage.run(&volumes::writer("shared").on(&node)).await?;
    }
    old::volume(stage, "waits", "ext4", false).await?;
    old::keep_from_staging(stage, "waits").await?;
    stage.make(&[Pod::new("waits").on(&node).with("waits").object]).await?;
    stage.told("waits", "AttachVolume.Attach succeeded").await?;
    old::forget_context(stage.bed).await
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
