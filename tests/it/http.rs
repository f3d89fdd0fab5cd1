//! The Vultr client over real sockets: what it sends again, what it never does, and how it keeps the limit.

use std::{fs, sync::Arc, time::Duration};

use cloud_block_csi::{
    cloud::{
        Account, Cloud, CloudError, NewVolume,
        fence::Fence,
        pace::Pace,
        token::TokenFile,
        vultr::{PROFILE, Vultr},
    },
    controller::{Cluster, Controller, HomeRegion, Setting},
    metrics::Metrics,
    volume::{Gib, IdForm, NodeId, VolumeId},
};
use futures_util::future::join_all;
use tempfile::TempDir;
use tokio_util::task::TaskTracker;
use tonic::Code;
use vultr_sim::{Action, Behaviour, Config, Fault, InstanceSpec, Operation, Simulation, When};

struct Sim {
    cloud: Simulation,
    vultr: Vultr,
    dir: TempDir,
}

impl Sim {
    async fn open(behaviour: Behaviour, rate: u32) -> Self {
        let config =
            Config { disks: false, instances: vec![InstanceSpec::new("one", "ewr")], behaviour, ..Config::default() };
        let cloud = Simulation::start(config).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("token"), cloud.token()).unwrap();
        let token = TokenFile::open(&dir.path().join("token")).unwrap();
        let vultr = {
            let pace = Pace::new(rate, 30);
            let (metrics, fence) = (Metrics::default(), Fence::default());
            Vultr::new(Account { api_url: cloud.api_url(), token, pace, metrics, fence }).unwrap()
        };
        Self { cloud, vultr, dir }
    }

    async fn create(&self, name: &str) -> Result<VolumeId, CloudError> {
        let volume = NewVolume {
            name: name.to_owned(),
            size: Gib(10),
            volume_type: PROFILE.volume_types[0],
            region: "ewr".to_owned(),
            snapshot: None,
        };
        self.vultr.create_volume(&volume).await.map(|volume| volume.id)
    }

    fn asked(&self, operation: Operation) -> u64 {
        self.cloud.control().stats().count(operation)
    }
}

fn nobody() -> VolumeId {
    VolumeId::parse(IdForm::Uuid, "00000000-0000-4000-8000-00000000dead").unwrap()
}

#[tokio::test]
async fn a_write_whose_outcome_is_unknown_is_sent_once() {
    for fault in [
        Fault::cut(Operation::CreateBlock, When::Before),
        Fault::cut(Operation::CreateBlock, When::After),
        Fault::error(Operation::CreateBlock, When::After, 502, "Bad gateway"),
        Fault::error(Operation::CreateBlock, When::Before, 500, "Server is currently locked"),
    ] {
        let account = Sim::open(Behaviour::instant(), 29).await;
        account.cloud.control().add_fault(fault.clone());
        let error = account.create("pvc-1").await.unwrap_err();
        assert!(error.outcome_is_unknown(), "{fault:?}: {error:?}");
        assert_eq!(account.asked(Operation::CreateBlock), 1, "{fault:?}");
        account.cloud.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_read_is_tried_again_and_a_definite_answer_is_not() {
    let account = Sim::open(Behaviour::instant(), 29).await;
    let id = account.create("pvc-1").await.unwrap();
    account.cloud.control().add_fault(Fault::cut(Operation::GetBlock, When::Before).times(1));
    account.cloud.control().add_fault(Fault::error(Operation::GetBlock, When::Before, 503, "down").times(1));
    assert_eq!(account.vultr.volume(&id).await.unwrap().name, "pvc-1");
    assert_eq!(account.asked(Operation::GetBlock), 3);

    account.cloud.control().reset();
    assert!(matches!(account.vultr.volume(&nobody()).await, Err(CloudError::NotFound(_))));
    assert_eq!(account.asked(Operation::GetBlock), 1);
    account.cloud.shutdown().await.unwrap();
}

#[tokio::test]
async fn while_vfs_cannot_be_reached_an_unknown_id_is_not_gone() {
    let account = Sim::open(Behaviour::instant(), 29).await;
    account.cloud.control().add_fault(Fault::error(Operation::GetVfs, When::Before, 503, "down"));
    let Sim { cloud, vultr, dir: _dir } = account;
    let home = HomeRegion::new(Some("EWR".to_owned()), &PROFILE, String::new());
    let setting = Setting { home, cluster: Cluster::default(), metrics: Metrics::default() };
    let controller = Controller::new(Arc::new(vultr), setting, TaskTracker::new());
    assert_eq!(controller.delete(nobody()).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(controller.get(&nobody()).await.unwrap_err().code(), Code::Unavailable);
    cloud.control().clear_faults();
    controller.delete(nobody()).await.unwrap();
    assert_eq!(controller.get(&nobody()).await.unwrap_err().code(), Code::NotFound);
    cloud.shutdown().await.unwrap();
}

#[tokio::test]
async fn every_way_of_saying_that_a_volume_is_unknown_is_understood() {
    for (status, text) in [
        (404, "Invalid block storage ID"),
        (400, "Invalid block storage ID"),
        (400, "Block storage subscription not found."),
    ] {
        let behaviour =
            Behaviour { unknown_block_status: status, unknown_block_text: text.to_owned(), ..Behaviour::instant() };
        let account = Sim::open(behaviour, 29).await;
        assert!(matches!(account.vultr.volume(&nobody()).await, Err(CloudError::NotFound(_))), "{status} {text}");
        assert!(matches!(account.vultr.delete_volume(&nobody()).await, Err(CloudError::NotFound(_))));
        account.cloud.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_rotated_token_is_used_by_the_next_request() {
    let account = Sim::open(Behaviour::instant(), 29).await;
    fs::write(account.dir.path().join("token"), "an-old-token").unwrap();
    assert!(matches!(account.create("pvc-1").await, Err(CloudError::Unauthorized(_))));
    fs::write(account.dir.path().join("token"), account.cloud.token()).unwrap();
    account.create("pvc-1").await.unwrap();
    assert_eq!(account.asked(Operation::CreateBlock), 2);
    account.cloud.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_request_limit_is_kept_and_a_429_is_waited_out() {
    let account = Sim::open(Behaviour::default(), 29).await;
    let reads = join_all((0..60).map(|_| account.vultr.list_volumes(None, 500))).await;
    assert!(reads.iter().all(Result::is_ok));
    let stats = account.cloud.control().stats();
    assert_eq!(stats.rate_limited, 0, "{stats:?}");

    // Somebody else uses the account up: the answer says when to come back, and a refused POST has had no effect.
    let action = Action::Answer {
        when: When::Before,
        status: 429,
        body: r#"{"status": 429,"error": "rate limit exceeded"}"#.to_owned(),
        retry_after: Some("2".to_owned()),
    };
    account.cloud.control().add_fault(Fault::new(Operation::CreateBlock, action).times(1));
    let began = tokio::time::Instant::now();
    account.create("pvc-1").await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(account.cloud.control().view().volumes.len(), 1);
    account.cloud.shutdown().await.unwrap();
}

#[tokio::test]
async fn no_attach_or_detach_ever_restarts_an_instance() {
    let account = Sim::open(Behaviour::instant(), 29).await;
    let id = account.create("pvc-1").await.unwrap();
    let node = NodeId::parse(IdForm::Uuid, &account.cloud.instances()[0].id).unwrap();
    account.vultr.attach_volume(&id, &node).await.unwrap();
    account.vultr.detach_volume(&id, &node).await.unwrap();
    let stats = account.cloud.control().stats();
    assert!(stats.reboots.values().all(|count| *count == 0), "{stats:?}");
    account.cloud.shutdown().await.unwrap();
}

#[tokio::test]
async fn regions_tell_which_kinds_of_volume_they_have() {
    let account = Sim::open(Behaviour::instant(), 29).await;
    let regions = account.vultr.regions().await.unwrap();
    let kinds = |id: &str| -> Vec<&str> {
        regions.iter().find(|region| region.id == id).unwrap().volume_types.iter().map(|kind| kind.name).collect()
    };
    assert_eq!(kinds("ewr"), ["high_perf", "storage_opt"]);
    assert_eq!(kinds("syd"), ["high_perf"]);
    account.cloud.shutdown().await.unwrap();
}
