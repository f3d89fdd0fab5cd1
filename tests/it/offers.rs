//! What is to be had and where: regions and their tiers, sizes, the account's limits, and what ails a volume.

use cloud_block_csi::csi::{
    self, CapacityRange, ControllerGetVolumeHealthRequest, ControllerListVolumeHealthRequest,
    ControllerModifyVolumeRequest, CreateVolumeRequest, GetCapacityRequest, GetCapacityResponse, TopologyRequirement,
    VolumeHealth, VolumeHealthErrorType,
};
use tonic::{Code, Status};
use vultr_sim::{Behaviour, Fault, Operation, When};

use crate::cluster::{Cluster, asked, gib, mounted, skipped};

fn term(region: &str) -> csi::Topology {
    csi::Topology { segments: [("region".to_owned(), region.to_owned())].into() }
}

fn terms(regions: &[&str]) -> Vec<csi::Topology> {
    regions.iter().map(|region| term(region)).collect()
}

/// A volume of this kind in one of these regions.
fn wanted(name: &str, class: &[(&str, &str)], requisite: &[&str], preferred: &[&str]) -> CreateVolumeRequest {
    CreateVolumeRequest {
        parameters: class.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        accessibility_requirements: Some(TopologyRequirement {
            requisite: terms(requisite),
            preferred: terms(preferred),
        }),
        capacity_range: Some(CapacityRange { required_bytes: gib(40), limit_bytes: 0 }),
        ..asked(name, &mounted(""))
    }
}

const HDD: &[(&str, &str)] = &[("disk_type", "hdd")];
const VFS: &[(&str, &str)] = &[("storage_type", "vfs")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_goes_where_it_is_required_and_the_tier_is_or_nowhere() {
    if skipped("a_volume_goes_where_it_is_required_and_the_tier_is_or_nowhere") {
        return;
    }
    let cluster = Cluster::start_with(&[], Behaviour::instant(), &["--region", "EWR"]).await;
    let control = cluster.bed.cloud().control();
    for (class, requisite, preferred, region) in [
        (&[][..], &["AMS"][..], &[][..], "ams"),
        (&[], &[], &[], "ewr"),
        (&[], &["ams"], &[], "ams"),
        // The best first, unless it has no such tier.
        (&[], &["AMS", "LAX"], &["LAX", "AMS"], "lax"),
        (&[], &["MIA", "LAX"], &["MIA", "LAX"], "lax"),
        (HDD, &["MIA", "LAX"], &["MIA", "LAX"], "mia"),
        (HDD, &["SYD", "LAX"], &["SYD"], "lax"),
    ] {
        let mut request = wanted("pvc-here", class, requisite, preferred);
        request.accessibility_requirements = request.accessibility_requirements.filter(|one| !one.requisite.is_empty());
        let made = cluster.controller.clone().create_volume(request).await.unwrap().into_inner().volume.unwrap();
        assert_eq!(made.accessible_topology, [term(&region.to_ascii_uppercase())]);
        assert_eq!(control.volume(&made.volume_id).unwrap().region, region);
        control.delete(&made.volume_id).await.unwrap();
    }
    for (class, requisite, words) in [
        (&[][..], &["MIA"][..], &["mia", "high_perf"][..]),
        (HDD, &["SYD"], &["syd", "storage_opt"]),
        (&[], &["MIA", "CDG"], &["mia", "cdg", "high_perf"]),
        (VFS, &["MIA"], &["mia", "vfs"]),
        // The controller's own region is not fallen back to.
        (&[], &["XXX"], &["xxx"]),
    ] {
        let refused = cluster.make(wanted("pvc-nowhere", class, requisite, &[])).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        assert!(words.iter().all(|word| refused.message().contains(word)), "{words:?}: {refused:?}");
    }
    let mut zone = wanted("pvc-nowhere", &[], &["EWR"], &[]);
    let other = csi::Topology { segments: [("zone".to_owned(), "EWR".to_owned())].into() };
    zone.accessibility_requirements.as_mut().unwrap().requisite = vec![other];
    assert_eq!(cluster.make(zone).await.unwrap_err().code(), Code::InvalidArgument);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capacity_is_all_or_nothing_with_the_sizes_of_the_kind() {
    if skipped("capacity_is_all_or_nothing_with_the_sizes_of_the_kind") {
        return;
    }
    let cluster = Cluster::start(&[], Behaviour::instant()).await;
    let capacity = async |class: &[(&str, &str)], region: Option<&str>| -> Result<GetCapacityResponse, Status> {
        let request = GetCapacityRequest {
            parameters: class.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            accessible_topology: region.map(term),
            ..Default::default()
        };
        Ok(cluster.controller.clone().get_capacity(request).await?.into_inner())
    };
    for (class, region, sizes) in [
        (&[][..], Some("EWR"), Some((10, 10_000))),
        (&[], Some("ewr"), Some((10, 10_000))),
        (&[], None, Some((10, 10_000))),
        (&[], Some("MIA"), None),
        (HDD, Some("MIA"), Some((40, 40_000))),
        (HDD, Some("SYD"), None),
        (VFS, Some("MIA"), None),
        (&[], Some("XXX"), None),
    ] {
        let told = capacity(class, region).await.unwrap();
        let (least, most) = (told.minimum_volume_size, told.maximum_volume_size);
        assert_eq!(told.available_capacity, sizes.map_or(0, |(_, most)| gib(most)), "{class:?} {region:?}");
        assert_eq!(least.zip(most), sizes.map(|(least, most)| (gib(least), gib(most))), "{class:?} {region:?}");
    }
    let shares = capacity(VFS, Some("EWR")).await.unwrap();
    assert_eq!(shares.minimum_volume_size, Some(gib(10)));
    assert!(shares.available_capacity >= gib(10_000), "{shares:?}");
    assert_eq!(capacity(&[("disk_type", "tape")], None).await.unwrap_err().code(), Code::InvalidArgument);
    // What regions offer is asked once for all these calls, of either part of the API.
    let stats = cluster.bed.cloud().control().stats();
    assert_eq!((stats.count(Operation::ListRegions), stats.count(Operation::ListVfsRegions)), (1, 1), "{stats:?}");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_account_may_not_have_is_told_in_the_clouds_own_words() {
    if skipped("what_the_account_may_not_have_is_told_in_the_clouds_own_words") {
        return;
    }
    let cluster = Cluster::start(&[], Behaviour::instant()).await;
    let control = cluster.bed.cloud().control();
    for (operation, class) in [(Operation::CreateBlock, &[][..]), (Operation::CreateVfs, VFS)] {
        for (status, text, code) in [
            (400, "Unable to add block storage: your quota of 10 volumes is reached", Code::ResourceExhausted),
            (400, "Insufficient balance: add $4.00 to your account", Code::ResourceExhausted),
            (402, "Please add a payment method", Code::ResourceExhausted),
            (422, "The moon is not in the right phase", Code::Internal),
        ] {
            control.add_fault(Fault::error(operation, When::Before, status, text));
            let refused = cluster.make(wanted("pvc-refused", class, &["EWR"], &[])).await.unwrap_err();
            assert_eq!(refused.code(), code, "{refused:?}");
            assert!(refused.message().contains(text), "{refused:?}");
            assert!(refused.message().contains("pvc-refused"), "{refused:?}");
            control.clear_faults();
        }
    }
    assert!(control.view().volumes.is_empty() && control.view().file_systems.is_empty());

    let pvc = cluster.create("pvc-1", &mounted("")).await.unwrap();
    let text = "Unable to resize block storage: your quota of 100 GB is reached";
    control.add_fault(Fault::error(Operation::UpdateBlock, When::Before, 400, text));
    let refused = cluster.grow(&pvc, 20).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains(text), "{refused:?}");

    // There is nothing about a volume that could be modified.
    let mutable = [("iops".to_owned(), "1000".to_owned())];
    let mut request = asked("pvc-2", &mounted(""));
    request.mutable_parameters = mutable.clone().into();
    let refused = cluster.make(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("iops"), "{refused:?}");
    let modify = ControllerModifyVolumeRequest {
        volume_id: pvc.id.clone(),
        mutable_parameters: mutable.into(),
        ..Default::default()
    };
    let refused = cluster.controller.clone().controller_modify_volume(modify).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused:?}");
    cluster.delete(&pvc).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_in_a_state_of_no_document_ails() {
    if skipped("a_volume_in_a_state_of_no_document_ails") {
        return;
    }
    let cluster = Cluster::start(&[], Behaviour::instant()).await;
    let control = cluster.bed.cloud().control();
    let well = cluster.create("pvc-well", &mounted("")).await.unwrap();
    let mut pvcs = vec![well.clone()];
    for name in ["pvc-1", "pvc-2", "pvc-3"] {
        let pvc = cluster.create(name, &mounted("")).await.unwrap();
        control.change_volume(&pvc.id, "suspended").unwrap();
        pvcs.push(pvc);
    }
    let health = async |id: &str| {
        let request = ControllerGetVolumeHealthRequest { volume_id: id.to_owned(), ..Default::default() };
        cluster
            .controller
            .clone()
            .controller_get_volume_health(request)
            .await
            .map(|told| told.into_inner().volume_health)
    };
    let list = async |max_entries, starting_token: &str| {
        let request = ControllerListVolumeHealthRequest {
            max_entries,
            starting_token: starting_token.to_owned(),
            ..Default::default()
        };
        cluster.controller.clone().controller_list_volume_health(request).await.map(tonic::Response::into_inner)
    };
    let volume_id = well.id.clone();
    assert_eq!(health(&well.id).await.unwrap(), Some(VolumeHealth { volume_id, health_statuses: vec![] }));
    let ailing = list(0, "").await.unwrap();
    assert!(ailing.next_token.is_empty());
    let mut ids: Vec<&str> = pvcs[1..].iter().map(|pvc| pvc.id.as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ailing.entries.iter().map(|one| one.volume_id.as_str()).collect::<Vec<_>>(), ids);
    for one in &ailing.entries {
        assert_eq!(health(&one.volume_id).await.unwrap().as_ref(), Some(one));
        assert_eq!(one.health_statuses.len(), 1, "{one:?}");
        assert_eq!(one.health_statuses[0].status(), VolumeHealthErrorType::Degraded);
        assert_eq!(one.health_statuses[0].reason, "CloudState");
        assert!(one.health_statuses[0].message.contains("suspended"), "{one:?}");
    }
    let first = list(2, "").await.unwrap();
    assert_eq!(first.entries, ailing.entries[..2]);
    let second = list(2, &first.next_token).await.unwrap();
    assert_eq!((second.entries.as_slice(), second.next_token.as_str()), (&ailing.entries[2..], ""));
    assert_eq!(list(0, "page-2").await.unwrap_err().code(), Code::Aborted);
    for pvc in &pvcs {
        cluster.delete(pvc).await.unwrap();
    }
    assert_eq!(health(&well.id).await.unwrap_err().code(), Code::NotFound);
    assert!(list(0, "").await.unwrap().entries.is_empty());
    cluster.end().await;
}
