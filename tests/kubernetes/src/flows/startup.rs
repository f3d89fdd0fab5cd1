//! The start-up taint, which a cluster may use to keep pods off a node until the driver is there.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    bed::{Bed, text},
    driver,
    eventually::{Never, eventually},
    stage::{CLASS, POD, Pod, Stage, claim},
};

/// The taint.
const TAINT: &str = "block.csi.vultr.com/agent-not-ready";

pub(super) async fn a_startup_taint_goes_when_the_driver_is_there(stage: &mut Stage<'_>) -> Result<()> {
    let node = stage.first();
    let lifted = lifted(stage, &node).await;
    // As it was, for the flows after this one
    if is_tainted(stage.bed, &node).await? {
        stage.bed.kubectl.run(&["taint", "node", &node, &format!("{TAINT}-")]).await?;
    }
    driver::settings(stage.bed, &[]).await?;
    let manifest = stage.bed.parts.repository.join("deploy/kubernetes.yaml");
    stage.bed.kubectl.run(&["apply", "-f", &manifest.display().to_string()]).await?;
    driver::restart(stage.bed, &format!("daemonset/{}", driver::NODE)).await?;
    driver::is_ready(stage.bed).await?;
    lifted
}

async fn lifted(stage: &Stage<'_>, node: &str) -> Result<()> {
    let bed = &*stage.bed;
    bed.kubectl.run(&["taint", "node", node, &format!("{TAINT}=:NoSchedule")]).await?;
    stage.make(&[claim("early", CLASS, 10), Pod::new("early").on(node).with("early").object]).await?;
    stage.told("early", "untolerated taint").await?;
    // It can be on this node only, so it is this node's taint that keeps it away.
    let early = stage.get("pod/early").await?;
    ensure!(text(&early, "/spec/nodeName").is_empty(), "the pod is on {}", text(&early, "/spec/nodeName"));

    // What the chart's node.startupTaint does: the rights, and the setting, here by its other name.
    let rule = |group: &str, resource: &str, verbs: &[&str]| {
        let value = json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
        json!({"op": "add", "path": "/rules/-", "value": value})
    };
    let rights = json!([rule("", "nodes", &["get", "patch"]), rule("storage.k8s.io", "csinodes", &["get"])]);
    bed.kubectl.run(&["patch", "clusterrole", driver::NODE, "--type=json", "-p", &rights.to_string()]).await?;
    driver::settings(bed, &[("CSI_STARTUP_TAINT", TAINT)]).await?;
    driver::restart(bed, &format!("daemonset/{}", driver::NODE)).await?;

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
    stage.runs("early").await
}

async fn is_tainted(bed: &Bed, node: &str) -> Result<bool> {
    let found = bed.kubectl.get(&["node", node]).await?;
    let taints = found["spec"]["taints"].as_array().cloned().unwrap_or_default();
    Ok(taints.iter().any(|taint| text(taint, "/key") == TAINT))
}
