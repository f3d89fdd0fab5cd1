//! Two controllers, of which the one that holds the lease works.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vultr_sim::{Fault, Operation, When};

use super::trouble::requests;
use crate::{
    bed::{Bed, text},
    driver::{self, CONTROLLER, NAMESPACE},
    eventually::{Never, eventually},
    stage::{POD, Pod, Stage, claim, class},
};

/// The driver's own lease, as the chart calls it.
const LEASE: &str = "cloud-block-csi-controller";
/// Those of the sidecars, the provisioner's and the attacher's first.
const SIDECARS: [&str; 4] = [
    "block-csi-vultr-com",
    "external-attacher-leader-block-csi-vultr-com",
    "external-resizer-block-csi-vultr-com",
    "external-snapshotter-leader-block-csi-vultr-com",
];
/// How long a holder of the lease is waited for that says nothing any more.
const SILENCE: Duration = Duration::from_secs(15);

pub(super) async fn two_controllers_and_one_is_active(stage: &mut Stage<'_>) -> Result<()> {
    let shown = two(stage).await;
    if shown.is_err() {
        // They are other pods afterwards.
        let told = driver::told(stage.bed).await.unwrap_or_else(|error| format!("{error:#}"));
        std::fs::write(stage.bed.processes.log("two-controllers"), told)?;
    }
    let restored = restore(stage.bed).await;
    shown.and(restored)
}

async fn two(stage: &mut Stage<'_>) -> Result<()> {
    refuses_to_be_the_second(stage.bed).await?;
    let manifest = driver::rendered(stage.bed, &["controller.replicas=2"]).await?;
    none(stage.bed).await?;
    stage.bed.kubectl.with_manifest(&["apply"], &manifest).await?;
    driver::is_ready(stage.bed).await?;
    let first = holder(stage.bed, LEASE).await?;
    works_in(stage.bed, &first).await?;
    let second = if first.ends_with("-0") { format!("{CONTROLLER}-1") } else { format!("{CONTROLLER}-0") };
    // It is ready before it looks for the first time.
    let told = eventually("the other one says that it waits", POD, async || {
        let told = logs(stage.bed, &second).await?;
        ensure!(told.contains(&format!("waiting for the lease {LEASE}")), "it says:\n{told}");
        Ok(told)
    })
    .await?;
    ensure!(!told.contains("this is the active controller"), "both are active:\n{told}");
    waits_whole(stage.bed, &second).await?;

    // The active one dies between a request for a volume and its answer, for which the driver waits 30 s, and its machine
    // with it. What takes time is done before.
    driver::is_refused_nothing(stage.bed).await?;
    let mut immediate = class("immediate", &json!({}));
    immediate["volumeBindingMode"] = json!("Immediate");
    stage.make(&[immediate]).await?;
    cordon(stage.bed, "cordon").await?;
    let before = requests(stage.bed, Operation::CreateBlock);
    stage.bed.cloud.add_fault(Fault::delay(Operation::CreateBlock, When::After, Duration::from_secs(600)).times(1));
    stage.make(&[claim("data", "immediate", 10)]).await?;
    let volume = eventually("the cloud has the volume", POD, async || {
        let volumes = stage.bed.cloud.view().volumes;
        ensure!(volumes.len() == 1, "it has {}", volumes.len());
        Ok(volumes[0].id.clone())
    })
    .await?;
    stage.is_pending("data").await?;
    driver::kill(stage.bed, &first).await?;
    let died = Instant::now();
    stage.bed.kubectl.run(&["delete", "pod", "-n", NAMESPACE, &first, "--grace-period=0", "--force"]).await?;
    passes_to(stage.bed, &second).await?;
    let taken = died.elapsed();
    works_in(stage.bed, &second).await?;
    let works = died.elapsed();
    stage.is_bound("data").await?;
    println!(
        "  after a death: the lease is taken in {:.1} s, the sidecars work in {:.1} s, the claim is bound in {:.1} s",
        taken.as_secs_f64(),
        works.as_secs_f64(),
        died.elapsed().as_secs_f64()
    );
    let bound = stage.volume("data").await?;
    ensure!(bound == volume, "the claim is bound to {bound}, and {volume} was made first");
    let volumes = stage.bed.cloud.view().volumes.len();
    ensure!(volumes == 1, "there are {volumes} volumes of one name");
    let asked = requests(stage.bed, Operation::CreateBlock) - before;
    ensure!(asked == 1, "the cloud was asked for it {asked} times");
    cordon(stage.bed, "uncordon").await?;
    let node = stage.first();
    stage.run(&Pod::new("user").on(&node).with("data")).await?;

    // The other one goes in order, and says so. Who takes the lease is open: the one that waits looks every two seconds,
    // and the successor in the pod that ends may be there before it looks.
    driver::rolled_out(stage.bed, &format!("statefulset/{CONTROLLER}")).await?;
    let ended = identity(stage.bed, LEASE).await?;
    let dying = uid(stage.bed, &second).await?;
    stage.bed.kubectl.run(&["delete", "pod", "-n", NAMESPACE, &second, "--wait=false"]).await?;
    let left = Instant::now();
    // As long as it renews the lease, nobody has told its process to end.
    let (mut renewed, mut silent) = (Value::Null, left);
    let third = eventually(&format!("another than {ended} is the active one"), POD, async || {
        let mut lease = record(stage.bed, LEASE).await?;
        let holder = text(&lease, "/holderIdentity").to_owned();
        if holder == ended && lease["renewTime"] != renewed {
            (renewed, silent) = (lease["renewTime"].take(), Instant::now());
        }
        ensure!(holder.starts_with(CONTROLLER) && holder != ended, "it names '{holder}'");
        Ok(pod_of(&holder))
    })
    .await?;
    let (taken, silence) = (left.elapsed(), silent.elapsed());
    stage.make(&[claim("more", "immediate", 10)]).await?;
    stage.is_bound("more").await?;
    println!(
        "  after an orderly end: the lease is taken in {:.1} s by {third}, a new claim is bound in {:.1} s",
        taken.as_secs_f64(),
        left.elapsed().as_secs_f64()
    );
    ensure!(silence < SILENCE, "the lease was given back, and still taken after {silence:?} only");
    // Its successor has its name, by which alone the sidecars' leases know them.
    eventually(&format!("the ended {second} is gone"), POD, async || {
        let found = uid(stage.bed, &second).await?;
        ensure!(found != dying, "it is there");
        Ok(())
    })
    .await?;
    works_in(stage.bed, &third).await?;
    driver::rolled_out(stage.bed, &format!("statefulset/{CONTROLLER}")).await?;
    passes_from_who_is_robbed(stage).await?;
    stage.end("user").await?;
    for claim in ["pvc/data", "pvc/more", "pvc/afterwards"] {
        stage.delete(claim).await?;
    }
    driver::is_refused_nothing(stage.bed).await
}

/// Takes the lease from the active one, whose pod stays. A sidecar finds out that its driver ended by its next call, since gRPC
/// connects again only then; it ends, and its lease passes on. The attacher calls once a minute, and others when there is
/// something to do.
async fn passes_from_who_is_robbed(stage: &Stage<'_>) -> Result<()> {
    let robbed = identity(stage.bed, LEASE).await?;
    let patch = json!({"spec": {"holderIdentity": "somebody-else"}}).to_string();
    stage.bed.kubectl.run(&["patch", "lease", "-n", NAMESPACE, LEASE, "--type=merge", "-p", &patch]).await?;
    let taken = identity(stage.bed, LEASE).await?;
    ensure!(taken != robbed, "{robbed} was robbed of the lease, and took it again");
    let asked = Instant::now();
    stage.make(&[claim("afterwards", "immediate", 10)]).await?;
    stage.is_bound("afterwards").await?;
    println!(
        "  after {robbed} lost the lease to {taken}: a new claim is bound in {:.1} s",
        asked.elapsed().as_secs_f64()
    );
    work_in(stage.bed, &pod_of(&taken), &SIDECARS[..2]).await?;
    driver::rolled_out(stage.bed, &format!("statefulset/{CONTROLLER}")).await
}

/// Scales up what needs no lease, against its word.
async fn refuses_to_be_the_second(bed: &Bed) -> Result<()> {
    let second = format!("{CONTROLLER}-1");
    bed.kubectl.run(&["scale", "-n", NAMESPACE, "statefulset", CONTROLLER, "--replicas=2"]).await?;
    let refused = eventually("the second one refuses to start", POD, async || {
        let told = logs(bed, &second).await?;
        ensure!(told.contains("one controller too many"), "it says:\n{told}");
        let exit = "{.status.containerStatuses[?(@.name==\"driver\")].state.terminated.exitCode}";
        let lasted = exit.replace("state.", "lastState.");
        let code = bed
            .kubectl
            .run(&["get", "pod", "-n", NAMESPACE, &second, "-o", &format!("jsonpath={exit}{lasted}")])
            .await?;
        ensure!(code.contains("64"), "its exit code is '{code}'");
        Ok(())
    })
    .await;
    bed.kubectl.run(&["scale", "-n", NAMESPACE, "statefulset", CONTROLLER, "--replicas=1"]).await?;
    refused?;
    bed.kubectl.wait(&["-n", NAMESPACE, "--for=delete", &format!("pod/{second}")], POD).await
}

/// One controller without a lease, as it is shipped.
async fn restore(bed: &mut Bed) -> Result<()> {
    bed.cloud.clear_faults();
    cordon(bed, "uncordon").await?;
    bed.kubectl.delete(&["storageclass", "immediate"], POD).await?;
    none(bed).await?;
    driver::install(bed).await?;
    bed.kubectl.delete(&["-n", NAMESPACE, &format!("lease/{LEASE}"), &format!("pdb/{CONTROLLER}")], POD).await
}

/// Ends the controllers and waits until they have, as the README says for a change of their number: who needs no lease
/// does not wait for who has one.
async fn none(bed: &Bed) -> Result<()> {
    bed.kubectl.run(&["scale", "-n", NAMESPACE, "statefulset", CONTROLLER, "--replicas=0"]).await?;
    bed.kubectl.wait(&["-n", NAMESPACE, "--for=delete", "pod", "-l", &format!("app={CONTROLLER}")], POD).await
}

/// Lets no pod come to any node, or any again.
async fn cordon(bed: &Bed, verb: &str) -> Result<()> {
    for node in bed.nodes.iter().chain([&bed.host]) {
        bed.kubectl.run(&[verb, &node.name]).await?;
    }
    Ok(())
}

/// What a lease says.
async fn record(bed: &Bed, lease: &str) -> Result<Value> {
    Ok(bed.kubectl.get(&["lease", "-n", NAMESPACE, lease]).await?["spec"].take())
}

/// Who has a lease.
async fn identity(bed: &Bed, lease: &str) -> Result<String> {
    eventually(&format!("somebody has the lease {lease}"), POD, async || {
        let record = record(bed, lease).await?;
        let identity = text(&record, "/holderIdentity");
        ensure!(identity.starts_with(CONTROLLER), "it names '{identity}'");
        Ok(identity.to_owned())
    })
    .await
}

/// A controller's pod, and no other of its name; empty if there is none.
async fn uid(bed: &Bed, pod: &str) -> Result<String> {
    bed.kubectl.field(&["pod", "-n", NAMESPACE, pod, "--ignore-not-found"], ".metadata.uid").await
}

/// The pod of who has a lease: the driver's names are followed by what tells one process of a pod from the next.
fn pod_of(identity: &str) -> String {
    identity.split('_').next().unwrap_or_default().to_owned()
}

/// The pod that has a lease.
async fn holder(bed: &Bed, lease: &str) -> Result<String> {
    Ok(pod_of(&identity(bed, lease).await?))
}

/// Waits until `pod` has the driver's lease.
async fn passes_to(bed: &Bed, pod: &str) -> Result<()> {
    eventually(&format!("{pod} is the active one"), POD, async || {
        let holder = holder(bed, LEASE).await?;
        ensure!(holder == pod, "it is {holder}");
        Ok(())
    })
    .await
}

/// Sees that the sidecars of the pod that waits wait with it, for longer than the 30 s after which they end where nobody
/// answers; so that the other one may be drained.
async fn waits_whole(bed: &Bed, pod: &str) -> Result<()> {
    let began = Instant::now();
    eventually(&format!("all of {pod} has waited for a while"), POD, async || {
        let found = bed.kubectl.get(&["pod", "-n", NAMESPACE, pod]).await?;
        let containers = found["status"]["containerStatuses"].as_array().context("it has no containers")?;
        ensure!(containers.len() == 1 + SIDECARS.len(), "it has {} containers", containers.len());
        for container in containers {
            let (name, restarts) = (text(container, "/name"), &container["restartCount"]);
            ensure!(restarts == 0, Never(format!("{name} was restarted {restarts} times")));
            ensure!(container["ready"] == true, "{name} is not ready");
        }
        let may_go = bed.kubectl.field(&["pdb", "-n", NAMESPACE, CONTROLLER], ".status.disruptionsAllowed").await?;
        ensure!(may_go == "1", "{may_go} of the controllers may be drained");
        ensure!(began.elapsed() > Duration::from_secs(40), "it has waited for {:?}", began.elapsed());
        Ok(())
    })
    .await
}

/// Waits until all sidecars of `pod` are those that work.
async fn works_in(bed: &Bed, pod: &str) -> Result<()> {
    work_in(bed, pod, &SIDECARS).await
}

/// Waits until those of these leases are: each is named by its lease, and renews it.
async fn work_in(bed: &Bed, pod: &str, leases: &[&str]) -> Result<()> {
    // What is written now may be an earlier pod's of the same name.
    let mut before = Vec::new();
    for lease in leases {
        before.push((lease, record(bed, lease).await?));
    }
    for (lease, before) in before {
        eventually(&format!("{pod} has the lease {lease}"), POD, async || {
            let record = record(bed, lease).await?;
            let holder = pod_of(text(&record, "/holderIdentity"));
            ensure!(holder == pod, "{holder} has it");
            ensure!(record["renewTime"] != before["renewTime"], "it does not renew it: {record}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// What the driver of a pod logged.
async fn logs(bed: &Bed, pod: &str) -> Result<String> {
    bed.kubectl.run(&["logs", "-n", NAMESPACE, pod, "-c", "driver"]).await
}
