//! The start-up taint, which a cluster may use to keep pods off a node until the driver is there.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    bed::{Bed, text},
    driver,
    eventually::{Never, eventually},
    stage::{CLASS, POD, Pod, Stage, claim},
};

/// The taint.
const TAINT: &str = "block.csi.vultr.com/agent-not-ready";

/// What the driver on a node may only where it takes off a taint: verb, group and resource.
const RIGHTS: [[&str; 3]; 2] = [["patch", "", "nodes"], ["get", "storage.k8s.io", "csinodes"]];

pub(super) async fn a_startup_taint_goes_when_the_driver_is_there(stage: &mut Stage<'_>) -> Result<()> {
    let node = stage.first();
    may(stage.bed, false).await?;
    let lifted = lifted(stage, &node).await;
    // As it was, for the flows after this one
    if is_tainted(stage.bed, &node).await? {
        stage.bed.kubectl.run(&["taint", "node", &node, &format!("{TAINT}-")]).await?;
    }
    driver::install(stage.bed).await?;
    lifted?;
    may(stage.bed, false).await
}

async fn lifted(stage: &Stage<'_>, node: &str) -> Result<()> {
    let bed = &*stage.bed;
    bed.kubectl.run(&["taint", "node", node, &format!("{TAINT}=:NoSchedule")]).await?;
    stage.make(&[claim("early", CLASS, 10), Pod::new("early").on(node).with("early").object]).await?;
    // It can be on this node only, so it is this node's taint that keeps it away.
    stage.has_no_node("early", "untolerated taint").await?;

    let manifest = driver::rendered(bed, &[&format!("node.startupTaint={TAINT}")]).await?;
    bed.kubectl.with_manifest(&["apply"], &manifest).await?;
    // The server's judge learns of a role a moment after it is written.
    eventually("the driver on a node may take a taint off", POD, async || may(bed, true).await).await?;

    eventually("the taint is gone", POD, async || {
        ensure!(!is_tainted(bed, node).await?, "the node has it");
        // Looked at afterwards: once it is off, the driver is known.
        let known = bed.kubectl.get(&["csinode", node]).await?;
        let drivers = known["spec"]["drivers"].as_array().cloned().unwrap_or_default();
        let ours = drivers.iter().any(|it| text(it, "/name") == driver::NAME && it["allocatable"]["count"].is_u64());
        ensure!(ours, Never(format!("it is gone, and CSINode lists {drivers:?}")));
        Ok(())
    })
    .await?;
    stage.runs("early").await?;
    driver::is_ready(bed).await?;
    driver::is_refused_nothing(bed).await
}

/// Looks whether the driver on a node may do what a start-up taint needs, all of it or none.
async fn may(bed: &Bed, wanted: bool) -> Result<()> {
    for [verb, group, resource] in RIGHTS {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": format!("system:serviceaccount:{}:{}", driver::NAMESPACE, driver::NODE),
                "resourceAttributes": {"verb": verb, "group": group, "resource": resource},
            },
        });
        let asked = bed.kubectl.with_manifest(&["create", "-o", "json"], &review.to_string()).await?;
        let answer: Value = serde_json::from_str(&asked)?;
        let allowed = answer["status"]["allowed"].as_bool().with_context(|| format!("the server says {answer}"))?;
        ensure!(allowed == wanted, "that the driver on a node may {verb} {resource} is {allowed}");
    }
    Ok(())
}

async fn is_tainted(bed: &Bed, node: &str) -> Result<bool> {
    let found = bed.kubectl.get(&["node", node]).await?;
    let taints = found["spec"]["taints"].as_array().cloned().unwrap_or_default();
    Ok(taints.iter().any(|taint| text(taint, "/key") == TAINT))
}
