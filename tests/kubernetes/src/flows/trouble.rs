//! Trouble in the middle of the work, and what comes about all the same.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vultr_sim::{Fault, Operation, VolumeView, When};

use crate::{
    bed::{Bed, text},
    driver,
    eventually::{Never, eventually},
    stage::{CLASS, POD, Pod, Stage, claim},
};

/// How many volumes one pod has here; an instance takes eleven.
const TEN: usize = 10;
/// What is asked for once in a volume's life on one node, whenever the answer comes.
const ONCE: [Operation; 4] =
    [Operation::CreateBlock, Operation::AttachBlock, Operation::DetachBlock, Operation::DeleteBlock];
/// How long ten volumes and a restart may take on an emulated processor.
const LONG: Duration = Duration::from_secs(420);

pub(super) async fn ten_claims_survive_the_death_of_the_controller(stage: &mut Stage<'_>) -> Result<()> {
    let controller = driver::controller_pod();
    let before = driver::restarts(stage.bed, &controller).await?;
    // The cloud makes four volumes and doesn't say so in time. The others it makes when who asked is dead already: what a
    // cloud was asked for is carried out whoever waits for it.
    let four_seconds = Duration::from_secs(4);
    stage.bed.cloud.add_fault(Fault::delay(Operation::CreateBlock, When::Before, four_seconds).after_skipping(4));
    stage.bed.cloud.add_fault(Fault::delay(Operation::CreateBlock, When::After, LONG));
    let killed = killed_while_it_makes_volumes(stage, &controller).await;
    stage.bed.cloud.clear_faults();
    killed?;
    // Until this is told, the one to be killed is told to be the one that is dead.
    eventually("the controller is started again", POD, async || {
        ensure!(driver::restarts(stage.bed, &controller).await? > before, "it is not");
        Ok(())
    })
    .await?;
    eventually("the controller is killed while some of the volumes are attached", LONG, async || {
        let attached = volumes(stage).iter().filter(|volume| volume.attached_to.is_some()).count();
        ensure!(attached < TEN, Never(format!("all {attached} are attached")));
        ensure!(attached > 1, "{attached} are attached");
        driver::kill(stage.bed, &controller).await
    })
    .await?;
    ten_are_there(stage).await?;
    let after = driver::restarts(stage.bed, &controller).await?;
    ensure!(after >= before + 2, "it was killed twice, and restarted {before} and then {after} times");
    Ok(())
}

async fn killed_while_it_makes_volumes(stage: &Stage<'_>, controller: &str) -> Result<()> {
    make_ten(stage).await?;
    eventually("some of the volumes are made", POD, async || {
        let made = volumes(stage).len();
        ensure!((1..TEN).contains(&made), "{made} are");
        Ok(())
    })
    .await?;
    driver::kill(stage.bed, controller).await
}

pub(super) async fn ten_claims_survive_the_death_of_the_node_driver(stage: &mut Stage<'_>) -> Result<()> {
    let node = stage.first();
    let pod = driver::node_pod(stage.bed, &node).await?;
    let before = driver::restarts(stage.bed, &pod).await?;
    make_ten(stage).await?;
    eventually("some of the volumes are mounted", LONG, async || {
        let count = "grep -c '/csi/block.csi.vultr.com/.*/globalmount ' /proc/self/mountinfo || true";
        let mounted: usize = stage.bed.node(&node)?.run(count).await?.trim().parse()?;
        ensure!(mounted < TEN, Never(format!("all {mounted} are")));
        ensure!(mounted > 1, "{mounted} are");
        Ok(())
    })
    .await?;
    driver::kill(stage.bed, &pod).await?;
    ten_are_there(stage).await?;
    let after = driver::restarts(stage.bed, &pod).await?;
    ensure!(after > before, "it was killed, and restarted {before} and then {after} times");
    Ok(())
}

/// The volumes in the cloud.
pub(super) fn volumes(stage: &Stage<'_>) -> Vec<VolumeView> {
    stage.bed.cloud.view().volumes
}

/// Makes a pod with ten claims.
async fn make_ten(stage: &Stage<'_>) -> Result<()> {
    let names = (0..TEN).map(|number| format!("data-{number}"));
    let mut objects: Vec<_> = names.clone().map(|name| claim(&name, CLASS, 10)).collect();
    let pod = names.fold(Pod::new("ten").on(&stage.first()), |pod, name| pod.with(&name));
    objects.push(pod.object);
    stage.make(&objects).await
}

/// Waits until that pod runs, and sees that it has ten volumes, each its own, and that the cloud has no other.
async fn ten_are_there(stage: &Stage<'_>) -> Result<()> {
    stage.runs_within("ten", LONG).await?;
    let mut claimed = Vec::new();
    for number in 0..TEN {
        claimed.push(stage.volume(&format!("data-{number}")).await?);
        stage.sh("ten", &format!("echo {number} > /data-{number}/own")).await?;
    }
    // Two claims on one volume would have overwritten each other.
    let read = stage.sh("ten", "cat /data-*/own").await?;
    let wrote: Vec<_> = (0..TEN).map(|number| number.to_string()).collect();
    ensure!(read.lines().eq(wrote.iter()), "they hold {read}");
    let mounted = stage.sh("ten", "grep ' /data-' /proc/mounts | cut -d ' ' -f 1 | sort -u | wc -l").await?;
    ensure!(mounted == TEN.to_string(), "the pod has {mounted} disks");
    let mut made: Vec<_> = volumes(stage).into_iter().map(|volume| volume.id).collect();
    made.sort();
    claimed.sort();
    ensure!(made == claimed, "the cloud has {made:?}, and these are claimed: {claimed:?}");
    let instance = &stage.bed.node(&stage.first())?.instance;
    let elsewhere: Vec<_> = volumes(stage).into_iter().filter(|v| v.attached_to.as_ref() != Some(instance)).collect();
    ensure!(elsewhere.is_empty(), "not attached to the pod's node: {elsewhere:?}");
    Ok(())
}

pub(super) async fn a_rotated_token_is_followed_without_a_restart(stage: &mut Stage<'_>) -> Result<()> {
    let first = stage.bed.token().to_owned();
    let rotated = rotated(stage, &first).await;
    if rotated.is_err() {
        stage.bed.cloud.change_token(&first);
        driver::put_token(stage.bed, &first).await?;
    }
    rotated
}

/// Rotates twice, the second time to where it began, as the flows after this one need it.
async fn rotated(stage: &Stage<'_>, first: &str) -> Result<()> {
    let controller = driver::controller_pod();
    let before = driver::restarts(stage.bed, &controller).await?;
    let uid = stage.bed.kubectl.field(&["pod", "-n", driver::NAMESPACE, &controller], ".metadata.uid").await?;
    for (name, token) in [("one", "another-token"), ("two", first)] {
        // The driver's is refused from now on.
        stage.bed.cloud.change_token(token);
        stage.make(&[claim(name, CLASS, 10), Pod::new(name).on(&stage.first()).with(name).object]).await?;
        stage.told(name, "the cloud refused the API token").await?;
        driver::put_token(stage.bed, token).await?;
        stage.runs(name).await?;
        let (status, reason) = driver::readiness(stage.bed, &controller).await?;
        ensure!(status == "200", "the controller answers {status}: {reason}");
    }
    let after = driver::restarts(stage.bed, &controller).await?;
    ensure!(after == before, "the controller's driver was restarted: {before} times before and {after} now");
    let same = stage.bed.kubectl.field(&["pod", "-n", driver::NAMESPACE, &controller], ".metadata.uid").await?;
    ensure!(same == uid, "the controller's pod is another one");
    let made = volumes(stage).len();
    ensure!(made == 2, "two claims have {made} volumes");
    Ok(())
}

pub(super) async fn a_minute_without_the_cloud_is_made_up_for(stage: &mut Stage<'_>) -> Result<()> {
    let node = stage.first();
    let drivers = [driver::controller_pod(), driver::node_pod(stage.bed, &node).await?];
    let mut before = Vec::new();
    for pod in &drivers {
        before.push(driver::restarts(stage.bed, pod).await?);
    }
    stage.make(&[claim("old", CLASS, 10)]).await?;
    stage.run(&Pod::new("old").on(&node).with("old")).await?;

    stage.bed.cloud.listen(false).await?;
    let without = a_minute_without(stage).await;
    stage.bed.cloud.listen(true).await?;
    without?;

    // Whoever has tried in vain pauses longer each time.
    stage.runs_within("new", LONG).await?;
    let new = stage.volume("new").await?;
    let instance = stage.bed.node(&node)?.instance.clone();
    eventually("only the new claim's volume is there, and attached", LONG, async || {
        let there: Vec<_> = volumes(stage).into_iter().map(|volume| (volume.id, volume.attached_to)).collect();
        ensure!(there == [(new.clone(), Some(instance.clone()))], "there are {there:?}");
        Ok(())
    })
    .await?;
    eventually("the controller is ready", POD, async || {
        let (status, reason) = driver::readiness(stage.bed, &drivers[0]).await?;
        ensure!(status == "200", "it answers {status}: {reason}");
        Ok(())
    })
    .await?;
    for (pod, before) in drivers.iter().zip(before) {
        let after = driver::restarts(stage.bed, pod).await?;
        ensure!(after == before, "the driver in {pod} was restarted: {before} times before and {after} now");
    }
    Ok(())
}

/// Asks for a new volume and for the old one's end while nothing listens, and lets a minute go by.
async fn a_minute_without(stage: &Stage<'_>) -> Result<()> {
    let began = Instant::now();
    stage.make(&[claim("new", CLASS, 10), Pod::new("new").on(&stage.first()).with("new").object]).await?;
    let gone = ["delete", "-n", &stage.namespace, "--wait=false", "pod/old", "pvc/old"];
    stage.bed.kubectl.run(&gone).await?;
    let controller = driver::controller_pod();
    eventually("the controller says why it is not ready", POD, async || {
        let (status, reason) = driver::readiness(stage.bed, &controller).await?;
        ensure!(status == "503", "it answers {status}: {reason}");
        ensure!(reason.contains("Connection refused"), "its reason is '{reason}'");
        Ok(())
    })
    .await?;
    stage.told("new", "Connection refused").await?;
    eventually("a minute is over", 2 * POD, async || {
        let phase = stage.bed.kubectl.field(&["pod", "-n", &stage.namespace, "new"], ".status.phase").await?;
        ensure!(phase == "Pending", Never(format!("without a volume the pod is {phase}")));
        ensure!(began.elapsed() >= Duration::from_secs(60), "it is not");
        Ok(())
    })
    .await
}

pub(super) async fn a_slow_cloud_gives_a_claim_its_volume_once(stage: &mut Stage<'_>) -> Result<()> {
    // Five seconds for each answer, and for every second one five more.
    let five = Duration::from_secs(5);
    stage.bed.cloud.add_fault(Fault::delay(Operation::Any, When::After, five));
    stage.bed.cloud.add_fault(Fault::delay(Operation::Any, When::Before, five).with_probability(0.5, 6));
    // And once for each of these longer than the driver waits, so that what came of it is not known.
    for operation in ONCE {
        stage.bed.cloud.add_fault(Fault::delay(operation, When::After, Duration::from_secs(40)).times(1));
    }
    let before = ONCE.map(|operation| requests(stage.bed, operation));
    let slow = slowly(stage).await;
    stage.bed.cloud.clear_faults();
    slow?;
    for (operation, before) in ONCE.into_iter().zip(before) {
        let asked = requests(stage.bed, operation) - before;
        ensure!(asked == 1, "for one volume the cloud was asked {asked} times for {operation:?}");
    }
    Ok(())
}

/// How often the cloud was asked for something, answered or not.
pub(super) fn requests(bed: &Bed, operation: Operation) -> usize {
    bed.cloud.log().iter().filter(|entry| entry.operation == operation).count()
}

async fn slowly(stage: &Stage<'_>) -> Result<()> {
    stage.make(&[claim("data", CLASS, 10), Pod::new("slow").on(&stage.first()).with("data").object]).await?;
    stage.runs_within("slow", LONG).await?;
    let claimed = stage.volume("data").await?;
    let made: Vec<_> = volumes(stage).into_iter().map(|volume| volume.id).collect();
    ensure!(made == [claimed], "the cloud has {made:?}");
    stage.end("slow").await?;
    stage.delete("pvc/data").await?;
    eventually("the volume is deleted, as slowly", LONG, async || {
        let left = volumes(stage);
        ensure!(left.is_empty(), "left: {left:?}");
        let attachments = stage.bed.kubectl.list(&["volumeattachments"]).await?;
        let names: Vec<_> = attachments.iter().map(|attachment| text(attachment, "/metadata/name")).collect();
        ensure!(names.is_empty(), "left: {names:?}");
        Ok(())
    })
    .await
}
