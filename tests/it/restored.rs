//! What a snapshot holds, on real disks: the files as they were, in a file system that fills its new volume.

use std::{fs, path::PathBuf, time::Duration};

use cloud_block_csi::csi::{self, CapacityRange, NodeGetVolumeStatsRequest};
use vultr_sim::{Behaviour, SnapshotAnswer};

use crate::{
    cluster::{Cluster, Pvc, asked, gib, mounted, skipped},
    killed_inside::may_grow_ext4,
    snapshots::from_snapshot,
};

fn quick(shape: SnapshotAnswer) -> Behaviour {
    Behaviour { snapshot: Duration::from_millis(50), snapshot_answer: shape, ..Behaviour::instant() }
}

impl Cluster {
    /// Brings a volume to a pod.
    pub(crate) async fn enter(&self, node: usize, pvc: &Pvc) {
        let context = self.attach(node, pvc).await.unwrap();
        self.stage(node, pvc, &context).await.unwrap();
        self.publish(node, pvc, &context).await.unwrap();
    }

    /// Takes a volume from its pod and out of the account.
    pub(crate) async fn finish(&self, node: usize, pvc: &Pvc) {
        self.leave(node, pvc).await.unwrap();
        self.detach(node, pvc).await.unwrap();
        self.delete(pvc).await.unwrap();
    }

    pub(crate) fn file(&self, node: usize, pvc: &Pvc, name: &str) -> PathBuf {
        self.target(node, pvc).join(name)
    }

    /// The size of the file system.
    async fn size(&self, node: usize, pvc: &Pvc) -> i64 {
        let request = NodeGetVolumeStatsRequest {
            volume_id: pvc.id.clone(),
            volume_path: self.target(node, pvc).display().to_string(),
            ..Default::default()
        };
        self.nodes[node].clone().node_get_volume_stats(request).await.unwrap().into_inner().usage[0].total
    }
}

fn sized(name: &str, size: u64, of: &Pvc, snapshot: &csi::Snapshot) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        capacity_range: Some(CapacityRange { required_bytes: gib(size), limit_bytes: 0 }),
        volume_content_source: Some(from_snapshot(&snapshot.snapshot_id)),
        ..asked(name, &of.capability)
    }
}

async fn restored(fs_type: &str, shape: SnapshotAnswer) {
    let larger = fs_type != "ext4" || may_grow_ext4();
    let size = if larger { 15 } else { 10 };
    println!("{fs_type}: from 10 GiB to {size} GiB");
    if !larger {
        println!("skipped part: a restored ext4 grows: no CAP_SYS_RESOURCE here");
    }
    let cluster = Cluster::start(&["one", "two"], quick(shape)).await;
    let source = cluster.create("pvc-source", &mounted(fs_type)).await.unwrap();
    cluster.enter(0, &source).await;
    cluster.write(0, &source);
    let then = fs::read(cluster.file(0, &source, "data")).unwrap();
    let snapshot = cluster.snapshot_in_full("snapshot-1", &source).await;
    fs::write(cluster.file(0, &source, "data"), "of a later day").unwrap();
    fs::write(cluster.file(0, &source, "later"), "of a later day").unwrap();

    // Beside its source, which is in use: the two have one UUID.
    let beside = cluster.make(sized("pvc-beside", size, &source, &snapshot)).await.unwrap();
    assert_eq!(beside.volume_context["source"], "snapshot");
    cluster.enter(1, &beside).await;
    assert!(fs::read(cluster.file(1, &beside, "data")).unwrap() == then, "the data are not those of the snapshot");
    assert!(!cluster.file(1, &beside, "later").exists());
    assert!(cluster.size(1, &beside).await > gib(size - 1), "the file system has grown");
    assert!(cluster.size(0, &source).await < gib(11), "and its source's has not");
    fs::write(cluster.file(1, &beside, "data"), "of another volume").unwrap();
    assert_eq!(fs::read(cluster.file(0, &source, "data")).unwrap(), b"of a later day");

    // After its source.
    cluster.finish(0, &source).await;
    cluster.finish(1, &beside).await;
    let after = cluster.make(sized("pvc-after", size, &source, &snapshot)).await.unwrap();
    cluster.enter(0, &after).await;
    assert!(fs::read(cluster.file(0, &after, "data")).unwrap() == then, "the data are not those of the snapshot");
    assert!(!cluster.file(0, &after, "later").exists());
    cluster.delete_snapshot(&snapshot.snapshot_id).await.unwrap();
    cluster.finish(0, &after).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ext4_snapshot_is_restored_larger_beside_its_source_and_after_it() {
    if skipped("an_ext4_snapshot_is_restored_larger_beside_its_source_and_after_it") {
        return;
    }
    restored("ext4", SnapshotAnswer::Bare).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_xfs_snapshot_is_restored_larger_beside_its_source_and_after_it() {
    if skipped("an_xfs_snapshot_is_restored_larger_beside_its_source_and_after_it") {
        return;
    }
    restored("xfs", SnapshotAnswer::Wrapped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_btrfs_snapshot_is_restored_larger_beside_its_source_and_after_it() {
    if skipped("a_btrfs_snapshot_is_restored_larger_beside_its_source_and_after_it") {
        return;
    }
    restored("btrfs", SnapshotAnswer::Listed).await;
}
