//! The node's process and the kubelet: how it registers, and how it leaves. The test plays the kubelet.

use std::{
    fs,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::Stdio,
};

use cloud_block_csi::{
    csi::{NodeGetInfoRequest, node_client::NodeClient},
    registration::wire::{InfoRequest, RegistrationStatus, registration_client::RegistrationClient},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::StatusCode;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};

use crate::cluster::eventually;

const DRIVER: &str = env!("CARGO_BIN_EXE_cloud-block-csi");
const NODE: &str = "cb676a46-66fd-4dfb-b839-443f2e6c0b60";

/// A kubelet's directory with a driver in it.
struct Kubelet {
    dir: TempDir,
    driver: Child,
}

impl Kubelet {
    /// Starts a driver that needs nothing of the cloud.
    fn start(dir: TempDir, log: &str) -> Self {
        Self::start_by(Command::new(DRIVER), dir, log, "127.0.0.1:0")
    }

    /// Starts it on a machine of its own, as far as network goes, which has no address but the loopback's.
    fn start_alone(dir: TempDir, log: &str, addresses: &str) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", r#"ip link set lo up && exec "$@""#, "sh", DRIVER]);
        Self::start_by(command, dir, log, addresses)
    }

    fn start_by(mut command: Command, dir: TempDir, log: &str, addresses: &str) -> Self {
        let log = fs::File::create(dir.path().join(log)).unwrap();
        let driver = command
            .args(["node", "--node-id", NODE, "--region", "EWR", "--metrics-addr", addresses])
            .args(["--log-format", "text", "--metadata-url", "http://127.0.0.1:1"])
            .arg(format!("--endpoint=unix://{}", csi(&dir).display()))
            .arg(format!("--kubelet-registration-dir={}", dir.path().join("plugins_registry").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { dir, driver }
    }

    fn registration(&self) -> PathBuf {
        self.dir.path().join("plugins_registry/block.csi.vultr.com-reg.sock")
    }

    async fn connect(socket: &Path) -> Channel {
        let endpoint = Endpoint::try_from(format!("unix://{}", socket.display())).unwrap();
        eventually("the driver listens", async || endpoint.connect().await.ok()).await
    }

    async fn ready(&self, log: &str) -> (StatusCode, String) {
        let log = self.dir.path().join(log);
        let address = eventually("the driver says where its metrics are", async || {
            let text = fs::read_to_string(&log).unwrap();
            let line = text.lines().find(|line| line.contains("metrics and health"))?;
            Some(line.rsplit_once("address=")?.1.trim().to_owned())
        })
        .await;
        let answer = reqwest::get(format!("http://{address}/readyz")).await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    /// Runs a program in the driver's network, and tells what it prints.
    async fn beside(&self, program: &[&str]) -> Result<String, String> {
        let network = format!("--net=/proc/{}/ns/net", self.driver.id().unwrap());
        let output = Command::new("nsenter").arg(network).args(program).output().await.unwrap();
        let [printed, errors] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        if output.status.success() { Ok(printed) } else { Err(errors) }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.driver.id().unwrap().try_into().unwrap()), signal).unwrap();
    }

    /// What a kubelet does when the socket appears.
    async fn register(&self) {
        let mut registration = RegistrationClient::new(Self::connect(&self.registration()).await);
        let info = registration.get_info(InfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "block.csi.vultr.com"));
        assert_eq!(info.endpoint, csi(&self.dir).display().to_string());
        // At once, and once.
        let endpoint = Endpoint::try_from(format!("unix://{}", info.endpoint)).unwrap();
        let mut node = NodeClient::new(endpoint.connect().await.unwrap());
        let info = node.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
        assert_eq!(info.node_id, NODE);
        let status = RegistrationStatus { plugin_registered: true, error: String::new() };
        registration.notify_registration_status(status).await.unwrap();
    }
}

fn csi(dir: &TempDir) -> PathBuf {
    dir.path().join("plugins/block.csi.vultr.com/csi.sock")
}

#[tokio::test]
async fn a_node_is_ready_when_the_kubelet_has_registered_it_and_takes_its_leave_first() {
    let dir = tempfile::tempdir().unwrap();
    // What a driver that was killed has left.
    for socket in [csi(&dir), dir.path().join("plugins_registry/block.csi.vultr.com-reg.sock")] {
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        drop(UnixListener::bind(&socket).unwrap());
        assert!(socket.exists());
    }
    let mut kubelet = Kubelet::start(dir, "log");
    let (status, why) = kubelet.ready("log").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(why.contains("the kubelet has not asked at"), "{why}");
    kubelet.register().await;
    assert_eq!(kubelet.ready("log").await.0, StatusCode::OK);
    kubelet.signal(Signal::SIGTERM);
    assert!(kubelet.driver.wait().await.unwrap().success());
    assert!(!kubelet.registration().exists() && !csi(&kubelet.dir).exists());
}

#[tokio::test]
async fn a_driver_that_was_killed_is_registered_again_by_its_successor() {
    let mut kubelet = Kubelet::start(tempfile::tempdir().unwrap(), "first");
    kubelet.register().await;
    kubelet.signal(Signal::SIGKILL);
    assert!(!kubelet.driver.wait().await.unwrap().success());
    assert!(kubelet.registration().exists(), "nobody removes a killed driver's socket");
    let Kubelet { dir, .. } = kubelet;
    let mut kubelet = Kubelet::start(dir, "second");
    assert_eq!(kubelet.ready("second").await.0, StatusCode::SERVICE_UNAVAILABLE);
    kubelet.register().await;
    assert_eq!(kubelet.ready("second").await.0, StatusCode::OK);
    kubelet.signal(Signal::SIGTERM);
    assert!(kubelet.driver.wait().await.unwrap().success());
}

// Kubernetes may take for a node's an address that the machine doesn't have, such as one of a network that nobody has set up.
#[tokio::test]
async fn volumes_do_not_wait_for_an_address_for_metrics_that_the_machine_does_not_have() {
    let dir = tempfile::tempdir().unwrap();
    let mut kubelet = Kubelet::start_alone(dir, "log", "127.0.0.1:9808,192.0.2.9:9808");
    kubelet.register().await;
    let ready = async |address: &str| {
        let ask = r#"exec 3<>"/dev/tcp/$0/9808" && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && cat <&3"#;
        kubelet.beside(&["bash", "-c", ask, address]).await
    };
    eventually("it is ready", async || ready("127.0.0.1").await.ok().filter(|answer| answer.ends_with("ok\n"))).await;
    assert!(ready("192.0.2.9").await.is_err());
    let log = fs::read_to_string(kubelet.dir.path().join("log")).unwrap();
    assert!(log.contains("until the machine has this address"), "{log}");
    kubelet.beside(&["ip", "address", "add", "192.0.2.9/32", "dev", "lo"]).await.unwrap();
    eventually("it answers there", async || ready("192.0.2.9").await.ok().filter(|answer| answer.ends_with("ok\n")))
        .await;
    kubelet.signal(Signal::SIGTERM);
    assert!(kubelet.driver.wait().await.unwrap().success());
}

#[tokio::test]
async fn a_driver_with_no_address_for_metrics_says_so_and_ends() {
    for (addresses, why) in
        [("192.0.2.9:9808", "192.0.2.9:9808: Cannot assign"), ("127.0.0.1:9808,127.0.0.1:9808", "in use")]
    {
        let mut kubelet = Kubelet::start_alone(tempfile::tempdir().unwrap(), "log", addresses);
        assert_eq!(kubelet.driver.wait().await.unwrap().code(), Some(1));
        let log = fs::read_to_string(kubelet.dir.path().join("log")).unwrap();
        assert!(log.contains("--metrics-addr") && log.contains(why), "{log}");
    }
}
