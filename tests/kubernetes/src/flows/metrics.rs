//! What the driver's pods count, as Prometheus finds it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    bed::{Bed, text},
    driver::{self, NAMESPACE},
    eventually::eventually,
    stage::{CLASS, POD, Pod, Stage, claim},
};

/// Metrics with their labels as they are written, such as `csi_rpc_seconds_count{rpc="CreateVolume",code="OK"}`.
type Samples = BTreeMap<String, String>;
/// The table of deploy/metrics.md: each metric with its kind and its labels.
type Table = BTreeMap<String, (String, BTreeSet<String>)>;

/// What a claim that a pod had, and that is deleted, adds to what the controller counts, by what of it must be written.
const CONTROLLER: &[(&str, &[&str])] = &[
    ("csi_rpc_seconds_count", &[r#"rpc="CreateVolume""#, r#"code="OK""#]),
    ("csi_rpc_seconds_count", &[r#"rpc="ControllerPublishVolume""#, r#"code="OK""#]),
    ("csi_rpc_seconds_count", &[r#"rpc="ControllerUnpublishVolume""#, r#"code="OK""#]),
    ("csi_rpc_seconds_count", &[r#"rpc="DeleteVolume""#, r#"code="OK""#]),
    ("csi_cloud_seconds_count", &[r#"operation="create_block""#, r#"outcome="ok""#]),
    ("csi_cloud_seconds_count", &[r#"operation="attach_block""#, r#"outcome="ok""#]),
    ("csi_cloud_seconds_count", &[r#"operation="detach_block""#, r#"outcome="ok""#]),
    ("csi_cloud_seconds_count", &[r#"operation="delete_block""#, r#"outcome="ok""#]),
    ("csi_cloud_wait_seconds_count", &[r#"priority="create""#]),
];
/// And to what its node counts.
const NODE: &[(&str, &[&str])] = &[
    ("csi_rpc_seconds_count", &[r#"rpc="NodeStageVolume""#, r#"code="OK""#]),
    ("csi_rpc_seconds_count", &[r#"rpc="NodePublishVolume""#, r#"code="OK""#]),
    ("csi_rpc_seconds_count", &[r#"rpc="NodeUnpublishVolume""#, r#"code="OK""#]),
    ("csi_rpc_seconds_count", &[r#"rpc="NodeUnstageVolume""#, r#"code="OK""#]),
    ("csi_tool_seconds_count", &[r#"tool="mkfs.ext4""#, r#"outcome="ok""#]),
    ("csi_disks_formatted_total", &[r#"fs="ext4""#]),
];

pub(super) async fn metrics_of_the_shipped_pods_are_those_described(stage: &mut Stage<'_>) -> Result<()> {
    let bed = &*stage.bed;
    let described = described(bed)?;
    let node = stage.first();
    let pods = [driver::controller_pod(), driver::node_pod(bed, &node).await?];
    let ports = ports_for_prometheus(bed).await?;
    let port = |pod: &String| ports.get(pod).copied().with_context(|| format!("no PodMonitor finds {pod}: {ports:?}"));
    let mut before = Vec::new();
    for pod in &pods {
        before.push(samples(bed, pod, port(pod)?).await?);
    }
    stage.make(&[claim("data", CLASS, 10)]).await?;
    stage.run(&Pod::new("user").on(&node).with("data")).await?;
    stage.end("user").await?;
    stage.delete("pvc/data").await?;

    for ((pod, before), counted) in pods.iter().zip(&before).zip([CONTROLLER, NODE]) {
        eventually(&format!("{pod} has counted all of it"), POD, async || {
            let after = samples(bed, pod, port(pod)?).await?;
            for (name, labels) in counted {
                let (was, is) = (sum(before, name, labels)?, sum(&after, name, labels)?);
                ensure!(is > was, "{name} {labels:?} was {was}, and is {is}");
            }
            let in_flight = sum(&after, "csi_operations_in_flight", &[])?;
            ensure!(in_flight == 0, "{in_flight} operations are in flight");
            Ok(())
        })
        .await?;
        let after = samples(bed, pod, port(pod)?).await?;
        is_described(&described, &after).with_context(|| pod.clone())?;
        let build = format!(r#"version="{}""#, env!("CARGO_PKG_VERSION"));
        ensure!(sum(&after, "csi_build_info", &[&build])? == 1, "{pod} is not of {build}");
    }
    // One name, one volume: whoever asked again has joined.
    let after = samples(bed, &pods[0], port(&pods[0])?).await?;
    let made = |samples: &Samples| sum(samples, "csi_cloud_seconds_count", &[r#"operation="create_block""#]);
    let (was, is) = (made(&before[0])?, made(&after)?);
    ensure!(is == was + 1, "for one claim the cloud was asked for volumes: {was} times before, and {is} now");
    ensure!(sum(&after, "csi_cloud_reachable", &[])? == 1, "the cloud is told not to be reachable");
    Ok(())
}

/// Reads what is described.
fn described(bed: &Bed) -> Result<Table> {
    let paper = std::fs::read_to_string(bed.parts.repository.join("deploy/metrics.md"))?;
    let mut table = Table::new();
    for line in paper.lines().filter(|line| line.starts_with("| `csi_")) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, name, kind, labels, ..] = cells[..] else { bail!("a row has no labels: {line}") };
        let labels = labels.split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        table.insert(name.trim_matches('`').to_owned(), (kind.to_owned(), labels));
    }
    ensure!(table.len() > 5, "the table has {} rows", table.len());
    Ok(table)
}

/// Looks that whatever is counted is in the table, with its labels.
fn is_described(table: &Table, samples: &Samples) -> Result<()> {
    for sample in samples.keys() {
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let part = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        let histogram = part.and_then(|name| table.get(name)).filter(|(kind, _)| kind == "histogram");
        let other = || table.get(name).filter(|(kind, _)| kind != "histogram");
        let (_, described) = histogram.or_else(other).with_context(|| format!("deploy/metrics.md has no {name}"))?;
        let labels = labels.trim_end_matches('}').split(',').filter_map(|label| label.split_once('='));
        let labels = labels.map(|(label, _)| label).filter(|label| *label != "le" || !name.ends_with("_bucket"));
        let labels: BTreeSet<_> = labels.map(str::to_owned).collect();
        ensure!(labels == *described, "{sample} is described with the labels {described:?}");
    }
    Ok(())
}

/// What a pod has counted.
async fn samples(bed: &Bed, pod: &str, port: u16) -> Result<Samples> {
    let (status, told) = driver::ask(bed, pod, port, "/metrics").await?;
    ensure!(status == "200", "{pod} answers {status}: {told}");
    ensure!(told.ends_with("# EOF"), "{pod} does not tell all: {told}");
    let mut samples = Samples::new();
    for line in told.lines().filter(|line| !line.starts_with('#')) {
        let (sample, value) = line.rsplit_once(' ').with_context(|| format!("{pod} tells '{line}'"))?;
        samples.insert(sample.to_owned(), value.to_owned());
    }
    Ok(samples)
}

/// The sum of what counts in whole numbers, over all that has these labels; 0 if nothing was counted.
fn sum(samples: &Samples, name: &str, labels: &[&str]) -> Result<u64> {
    let fits = |sample: &&String| {
        let (of, with) = sample.split_once('{').unwrap_or((sample.as_str(), ""));
        of == name && labels.iter().all(|label| with.trim_end_matches('}').split(',').any(|it| it == *label))
    };
    let counted = samples.iter().filter(|(sample, _)| fits(sample));
    counted.map(|(sample, value)| value.parse::<u64>().with_context(|| format!("{sample} is {value}"))).sum()
}

/// The port of every pod that the chart's PodMonitor finds, and no other: those of the driver.
async fn ports_for_prometheus(bed: &Bed) -> Result<BTreeMap<String, u16>> {
    let rendered = driver::rendered(bed, &["metrics.podMonitor.enabled=true"]).await?;
    let mut monitors = rendered.split("\n---\n").filter(|document| document.contains("\nkind: PodMonitor\n"));
    let monitor = monitors.next().context("no PodMonitor is rendered")?;
    // The server knows no such kind.
    let read = bed.kubectl.with_manifest(&["label", "--local", "-o", "json", "read=yes"], monitor).await?;
    let monitor: Value = serde_json::from_str(&read)?;
    ensure!(text(&monitor, "/metadata/namespace") == NAMESPACE, "it is in {}", text(&monitor, "/metadata/namespace"));
    ensure!(monitor["spec"]["namespaceSelector"].is_null(), "it looks in other namespaces: {monitor}");
    let name = text(&monitor, "/spec/podMetricsEndpoints/0/port");

    let found = bed.kubectl.list(&["pods", "-n", NAMESPACE, "-l", &selector(&monitor["spec"]["selector"])?]).await?;
    let mut ports = BTreeMap::new();
    for pod in &found {
        let containers = pod["spec"]["containers"].as_array().cloned().unwrap_or_default();
        let all = containers.iter().filter_map(|container| container["ports"].as_array()).flatten();
        let called: Vec<_> = all.filter(|port| text(port, "/name") == name).collect();
        ensure!(called.len() == 1, "of {} the ports {name} are {called:?}", text(pod, "/metadata/name"));
        let number = called[0]["containerPort"].as_u64().context("a port has no number")?;
        ports.insert(text(pod, "/metadata/name").to_owned(), u16::try_from(number)?);
        let job = text(&monitor, "/spec/jobLabel");
        ensure!(pod["metadata"]["labels"][job].is_string(), "{} has no {job}", text(pod, "/metadata/name"));
    }
    let ours = bed.kubectl.list(&["pods", "-n", NAMESPACE, "-l", driver::OURS]).await?;
    let ours: BTreeSet<_> = ours.iter().map(|pod| text(pod, "/metadata/name").to_owned()).collect();
    ensure!(ours.iter().eq(ports.keys()), "it finds {ports:?}, and the driver's pods are {ours:?}");
    Ok(ports)
}

/// A label selector as kubectl takes it.
fn selector(of: &Value) -> Result<String> {
    let mut terms = Vec::new();
    for (label, value) in of["matchLabels"].as_object().into_iter().flatten() {
        terms.push(format!("{label}={}", value.as_str().context("a label is no text")?));
    }
    for rule in of["matchExpressions"].as_array().into_iter().flatten() {
        ensure!(rule["operator"] == "In", "a rule is not of the kind In: {rule}");
        let values = rule["values"].as_array().context("a rule has no values")?;
        let values: Vec<_> = values.iter().filter_map(Value::as_str).collect();
        terms.push(format!("{} in ({})", text(rule, "/key"), values.join(",")));
    }
    ensure!(!terms.is_empty(), "it selects everything: {of}");
    Ok(terms.join(","))
}
