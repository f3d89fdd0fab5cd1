//! Shared file systems (VFS): on several instances at once, and an outage of theirs that touches nothing else.

use std::time::Duration;

use cloud_block_csi::csi::{
    self, CapacityRange, ControllerExpandVolumeRequest, ControllerGetVolumeRequest, ControllerUnpublishVolumeRequest,
    CreateVolumeRequest, ListVolumesRequest, VolumeCapability,
    volume_capability::{AccessMode, AccessType, BlockVolume, access_mode::Mode},
};
use futures_util::future::try_join_all;
use tonic::{Code, Status};
use vultr_sim::{Behaviour, Operation, SeedVfs};

use crate::{
    cluster::{Cluster, Pvc, asked, gib, mounted, region, skipped},
    snapshots::from_snapshot,
};

const NOBODY: &str = "00000000-0000-4000-8000-00000000dead";

const MODES: [Mode; 7] = [
    Mode::SingleNodeWriter,
    Mode::SingleNodeReaderOnly,
    Mode::SingleNodeSingleWriter,
    Mode::SingleNodeMultiWriter,
    Mode::MultiNodeReaderOnly,
    Mode::MultiNodeSingleWriter,
    Mode::MultiNodeMultiWriter,
];

fn quick() -> Behaviour {
    let moment = Duration::from_millis(50);
    Behaviour { vfs_create: moment, vfs_attach: moment, vfs_detach: moment, ..Behaviour::instant() }
}

fn used_by(mode: Mode) -> VolumeCapability {
    VolumeCapability { access_mode: Some(AccessMode { mode: mode.into() }), ..mounted("") }
}

pub(crate) fn shared(name: &str, mode: Mode) -> CreateVolumeRequest {
    let parameters = [("storage_type".to_owned(), "VFS".to_owned())].into();
    CreateVolumeRequest { parameters, ..asked(name, &used_by(mode)) }
}

impl Cluster {
    async fn nodes_of(&self, pvc: &Pvc) -> Vec<String> {
        let request = ControllerGetVolumeRequest { volume_id: pvc.id.clone() };
        let shown = self.controller.clone().controller_get_volume(request).await.unwrap().into_inner();
        let mut nodes = shown.status.unwrap().published_node_ids;
        nodes.sort();
        nodes
    }

    /// The nodes of each volume, and whether something is wrong with it, as the attacher reads them.
    async fn listed(&self) -> Vec<(String, Vec<String>, bool)> {
        let list = self.controller.clone().list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
        let entry = |entry: csi::list_volumes_response::Entry| {
            let status = entry.status.unwrap();
            let mut nodes = status.published_node_ids;
            nodes.sort();
            (entry.volume.unwrap().volume_id, nodes, status.volume_condition.unwrap().abnormal)
        };
        list.entries.into_iter().map(entry).collect()
    }

    async fn expand(&self, pvc: &Pvc, size: u64) -> Result<csi::ControllerExpandVolumeResponse, Status> {
        let request = ControllerExpandVolumeRequest {
            volume_id: pvc.id.clone(),
            capacity_range: Some(CapacityRange { required_bytes: gib(size), limit_bytes: 0 }),
            volume_capability: Some(pvc.capability.clone()),
            ..Default::default()
        };
        Ok(self.controller.clone().controller_expand_volume(request).await?.into_inner())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_is_on_each_instance_by_itself_and_goes_when_none_has_it() {
    if skipped("a_share_is_on_each_instance_by_itself_and_goes_when_none_has_it") {
        return;
    }
    let cluster = Cluster::start_with(&["one", "two"], quick(), &["--cluster-id", "prod"]).await;
    let control = cluster.bed.cloud().control();
    let pvc = cluster.make(shared("pvc-shared", Mode::MultiNodeMultiWriter)).await.unwrap();
    assert_eq!(cluster.make(shared("pvc-shared", Mode::MultiNodeMultiWriter)).await.unwrap().id, pvc.id);
    let vfs = control.file_system(&pvc.id).unwrap();
    assert_eq!((vfs.label.as_str(), vfs.tags), ("pvc-shared", vec!["csi-cluster:prod".to_owned()]));
    assert_eq!(control.stats().count(Operation::CreateVfs), 1);

    for at in [0, 1, 0, 1] {
        let context = cluster.attach(at, &pvc).await.unwrap();
        let attachments = control.file_system(&pvc.id).unwrap().attachments;
        let attachment = attachments.iter().find(|one| one.instance == cluster.instances[at].id).unwrap();
        assert_eq!(attachment.state, "ATTACHED");
        let tag = attachment.mount_tag.to_string();
        assert_eq!(
            context.into_iter().collect::<Vec<_>>(),
            [("mount_vol_name".to_owned(), tag), ("storage_type".to_owned(), "vfs".to_owned())]
        );
    }
    assert_eq!(control.stats().count(Operation::AttachVfs), 2);
    let mut both: Vec<String> = cluster.instances.iter().map(|instance| instance.id.clone()).collect();
    both.sort();
    assert_eq!(cluster.nodes_of(&pvc).await, both);
    assert_eq!(cluster.listed().await, [(pvc.id.clone(), both.clone(), false)]);

    let refused = cluster.delete(&pvc).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(both.iter().any(|node| refused.message().contains(node)), "{refused:?}");
    assert_eq!(control.stats().count(Operation::DeleteVfs), 0);
    let grown = cluster.expand(&pvc, 20).await.unwrap();
    assert_eq!((grown.capacity_bytes, grown.node_expansion_required), (gib(20), false));

    for _ in 0..2 {
        cluster.detach(0, &pvc).await.unwrap();
        let other = vec![cluster.instances[1].id.clone()];
        assert_eq!(cluster.nodes_of(&pvc).await, other);
        // What a list was told before does not hide what the driver itself has done.
        assert_eq!(cluster.listed().await, [(pvc.id.clone(), other, false)]);
    }
    assert_eq!(cluster.delete(&pvc).await.unwrap_err().code(), Code::FailedPrecondition);
    cluster.attach(0, &pvc).await.unwrap();
    // Without a node: from every one.
    let everywhere = ControllerUnpublishVolumeRequest { volume_id: pvc.id.clone(), ..Default::default() };
    cluster.controller.clone().controller_unpublish_volume(everywhere).await.unwrap();
    assert!(cluster.nodes_of(&pvc).await.is_empty());
    cluster.delete(&pvc).await.unwrap();
    cluster.delete(&pvc).await.unwrap();
    cluster.detach(1, &pvc).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_ask_where_a_share_is_at_most_once_a_minute() {
    if skipped("lists_ask_where_a_share_is_at_most_once_a_minute") {
        return;
    }
    let cluster = Cluster::start(&["one"], quick()).await;
    let control = cluster.bed.cloud().control();
    let mut expected = Vec::new();
    for at in 0..10 {
        let mut seed = SeedVfs::new(&format!("pvc-{at}"), "ewr", 10);
        seed.attached_to = vec!["one".to_owned()];
        expected.push((control.seed_vfs(seed).await.unwrap().id, vec![cluster.instances[0].id.clone()], false));
    }
    expected.sort();
    control.reset();
    for _ in 0..5 {
        let mut listed = cluster.listed().await;
        listed.sort();
        assert_eq!(listed, expected);
    }
    let stats = control.stats();
    assert_eq!((stats.count(Operation::ListVfsAttachments), stats.count(Operation::GetVfsAttachment)), (10, 0));
    assert_eq!((stats.count(Operation::ListVfs), stats.count(Operation::ListBlocks)), (5, 5));
    for (id, ..) in expected {
        control.delete_vfs(&id).await.unwrap();
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_is_had_in_every_mode_and_a_disk_on_one_node_only() {
    if skipped("a_share_is_had_in_every_mode_and_a_disk_on_one_node_only") {
        return;
    }
    let cluster = Cluster::start(&["one"], Behaviour::instant()).await;
    let disk = cluster.create("pvc-disk", &mounted("")).await.unwrap();
    try_join_all(MODES.map(async |mode| {
        let pvc = cluster.make(shared(&format!("pvc-{}", mode.as_str_name()), mode)).await?;
        cluster.attach(0, &pvc).await?;
        cluster.detach(0, &pvc).await?;
        cluster.delete(&pvc).await
    }))
    .await
    .unwrap();
    for mode in MODES {
        if mode.as_str_name().starts_with("MULTI_NODE") {
            let refused = cluster.make(asked("pvc-refused", &used_by(mode))).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
            let refused = cluster.attach(0, &Pvc { capability: used_by(mode), ..disk.clone() }).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        }
    }

    let source = cluster.snapshot_in_full("snapshot-1", &disk).await;
    let block = AccessType::Block(BlockVolume {});
    let raw = VolumeCapability { access_type: Some(block), ..used_by(Mode::MultiNodeMultiWriter) };
    let asked = || shared("pvc-refused", Mode::MultiNodeMultiWriter);
    let with = |key: &str, value: &str| {
        let mut request = asked();
        request.parameters.insert(key.to_owned(), value.to_owned());
        request
    };
    let restored = CreateVolumeRequest { volume_content_source: Some(from_snapshot(&source.snapshot_id)), ..asked() };
    for (request, word) in [
        (CreateVolumeRequest { volume_capabilities: vec![raw], ..asked() }, "raw block"),
        (with("encrypted", "true"), "encrypted"),
        (with("disk_type", "hdd"), "disk_type"),
        (restored, "volume_content_source"),
    ] {
        let refused = cluster.make(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{word}: {refused:?}");
        assert!(refused.message().contains(word), "{word}: {refused:?}");
    }
    let control = cluster.bed.cloud().control();
    assert_eq!((control.view().volumes.len(), control.view().file_systems.len()), (1, 0));
    cluster.delete_snapshot(&source.snapshot_id).await.unwrap();
    cluster.delete(&disk).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_shares_are_down_disks_go_on_and_nothing_is_taken_for_gone() {
    if skipped("while_shares_are_down_disks_go_on_and_nothing_is_taken_for_gone") {
        return;
    }
    let cluster = Cluster::start(&["one"], Behaviour::instant()).await;
    let control = cluster.bed.cloud().control();
    let vfs = control.seed_vfs(SeedVfs::new("pvc-shared", "ewr", 10)).await.unwrap();
    let volume_context = [].into();
    let pvc = Pvc { id: vfs.id, volume_context, capability: used_by(Mode::MultiNodeMultiWriter) };
    assert_eq!(cluster.listed().await, [(pvc.id.clone(), vec![], false)]);
    control.behave(|behaviour| behaviour.vfs_down = true);

    let disk = cluster.create("pvc-disk", &mounted("")).await.unwrap();
    cluster.attach(0, &disk).await.unwrap();
    // The share is shown as it was last seen, and that it was.
    let shown = vec![cluster.instances[0].id.clone()];
    assert_eq!(cluster.listed().await, [(disk.id.clone(), shown, false), (pvc.id.clone(), vec![], true)]);
    cluster.expand(&disk, 20).await.unwrap();
    let get = ControllerGetVolumeRequest { volume_id: disk.id.clone() };
    let got = cluster.controller.clone().controller_get_volume(get).await.unwrap().into_inner();
    assert_eq!(got.volume.unwrap().accessible_topology, [region()]);
    cluster.detach(0, &disk).await.unwrap();
    cluster.delete(&disk).await.unwrap();

    let nobody = Pvc { id: NOBODY.to_owned(), ..pvc.clone() };
    let refused = async |one: &Pvc| {
        let (deleted, attached) = (cluster.delete(one), cluster.attach(0, one));
        let (detached, grown) = (cluster.detach(0, one), cluster.expand(one, 20));
        let (deleted, attached, detached, grown) = tokio::join!(deleted, attached, detached, grown);
        [deleted.err(), attached.err(), detached.err(), grown.err()]
    };
    let new = cluster.make(shared("pvc-new", Mode::MultiNodeMultiWriter));
    let (of_it, of_nobody, new) = tokio::join!(refused(&pvc), refused(&nobody), new);
    for refused in of_it.into_iter().chain(of_nobody).chain([new.err()]) {
        assert_eq!(refused.as_ref().map(Status::code), Some(Code::Unavailable), "{refused:?}");
    }

    control.behave(|behaviour| behaviour.vfs_down = false);
    assert_eq!(cluster.attach(0, &nobody).await.unwrap_err().code(), Code::NotFound);
    cluster.detach(0, &nobody).await.unwrap();
    cluster.delete(&nobody).await.unwrap();
    cluster.attach(0, &pvc).await.unwrap();
    cluster.detach(0, &pvc).await.unwrap();
    cluster.delete(&pvc).await.unwrap();
    cluster.end().await;
}
