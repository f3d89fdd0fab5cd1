//! The way back, and that the old driver takes over there what this one had.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{guide, nodes, old, persistent_volume, volumes};
use crate::{
    bed::{Bed, text},
    stage::{CLASS, POD, Pod, Stage, claim},
};

/// What the newer provisioner marks volumes with.
const MARK: &str = "external-provisioner.volume.kubernetes.io/finalizer";

pub(super) async fn goes_back(stage: &Stage<'_>, folder: &Path) -> Result<()> {
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
    guide::unchanged(stage, &before, "").await
}

/// What this driver mounted is written to and let go, and what it made is attached elsewhere, and deleted, by the old one,
/// which gives new ones, too.
pub(super) async fn volumes_go_on(stage: &Stage<'_>) -> Result<()> {
    let [first, second] = nodes(stage);
    volumes::goes_on(stage, "by-hand").await?;
    volumes::moves(stage, "by-hand", &["by-hand"], &Pod::new("back").on(&first).with("by-hand")).await?;
    if old::has_shares(stage) {
        volumes::goes_on(stage, "shared").await?;
        // Where this driver had it, whose record of that is there still when it comes back.
        let pod = Pod::new("apart").on(&second).with("shared");
        volumes::moves(stage, "shared", &["shared", "beside"], &pod).await?;
    }
    for (pod, claims) in [("new", &["fresh", "midway"][..]), ("waits", &["waits"])] {
        volumes::is_kept(stage, pod, claims).await?;
        stage.end(pod).await?;
        for claim in claims {
            volumes::is_detached(stage, claim).await?;
        }
    }
    stage.run(&Pod::new("later").on(&second).with("fresh").with("waits")).await?;
    volumes::is_kept(stage, "later", &["fresh", "waits"]).await?;
    volumes::goes_with_its_claim(stage, "midway").await?;

    stage.make(&[claim("last", CLASS, 10)]).await?;
    stage.is_bound("last").await?;
    stage.run(&Pod::new("last").on(&second).with("last")).await?;
    volumes::keep(stage, "last", &["last"]).await?;
    stage.end("last").await?;
    volumes::goes_with_its_claim(stage, "last").await
}

/// The old driver may format a raw volume, so the guide's first step back fails where there is one.
async fn raw_volumes_are_in_the_way(stage: &Stage<'_>, folder: &Path, step: &str) -> Result<()> {
    stage.bed.kubectl.apply(&[persistent_volume("raw", "Block", &Value::Null)]).await?;
    let followed = guide::follow(stage.bed, folder, step).await;
    stage.bed.kubectl.delete(&["persistentvolume", "raw"], POD).await?;
    ensure!(followed.is_err(), "the guide goes on though there is a raw volume");
    Ok(())
}

/// The volumes that the newer provisioner has marked.
async fn marked(bed: &Bed) -> Result<Vec<String>> {
    let volumes = bed.kubectl.list(&["persistentvolumes"]).await?;
    let has_mark = |marks: &Vec<Value>| marks.iter().any(|mark| mark == MARK);
    let marked = volumes.iter().filter(|volume| volume["metadata"]["finalizers"].as_array().is_some_and(has_mark));
    Ok(marked.map(|volume| text(volume, "/metadata/name").to_owned()).collect())
}
