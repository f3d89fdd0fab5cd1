//! Claims that Kubernetes makes for pods.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    bed::text,
    eventually::eventually,
    stage::{CLASS, POD, Pod, Stage, claim},
};

pub(super) async fn an_ephemeral_volume_goes_with_its_pod(stage: &mut Stage<'_>) -> Result<()> {
    let template = json!({"spec": claim("scratch", CLASS, 10)["spec"]});
    let source = json!({"ephemeral": {"volumeClaimTemplate": template}});
    stage.run(&Pod::new("user").with_volume("scratch", source.clone())).await?;
    stage.sh("user", "echo scratch > /scratch/file && sync /scratch/file && cat /scratch/file").await?;
    let volume = stage.volume("user-scratch").await?;
    stage.bed.cloud.volume(&volume)?;
    stage.end("user").await?;
    eventually("the volume has gone with its pod", POD, async || {
        let claims = stage.bed.kubectl.list(&["pvc", "-n", &stage.namespace]).await?;
        ensure!(claims.is_empty(), "there are still {} claims", claims.len());
        ensure!(stage.bed.cloud.volume(&volume).is_err(), "the cloud still has the volume {volume}");
        Ok(())
    })
    .await?;
    // A pod of the same name gets another one, which is blank.
    stage.run(&Pod::new("user").with_volume("scratch", source)).await?;
    let found = stage.sh("user", "ls /scratch").await?;
    ensure!(!found.contains("file"), "a new ephemeral volume holds {found}");
    stage.end("user").await
}

/// How many pods the set has.
const PODS: usize = 3;

pub(super) async fn a_stateful_set_keeps_each_pods_data(stage: &mut Stage<'_>) -> Result<()> {
    stage.make(&[set()]).await?;
    is_rolled_out(stage).await?;
    for pod in pods() {
        let write = format!("[ ! -e /data/file ] && echo {pod} > /data/file && sync /data/file");
        stage.sh(&pod, &write).await?;
    }
    let before = identities(stage).await?;
    stage.bed.kubectl.run(&["rollout", "restart", "-n", &stage.namespace, "statefulset/web"]).await?;
    is_rolled_out(stage).await?;
    let after = identities(stage).await?;
    ensure!(before.iter().all(|pod| !after.contains(pod)), "the pods were {before:?} and are {after:?}");
    for pod in pods() {
        let read = stage.sh(&pod, "cat /data/file").await?;
        ensure!(read == pod, "{pod} has the data of '{read}'");
    }
    // Scaled down, the claims stay, until somebody deletes them.
    stage.bed.kubectl.run(&["scale", "-n", &stage.namespace, "statefulset/web", "--replicas=1"]).await?;
    for pod in pods().skip(1) {
        stage.bed.kubectl.wait(&["-n", &stage.namespace, "--for=delete", &format!("pod/{pod}")], POD).await?;
        let claim = format!("data-{pod}");
        let volume = stage.volume(&claim).await?;
        stage.bed.cloud.volume(&volume)?;
        stage.delete(&format!("pvc/{claim}")).await?;
        eventually("the cloud has the volume no more", POD, async || {
            ensure!(stage.bed.cloud.volume(&volume).is_err(), "it has {volume}");
            Ok(())
        })
        .await?;
    }
    let read = stage.sh("web-0", "cat /data/file").await?;
    ensure!(read == "web-0", "web-0 has the data of '{read}'");
    stage.delete("statefulset/web").await?;
    stage.bed.kubectl.wait(&["-n", &stage.namespace, "--for=delete", "pod/web-0"], POD).await?;
    stage.delete("pvc/data-web-0").await
}

fn pods() -> impl Iterator<Item = String> {
    (0..PODS).map(|ordinal| format!("web-{ordinal}"))
}

fn set() -> Value {
    let labels = json!({"app": "web"});
    let mut spec = Pod::new("web").object["spec"].take();
    // The volumes are the claims' of the set.
    spec["volumes"] = json!([]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"},
        "spec": {
            "serviceName": "web", "replicas": PODS, "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim("data", CLASS, 10)["spec"]}],
        },
    })
}

async fn is_rolled_out(stage: &Stage<'_>) -> Result<()> {
    // One pod after the other
    let timeout = format!("--timeout={}s", POD.as_secs() * 3);
    stage.bed.kubectl.run(&["rollout", "status", "-n", &stage.namespace, "statefulset/web", &timeout]).await.map(drop)
}

async fn identities(stage: &Stage<'_>) -> Result<Vec<String>> {
    let pods = stage.bed.kubectl.list(&["pods", "-n", &stage.namespace, "-l", "app=web"]).await?;
    ensure!(pods.len() == PODS, "the set has {} pods", pods.len());
    Ok(pods.iter().map(|pod| text(pod, "/metadata/uid").to_owned()).collect())
}
