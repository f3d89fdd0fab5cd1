//! The driver by Helm, by the commands of deploy/README.md as they stand there.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vultr_sim::{Fault, Operation, When};

use super::{
    operations::{is_written, named_after_it, no_volume_is_left, nothing_is_left, was_written},
    trouble::volumes,
};
use crate::{
    bed::{Bed, text},
    driver::{self, CONTROLLER, NAMESPACE, NODE, Next},
    eventually::eventually,
    stage::{CLASS, POD, Pod, Stage, claim},
};

/// What is no release's and stays when one is uninstalled: what the README has made by hand.
const KEPT: [&str; 2] = ["configmap/cloud-block-csi", "secret/vultr-csi"];
/// Classes that are there before a release, such as those of Vultr's own driver.
const OLDER: [&str; 2] = [
    "storageclass.storage.k8s.io/vultr-block-storage-retain",
    "volumesnapshotclass.snapshot.storage.k8s.io/vultr-block-storage",
];

pub(super) async fn helm_installs_upgrades_and_uninstalls(stage: &mut Stage<'_>) -> Result<()> {
    let folder = stage.bed.dir.join("helm");
    let next = Next::offer(stage.bed).await?;
    let shown = by_helm(stage, &folder, &next).await;
    let restored = restore(stage, &folder).await.context("putting the shipped manifest back");
    let withdrawn = next.withdraw(stage.bed).await;
    shown.and(restored).and(withdrawn)
}

async fn by_helm(stage: &Stage<'_>, folder: &Path, next: &Next) -> Result<()> {
    let bed = &*stage.bed;
    driver::uninstall(bed).await?;
    nothing_is_left(bed, &KEPT).await?;
    let older = make_older(bed).await?;

    let helm = driver::helm(bed).await?;
    let told = types(bed, &helm, &bed.parts.repository, &said(bed, "helm install")?).await?;
    for class in ["StorageClass vultr-block-storage-retain", "VolumeSnapshotClass vultr-block-storage"] {
        let left = format!("The {class} was there already and is left as it is.");
        ensure!(told.contains(&left), "Helm doesn't say '{left}', but: {told}");
    }
    driver::is_ready(bed).await?;
    driver::runs_image(bed, &next.shipped_image).await?;
    let first = rendered_by_helm(bed).await?;
    let before = is_written(stage).await?;

    // An upgrade in the middle of a creation: the cloud has the volume, and doesn't say so in time. The driver waits 30 s for
    // that, so what takes time is done before.
    next_chart(bed, folder, next)?;
    let upgrade = format!("{} --set logLevel=debug", said(bed, "helm upgrade")?);
    bed.cloud.add_fault(Fault::delay(Operation::CreateBlock, When::After, Duration::from_secs(600)).times(1));
    let node = stage.first();
    stage.make(&[claim("midway", CLASS, 10), Pod::new("midway").on(&node).with("midway").object]).await?;
    eventually("the cloud has the second volume", POD, async || {
        let volumes = volumes(stage).len();
        ensure!(volumes == 2, "it has {volumes}");
        Ok(())
    })
    .await?;
    stage.is_pending("midway").await?;
    types(bed, &helm, folder, &upgrade).await?;
    driver::is_ready(bed).await?;
    driver::runs_image(bed, &next.image).await?;
    log_at(bed, Some("debug")).await?;
    stage.runs("midway").await?;
    let mut claimed = vec![stage.volume("steady").await?, stage.volume("midway").await?];
    let mut there: Vec<_> = volumes(stage).into_iter().map(|volume| volume.id).collect();
    claimed.sort();
    there.sort();
    ensure!(there == claimed, "the cloud has {there:?}, and these are claimed: {claimed:?}");
    let kept = rendered_by_helm(bed).await?;
    ensure!(kept == first, "the release had {first:?}, and after the upgrade it has {kept:?}");

    types(bed, &helm, folder, &format!("helm rollback cloud-block-csi 1 --namespace {NAMESPACE}")).await?;
    driver::is_ready(bed).await?;
    driver::runs_image(bed, &next.shipped_image).await?;
    log_at(bed, None).await?;
    stage.make(&[claim("after", CLASS, 10)]).await?;
    stage.run(&Pod::new("after").on(&node).with("after")).await?;
    was_written(stage, before).await?;
    driver::is_refused_nothing(bed).await?;

    for name in ["steady", "midway", "after"] {
        stage.end(name).await?;
        stage.delete(&format!("pvc/{name}")).await?;
    }
    no_volume_is_left(bed).await?;
    let found = named_after_it(bed).await?;
    ensure!(found.iter().any(|object| object.contains("sh.helm.release")), "no release is among {found:?}");
    types(bed, &helm, folder, &said(bed, "helm uninstall")?).await?;
    nothing_is_left(bed, &[KEPT, OLDER].concat()).await?;
    let left = versions(bed).await?;
    ensure!(left == older, "the classes that were there before the release were {older:?}, and are {left:?}");
    Ok(())
}

/// Makes the older classes, as a cluster of Vultr's own driver has them: with a binding that can't be changed, and nobody's by
/// what Helm writes on objects.
async fn make_older(bed: &Bed) -> Result<Vec<String>> {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "vultr-block-storage-retain"},
        "provisioner": driver::NAME, "parameters": {"disk_type": "nvme"}, "allowVolumeExpansion": true,
        "reclaimPolicy": "Retain", "volumeBindingMode": "Immediate",
    });
    let of_snapshots = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass",
        "metadata": {"name": "vultr-block-storage"}, "driver": driver::NAME, "deletionPolicy": "Delete",
    });
    bed.kubectl.apply(&[class, of_snapshots]).await?;
    versions(bed).await
}

/// Which objects the older classes are, and in which state: whoever writes to one changes that.
async fn versions(bed: &Bed) -> Result<Vec<String>> {
    let mut versions = Vec::new();
    for class in OLDER {
        let found = bed.kubectl.get(&[class]).await?;
        versions.push(format!("{} {}", text(&found, "/metadata/uid"), text(&found, "/metadata/resourceVersion")));
    }
    Ok(versions)
}

/// The driver as it is shipped, whatever there is of a release.
async fn restore(stage: &Stage<'_>, folder: &Path) -> Result<()> {
    let bed = &*stage.bed;
    bed.cloud.clear_faults();
    // What is shipped has them with another binding.
    bed.kubectl.delete(&OLDER, POD).await?;
    let uninstall = format!("{} --ignore-not-found --wait", said(bed, "helm uninstall")?);
    types(bed, &driver::helm(bed).await?, &bed.parts.repository, &uninstall).await?;
    driver::have_ended(bed, [CONTROLLER, NODE]).await?;
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    driver::install(bed).await
}

/// The one command of the README that begins with `words`, without what it says to its reader.
fn said(bed: &Bed, words: &str) -> Result<String> {
    let readme = fs::read_to_string(bed.parts.repository.join("deploy/README.md"))?;
    let lines: Vec<_> = readme.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    let found: Vec<_> = lines.into_iter().filter(|line| line.starts_with(words)).collect();
    ensure!(found.len() == 1, "of '{words}' the README says {found:?}");
    Ok(found[0].split(" #").next().unwrap_or_default().trim_end().to_owned())
}

/// Types a command that needs Helm, which has nothing of whoever runs this, and gives what it printed.
async fn types(bed: &Bed, helm: &Path, folder: &Path, command: &str) -> Result<String> {
    let tools = helm.parent().context("Helm is in no folder")?;
    let home = bed.dir.join("helm-home");
    let own = format!("export HELM_CACHE_HOME={0} HELM_CONFIG_HOME={0} HELM_DATA_HOME={0}", home.display());
    bed.type_in(folder, &format!("{own}\n{command}"), &[tools]).await
}

/// Makes the chart of the next version below a folder, where it is in the repository.
fn next_chart(bed: &Bed, folder: &Path, next: &Next) -> Result<()> {
    let (from, to) = (bed.parts.repository.join("deploy/chart"), folder.join("deploy/chart"));
    fs::create_dir_all(to.join("templates"))?;
    for place in ["", "templates"] {
        for entry in fs::read_dir(from.join(place))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), to.join(place).join(entry.file_name()))?;
            }
        }
    }
    let about = fs::read_to_string(from.join("Chart.yaml"))?;
    let newer = about.replace(&format!("ersion: {}\n", next.shipped), &format!("ersion: {}\n", next.version));
    ensure!(newer.matches(&next.version).count() == 2, "the chart is not of version {}: {about}", next.shipped);
    Ok(fs::write(to.join("Chart.yaml"), newer)?)
}

/// The objects that are the release's by what Helm writes on them.
async fn rendered_by_helm(bed: &Bed) -> Result<Vec<String>> {
    let mut ours = Vec::new();
    let kinds = "storageclasses,volumesnapshotclasses,csidrivers,clusterroles,daemonsets,statefulsets";
    for object in bed.kubectl.list(&[kinds, "-A"]).await? {
        if object["metadata"]["annotations"]["meta.helm.sh/release-name"] == json!("cloud-block-csi") {
            ours.push(format!("{}/{}", text(&object, "/kind"), text(&object, "/metadata/name")));
        }
    }
    ours.sort();
    let has = |class: &str| ours.iter().any(|object| object == class);
    ensure!(has("StorageClass/vultr-block-storage"), "no class is the release's; it has {ours:?}");
    let taken = ["StorageClass/vultr-block-storage-retain", "VolumeSnapshotClass/vultr-block-storage"].map(has);
    ensure!(taken == [false, false], "classes that were there before the release are its own: {ours:?}");
    Ok(ours)
}

/// Looks at what the pods are told of the log.
async fn log_at(bed: &Bed, level: Option<&str>) -> Result<()> {
    for set in [format!("statefulset/{CONTROLLER}"), format!("daemonset/{NODE}")] {
        let found = bed.kubectl.get(&["-n", NAMESPACE, &set]).await?;
        let arguments = found["spec"]["template"]["spec"]["containers"][0]["args"].as_array().cloned();
        let arguments = arguments.with_context(|| format!("{set} tells its driver nothing"))?;
        let told = arguments.iter().filter_map(Value::as_str).find_map(|it| it.strip_prefix("--log-level="));
        ensure!(told == level, "{set} is told to log at {told:?}, and not at {level:?}");
    }
    Ok(())
}
