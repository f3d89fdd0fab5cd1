//! The guide: its commands as they stand there, and what they must do on the way.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::old;
use crate::{
    bed::{Bed, text},
    driver::{self, NAMESPACE},
    stage::Stage,
};

/// The process that watches the driver's pods.
pub(super) const WATCH: &str = "migration-pods";

/// The guide's blocks of commands that are marked with `word`.
pub(super) fn blocks(bed: &Bed, word: &str) -> Result<Vec<String>> {
    let guide = std::fs::read_to_string(bed.parts.repository.join("deploy/migration.md"))?;
    let begin = format!("```sh {word}\n");
    let block = |text: &str| text.split("```").next().unwrap_or_default().to_owned();
    let blocks: Vec<_> = guide.split(&begin).skip(1).map(block).collect();
    ensure!(!blocks.is_empty(), "the guide has no block '{word}'");
    Ok(blocks)
}

/// Types a block in `folder`, and gives what it printed.
pub(super) async fn follow(bed: &Bed, folder: &Path, block: &str) -> Result<String> {
    bed.type_in(folder, block, &[]).await
}

/// Begins to watch the pods of both drivers.
pub(super) fn watch(bed: &mut Bed) -> Result<()> {
    let all = ["get", "pods", "-n", NAMESPACE, "--watch", "--output-watch-events", "-o", "json"];
    let mut command = bed.kubectl.command(&all);
    let log = bed.processes.log(WATCH);
    if log.exists() {
        // Another showing's
        std::fs::remove_file(log)?;
    }
    bed.processes.start_to_be_read(WATCH, &mut command)
}

/// Looks that at no moment pods of both ran.
pub(super) async fn never_both(bed: &mut Bed) -> Result<()> {
    bed.processes.check(WATCH)?;
    bed.processes.end(WATCH).await?;
    let seen = std::fs::read(bed.processes.log(WATCH))?;
    let mut running: BTreeMap<String, String> = BTreeMap::new();
    let mut times = BTreeMap::from([(old::CONTROLLER, 0), (old::NODE, 0), (driver::CONTROLLER, 0), (driver::NODE, 0)]);
    for event in serde_json::Deserializer::from_slice(&seen).into_iter::<Value>() {
        let event = match event {
            // The watch was ended in the middle of it.
            Err(error) if error.is_eof() => break,
            event => event.context("the watch tells something else")?,
        };
        let pod = &event["object"];
        let (name, app) = (text(pod, "/metadata/uid").to_owned(), text(pod, "/metadata/labels/app"));
        let containers = pod["status"]["containerStatuses"].as_array();
        let runs = containers.is_some_and(|all| all.iter().any(|one| one["state"]["running"].is_object()));
        let Some(times) = times.get_mut(app) else { continue };
        if runs && event["type"] != "DELETED" {
            *times += 1;
            running.insert(name, app.to_owned());
        } else {
            running.remove(&name);
        }
        let (ours, theirs): (Vec<_>, Vec<_>) = running.values().partition(|app| app.starts_with("cloud-block-csi"));
        ensure!(
            ours.is_empty() || theirs.is_empty(),
            "both run: {ours:?} and {theirs:?}; {}",
            text(pod, "/metadata/name")
        );
    }
    ensure!(times.values().all(|times| *times > 0), "the watch didn't see all of them: {times:?}");
    Ok(())
}

/// What must be the same objects afterwards: each with its uid and what it says, except `claim`, of which only the uid counts.
pub(super) async fn objects(stage: &Stage<'_>, claim: &str) -> Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    for kind in ["persistentvolumes", "persistentvolumeclaims", "storageclasses"] {
        for mut object in stage.bed.kubectl.list(&[kind, "-A"]).await? {
            let name = text(&object, "/metadata/name").to_owned();
            let uid = object["metadata"]["uid"].clone();
            let said = if kind == "storageclasses" {
                object["metadata"] = json!({"annotations": object["metadata"]["annotations"]});
                object
            } else {
                object["spec"].take()
            };
            let said = if name == claim { Value::Null } else { said };
            found.insert(format!("{kind}/{name}"), json!([uid, said]));
        }
    }
    Ok(found)
}

/// Looks that what was there `before` is there, as it was.
pub(super) async fn unchanged(stage: &Stage<'_>, before: &BTreeMap<String, Value>, claim: &str) -> Result<()> {
    let after = objects(stage, claim).await?;
    for (name, was) in before {
        match after.get(name) {
            Some(is) if is == was => {}
            is => bail!("{name} was {was}, and is {is:?}"),
        }
    }
    Ok(())
}
