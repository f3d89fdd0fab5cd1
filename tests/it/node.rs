//! The node's own promises over the real socket: deadlines, keys, health.

use std::{collections::BTreeMap, fs, time::Duration};

use cloud_block_csi::csi::{
    self, CreateVolumeRequest, NodeGetStorageHealthRequest, NodeGetVolumeHealthRequest, NodeStageVolumeRequest,
    volume_capability::{AccessMode, AccessType, BlockVolume, access_mode::Mode},
};
use tokio::time::Instant;
use tonic::{Code, Request};
use vultr_sim::Behaviour;

use crate::cluster::{Cluster, Pvc, mounted, region, skipped};

fn quick() -> Behaviour {
    let moment = Duration::from_millis(50);
    Behaviour { create: moment, attach: moment, detach: moment, ..Behaviour::default() }
}

fn stage_of(cluster: &Cluster, pvc: &Pvc, context: &BTreeMap<String, String>) -> NodeStageVolumeRequest {
    NodeStageVolumeRequest {
        volume_id: pvc.id.clone(),
        publish_context: context.clone(),
        staging_target_path: cluster.staging(0, pvc),
        volume_capability: Some(pvc.capability.clone()),
        volume_context: pvc.volume_context.clone(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stage_waits_for_its_disk_until_just_before_the_calls_deadline() {
    if skipped("a_stage_waits_for_its_disk_until_just_before_the_calls_deadline") {
        return;
    }
    let cluster = Cluster::start(&["one"], quick()).await;
    let pvc = cluster.create("pvc-late", &mounted("ext4")).await.unwrap();
    let context = cluster.attach(0, &pvc).await.unwrap();
    cluster.detach(0, &pvc).await.unwrap();
    let stage = |timeout| {
        let mut request = Request::new(stage_of(&cluster, &pvc, &context));
        request.set_timeout(timeout);
        let mut node = cluster.nodes[0].clone();
        async move { node.node_stage_volume(request).await }
    };
    let began = Instant::now();
    let status = stage(Duration::from_secs(3)).await.unwrap_err();
    let took = began.elapsed();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("no disk of this machine shows serial"), "{status:?}");
    assert!(took >= Duration::from_millis(1900), "gave up after {took:?}");

    // One that comes only while it is waited for is taken by the same call.
    let (staged, attached) = tokio::join!(stage(Duration::from_secs(60)), cluster.attach(0, &pvc));
    attached.unwrap();
    staged.unwrap();
    cluster.leave(0, &pvc).await.unwrap();
    cluster.detach(0, &pvc).await.unwrap();
    cluster.delete(&pvc).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_volume_is_never_staged_without_its_key_or_without_encryption() {
    if skipped("an_encrypted_volume_is_never_staged_without_its_key_or_without_encryption") {
        return;
    }
    let cluster = Cluster::start(&["one"], quick()).await;
    let capability = mounted("ext4");
    let parameters = [("encrypted", "true"), ("mkfs_options", "-i 65536"), ("discard", "weekly")];
    let request = CreateVolumeRequest {
        name: "pvc-encrypted".to_owned(),
        volume_capabilities: vec![capability.clone()],
        parameters: parameters.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        accessibility_requirements: Some(csi::TopologyRequirement { requisite: vec![region()], preferred: vec![] }),
        ..Default::default()
    };
    let volume = cluster.controller.clone().create_volume(request).await.unwrap().into_inner().volume.unwrap();
    for (key, value) in parameters.into_iter().chain([("source", "blank")]) {
        assert_eq!(volume.volume_context.get(key).map(String::as_str), Some(value), "{key}");
    }
    let pvc = Pvc { id: volume.volume_id, volume_context: volume.volume_context, capability };
    let context = cluster.attach(0, &pvc).await.unwrap();
    let without = stage_of(&cluster, &pvc, &context);
    let status = cluster.nodes[0].clone().node_stage_volume(without).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("secrets[passphrase]"), "{status:?}");
    assert!(status.message().contains("csi.storage.k8s.io/node-stage-secret-name"), "{status:?}");
    // With its key: on a kernel that can't, nothing is made instead. The logs are looked through for the key at the end.
    match cluster.stage(0, &pvc, &context).await {
        Ok(_) => cluster.leave(0, &pvc).await.unwrap(),
        Err(status) => {
            assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
            assert!(status.message().contains("dm_crypt"), "{status:?}");
        }
    }
    cluster.detach(0, &pvc).await.unwrap();
    cluster.delete(&pvc).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volumes_health_is_told_also_when_it_could_not_be_staged() {
    if skipped("a_volumes_health_is_told_also_when_it_could_not_be_staged") {
        return;
    }
    let cluster = Cluster::start(&["one"], quick()).await;
    let pvc = cluster.create("pvc-health", &mounted("ext4")).await.unwrap();
    let health = async || {
        let request = NodeGetVolumeHealthRequest { volume_id: pvc.id.clone(), ..Default::default() };
        let answer = cluster.nodes[0].clone().node_get_volume_health(request).await?;
        Ok::<_, tonic::Status>(answer.into_inner().volume_health.unwrap())
    };
    assert_eq!(health().await.unwrap_err().code(), Code::NotFound);
    let context = cluster.attach(0, &pvc).await.unwrap();
    let foreign = Pvc { volume_context: BTreeMap::from([("source".to_owned(), "snapshot".to_owned())]), ..pvc.clone() };
    let status = cluster.stage(0, &foreign, &context).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    let told = health().await.unwrap();
    assert_eq!((told.volume_id.as_str(), told.health_statuses.len()), (pvc.id.as_str(), 1));
    assert_eq!(told.health_statuses[0].status(), csi::VolumeHealthErrorType::Inaccessible);
    assert_eq!(told.health_statuses[0].reason, "StageFailed");
    assert_eq!(told.health_statuses[0].message, status.message());
    cluster.stage(0, &pvc, &context).await.unwrap();
    assert!(health().await.unwrap().health_statuses.is_empty());
    let storage = cluster.nodes[0].clone().node_get_storage_health(NodeGetStorageHealthRequest::default()).await;
    assert!(storage.unwrap().into_inner().backend_health.is_empty());
    cluster.leave(0, &pvc).await.unwrap();
    cluster.detach(0, &pvc).await.unwrap();
    cluster.delete(&pvc).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_share_every_mode_passes_and_what_only_a_disk_can_be_is_refused() {
    if skipped("of_a_share_every_mode_passes_and_what_only_a_disk_can_be_is_refused") {
        return;
    }
    let cluster = Cluster::start(&["one"], quick()).await;
    let mode =
        |mode: Mode| csi::VolumeCapability { access_mode: Some(AccessMode { mode: mode.into() }), ..mounted("ext4") };
    let id = "cb676a46-66fd-4dfb-b839-443f2e6c0b60".to_owned();
    let pvc = Pvc { id, volume_context: BTreeMap::new(), capability: mode(Mode::MultiNodeMultiWriter) };
    let told = |storage_type: &str, mount_id: &str| {
        let pairs = [("storage_type", storage_type), ("mount_vol_name", mount_id)];
        BTreeMap::from(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())))
    };
    // No machine that runs tests has a share of this tag.
    let share = stage_of(&cluster, &pvc, &told("VFS", "9999999999"));
    let block = csi::VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        ..mode(Mode::MultiNodeMultiWriter)
    };
    let change = |change: &dyn Fn(&mut NodeStageVolumeRequest)| {
        let mut request = share.clone();
        change(&mut request);
        request
    };
    for (request, code, word) in [
        (share.clone(), Code::Unavailable, "no share of tag 9999999999|no virtiofs"),
        (
            change(&|request| request.volume_capability = Some(mode(Mode::MultiNodeReaderOnly))),
            Code::Unavailable,
            "no share of tag 9999999999|no virtiofs",
        ),
        (change(&|request| request.publish_context = told("vfs", "tag")), Code::InvalidArgument, "mount_vol_name"),
        (
            change(&|request| request.publish_context = told("block", "ewr-2f5d7a314fe44f")),
            Code::InvalidArgument,
            "ReadWriteOnce",
        ),
        (change(&|request| request.volume_capability = Some(block.clone())), Code::InvalidArgument, "volumeMode"),
        (
            change(&|request| drop(request.volume_context.insert("encrypted".to_owned(), "true".to_owned()))),
            Code::InvalidArgument,
            "volume_context[encrypted]",
        ),
    ] {
        let mut request = Request::new(request);
        request.set_timeout(Duration::from_secs(2));
        let status = cluster.nodes[0].clone().node_stage_volume(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(word.split('|').any(|word| status.message().contains(word)), "{status:?}");
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_leaves_no_core_file() {
    if skipped("a_node_leaves_no_core_file") {
        return;
    }
    let cluster = Cluster::start(&["one"], quick()).await;
    let id = cluster.bed.process("one").unwrap();
    let limits = fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    // At 1 the kernel writes no file and starts no program to take one (core(5)).
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["1", "1"], "{core}");
    cluster.end().await;
}
