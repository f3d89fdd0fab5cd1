//! Snapshots as the cloud's API has them: taken under a name, waited for, listed, deleted, and foreign ones.

use cloud_block_csi::csi::{
    self, CreateSnapshotRequest, DeleteSnapshotRequest, GetSnapshotRequest, ListSnapshotsRequest,
    ListSnapshotsResponse, VolumeContentSource,
    volume_content_source::{SnapshotSource, Type},
};
use tonic::{Code, Status};
use vultr_sim::{Behaviour, Fault, Operation, SeedVolume, SnapshotAnswer, SnapshotState, When};

use crate::cluster::{Cluster, Pvc, TURN, asked, eventually, gib, mounted, region, skipped};

/// No cloud takes that long: what is awaited comes by the test's hand.
const NEVER: std::time::Duration = std::time::Duration::from_secs(3600);
const NOBODY: &str = "00000000-0000-4000-8000-00000000dead";

impl Cluster {
    pub(crate) async fn snapshot(&self, name: &str, source: &Pvc) -> Result<csi::Snapshot, Status> {
        let request =
            CreateSnapshotRequest { name: name.to_owned(), source_volume_id: source.id.clone(), ..Default::default() };
        Ok(self.controller.clone().create_snapshot(request).await?.into_inner().snapshot.unwrap())
    }

    /// Repeats the call as the snapshotter does, until the snapshot can be used.
    pub(crate) async fn snapshot_in_full(&self, name: &str, source: &Pvc) -> csi::Snapshot {
        eventually("a snapshot is ready", || async {
            Some(self.snapshot(name, source).await.unwrap()).filter(|snapshot| snapshot.ready_to_use)
        })
        .await
    }

    pub(crate) async fn delete_snapshot(&self, id: &str) -> Result<(), Status> {
        let request = DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        self.controller.clone().delete_snapshot(request).await.map(drop)
    }

    pub(crate) async fn snapshots(&self, request: ListSnapshotsRequest) -> Result<ListSnapshotsResponse, Status> {
        Ok(self.controller.clone().list_snapshots(request).await?.into_inner())
    }

    /// The sizes of the pages, by as many entries at most, and the ids on them.
    async fn pages(&self, source: &str, most: i32) -> (Vec<usize>, Vec<String>) {
        let (mut sizes, mut ids, mut starting_token) = (Vec::new(), Vec::new(), String::new());
        loop {
            let source_volume_id = source.to_owned();
            let request =
                ListSnapshotsRequest { max_entries: most, starting_token, source_volume_id, ..Default::default() };
            let page = self.snapshots(request).await.unwrap();
            sizes.push(page.entries.len());
            ids.extend(page.entries.into_iter().map(|entry| entry.snapshot.unwrap().snapshot_id));
            starting_token = page.next_token;
            if starting_token.is_empty() {
                ids.sort();
                return (sizes, ids);
            }
        }
    }
}

pub(crate) fn from_snapshot(id: &str) -> VolumeContentSource {
    VolumeContentSource { r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() })) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_pending_until_the_cloud_has_it_in_every_shape_of_its_answers() {
    if skipped("a_snapshot_is_pending_until_the_cloud_has_it_in_every_shape_of_its_answers") {
        return;
    }
    let cluster = Cluster::start(&[], Behaviour { snapshot: NEVER, ..Behaviour::instant() }).await;
    let control = cluster.bed.cloud().control();
    let pvc = cluster.create("pvc-source", &mounted("ext4")).await.unwrap();
    // The documents differ in what wraps a snapshot, and in the status of one that is not there.
    for (shape, unknown) in [(SnapshotAnswer::Bare, 404), (SnapshotAnswer::Wrapped, 400), (SnapshotAnswer::Listed, 404)]
    {
        control.behave(|behaviour| {
            behaviour.snapshot_answer = shape;
            behaviour.unknown_snapshot_status = unknown;
        });
        control.reset();
        let pending = cluster.snapshot("snapshot-1", &pvc).await.unwrap();
        assert!(!pending.ready_to_use, "{shape:?}: {pending:?}");
        assert_eq!((&pending.source_volume_id, pending.size_bytes), (&pvc.id, gib(10)));
        assert_eq!(pending.accessible_topology, [region()]);
        assert!(pending.creation_time.is_some());
        let mut restore = asked("pvc-early", &pvc.capability);
        restore.volume_content_source = Some(from_snapshot(&pending.snapshot_id));
        let early = cluster.make(restore).await.unwrap_err();
        assert_eq!(early.code(), Code::Unavailable, "{early:?}");

        control.change_snapshot(&pending.snapshot_id, SnapshotState::Complete).unwrap();
        let complete = cluster.snapshot("snapshot-1", &pvc).await.unwrap();
        assert!(complete.ready_to_use, "{shape:?}");
        assert_eq!(csi::Snapshot { ready_to_use: false, ..complete.clone() }, pending);
        assert_eq!(control.stats().count(Operation::CreateSnapshot), 1);

        let get = |id: &str| {
            let request = GetSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
            let mut controller = cluster.controller.clone();
            async move { controller.get_snapshot(request).await.map(|answer| answer.into_inner().snapshot.unwrap()) }
        };
        assert_eq!(get(&complete.snapshot_id).await.unwrap(), complete);
        cluster.delete_snapshot(&complete.snapshot_id).await.unwrap();
        cluster.delete_snapshot(&complete.snapshot_id).await.unwrap();
        assert_eq!(get(&complete.snapshot_id).await.unwrap_err().code(), Code::NotFound);
    }
    cluster.delete(&pvc).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_becomes_of_no_snapshot_is_told_with_its_reason() {
    if skipped("what_becomes_of_no_snapshot_is_told_with_its_reason") {
        return;
    }
    let cluster = Cluster::start(&[], Behaviour::instant()).await;
    let control = cluster.bed.cloud().control();
    let pvc = cluster.create("pvc-source", &mounted("ext4")).await.unwrap();
    let other = cluster.create("pvc-other", &mounted("ext4")).await.unwrap();
    let taken = cluster.snapshot_in_full("snapshot-1", &pvc).await;
    let status = cluster.snapshot("snapshot-1", &other).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
    assert!(status.message().contains(&pvc.id) && status.message().contains(&other.id), "{status:?}");

    control.behave(|behaviour| behaviour.snapshot_fails = true);
    let failed = eventually("a snapshot has failed", || async { cluster.snapshot("snapshot-2", &pvc).await.err() });
    let failed = failed.await;
    assert_eq!(failed.code(), Code::Internal, "{failed:?}");
    assert!(failed.message().contains("has failed") && failed.message().contains(&pvc.id), "{failed:?}");
    let view = control.view().snapshots.into_iter().find(|one| one.state == SnapshotState::Failed).unwrap();
    let mut restore = asked("pvc-restored", &pvc.capability);
    restore.volume_content_source = Some(from_snapshot(&view.id));
    assert_eq!(cluster.make(restore).await.unwrap_err().code(), Code::FailedPrecondition);
    cluster.delete_snapshot(&view.id).await.unwrap();

    for (status, text, code) in [
        (400, "Unable to create snapshot: this volume has too many of them", Code::Internal),
        (400, "Unable to create snapshot: quota of 10 reached", Code::ResourceExhausted),
        (402, "Please add a payment method", Code::ResourceExhausted),
    ] {
        control.add_fault(Fault::error(Operation::CreateSnapshot, When::Before, status, text));
        let refused = cluster.snapshot("snapshot-3", &pvc).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(refused.message().contains(text), "{refused:?}");
        control.clear_faults();
    }
    let nobody = Pvc { id: NOBODY.to_owned(), ..pvc.clone() };
    assert_eq!(cluster.snapshot("snapshot-4", &nobody).await.unwrap_err().code(), Code::NotFound);
    let mut restore = asked("pvc-restored", &pvc.capability);
    restore.volume_content_source = Some(from_snapshot(NOBODY));
    assert_eq!(cluster.make(restore).await.unwrap_err().code(), Code::NotFound);

    cluster.delete_snapshot(&taken.snapshot_id).await.unwrap();
    cluster.delete(&pvc).await.unwrap();
    cluster.delete(&other).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_listed_whole_whatever_the_page() {
    if skipped("snapshots_are_listed_whole_whatever_the_page") {
        return;
    }
    let cluster = Cluster::start(&[], Behaviour::instant()).await;
    let control = cluster.bed.cloud().control();
    let pvc = cluster.create("pvc-source", &mounted("ext4")).await.unwrap();
    let other = cluster.create("pvc-other", &mounted("ext4")).await.unwrap();
    assert_eq!(cluster.pages("", 0).await, (vec![0], vec![]));
    assert_eq!(cluster.pages(&pvc.id, 3).await, (vec![0], vec![]));
    // A clone's, which nobody asked for and nobody is to see; it is another cluster's, so that it stays.
    control.seed_snapshot(&pvc.id, "cloud-block-csi/1 region=ewr cluster=other clone=pvc-9").await.unwrap();

    let mut ids = Vec::new();
    for (name, source) in [("a", &pvc), ("b", &other), ("c", &pvc), ("d", &pvc)] {
        ids.push(cluster.snapshot(name, source).await.unwrap().snapshot_id);
        let mut all = ids.clone();
        all.sort();
        assert_eq!(cluster.pages("", 0).await, (vec![ids.len()], all.clone()));
        for most in 1..=4 {
            let (sizes, listed) = cluster.pages("", most).await;
            assert!(sizes.iter().all(|size| *size <= usize::try_from(most).unwrap()), "{sizes:?}");
            assert_eq!(listed, all, "{most} a page");
        }
    }
    let mut of_pvc = vec![ids[0].clone(), ids[2].clone(), ids[3].clone()];
    of_pvc.sort();
    for (most, sizes) in [(0, vec![3]), (1, vec![1, 1, 1]), (2, vec![2, 1]), (3, vec![3]), (4, vec![3])] {
        assert_eq!(cluster.pages(&pvc.id, most).await, (sizes, of_pvc.clone()));
    }
    assert_eq!(cluster.pages(NOBODY, 0).await, (vec![0], vec![]));
    for (id, source, found) in
        [(&ids[1], "", 1), (&ids[1], other.id.as_str(), 1), (&ids[1], pvc.id.as_str(), 0), (&NOBODY.to_owned(), "", 0)]
    {
        let request =
            ListSnapshotsRequest { snapshot_id: id.clone(), source_volume_id: source.to_owned(), ..Default::default() };
        assert_eq!(cluster.snapshots(request).await.unwrap().entries.len(), found, "{id} of {source}");
    }
    let bad = ListSnapshotsRequest { starting_token: "page-2".to_owned(), ..Default::default() };
    assert_eq!(cluster.snapshots(bad).await.unwrap_err().code(), Code::Aborted);

    for snapshot in control.view().snapshots {
        cluster.delete_snapshot(&snapshot.id).await.unwrap();
    }
    cluster.delete(&pvc).await.unwrap();
    cluster.delete(&other).await.unwrap();
    cluster.end().await;
}

/// What the console or another tool took says nothing of where it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_snapshot_is_restored_where_it_is_if_that_can_be_known() {
    if skipped("a_foreign_snapshot_is_restored_where_it_is_if_that_can_be_known") {
        return;
    }
    let cluster = Cluster::start_with(&[], Behaviour::instant(), &["--region", "AMS"]).await;
    let control = cluster.bed.cloud().control();
    let restore = |snapshot: &str, class: &[(&str, &str)]| {
        let mut request = asked(&format!("pvc-of-{snapshot}"), &mounted("ext4"));
        request.accessibility_requirements = None;
        request.volume_content_source = Some(from_snapshot(snapshot));
        request.parameters = class.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        cluster.make(request)
    };
    let mut made = Vec::new();
    control.seed_volume(SeedVolume::new("stays", "ewr", 10)).await.unwrap();
    control.seed_volume(SeedVolume::new("goes", "lax", 10)).await.unwrap();
    let of_one_that_stays = control.seed_snapshot("stays", "nightly").await.unwrap();
    let of_one_that_goes = control.seed_snapshot("goes", "cloud-block-csi/1 by hand").await.unwrap();
    control.delete("goes").await.unwrap();

    made.push(restore(&of_one_that_stays.id, &[]).await.unwrap());
    let unknown = restore(&of_one_that_goes.id, &[]).await.unwrap_err();
    assert_eq!(unknown.code(), Code::FailedPrecondition, "{unknown:?}");
    assert!(unknown.message().contains("snapshot_region"), "{unknown:?}");
    made.push(restore(&of_one_that_goes.id, &[("snapshot_region", "LAX")]).await.unwrap());
    for (pvc, (region, snapshot)) in made.iter().zip([("ewr", &of_one_that_stays), ("lax", &of_one_that_goes)]) {
        let volume = control.volume(&pvc.id).unwrap();
        assert_eq!((volume.region.as_str(), volume.snapshot.as_ref()), (region, Some(&snapshot.id)));
        assert_eq!(pvc.volume_context["source"], "snapshot");
        cluster.delete(pvc).await.unwrap();
        cluster.delete_snapshot(&snapshot.id).await.unwrap();
    }
    control.delete("stays").await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_snapshots_than_a_page_of_the_clouds_are_listed_at_the_price_of_the_pages() {
    if skipped("more_snapshots_than_a_page_of_the_clouds_are_listed_at_the_price_of_the_pages") {
        return;
    }
    let _turn = TURN.lock().await;
    let cluster = Cluster::start(&[], Behaviour::instant()).await;
    let control = cluster.bed.cloud().control();
    let source = control.seed_volume(SeedVolume::new("source", "ewr", 10)).await.unwrap();
    for count in 0..499 {
        control.seed_snapshot(&source.id, &format!("nightly {count}")).await.unwrap();
    }
    for (count, pages) in [(500, 1 + 5 + 1), (501, 2 + 6 + 2)] {
        control.seed_snapshot(&source.id, "nightly").await.unwrap();
        control.reset();
        let (sizes, ids) = cluster.pages("", 0).await;
        assert_eq!((sizes, ids.len()), (vec![count], count));
        let (sizes, by_hundreds) = cluster.pages("", 100).await;
        assert_eq!(sizes.iter().sum::<usize>(), count);
        assert!(sizes.iter().all(|size| *size <= 100) && ids == by_hundreds, "{sizes:?}");
        let (sizes, of_source) = cluster.pages(&source.id, 0).await;
        assert!(sizes == [count] && ids == of_source, "{sizes:?}");
        // Where each of them is is read off the one volume that they are of, together. Soon after its start the controller
        // lists once more, for what clones may have left behind.
        let (stats, of_the_sweep) = (control.stats(), (count as u64).div_ceil(500));
        let listed = stats.count(Operation::ListSnapshots);
        assert!((pages..=pages + of_the_sweep).contains(&listed), "{stats:?}");
        assert!(stats.count(Operation::Any) <= 3 * pages, "{stats:?}");
    }
    for snapshot in control.view().snapshots {
        control.delete_snapshot(&snapshot.id).await.unwrap();
    }
    control.delete(&source.id).await.unwrap();
    cluster.end().await;
}
