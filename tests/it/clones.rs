//! Clones: a volume with another's content, by way of a snapshot that nobody sees and that is gone in the end.

use std::{fs, time::Duration};

use cloud_block_csi::csi::{
    self, ControllerGetVolumeRequest, ListSnapshotsRequest, VolumeContentSource,
    volume_content_source::{Type, VolumeSource},
};
use tonic::Code;
use vultr_sim::{Behaviour, SeedVolume, SnapshotState};

use crate::{
    cluster::{Cluster, Pvc, asked, eventually, mounted, repeated, skipped},
    snapshots::from_snapshot,
};

/// No cloud takes that long: what is awaited comes by the test's hand.
const NEVER: Duration = Duration::from_secs(3600);

pub(crate) fn clone_of(name: &str, source: &Pvc) -> csi::CreateVolumeRequest {
    let volume = VolumeSource { volume_id: source.id.clone() };
    csi::CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource { r#type: Some(Type::Volume(volume)) }),
        ..asked(name, &source.capability)
    }
}

impl Cluster {
    /// The id of the one snapshot that there is, once there is one.
    pub(crate) async fn temporary(&self) -> String {
        let snapshots = || async { self.bed.cloud().control().view().snapshots.pop() };
        eventually("a clone has a snapshot", snapshots).await.id
    }

    async fn shows_no_snapshot(&self) -> bool {
        self.snapshots(ListSnapshotsRequest::default()).await.unwrap().entries.is_empty()
    }
}

async fn cloned(fs_type: &str) {
    let moment = Duration::from_millis(50);
    let cluster =
        Cluster::start(&["one"], Behaviour { snapshot: moment, create: moment, ..Behaviour::instant() }).await;
    let control = cluster.bed.cloud().control();
    let source = cluster.create("pvc-source", &mounted(fs_type)).await.unwrap();
    cluster.enter(0, &source).await;
    cluster.write(0, &source);
    let then = fs::read(cluster.file(0, &source, "data")).unwrap();

    let clone = cluster.make(clone_of("pvc-clone", &source)).await.unwrap();
    assert_eq!(clone.volume_context["source"], "volume");
    assert!(control.view().snapshots.is_empty(), "{:?}", control.view().snapshots);
    // Repeated when the snapshot is gone, it is the same volume.
    assert_eq!(cluster.make(clone_of("pvc-clone", &source)).await.unwrap().id, clone.id);
    fs::write(cluster.file(0, &source, "later"), "of a later day").unwrap();

    cluster.enter(0, &clone).await;
    assert!(fs::read(cluster.file(0, &clone, "data")).unwrap() == then, "the data are not the source's");
    assert!(!cluster.file(0, &clone, "later").exists());
    let blank = cluster.make(asked("pvc-clone", &source.capability)).await.unwrap_err();
    assert_eq!(blank.code(), Code::AlreadyExists, "{blank:?}");
    cluster.finish(0, &source).await;
    assert!(fs::read(cluster.file(0, &clone, "data")).unwrap() == then);
    cluster.finish(0, &clone).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ext4_clone_of_a_volume_in_use_is_mounted_beside_it() {
    if skipped("an_ext4_clone_of_a_volume_in_use_is_mounted_beside_it") {
        return;
    }
    cloned("ext4").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_xfs_clone_of_a_volume_in_use_is_mounted_beside_it() {
    if skipped("an_xfs_clone_of_a_volume_in_use_is_mounted_beside_it") {
        return;
    }
    cloned("xfs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_goes_on_without_its_caller_and_its_source_stays_as_long() {
    if skipped("a_clone_goes_on_without_its_caller_and_its_source_stays_as_long") {
        return;
    }
    let cluster = Cluster::start(&[], Behaviour { snapshot: NEVER, ..Behaviour::instant() }).await;
    let control = cluster.bed.cloud().control();
    let source = cluster.create("pvc-source", &mounted("ext4")).await.unwrap();
    let temporary = {
        let call = cluster.make(clone_of("pvc-clone", &source));
        tokio::select! {
            answer = call => panic!("the snapshot is pending: {answer:?}"),
            temporary = cluster.temporary() => temporary,
        }
    };
    // The caller is gone.
    assert!(cluster.shows_no_snapshot().await);
    let held = cluster.delete(&source).await.unwrap_err();
    assert_eq!(held.code(), Code::FailedPrecondition, "{held:?}");
    assert!(held.message().contains("being made from it"), "{held:?}");

    control.change_snapshot(&temporary, SnapshotState::Complete).unwrap();
    let done = || async { control.view().snapshots.is_empty().then_some(()) };
    eventually("a clone drops its snapshot", done).await;
    let clone = control.volume("pvc-clone").unwrap();
    assert_eq!(clone.snapshot, Some(temporary));
    assert_eq!(cluster.make(clone_of("pvc-clone", &source)).await.unwrap().id, clone.id);
    cluster.delete(&source).await.unwrap();
    // Its source is gone, and still it is what was asked for.
    let clone = cluster.make(clone_of("pvc-clone", &source)).await.unwrap();
    cluster.delete(&clone).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_controller_drops_what_a_dead_one_left_of_a_clone_and_nothing_else() {
    if skipped("a_new_controller_drops_what_a_dead_one_left_of_a_clone_and_nothing_else") {
        return;
    }
    let flags = ["--cluster-id", "prod"];
    let behaviour = Behaviour { snapshot: NEVER, ..Behaviour::instant() };
    let mut cluster = Cluster::start_with(&[], behaviour, &flags).await;
    let control = cluster.bed.cloud().control();
    let source = cluster.create("pvc-source", &mounted("ext4")).await.unwrap();
    let temporary = {
        let call = cluster.make(clone_of("pvc-clone", &source));
        tokio::select! {
            answer = call => panic!("the snapshot is pending: {answer:?}"),
            temporary = cluster.temporary() => temporary,
        }
    };
    let description = control.snapshot(&temporary).unwrap().description;
    assert_eq!(description, "cloud-block-csi/1 region=ewr cluster=prod clone=pvc-clone");
    cluster.bed.kill("controller", false).await.unwrap();
    let mut kept = Vec::new();
    for description in [
        "cloud-block-csi/1 region=ewr cluster=other clone=pvc-theirs",
        "cloud-block-csi/1 region=ewr cluster= clone=pvc-theirs",
        "cloud-block-csi/1 region=ewr cluster=prod snapshot=pvc-clone",
        "nightly",
    ] {
        kept.push(control.seed_snapshot(&source.id, description).await.unwrap().id);
    }

    cluster.bed.controller_with(&flags).await.unwrap();
    let swept = || async { control.snapshot(&temporary).is_err().then_some(()) };
    eventually("the leftover is dropped", swept).await;
    let mut left: Vec<String> = control.view().snapshots.into_iter().map(|one| one.id).collect();
    left.sort();
    kept.sort();
    assert_eq!(left, kept);

    // If its claim is still there it is begun anew.
    control.behave(|behaviour| behaviour.snapshot = Duration::ZERO);
    let clone = repeated(|| cluster.make(clone_of("pvc-clone", &source))).await;
    assert_eq!(control.view().snapshots.len(), kept.len());
    for id in kept {
        control.delete_snapshot(&id).await.unwrap();
    }
    cluster.delete(&clone).await.unwrap();
    cluster.delete(&source).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_made_from_another_is_where_that_is_or_nowhere() {
    if skipped("what_is_made_from_another_is_where_that_is_or_nowhere") {
        return;
    }
    let cluster = Cluster::start_with(&[], Behaviour::instant(), &["--region", "EWR"]).await;
    let control = cluster.bed.cloud().control();
    let seeded = control.seed_volume(SeedVolume::new("pvc-source", "lax", 10)).await.unwrap();
    let source = Pvc { id: seeded.id, volume_context: [].into(), capability: mounted("ext4") };
    let snapshot = cluster.snapshot_in_full("snapshot-1", &source).await;
    let restore = csi::CreateVolumeRequest {
        volume_content_source: Some(from_snapshot(&snapshot.snapshot_id)),
        ..asked("pvc-restored", &source.capability)
    };
    let required = csi::CreateSnapshotRequest {
        name: "snapshot-2".to_owned(),
        source_volume_id: source.id.clone(),
        accessibility_requirements: asked("", &source.capability).accessibility_requirements,
        ..Default::default()
    };
    let elsewhere = cluster.controller.clone().create_snapshot(required).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::ResourceExhausted, "{elsewhere:?}");
    assert!(elsewhere.message().contains("lax") && elsewhere.message().contains("ewr"), "{elsewhere:?}");
    let snapshots = control.view().snapshots.len();
    for request in [restore, clone_of("pvc-clone", &source)] {
        let elsewhere = cluster.make(request.clone()).await.unwrap_err();
        assert_eq!(elsewhere.code(), Code::ResourceExhausted, "{elsewhere:?}");
        assert!(elsewhere.message().contains("lax") && elsewhere.message().contains("ewr"), "{elsewhere:?}");
        assert_eq!((control.view().volumes.len(), control.view().snapshots.len()), (1, snapshots));

        // Not the region of the controller, nor the one preferred.
        let term = |region: &str| csi::Topology { segments: [("region".to_owned(), region.to_owned())].into() };
        let requirement = csi::TopologyRequirement {
            requisite: vec![term("EWR"), term("LAX")],
            preferred: vec![term("EWR"), term("LAX")],
        };
        for requirement in [None, Some(requirement)] {
            let request = csi::CreateVolumeRequest { accessibility_requirements: requirement, ..request.clone() };
            let made = cluster.make(request).await.unwrap();
            let get = ControllerGetVolumeRequest { volume_id: made.id.clone() };
            let shown = cluster.controller.clone().controller_get_volume(get).await.unwrap().into_inner();
            assert_eq!(shown.volume.unwrap().accessible_topology, [term("LAX")]);
            cluster.delete(&made).await.unwrap();
        }
    }
    cluster.delete_snapshot(&snapshot.snapshot_id).await.unwrap();
    cluster.delete(&source).await.unwrap();
    cluster.end().await;
}
