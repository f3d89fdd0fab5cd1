//! What the driver tells of volumes and nodes, and what Vultr's own driver left behind.

use std::{collections::BTreeMap, time::Duration};

use cloud_block_csi::csi::{
    ControllerGetVolumeRequest, ListVolumesRequest, NodeGetInfoRequest, NodeGetVolumeStatsRequest,
};
use tonic::{Code, Status};
use vultr_sim::{Behaviour, SeedVfs, SeedVolume};

use crate::cluster::{Cluster, Pvc, gib, mounted, region, skipped};

fn quick() -> Behaviour {
    let moment = Duration::from_millis(50);
    Behaviour { create: moment, attach: moment, detach: moment, ..Behaviour::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_shown_where_it_is_and_how_full() {
    if skipped("a_volume_is_shown_where_it_is_and_how_full") {
        return;
    }
    let cluster = Cluster::start(&["one", "two"], quick()).await;
    let pvc = cluster.create("pvc-shown", &mounted("xfs")).await.unwrap();
    let get = || ControllerGetVolumeRequest { volume_id: pvc.id.clone() };
    let before = cluster.controller.clone().controller_get_volume(get()).await.unwrap().into_inner();
    assert_eq!(before.volume.unwrap().accessible_topology, [region()]);
    assert!(before.status.unwrap().published_node_ids.is_empty());

    let context = cluster.attach(1, &pvc).await.unwrap();
    assert_eq!((context["storage_type"].as_str(), context["size_gib"].as_str()), ("block", "10"));
    let after = cluster.controller.clone().controller_get_volume(get()).await.unwrap().into_inner().status.unwrap();
    assert_eq!(after.published_node_ids, [cluster.instances[1].id.clone()]);
    assert!(!after.volume_condition.unwrap().abnormal);
    let list = cluster.controller.clone().list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.entries.len(), 1);
    assert_eq!(list.entries[0].status.as_ref().unwrap().published_node_ids, after.published_node_ids);

    cluster.stage(1, &pvc, &context).await.unwrap();
    cluster.publish(1, &pvc, &context).await.unwrap();
    let stats = NodeGetVolumeStatsRequest {
        volume_id: pvc.id.clone(),
        volume_path: cluster.target(1, &pvc).display().to_string(),
        ..Default::default()
    };
    let stats = cluster.nodes[1].clone().node_get_volume_stats(stats).await.unwrap().into_inner();
    assert_eq!(stats.usage.len(), 2, "bytes and inodes");
    assert!(stats.usage[0].total > gib(9) && stats.usage[0].available > gib(9), "{stats:?}");
    assert!(!stats.volume_condition.unwrap().abnormal);
    cluster.leave(1, &pvc).await.unwrap();
    cluster.detach(1, &pvc).await.unwrap();
    cluster.delete(&pvc).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_its_instance_in_its_region_with_its_slots() {
    if skipped("a_node_is_its_instance_in_its_region_with_its_slots") {
        return;
    }
    let cluster = Cluster::start(&["one"], quick()).await;
    let info = cluster.nodes[0].clone().node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.node_id, cluster.instances[0].id);
    assert_eq!(info.max_volumes_per_node, 11);
    assert_eq!(info.accessible_topology, Some(region()));
    cluster.end().await;
}

/// A volume as Vultr's own driver knows it: no volume context, and a publish context with its keys only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_of_vultrs_driver_keeps_its_data_and_is_never_formatted_unasked() {
    if skipped("a_volume_of_vultrs_driver_keeps_its_data_and_is_never_formatted_unasked") {
        return;
    }
    let cluster = Cluster::start(&["one"], quick()).await;
    let control = cluster.bed.cloud().control();
    let seeded = control.seed_volume(SeedVolume::new("pvc-0123456789abcdef", "ewr", 10)).await.unwrap();
    let mut pvc = Pvc { id: seeded.id, volume_context: BTreeMap::new(), capability: mounted("ext4") };
    let context = cluster.attach(0, &pvc).await.unwrap();
    let old = BTreeMap::from([("mount_vol_name".to_owned(), context["mount_vol_name"].clone())]);

    let refused = cluster.stage(0, &pvc, &old).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("if-blank"), "the error says what can be done: {}", refused.message());
    let disk = control.volume(&pvc.id).unwrap().disk_file.unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(disk).unwrap()), 0, "nothing was written");

    pvc.volume_context = BTreeMap::from([("format".to_owned(), "if-blank".to_owned())]);
    cluster.stage(0, &pvc, &old).await.unwrap();
    cluster.publish(0, &pvc, &old).await.unwrap();
    cluster.write(0, &pvc);
    cluster.leave(0, &pvc).await.unwrap();

    // Once there is a file system, nothing has to be allowed any more.
    pvc.volume_context = BTreeMap::new();
    cluster.stage(0, &pvc, &old).await.unwrap();
    cluster.publish(0, &pvc, &old).await.unwrap();
    cluster.assert_data(0, &pvc);
    cluster.leave(0, &pvc).await.unwrap();
    cluster.detach(0, &pvc).await.unwrap();
    cluster.delete(&pvc).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_and_shares_are_listed_as_one_whatever_the_page() {
    if skipped("disks_and_shares_are_listed_as_one_whatever_the_page") {
        return;
    }
    let cluster = Cluster::start(&[], Behaviour::instant()).await;
    let control = cluster.bed.cloud().control();
    let pages = async |max_entries| {
        let (mut ids, mut starting_token) = (Vec::new(), String::new());
        loop {
            let request = ListVolumesRequest { max_entries, starting_token };
            let page = cluster.controller.clone().list_volumes(request).await?.into_inner();
            assert!(max_entries == 0 || page.entries.len() <= usize::try_from(max_entries).unwrap());
            ids.extend(page.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id));
            starting_token = page.next_token;
            if starting_token.is_empty() {
                ids.sort();
                return Ok::<_, Status>(ids);
            }
        }
    };
    let mut all = Vec::new();
    for name in ["a", "b", "c"] {
        assert_eq!(pages(2).await.unwrap(), all);
        all.push(control.seed_volume(SeedVolume::new(name, "ewr", 10)).await.unwrap().id);
        all.push(control.seed_vfs(SeedVfs::new(name, "ewr", 10)).await.unwrap().id);
        all.sort();
        for most in 0..=7 {
            assert_eq!(pages(most).await.unwrap(), all, "{most} a page");
        }
    }
    // Of what was last seen of the shares, all is shown or nothing.
    control.behave(|behaviour| behaviour.vfs_down = true);
    assert_eq!(pages(0).await.unwrap(), all);
    for most in [1, 4] {
        let listed = pages(most).await;
        let code = listed.as_ref().map_err(Status::code);
        assert!(code.is_err_and(|code| code == Code::Unavailable) || listed.is_ok_and(|ids| ids == all), "{most}");
    }
    for id in all {
        if control.volume(&id).is_ok() {
            control.delete(&id).await.unwrap();
        } else {
            control.delete_vfs(&id).await.unwrap();
        }
    }
    cluster.end().await;
}
