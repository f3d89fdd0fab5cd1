//! The driver is upgraded and taken away.

use std::{cell::Cell, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::trouble::volumes;
use crate::{
    bed::{Bed, text},
    driver::{self, NAMESPACE, Next},
    eventually::{Never, eventually},
    stage::{CLASS, POD, Pod, Stage, claim},
};

/// How many pods with a volume are made at least while the driver is upgraded; and at most, since an instance takes eleven.
const PODS: std::ops::RangeInclusive<usize> = 6..=10;
/// Writes a line with the time each second, and another where that fails.
const WRITER: &str = r"
trap exit TERM
while :; do
    { cut -d . -f 1 /proc/uptime >> /steady/log && sync /steady/log; } || echo failed >> /tmp/failures
    sleep 1
done
";
/// The longest that no line was written until now, in seconds.
const LONGEST: &str = "cut -d . -f 1 /proc/uptime | cat /steady/log - |
    awk 'NR > 1 && $1 - last > longest { longest = $1 - last } { last = $1 } END { print longest + 0 }'";

pub(super) async fn an_upgrade_under_load_is_noticed_by_no_pod(stage: &mut Stage<'_>) -> Result<()> {
    let next = Next::offer(stage.bed).await?;
    let shown = upgraded_under_load(stage, &next).await;
    // As it is shipped, for the flows after this one
    let restored = driver::install(stage.bed).await;
    let withdrawn = next.withdraw(stage.bed).await;
    shown.and(restored).and(withdrawn)?;
    driver::runs_image(stage.bed, &next.shipped_image).await
}

async fn upgraded_under_load(stage: &Stage<'_>, next: &Next) -> Result<()> {
    let node = stage.first();
    let before = is_written(stage).await?;
    driver::runs_image(stage.bed, &next.shipped_image).await?;

    let upgraded = &Cell::new(false);
    let load = async {
        let mut made = 0;
        while made < *PODS.start() || (!upgraded.get() && made < *PODS.end()) {
            let name = format!("load-{made}");
            stage.make(&[claim(&name, CLASS, 10)]).await?;
            stage.run(&Pod::new(&name).on(&node).with(&name)).await?;
            // Every second one goes again, so that volumes are taken off and deleted under way as well.
            if made % 2 == 1 {
                stage.end(&name).await?;
                stage.delete(&format!("pvc/{name}")).await?;
            }
            made += 1;
        }
        Ok::<_, anyhow::Error>(made)
    };
    let upgrade = async {
        stage.bed.kubectl.with_manifest(&["apply"], &next.manifest(stage.bed)?).await?;
        driver::is_ready(stage.bed).await?;
        upgraded.set(true);
        Ok(())
    };
    let (made, ()) = tokio::try_join!(load, upgrade)?;
    driver::runs_image(stage.bed, &next.image).await?;

    let mut claimed = vec![stage.volume("steady").await?];
    for number in (0..made).step_by(2) {
        let name = format!("load-{number}");
        stage.sh(&name, &format!("echo here > /{name}/file && sync /{name}/file")).await?;
        claimed.push(stage.volume(&name).await?);
    }
    claimed.sort();
    eventually("the cloud has what is claimed and no more", POD, async || {
        let mut there: Vec<_> = volumes(stage).into_iter().map(|volume| volume.id).collect();
        there.sort();
        ensure!(there == claimed, "it has {there:?}, and these are claimed: {claimed:?}");
        Ok(())
    })
    .await?;
    was_written(stage, before).await
}

/// Makes the pod `steady`, which writes to the volume of a claim of that name from now on, and tells how many lines it has.
pub(super) async fn is_written(stage: &Stage<'_>) -> Result<u64> {
    let mut steady = Pod::new("steady").on(&stage.first()).with("steady");
    steady.object["spec"]["containers"][0]["command"] = json!(["sh", "-c", WRITER]);
    stage.make(&[claim("steady", CLASS, 10)]).await?;
    stage.run(&steady).await?;
    lines(stage).await
}

/// Looks that this pod has written all the time, and more than the lines `before`.
pub(super) async fn was_written(stage: &Stage<'_>, before: u64) -> Result<()> {
    let failures = stage.sh("steady", "cat /tmp/failures 2>/dev/null || true").await?;
    ensure!(failures.is_empty(), "writes failed: {failures}");
    let after = lines(stage).await?;
    ensure!(after > before, "it wrote {before} lines before and {after} now");
    let longest: u64 = stage.sh("steady", LONGEST).await?.parse()?;
    ensure!(longest <= 30, "for {longest} s it wrote nothing");
    let restarts = stage.get("pod/steady").await?["status"]["containerStatuses"][0]["restartCount"].clone();
    ensure!(restarts == json!(0), "it was restarted {restarts} times");
    Ok(())
}

async fn lines(stage: &Stage<'_>) -> Result<u64> {
    let told = stage.sh("steady", "wc -l < /steady/log").await?;
    told.parse().with_context(|| format!("wc says {told}"))
}

/// What is the driver's on a node, beside the folder of records that its README tells of.
const LOOK: &str = r#"
find /var/lib/kubelet/plugins_registry /var/lib/kubelet/plugins/block.csi.vultr.com -type s 2>/dev/null
for process in /proc/[0-9]*; do
    [ "$(cat $process/comm 2>/dev/null)" != cloud-block-csi ] || echo "the driver runs as $process"
done
true
"#;

pub(super) async fn taken_away_it_leaves_nothing(stage: &mut Stage<'_>) -> Result<()> {
    // Something that it can leave behind
    used(stage, "before").await?;
    let removed = removed(stage.bed).await;
    driver::install(stage.bed).await?;
    removed?;
    used(stage, "after").await
}

/// A claim becomes a pod, and both are taken away.
pub(super) async fn used(stage: &Stage<'_>, name: &str) -> Result<()> {
    stage.make(&[claim(name, CLASS, 10)]).await?;
    stage.run(&Pod::new(name).on(&stage.first()).with(name)).await?;
    stage.end(name).await?;
    stage.delete(&format!("pvc/{name}")).await?;
    no_volume_is_left(stage.bed).await
}

/// Waits until what uses the driver is gone, as its README says of one that is taken away.
pub(super) async fn no_volume_is_left(bed: &Bed) -> Result<()> {
    eventually("no volume is left", POD, async || {
        let objects = bed.kubectl.run(&["get", "pv,volumeattachments", "-o", "name"]).await?;
        ensure!(objects.trim().is_empty(), "left: {objects}");
        Ok(())
    })
    .await
}

async fn removed(bed: &Bed) -> Result<()> {
    let found = named_after_it(bed).await?;
    ensure!(found.len() > 10, "installed, and there is only {found:?}");
    driver::uninstall(bed).await?;
    bed.kubectl.run(&["delete", "-n", NAMESPACE, "secret", "vultr-csi"]).await?;
    bed.kubectl.run(&["delete", "-n", NAMESPACE, "configmap", "cloud-block-csi", "--ignore-not-found"]).await?;
    nothing_is_left(bed, &[]).await
}

/// Waits until nothing is left of a driver that was taken away, but for the objects `kept`.
pub(super) async fn nothing_is_left(bed: &Bed, kept: &[&str]) -> Result<()> {
    eventually("nothing of it is left", Duration::from_secs(180), async || {
        let mut left = named_after_it(bed).await?;
        for object in kept {
            ensure!(
                left.iter().any(|it| it == object),
                Never(format!("{object} was to be kept, and is not in {left:?}"))
            );
        }
        left.retain(|object| !kept.contains(&object.as_str()));
        for node in bed.kubectl.list(&["csinodes"]).await? {
            let drivers = node["spec"]["drivers"].as_array().cloned().unwrap_or_default();
            let ours = drivers.iter().any(|it| text(it, "/name") == driver::NAME);
            left.extend(ours.then(|| format!("in csinode/{}", text(&node, "/metadata/name"))));
        }
        for node in bed.kubectl.list(&["nodes"]).await? {
            // The label with the region stays, as the README tells: the kubelet never takes such labels back.
            let ids = text(&node, "/metadata/annotations/csi.volume.kubernetes.io~1nodeid");
            left.extend(ids.contains(driver::NAME).then(|| format!("an annotation says {ids}")));
        }
        for node in bed.nodes.iter().chain([&bed.host]) {
            let found = node.run(LOOK).await?;
            left.extend(found.lines().map(|line| format!("{}: {line}", node.name)));
        }
        ensure!(left.is_empty(), "left: {left:?}");
        Ok(())
    })
    .await
}

/// Every object, of any kind, that is the driver's by its label or by its name. What happened to it, and is told by events,
/// is not it.
pub(super) async fn named_after_it(bed: &Bed) -> Result<Vec<String>> {
    let kinds = bed.kubectl.run(&["api-resources", "--verbs=list", "-o", "name"]).await?;
    let kinds: Vec<_> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
    let kinds = kinds.join(",");
    let labelled = ["get", &kinds, "-A", "-o", "name", "-l", driver::OURS];
    let mut found: Vec<_> = bed.kubectl.run(&labelled).await?.lines().map(str::to_owned).collect();
    let all = bed.kubectl.run(&["get", &kinds, "-A", "-o", "name"]).await?;
    let names = ["cloud-block-csi", "vultr", "block-csi"];
    found.extend(all.lines().filter(|line| names.iter().any(|name| line.contains(name))).map(str::to_owned));
    found.sort();
    found.dedup();
    Ok(found)
}
