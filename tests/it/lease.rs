//! Several controllers and one lease: real processes, a simulated API server and a simulated cloud, each over HTTP.

use std::{
    fs::{self, OpenOptions},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use axum::http::Method;
use cloud_block_csi::csi::{
    CreateVolumeRequest, ProbeRequest, controller_client::ControllerClient, identity_client::IdentityClient,
};
use kube_sim::{Action, KubeSim, Listening};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{Instant, timeout},
};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use vultr_sim::{Behaviour, Config, Fault, InstanceSpec, Operation, Simulation, When};

use crate::cluster::{asked, eventually, mounted, repeated};

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/active";
const NEVER: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(60);

/// The two servers that controllers speak to.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    cloud: Simulation,
    pub(crate) api: KubeSim,
    listening: Listening,
}

/// A controller process in a pod of its own.
pub(crate) struct Pod {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    /// Where its own lines begin: a pod's containers follow each other.
    began: usize,
}

impl World {
    pub(crate) async fn start(behaviour: Behaviour) -> Self {
        let config =
            Config { disks: false, instances: vec![InstanceSpec::new("one", "ewr")], behaviour, ..Config::default() };
        let cloud = Simulation::start(config).await.unwrap();
        let api = KubeSim::default();
        let listening = api.listen().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("token"), cloud.token()).unwrap();
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "sim",
            "clusters": [{ "name": "sim", "cluster": { "server": format!("http://{}", listening.address) } }],
            "users": [{ "name": "sim", "user": {} }],
            "contexts": [{ "name": "sim", "context": { "cluster": "sim", "user": "sim", "namespace": "kube-system" } }],
        });
        fs::write(dir.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        Self { dir, cloud, api, listening }
    }

    /// What tells a process where the API server is.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// A controller that wants the lease.
    fn pod(&self, name: &str) -> Pod {
        self.pod_with(name, &["--lease", "active"])
    }

    /// A controller with these flags.
    pub(crate) fn pod_with(&self, name: &str, flags: &[&str]) -> Pod {
        let (socket, log) = (self.dir.path().join(format!("{name}.sock")), self.dir.path().join(format!("{name}.log")));
        let output = OpenOptions::new().append(true).create(true).open(&log).unwrap();
        let began = fs::read_to_string(&log).unwrap().len();
        let child = Command::new(env!("CARGO_BIN_EXE_cloud-block-csi"))
            .args(["controller", "--log-format", "text", "--metrics-addr", "127.0.0.1:0"])
            .args(flags)
            .arg("--endpoint")
            .arg(&socket)
            .args(["--api-url", &self.cloud.api_url(), "--token-file"])
            .arg(self.dir.path().join("token"))
            .env("KUBECONFIG", self.kubeconfig())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Pod { child, socket, log, began }
    }

    fn holder(&self) -> Option<String> {
        Some(self.api.object(LEASE)?["spec"]["holderIdentity"].as_str()?.to_owned())
    }

    pub(crate) async fn end(self) {
        drop(self.listening);
        self.cloud.shutdown().await.unwrap();
    }
}

impl Pod {
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap().split_off(self.began)
    }

    /// Asks its probes' port.
    async fn get(&self, path: &str) -> (u16, String) {
        let address = eventually("the port of the probes is told", async || {
            let log = self.log();
            let told = log.lines().find_map(|line| line.split_once("metrics and health address=")?.1.split(' ').next());
            told.map(str::to_owned)
        })
        .await;
        let answer = reqwest::get(format!("http://{address}{path}")).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// Waits, as a sidecar does, until the driver serves and is ready.
    pub(crate) async fn active(&self) -> ControllerClient<Channel> {
        let channel = self.channel();
        eventually("the driver is ready", async || is_ready(&channel).await).await;
        ControllerClient::new(channel)
    }

    fn channel(&self) -> Channel {
        Endpoint::try_from(format!("unix://{}", self.socket.display())).unwrap().connect_lazy()
    }

    async fn standby(&self) {
        eventually("it waits for the lease", async || {
            self.get("/readyz").await.1.starts_with("waiting for the lease active held by ").then_some(())
        })
        .await;
        assert_eq!(self.get("/readyz").await.0, 503);
        assert_eq!(self.get("/healthz").await, (200, "ok\n".to_owned()), "it must not be restarted");
        // Sidecars wait for as long as that is the answer, and end where there is none.
        let channel = self.channel();
        let probed = IdentityClient::new(channel.clone()).probe(ProbeRequest {}).await.unwrap().into_inner();
        assert_eq!(probed.ready, Some(false), "sidecars would begin to work");
        let refused = ControllerClient::new(channel).create_volume(volume("pvc-early")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("it runs");
        kill(Pid::from_raw(i32::try_from(id).unwrap()), signal).unwrap();
    }

    /// Ends it in order.
    pub(crate) async fn end(&mut self) {
        self.signal(Signal::SIGTERM);
        assert!(self.ended().await.success(), "{}", self.log());
    }

    async fn ended(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap()
    }
}

/// Whether the driver says so.
async fn is_ready(channel: &Channel) -> Option<()> {
    IdentityClient::new(channel.clone()).probe(ProbeRequest {}).await.ok()?.into_inner().ready?.then_some(())
}

fn volume(name: &str) -> CreateVolumeRequest {
    asked(name, &mounted("ext4"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_and_a_create_that_was_cut_off_makes_one_volume() {
    let world = World::start(Behaviour::instant()).await;
    let control = world.cloud.control();
    let mut first = world.pod("first");
    let controller = first.active().await;
    let mut second = world.pod("second");
    second.standby().await;
    let waiting = second.channel();
    assert!(is_ready(&waiting).await.is_none());
    assert_eq!(first.get("/readyz").await, (200, "ok\n".to_owned()));
    let mut another = world.pod("another");
    another.standby().await;
    another.end().await;

    // The cloud makes the volume, and the controller dies before it hears of it.
    control.add_fault(Fault::delay(Operation::CreateBlock, When::After, NEVER).times(1));
    let call = tokio::spawn({
        let mut controller = controller.clone();
        async move { controller.create_volume(volume("pvc-1")).await }
    });
    let made = eventually("the volume is made", async || control.volume("pvc-1").ok()).await;
    control.reset();
    first.signal(Signal::SIGKILL);
    first.ended().await;
    let killed = Instant::now();
    call.await.unwrap().unwrap_err();

    // Of the one that waits nothing goes to the cloud as long as the lease is the other's. Who waits keeps the connection.
    eventually("it takes over", async || {
        if world.holder().is_some_and(|holder| Some(holder) == held_by(&first)) {
            assert!(control.log().is_empty(), "{:?}", control.log());
        }
        is_ready(&waiting).await
    })
    .await;
    let gap = killed.elapsed();
    println!("taken over {gap:?} after the death");
    assert!(gap >= Duration::from_secs(12), "the lease had not run out: {gap:?}");
    assert!(gap <= Duration::from_secs(30), "{gap:?}");
    let controller = second.active().await;
    let answer = repeated(|| async { controller.clone().create_volume(volume("pvc-1")).await }).await;
    assert_eq!(answer.into_inner().volume.unwrap().volume_id, made.id);
    let stats = control.stats();
    assert_eq!(stats.count(Operation::CreateBlock), 0);
    assert!(stats.count(Operation::ListBlocks) >= 1);
    assert_eq!(control.view().volumes.len(), 1);

    // In the place of the one that was killed, whose socket is still there. An orderly end gives the lease back, and the
    // next one need not wait.
    assert!(first.socket.exists());
    let mut third = world.pod("first");
    third.standby().await;
    second.end().await;
    let ended = Instant::now();
    third.active().await;
    assert!(ended.elapsed() < Duration::from_secs(10), "{:?}", ended.elapsed());
    third.end().await;
    world.end().await;
}

/// The name under which a pod said that it holds the lease.
fn held_by(pod: &Pod) -> Option<String> {
    let log = pod.log();
    log.lines().find_map(|line| Some(line.split_once("holder=")?.1.trim_matches('"').to_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_loses_its_lease_ends_at_once_and_sends_nothing_more() {
    // Volumes that never become active: there is always something in flight, and asked for.
    let world = World::start(Behaviour { create: NEVER, ..Behaviour::instant() }).await;
    let control = world.cloud.control();
    for taken in [true, false] {
        let mut pod = world.pod(if taken { "taken" } else { "silent" });
        let mut controller = pod.active().await;
        let name = format!("pvc-{taken}");
        let call = tokio::spawn({
            let name = name.clone();
            async move { controller.create_volume(volume(&name)).await }
        });
        eventually("the volume is made", async || control.volume(&name).ok()).await;
        let lost = Instant::now();
        if taken {
            world.api.edit(LEASE, |record| record["spec"]["holderIdentity"] = "another".into());
        } else {
            world.api.add_fault(Method::PUT, LEASE, Action::Silence, u64::MAX);
        }
        let status = pod.ended().await;
        let (after, sent) = (lost.elapsed(), control.log().len());
        println!("ended {after:?} after the lease was lost (taken: {taken})");
        assert_eq!(status.code(), Some(1), "{}", pod.log());
        // Not the 25 s in which operations in flight may end.
        let bounds = if taken { (0, 4) } else { (7, 11) };
        assert!((bounds.0..=bounds.1).contains(&after.as_secs()), "{after:?}");
        let reason = if taken { "is held by another now" } else { "was not renewed within 10 s" };
        assert!(pod.log().contains(reason), "{}", pod.log());
        assert!(!pod.socket.exists());
        call.await.unwrap().unwrap_err();
        assert_eq!(control.log().len(), sent);
        if taken {
            assert_eq!(world.holder().as_deref(), Some("another"), "it takes nothing back");
            world.api.remove(LEASE);
        }
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_end_gives_the_lease_back_only_after_the_work() {
    let world = World::start(Behaviour::instant()).await;
    let control = world.cloud.control();
    let mut pod = world.pod("one");
    let mut controller = pod.active().await;
    control.reset();
    control.add_fault(Fault::delay(Operation::CreateBlock, When::After, Duration::from_secs(4)).times(1));
    let call = tokio::spawn(async move { controller.create_volume(volume("pvc-1")).await });
    let answered = || {
        let log = control.log();
        log.iter().find(|entry| entry.operation == Operation::CreateBlock).map(|entry| entry.status.is_some())
    };
    eventually("the create is on its way", async || (answered() == Some(false)).then_some(())).await;
    pod.signal(Signal::SIGTERM);
    eventually("the lease is given back", async || {
        let was_answered = answered();
        let is_held = world.holder().is_some();
        assert!(is_held || was_answered == Some(true), "it was given back with work in flight");
        (!is_held).then_some(())
    })
    .await;
    call.await.unwrap().unwrap();
    assert!(pod.ended().await.success(), "{}", pod.log());
    world.end().await;
}
