//! Malformed requests over the real socket: the code that the specification names, and nothing is touched.

use std::time::Duration;

use cloud_block_csi::csi::{
    CapacityRange, ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, CreateVolumeRequest,
    DeleteVolumeRequest, NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
    volume_capability::{AccessMode, AccessType, BlockVolume, access_mode::Mode},
};
use tonic::Code;
use vultr_sim::{Behaviour, Operation};

use crate::cluster::{Cluster, gib, mounted, skipped};

const NOBODY: &str = "00000000-0000-4000-8000-00000000dead";

fn create(name: &str, change: impl FnOnce(&mut CreateVolumeRequest)) -> CreateVolumeRequest {
    let mut request =
        CreateVolumeRequest { name: name.to_owned(), volume_capabilities: vec![mounted("ext4")], ..Default::default() };
    change(&mut request);
    request
}

fn range(required_bytes: i64, limit_bytes: i64) -> CapacityRange {
    CapacityRange { required_bytes, limit_bytes }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_get_the_specifications_codes_and_touch_nothing() {
    if skipped("malformed_requests_get_the_specifications_codes_and_touch_nothing") {
        return;
    }
    let behaviour = Behaviour { create: Duration::ZERO, ..Behaviour::default() };
    let cluster = Cluster::start(&["one"], behaviour).await;
    malformed_creates(&cluster).await;
    made_up_ids(&cluster).await;
    paths_that_are_none(&cluster).await;
    // The made-up ids never became part of a path: nothing but the start's listings was asked of the cloud.
    let asked = cluster.bed.cloud().control().stats();
    let listings = asked.count(Operation::ListBlocks) + asked.count(Operation::ListSnapshots);
    assert_eq!(asked.count(Operation::Any), listings, "{asked:?}");
    cluster.end().await;
}

async fn malformed_creates(cluster: &Cluster) {
    let mut controller = cluster.controller.clone();
    let mode = |mode: Mode| {
        vec![VolumeCapability {
            access_type: Some(AccessType::Block(BlockVolume {})),
            access_mode: Some(AccessMode { mode: mode.into() }),
        }]
    };

    let parameter = |key: &str, value: &str| {
        create("a", |request| drop(request.parameters.insert(key.to_owned(), value.to_owned())))
    };
    for (what, request, code) in [
        ("a mkfs option that forces", parameter("mkfs_options", "-F"), Code::InvalidArgument),
        ("a mkfs option for a shell", parameter("mkfs_options", "-L $(reboot)"), Code::InvalidArgument),
        ("half an encryption", parameter("encrypted", "maybe"), Code::InvalidArgument),
        ("an unknown discard", parameter("discard", "daily"), Code::InvalidArgument),
        ("no name", create("", |_| {}), Code::InvalidArgument),
        ("a long name", create(&"a".repeat(129), |_| {}), Code::InvalidArgument),
        ("a control character", create("pvc\n1", |_| {}), Code::InvalidArgument),
        ("no capability", create("a", |r| r.volume_capabilities.clear()), Code::InvalidArgument),
        (
            "neither mount nor block",
            create("a", |r| r.volume_capabilities[0].access_type = None),
            Code::InvalidArgument,
        ),
        ("no access mode", create("a", |r| r.volume_capabilities[0].access_mode = None), Code::InvalidArgument),
        (
            "an unknown file system",
            create("a", |r| r.volume_capabilities = vec![mounted("ntfs")]),
            Code::InvalidArgument,
        ),
        (
            "several writers",
            create("a", |r| r.volume_capabilities = mode(Mode::MultiNodeMultiWriter)),
            Code::InvalidArgument,
        ),
        ("a negative size", create("a", |r| r.capacity_range = Some(range(-1, 0))), Code::InvalidArgument),
        ("a size beyond all", create("a", |r| r.capacity_range = Some(range(i64::MAX, 0))), Code::OutOfRange),
        ("a limit below the minimum", create("a", |r| r.capacity_range = Some(range(1, gib(5)))), Code::OutOfRange),
        (
            "an unknown parameter",
            create("a", |r| drop(r.parameters.insert("disktype".to_owned(), "nvme".to_owned()))),
            Code::InvalidArgument,
        ),
        (
            "mutable parameters",
            create("a", |r| drop(r.mutable_parameters.insert("iops".to_owned(), "1".to_owned()))),
            Code::InvalidArgument,
        ),
    ] {
        let status = controller.create_volume(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{what}: {status:?}");
        assert!(!status.message().is_empty(), "{what}");
    }
    let limit_below = create("a", |r| r.capacity_range = Some(range(gib(20), gib(10))));
    let status = controller.create_volume(limit_below).await.unwrap_err();
    assert!(matches!(status.code(), Code::InvalidArgument | Code::OutOfRange), "{status:?}");
}

async fn made_up_ids(cluster: &Cluster) {
    let mut controller = cluster.controller.clone();
    for id in ["../../v2/account", "NOT-AN-ID", "pvc-1"] {
        let delete = DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        controller.delete_volume(delete).await.unwrap();
        let unpublish = ControllerUnpublishVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        controller.controller_unpublish_volume(unpublish).await.unwrap();
        let publish = ControllerPublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: cluster.instances[0].id.clone(),
            volume_capability: Some(mounted("")),
            ..Default::default()
        };
        assert_eq!(controller.controller_publish_volume(publish).await.unwrap_err().code(), Code::NotFound, "{id}");
    }
    let nameless = DeleteVolumeRequest::default();
    assert_eq!(controller.delete_volume(nameless).await.unwrap_err().code(), Code::InvalidArgument);
}

async fn paths_that_are_none(cluster: &Cluster) {
    let mut node = cluster.nodes[0].clone();
    let stage = |path: &str| NodeStageVolumeRequest {
        volume_id: NOBODY.to_owned(),
        staging_target_path: path.to_owned(),
        volume_capability: Some(mounted("")),
        publish_context: [("mount_vol_name".to_owned(), "ewr-00000000000000".to_owned())].into(),
        ..Default::default()
    };
    for path in ["", "relative", "/tmp/../etc"] {
        assert_eq!(node.node_stage_volume(stage(path)).await.unwrap_err().code(), Code::InvalidArgument, "{path}");
        let unstage = NodeUnstageVolumeRequest { volume_id: NOBODY.to_owned(), staging_target_path: path.to_owned() };
        assert_eq!(node.node_unstage_volume(unstage).await.unwrap_err().code(), Code::InvalidArgument, "{path}");
        let publish = NodePublishVolumeRequest {
            volume_id: NOBODY.to_owned(),
            staging_target_path: "/nowhere".to_owned(),
            target_path: path.to_owned(),
            volume_capability: Some(mounted("")),
            ..Default::default()
        };
        assert_eq!(node.node_publish_volume(publish).await.unwrap_err().code(), Code::InvalidArgument, "{path}");
    }
    for path in ["relative", "/tmp/../tmp", "/nowhere", "/"] {
        let stats = NodeGetVolumeStatsRequest {
            volume_id: NOBODY.to_owned(),
            volume_path: path.to_owned(),
            ..Default::default()
        };
        assert_eq!(node.node_get_volume_stats(stats).await.unwrap_err().code(), Code::NotFound, "{path}");
        let expand = NodeExpandVolumeRequest {
            volume_id: NOBODY.to_owned(),
            volume_path: path.to_owned(),
            ..Default::default()
        };
        assert_eq!(node.node_expand_volume(expand).await.unwrap_err().code(), Code::NotFound, "{path}");
    }
}
