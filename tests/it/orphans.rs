//! The report of what belongs to nobody, over an account of the simulated cloud.

use std::{fs, sync::Arc};

use cloud_block_csi::{
    cloud::{Account, Cloud, fence::Fence, label::Cluster, pace::Pace, token::TokenFile, vultr::Vultr},
    metrics::Metrics,
    orphans::{Owner, Report},
};
use vultr_sim::{Behaviour, BlockType, Config, Fault, InstanceSpec, Operation, SeedVfs, SeedVolume, Simulation, When};

#[tokio::test]
async fn only_what_the_cluster_made_and_nobody_has_is_told() {
    let config = Config {
        disks: false,
        instances: vec![InstanceSpec::new("one", "ewr")],
        behaviour: Behaviour::instant(),
        ..Config::default()
    };
    let sim = Simulation::start(config).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("token"), sim.token()).unwrap();
    let token = TokenFile::open(&dir.path().join("token")).unwrap();
    let (metrics, fence) = (Metrics::default(), Fence::default());
    let account = Account { api_url: sim.api_url(), token, pace: Pace::new(29, 30), metrics, fence };
    let cloud: Arc<dyn Cloud> = Arc::new(Vultr::new(account).unwrap());
    let (control, instance) = (sim.control(), sim.instances()[0].id.clone());

    let block = |label: &str| SeedVolume {
        label: label.to_owned(),
        region: "ewr".to_owned(),
        size_gb: 10,
        block_type: BlockType::HighPerf,
        attached_to: None,
        bootable: false,
    };
    let known = control.seed_volume(block("pvc-known")).await.unwrap().id;
    let lost = control.seed_volume(block("pvc-lost")).await.unwrap().id;
    control.seed_volume(block("somebodys-own")).await.unwrap();
    control.seed_volume(SeedVolume { bootable: true, ..block("pvc-boots") }).await.unwrap();
    control.seed_volume(SeedVolume { attached_to: Some(instance.clone()), ..block("pvc-in-use") }).await.unwrap();
    let share = |label: &str, cluster: &str| SeedVfs {
        label: label.to_owned(),
        region: "ewr".to_owned(),
        size_gb: 10,
        tags: vec![format!("csi-cluster:{cluster}")],
        attached_to: Vec::new(),
    };
    let lost_share = control.seed_vfs(share("pvc-share", "prod")).await.unwrap().id;
    control.seed_vfs(share("pvc-other", "test")).await.unwrap();
    control.seed_vfs(SeedVfs { attached_to: vec![instance], ..share("pvc-shared", "prod") }).await.unwrap();
    let lost_snapshot = control
        .seed_snapshot(&known, "cloud-block-csi/1 region=ewr cluster=prod snapshot=snapshot-1")
        .await
        .unwrap()
        .id;
    control.seed_snapshot(&known, "cloud-block-csi/1 region=ewr cluster=test snapshot=snapshot-2").await.unwrap();
    control.seed_snapshot(&known, "nightly").await.unwrap();

    let in_use = [known].into();
    let owner = Owner { prefix: "pvc-".to_owned(), cluster: Cluster::parse("prod").unwrap(), in_use };
    let report = Report::of(&cloud, &owner).await.unwrap();
    let told: Vec<&str> = report.orphans.iter().map(|orphan| orphan.id.as_str()).collect();
    assert_eq!(told, [lost.as_str(), lost_snapshot.as_str(), lost_share.as_str()], "{report}");
    assert!(report.to_string().ends_with("3 of 11 volumes and snapshots belong to nobody; nothing was changed\n"));

    // Vultr may go on telling of the instance after it was deleted.
    control.add_fault(Fault::error(Operation::GetInstance, When::Before, 404, "instance not found"));
    let report = Report::of(&cloud, &owner).await.unwrap();
    let told: Vec<&str> = report.orphans.iter().map(|orphan| orphan.name.as_str()).collect();
    assert_eq!(told, ["pvc-lost", "pvc-in-use", "snapshot-1", "pvc-share", "pvc-shared"], "{report}");
    // And what can't be found out is no report.
    control.clear_faults();
    control.add_fault(Fault::error(Operation::GetInstance, When::Before, 403, "not now"));
    Report::of(&cloud, &owner).await.unwrap_err();
    sim.shutdown().await.unwrap();
}
