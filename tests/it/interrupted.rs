//! Copies and shares when something comes between: lost answers, deaths, failures, haste. One name is one thing, whatever
//! was made on the way is gone, and what is still read from stays.

use std::time::Duration;

use cloud_block_csi::csi::{self, volume_capability::access_mode::Mode};
use futures_util::future::try_join_all;
use tonic::Code;
use vultr_sim::{Behaviour, Fault, Operation, SnapshotState, When};

use crate::{
    clones::clone_of,
    cluster::{Cluster, asked, eventually, gib, mounted, repeated, skipped},
    shared::shared,
    snapshots::from_snapshot,
};

/// No cloud takes that long: what is awaited comes by the test's hand.
const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_make_nothing_twice_and_leave_nothing() {
    if skipped("lost_answers_make_nothing_twice_and_leave_nothing") {
        return;
    }
    let cluster = Cluster::start(&["one"], Behaviour::instant()).await;
    let control = cluster.bed.cloud().control();
    let source = cluster.create("pvc-source", &mounted("")).await.unwrap();
    let lose = |operations: &[Operation]| {
        for operation in operations {
            control.add_fault(Fault::cut(*operation, When::After).times(1));
        }
    };
    lose(&[Operation::CreateSnapshot, Operation::CreateBlock, Operation::DeleteSnapshot]);
    let clone = repeated(|| cluster.make(clone_of("pvc-clone", &source))).await;
    let view = control.view();
    assert_eq!((view.volumes.len(), view.snapshots.len()), (2, 0), "{view:?}");

    lose(&[Operation::CreateSnapshot, Operation::DeleteSnapshot]);
    let snapshot = repeated(|| cluster.snapshot("snapshot-1", &source)).await;
    assert_eq!(control.view().snapshots.len(), 1);
    repeated(|| cluster.delete_snapshot(&snapshot.snapshot_id)).await;
    assert!(control.view().snapshots.is_empty());

    let of_shares = [Operation::CreateVfs, Operation::AttachVfs, Operation::DetachVfs, Operation::DeleteVfs];
    lose(&of_shares);
    let share = repeated(|| cluster.make(shared("pvc-shared", Mode::MultiNodeMultiWriter))).await;
    assert_eq!(control.view().file_systems.len(), 1);
    let context = repeated(|| cluster.attach(0, &share)).await;
    let attachments = control.file_system(&share.id).unwrap().attachments;
    assert_eq!(
        attachments.iter().map(|one| one.mount_tag.to_string()).collect::<Vec<_>>(),
        [context["mount_vol_name"].as_str()]
    );
    repeated(|| cluster.detach(0, &share)).await;
    repeated(|| cluster.delete(&share)).await;
    assert!(control.faults().iter().all(|(_, _, struck)| *struck == 1), "{:?}", control.faults());
    cluster.delete(&clone).await.unwrap();
    cluster.delete(&source).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identical_clones_at_once_are_one_snapshot_and_one_volume() {
    if skipped("identical_clones_at_once_are_one_snapshot_and_one_volume") {
        return;
    }
    let moment = Duration::from_millis(200);
    let cluster = Cluster::start(&[], Behaviour { snapshot: moment, create: moment, ..Behaviour::instant() }).await;
    let control = cluster.bed.cloud().control();
    let source = cluster.create("pvc-source", &mounted("")).await.unwrap();
    control.reset();
    let made = try_join_all((0..20).map(|_| cluster.make(clone_of("pvc-clone", &source)))).await.unwrap();
    assert!(made.iter().all(|pvc| pvc.id == made[0].id));
    let stats = control.stats();
    for operation in [Operation::CreateSnapshot, Operation::CreateBlock, Operation::DeleteSnapshot] {
        assert_eq!(stats.count(operation), 1, "{operation:?}");
    }
    cluster.delete(&made[0]).await.unwrap();
    cluster.delete(&source).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_whose_snapshot_fails_is_told_and_can_be_begun_anew() {
    if skipped("a_clone_whose_snapshot_fails_is_told_and_can_be_begun_anew") {
        return;
    }
    let cluster = Cluster::start(&[], Behaviour { snapshot_fails: true, ..Behaviour::instant() }).await;
    let control = cluster.bed.cloud().control();
    let source = cluster.create("pvc-source", &mounted("")).await.unwrap();
    let failed = cluster.make(clone_of("pvc-clone", &source)).await.unwrap_err();
    assert_eq!(failed.code(), Code::Internal, "{failed:?}");
    assert!(failed.message().contains("has failed"), "{failed:?}");
    assert!(control.view().snapshots.is_empty() && control.view().volumes.len() == 1);
    control.behave(|behaviour| behaviour.snapshot_fails = false);
    let clone = cluster.make(clone_of("pvc-clone", &source)).await.unwrap();
    cluster.delete(&clone).await.unwrap();
    cluster.delete(&source).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_stays_until_what_is_made_from_it_is_ready() {
    if skipped("a_snapshot_stays_until_what_is_made_from_it_is_ready") {
        return;
    }
    let cluster = Cluster::start(&[], Behaviour::instant()).await;
    let control = cluster.bed.cloud().control();
    let source = cluster.create("pvc-source", &mounted("")).await.unwrap();
    let snapshot = cluster.snapshot_in_full("snapshot-1", &source).await;
    control.behave(|behaviour| behaviour.create = NEVER);
    let restore = csi::CreateVolumeRequest {
        volume_content_source: Some(from_snapshot(&snapshot.snapshot_id)),
        ..asked("pvc-restored", &source.capability)
    };
    let begun = || async { control.volume("pvc-restored").ok() };
    let held = async {
        assert_eq!(eventually("the volume is made", begun).await.status, "pending");
        let held = cluster.delete_snapshot(&snapshot.snapshot_id).await;
        control.change_volume("pvc-restored", "active").unwrap();
        held.unwrap_err()
    };
    let (restored, held) = tokio::join!(cluster.make(restore), held);
    assert_eq!(held.code(), Code::FailedPrecondition, "{held:?}");
    cluster.delete_snapshot(&snapshot.snapshot_id).await.unwrap();
    cluster.delete(&restored.unwrap()).await.unwrap();
    cluster.delete(&source).await.unwrap();
    cluster.end().await;
}

/// Killed after the volume was begun: its snapshot is still being read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_controller_keeps_the_snapshot_of_a_clone_that_is_being_filled() {
    if skipped("a_new_controller_keeps_the_snapshot_of_a_clone_that_is_being_filled") {
        return;
    }
    let flags = ["--cluster-id", "prod"];
    let mut cluster = Cluster::start_with(&[], Behaviour::instant(), &flags).await;
    let control = cluster.bed.cloud().control();
    let source = cluster.create("pvc-source", &mounted("")).await.unwrap();
    control.behave(|behaviour| behaviour.create = NEVER);
    {
        let begun = || async { control.volume("pvc-clone").ok() };
        tokio::select! {
            answer = cluster.make(clone_of("pvc-clone", &source)) => panic!("it is not active: {answer:?}"),
            _ = eventually("the volume is made", begun) => {}
        }
    }
    cluster.bed.kill("controller", false).await.unwrap();
    control.reset();
    cluster.bed.controller_with(&flags).await.unwrap();
    let looked = || async {
        let stats = control.stats();
        (stats.count(Operation::ListSnapshots) >= 1 && stats.count(Operation::ListBlocks) >= 2).then_some(())
    };
    eventually("leftovers are looked for", looked).await;
    assert_eq!(control.view().snapshots.len(), 1);
    control.change_volume("pvc-clone", "active").unwrap();
    let clone = repeated(|| cluster.make(clone_of("pvc-clone", &source))).await;
    assert_eq!((control.view().snapshots.len(), control.view().volumes.len()), (0, 2));
    cluster.delete(&clone).await.unwrap();
    cluster.delete(&source).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_copied_is_refused_before_anything_is_made() {
    if skipped("what_cannot_be_copied_is_refused_before_anything_is_made") {
        return;
    }
    let cluster = Cluster::start(&[], Behaviour { snapshot: NEVER, ..Behaviour::instant() }).await;
    let control = cluster.bed.cloud().control();
    let share = cluster.make(shared("pvc-shared", Mode::MultiNodeMultiWriter)).await.unwrap();
    let refused = cluster.snapshot("snapshot-1", &share).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    let mut request = clone_of("pvc-clone", &share);
    request.volume_capabilities = vec![mounted("")];
    assert_eq!(cluster.make(request).await.unwrap_err().code(), Code::InvalidArgument);

    let mut request = asked("pvc-source", &mounted(""));
    request.capacity_range = Some(csi::CapacityRange { required_bytes: gib(20), limit_bytes: 0 });
    let source = cluster.make(request).await.unwrap();
    let snapshot = cluster.snapshot("snapshot-1", &source).await.unwrap();
    control.change_snapshot(&snapshot.snapshot_id, SnapshotState::Complete).unwrap();
    let mut restore = asked("pvc-restored", &source.capability);
    restore.volume_content_source = Some(from_snapshot(&snapshot.snapshot_id));
    for mut request in [restore.clone(), clone_of("pvc-clone", &source)] {
        request.capacity_range = Some(csi::CapacityRange { required_bytes: gib(10), limit_bytes: gib(15) });
        let small = cluster.make(request).await.unwrap_err();
        assert_eq!(small.code(), Code::OutOfRange, "{small:?}");
    }
    assert_eq!((control.view().volumes.len(), control.view().snapshots.len()), (1, 1));
    // Without a limit it is as large as it has to be.
    let made = cluster.controller.clone().create_volume(restore).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(made.capacity_bytes, gib(20));
    control.delete(&made.volume_id).await.unwrap();
    cluster.delete_snapshot(&snapshot.snapshot_id).await.unwrap();
    cluster.delete(&source).await.unwrap();
    cluster.delete(&share).await.unwrap();
    cluster.end().await;
}
