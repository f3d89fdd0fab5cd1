//! Nodes come, go, are drained and are full, and pods have their data wherever they are.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::trouble::volumes;
use crate::{
    bed::{Bed, text},
    driver::{self, NAMESPACE},
    eventually::{Never, eventually},
    stage::{CLASS, IMAGE, POD, Pod, Stage, claim},
};

/// How long a pod may take to come to another node on an emulated processor, from when its own has died.
const MOVE: Duration = Duration::from_secs(420);
/// The mark that says of a dead node that nobody writes from it any more.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

pub(super) async fn a_pod_moves_to_the_other_worker_with_its_data(stage: &mut Stage<'_>) -> Result<()> {
    let nodes = [stage.first(), stage.second()?];
    stage.make(&[claim("data", CLASS, 10)]).await?;
    // There and back: the node that had the disk has to know it again.
    for (number, node) in [&nodes[0], &nodes[1], &nodes[0]].into_iter().enumerate() {
        let pod = format!("pod-{number}");
        stage.run(&Pod::new(&pod).on(node).with("data")).await?;
        let read = stage.sh(&pod, "cat /data/visits 2>/dev/null || true").await?;
        ensure!(read.lines().count() == number, "on visit {number} the volume holds '{read}'");
        stage.sh(&pod, &format!("echo {node} >> /data/visits && sync /data/visits")).await?;
        let instance = stage.bed.node(node)?.instance.clone();
        let there: Vec<_> = volumes(stage).into_iter().map(|volume| volume.attached_to).collect();
        ensure!(there == [Some(instance)], "attached to {there:?}");
        is_linked(stage, node, *node == nodes[0]).await?;
        stage.end(&pod).await?;
    }
    Ok(())
}

/// Waits until a node has a link by id to the only volume, or looks that it has none: there the driver knows it otherwise.
async fn is_linked(stage: &Stage<'_>, node: &str, wanted: bool) -> Result<()> {
    let serial = volumes(stage).pop().context("no volume")?.mount_id;
    let node = stage.bed.node(node)?;
    let linked = async || {
        let links = node.run("ls /dev/disk/by-id 2>/dev/null || true").await?;
        ensure!(links.contains(&serial) == wanted, "{} has these links to disks: {links}", node.name);
        Ok(())
    };
    if wanted { eventually("udev has made the link", POD, linked).await } else { linked().await }
}

/// A set of one pod with a volume of its own at /data, on the first node if that can be had.
fn set(name: &str, node: &str) -> Value {
    let wait = "trap exit TERM; while :; do sleep 1; done";
    let there = json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]});
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
        "spec": {
            "replicas": 1, "serviceName": name, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 5,
                    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 100, "preference": there},
                    ]}},
                    "containers": [{
                        "name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", wait],
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    }],
                },
            },
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim("data", CLASS, 10)["spec"]}],
        },
    })
}

/// Makes such a set and waits until its pod runs.
async fn runs(stage: &Stage<'_>, pod: &str, set: &Value) -> Result<()> {
    stage.make(std::slice::from_ref(set)).await?;
    eventually("the pod is made", POD, async || stage.get(&format!("pod/{pod}")).await).await?;
    stage.runs(pod).await
}

/// Makes such a set and lets its pod write to its volume.
async fn writes(stage: &Stage<'_>, name: &str, node: &str) -> Result<()> {
    let pod = format!("{name}-0");
    // What the scheduler only prefers, a busy node may lose.
    let others: Vec<_> = stage.bed.nodes.iter().map(|it| it.name.clone()).filter(|it| it != node).collect();
    for other in &others {
        stage.bed.kubectl.run(&["cordon", other]).await?;
    }
    let runs = runs(stage, &pod, &set(name, node)).await;
    for other in &others {
        stage.bed.kubectl.run(&["uncordon", other]).await?;
    }
    runs?;
    let found = stage.get(&format!("pod/{pod}")).await?;
    let at = text(&found, "/spec/nodeName");
    ensure!(at == node, "the pod is on {at} and was meant for {node}");
    stage.sh(&pod, "echo kept > /data/file && sync /data/file").await.map(drop)
}

/// Waits until a pod runs on a node, and sees that it has what was written.
async fn reads(stage: &Stage<'_>, pod: &str, node: &str) -> Result<()> {
    eventually(&format!("{pod} runs on {node}"), MOVE, async || {
        let found = stage.get(&format!("pod/{pod}")).await?;
        let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.iter().any(|it| text(it, "/type") == "Ready" && text(it, "/status") == "True");
        let (at, deleted) = (text(&found, "/spec/nodeName"), text(&found, "/metadata/deletionTimestamp"));
        ensure!(
            ready && at == node && deleted.is_empty(),
            "it is on '{at}', deleted at '{deleted}', {}: {conditions:?}",
            text(&found, "/status/phase")
        );
        Ok(())
    })
    .await?;
    let read = stage.sh(pod, "cat /data/file").await?;
    ensure!(read == "kept", "it holds '{read}'");
    let there: Vec<_> = volumes(stage).into_iter().map(|volume| volume.attached_to).collect();
    ensure!(there == [Some(stage.bed.node(node)?.instance.clone())], "attached to {there:?}");
    Ok(())
}

pub(super) async fn a_dead_workers_pod_comes_back_on_the_other_with_its_data(stage: &mut Stage<'_>) -> Result<()> {
    let (first, second) = (stage.first(), stage.second()?);
    writes(stage, "db", &first).await?;
    stage.bed.power_off(&first).await?;
    let came_back = comes_back(stage, &first, &second).await;
    // In any case: flows after this one need both.
    let again = stage.bed.power_on(&first).await;
    let untainted = stage.bed.kubectl.run(&["taint", "node", &first, &format!("{OUT_OF_SERVICE}-")]).await;
    came_back?;
    again?;
    untainted?;
    driver::is_ready(stage.bed).await?;
    // And the worker that was dead takes volumes again.
    stage.make(&[claim("more", CLASS, 10)]).await?;
    stage.run(&Pod::new("more").on(&first).with("more")).await
}

async fn comes_back(stage: &Stage<'_>, dead: &str, other: &str) -> Result<()> {
    eventually(&format!("Kubernetes knows that {dead} is dead"), Duration::from_secs(180), async || {
        let ready = ".status.conditions[?(@.type==\"Ready\")].status";
        let ready = stage.bed.kubectl.field(&["node", dead], ready).await?;
        ensure!(ready != "True", "it takes it for ready");
        Ok(())
    })
    .await?;
    let taint = format!("{OUT_OF_SERVICE}=nodeshutdown:NoExecute");
    stage.bed.kubectl.run(&["taint", "node", dead, &taint]).await?;
    reads(stage, "db-0", other).await
}

pub(super) async fn a_drained_workers_pod_moves_with_its_data(stage: &mut Stage<'_>) -> Result<()> {
    let (first, second) = (stage.first(), stage.second()?);
    writes(stage, "db", &first).await?;
    let drain = ["drain", &first, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=180s"];
    let drained = stage.bed.kubectl.run(&drain).await;
    let moved = match drained {
        Ok(_) => reads(stage, "db-0", &second).await,
        Err(error) => Err(error),
    };
    stage.bed.kubectl.run(&["uncordon", &first]).await?;
    moved?;
    // It took the controller along if that was there.
    driver::is_ready(stage.bed).await
}

pub(super) async fn a_drained_nodes_driver_waits_until_its_volumes_are_off(stage: &mut Stage<'_>) -> Result<()> {
    let node = stage.first();
    stage.make(&[claim("data", CLASS, 10)]).await?;
    stage.run(&Pod::new("user").on(&node).with("data")).await?;
    // Not drained: on a bed of one node that would take the controller away for good.
    let pod = driver::node_pod(stage.bed, &node).await?;
    stage.bed.kubectl.run(&["cordon", &node]).await?;
    let waited = waits(stage, &node, &pod).await;
    stage.bed.kubectl.run(&["uncordon", &node]).await?;
    waited?;
    driver::is_followed(stage.bed, &node, &pod).await?;
    stage.run(&Pod::new("next").on(&node).with("data")).await
}

async fn waits(stage: &Stage<'_>, node: &str, pod: &str) -> Result<()> {
    let bed = &*stage.bed;
    bed.kubectl.run(&["delete", "pod", "-n", NAMESPACE, "--wait=false", pod]).await?;
    // Its DaemonSet gives the next one another name.
    let there = async || {
        let names = bed.kubectl.run(&["get", "pods", "-n", NAMESPACE, "-o", "name"]).await?;
        Ok::<_, anyhow::Error>(names.lines().any(|name| name == format!("pod/{pod}")))
    };
    let deleted = bed.kubectl.field(&["pod", "-n", NAMESPACE, pod], ".metadata.deletionTimestamp").await?;
    ensure!(!deleted.is_empty(), "the driver's pod is not being deleted");
    eventually("the log says what the hook waits for", POD, async || {
        let told = bed.kubectl.run(&["logs", "-n", NAMESPACE, pod, "-c", "driver", "--tail=20"]).await?;
        ensure!(told.contains("waiting until its volumes are off it"), "it says:\n{told}");
        Ok(())
    })
    .await?;
    // Nobody has told the volume to go yet.
    let attached = attachments(bed, node).await?;
    ensure!(attached == 1, "{attached} volumes are attached");
    ensure!(there().await?, "the driver is gone while a volume is attached");
    let gone = ["delete", "pod", "-n", &stage.namespace, "--wait=false", "user"];
    bed.kubectl.run(&gone).await?;
    eventually("the volume is off the node", POD, async || {
        // In this order: a driver that is gone while a volume is there has not waited for it.
        let waits = there().await?;
        let attached = attachments(bed, node).await?;
        ensure!(waits || attached == 0, Never(format!("the driver is gone while {attached} volumes are attached")));
        ensure!(attached == 0, "{attached} are attached");
        Ok(())
    })
    .await?;
    // Well before the 120 s that the pod has.
    eventually("the driver that waited ends", Duration::from_secs(60), async || {
        ensure!(!there().await?, "it is there");
        Ok(())
    })
    .await
}

/// How many volumes are attached to a node.
async fn attachments(bed: &Bed, node: &str) -> Result<usize> {
    let all = bed.kubectl.list(&["volumeattachments"]).await?;
    Ok(all.iter().filter(|attachment| text(attachment, "/spec/nodeName") == node).count())
}

pub(super) async fn a_driver_whose_node_goes_on_ends_at_once(stage: &mut Stage<'_>) -> Result<()> {
    let node = stage.first();
    stage.make(&[claim("data", CLASS, 10)]).await?;
    stage.run(&Pod::new("user").on(&node).with("data")).await?;
    let pod = driver::node_pod(stage.bed, &node).await?;
    // A hook that waited would do so for nearly all of the pod's 120 s.
    stage.bed.kubectl.delete(&["pod", "-n", NAMESPACE, &pod], Duration::from_secs(90)).await?;
    let attached = attachments(stage.bed, &node).await?;
    ensure!(attached == 1, "{attached} volumes are attached");
    driver::is_followed(stage.bed, &node, &pod).await?;
    stage.sh("user", "echo on > /data/file && sync /data/file").await.map(drop)
}

/// The taint of a node that a kubelet made for a cloud controller manager, until that one has been there. A new node of
/// Vultr's has it.
const UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";

/// Vultr's cloud controller manager finds a node's instance by the provider's id, and the attacher by the CSINode.
pub(super) async fn a_node_is_known_by_the_id_of_its_instance(stage: &mut Stage<'_>) -> Result<()> {
    let bed = &*stage.bed;
    let nodes = bed.kubectl.list(&["nodes"]).await?;
    ensure!(nodes.len() >= bed.nodes.len(), "there are {} nodes", nodes.len());
    for node in nodes {
        let name = text(&node, "/metadata/name");
        let instance = bed.cloud.instance(name)?.id;
        driver::is_registered(bed, name).await?;
        let known = bed.kubectl.get(&["csinode", name]).await?;
        let drivers = known["spec"]["drivers"].as_array().context("CSINode lists no driver")?;
        let ours = drivers.iter().find(|it| text(it, "/name") == driver::NAME).context("CSINode does not list it")?;
        let id = text(ours, "/nodeID");
        ensure!(id == instance, "{name} is {instance}, and its driver says {id}");
        // What Vultr's cloud controller manager writes; here the kubelet is told to.
        let provider = text(&node, "/spec/providerID");
        ensure!(provider == format!("vultr://{id}"), "{name} is {provider}, and its driver says {id}");
    }
    // The taint that a new node has until that manager has been there doesn't keep the driver off.
    let node = stage.first();
    let pod = driver::node_pod(bed, &node).await?;
    bed.kubectl.run(&["taint", "node", &node, &format!("{UNINITIALIZED}=true:NoSchedule")]).await?;
    let comes = comes_uninitialized(bed, &node, &pod).await;
    bed.kubectl.run(&["taint", "node", &node, &format!("{UNINITIALIZED}-")]).await?;
    comes
}

/// Deletes the driver's pod on a node with that taint, and sees that the next one comes and is known.
async fn comes_uninitialized(bed: &Bed, node: &str, pod: &str) -> Result<()> {
    bed.kubectl.delete(&["pod", "-n", NAMESPACE, pod], POD).await?;
    driver::is_followed(bed, node, pod).await?;
    let taints = bed.kubectl.field(&["node", node], ".spec.taints[*].key").await?;
    ensure!(taints.contains(UNINITIALIZED), "the node had the taint, and has '{taints}'");
    Ok(())
}

pub(super) async fn the_scheduler_knows_how_many_volumes_a_node_takes(stage: &mut Stage<'_>) -> Result<()> {
    let node = stage.first();
    has_limit(stage.bed, &node, 11).await?;
    takes_eleven(stage, &node).await?;
    let kept = keeps_to_two(stage, &node).await;
    // As it was, for the flows after this one, and for the pod that waits.
    driver::settings(stage.bed, &[]).await?;
    driver::restart(stage.bed, &format!("daemonset/{}", driver::NODE)).await?;
    driver::is_ready(stage.bed).await?;
    kept?;
    has_limit(stage.bed, &node, 11).await?;
    stage.runs("three").await
}

/// As many as the cloud attaches to an instance beside its own disk, and a pod with one more waits.
async fn takes_eleven(stage: &Stage<'_>, node: &str) -> Result<()> {
    // Raw, since it is not about what is on them
    let raw = |name: &str| {
        let mut claim = claim(name, CLASS, 10);
        claim["spec"]["volumeMode"] = json!("Block");
        claim
    };
    let names: Vec<_> = (1..=11).map(|number| format!("disk-{number}")).collect();
    let mut objects: Vec<_> = names.iter().map(|name| raw(name)).collect();
    objects.push(names.iter().fold(Pod::new("eleven").on(node), |pod, name| pod.with_device(name)).object);
    stage.make(&objects).await?;
    stage.runs_within("eleven", MOVE).await?;
    let instance = stage.bed.node(node)?.instance.clone();
    let attached = volumes(stage).iter().filter(|volume| volume.attached_to.as_ref() == Some(&instance)).count();
    ensure!(attached == 11, "{attached} are attached");
    stage.make(&[raw("disk-12"), Pod::new("twelfth").on(node).with_device("disk-12").object]).await?;
    stage.has_no_node("twelfth", "exceed max volume count").await?;
    let made = volumes(stage).len();
    ensure!(made == 11, "there are {made} volumes");
    // And has its turn when there is room.
    stage.end("eleven").await?;
    stage.runs("twelfth").await?;
    stage.end("twelfth").await?;
    for name in names.iter().map(String::as_str).chain(["disk-12"]) {
        stage.delete(&format!("pvc/{name}")).await?;
    }
    eventually("the disks are deleted", POD, async || {
        let left = volumes(stage).len();
        ensure!(left == 0, "{left} are left");
        Ok(())
    })
    .await
}

async fn keeps_to_two(stage: &Stage<'_>, node: &str) -> Result<()> {
    driver::settings(stage.bed, &[("CSI_MAX_VOLUMES_PER_NODE", "2")]).await?;
    driver::restart(stage.bed, &format!("daemonset/{}", driver::NODE)).await?;
    driver::is_ready(stage.bed).await?;
    has_limit(stage.bed, node, 2).await?;
    for name in ["one", "two"] {
        stage.make(&[claim(name, CLASS, 10)]).await?;
        stage.run(&Pod::new(name).on(node).with(name)).await?;
    }
    stage.make(&[claim("three", CLASS, 10), Pod::new("three").on(node).with("three").object]).await?;
    stage.has_no_node("three", "exceed max volume count").await?;
    let made = volumes(stage).len();
    ensure!(made == 2, "there are {made} volumes");
    Ok(())
}

/// Waits until Kubernetes knows that a node takes so many volumes.
async fn has_limit(bed: &Bed, node: &str, limit: u64) -> Result<()> {
    eventually(&format!("{node} takes {limit} volumes"), POD, async || {
        let found = bed.kubectl.get(&["csinode", node]).await?;
        let drivers = found["spec"]["drivers"].as_array().context("CSINode lists no driver")?;
        let ours = drivers.iter().find(|it| text(it, "/name") == driver::NAME).context("CSINode does not list it")?;
        let count = &ours["allocatable"]["count"];
        ensure!(count.as_u64() == Some(limit), "it takes {count}");
        Ok(())
    })
    .await
}
