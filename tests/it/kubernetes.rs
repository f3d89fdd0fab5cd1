//! The driver and the API server: when it is spoken to, and what comes of it, with real processes.

use std::{path::Path, process::Output, time::Duration};

use axum::http::{Method, StatusCode};
use kube_sim::Action;
use serde_json::{Value, json};
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    time::{Instant, timeout},
};
use vultr_sim::Behaviour;

use crate::{
    cluster::{eventually, skipped},
    lease::World,
};

const NODE: &str = "/api/v1/nodes/one";
const CSI_NODE: &str = "/apis/storage.k8s.io/v1/csinodes/one";
const ATTACHMENT: &str = "/apis/storage.k8s.io/v1/volumeattachments/a";
const DRIVER: &str = "block.csi.vultr.com";
const KEY: &str = "block.csi.vultr.com/agent-not-ready";

/// The driver as a pod's container runs it, with access to the API server or without.
fn driver(world: &World, has_access: bool, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cloud-block-csi"));
    command.args(arguments).env("CSI_NODE_NAME", "one").env_remove("KUBERNETES_SERVICE_HOST");
    let kubeconfig = if has_access { world.kubeconfig() } else { Path::new("/nowhere").to_owned() };
    command.env("KUBECONFIG", kubeconfig).kill_on_drop(true);
    command
}

async fn hook(world: &World, has_access: bool) -> (Output, Duration) {
    let began = Instant::now();
    let mut command = driver(world, has_access, &["pre-stop", "--grace", "15"]);
    let output = timeout(Duration::from_secs(60), command.output()).await.expect("it ends by itself").unwrap();
    (output, began.elapsed())
}

fn attach(world: &World, driver: &str) {
    let spec = json!({ "attacher": driver, "nodeName": "one", "source": { "persistentVolumeName": "a" } });
    world.api.put(ATTACHMENT, json!({ "metadata": {}, "spec": spec }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hook_holds_up_a_pod_only_in_a_drain() {
    let world = World::start(Behaviour::instant()).await;
    attach(&world, DRIVER);
    world.api.put(NODE, json!({ "metadata": {}, "spec": {} }));
    for (has_access, said) in [(true, "is not being drained"), (false, "no access to the Kubernetes API")] {
        let (output, took) = hook(&world, has_access).await;
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && text.contains(said), "{text}");
        assert!(took < Duration::from_secs(1), "{took:?}");
    }

    world.api.put(NODE, json!({ "metadata": {}, "spec": { "unschedulable": true } }));
    let (output, took) = hook(&world, true).await;
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("1 volume of this driver is still attached"), "{text}");
    assert!(took < Duration::from_secs(15), "the grace period is the pod's: {took:?}");

    let waiting = hook(&world, true);
    let kubelet = async {
        let lists = || world.api.count(&Method::GET, "/apis/storage.k8s.io/v1/volumeattachments");
        let before = lists();
        eventually("it waits", async || (lists() > before).then_some(())).await;
        attach(&world, "other.example.com");
    };
    let ((output, _), ()) = tokio::join!(waiting, kubelet);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && text.contains("no volume of this driver is attached"), "{text}");
    world.end().await;
}

fn start_node(world: &World, has_access: bool, flags: &[&str]) -> (Child, std::path::PathBuf) {
    let socket = world.dir.path().join("node.sock");
    let mut command = driver(world, has_access, &["node", "--log-format", "text"]);
    command.args(flags).arg("--endpoint").arg(&socket);
    (command.spawn().unwrap(), socket)
}

async fn serves(socket: &Path) {
    eventually("the node serves", async || UnixStream::connect(socket).await.ok()).await;
}

fn taints(world: &World) -> Value {
    world.api.object(NODE).unwrap()["spec"]["taints"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_takes_its_taint_off_and_starts_whatever_the_api_server_says() {
    if skipped("a_node_takes_its_taint_off_and_starts_whatever_the_api_server_says") {
        return;
    }
    let world = World::start(Behaviour::instant()).await;
    let taint = json!({ "key": KEY, "effect": "NoExecute" });
    world.api.put(NODE, json!({ "metadata": {}, "spec": { "taints": [taint] } }));
    let flags = ["--startup-taint", KEY];

    // Nothing that could be spoken to; and no rights.
    let (mut node, socket) = start_node(&world, false, &flags);
    serves(&socket).await;
    node.kill().await.unwrap();
    world.api.add_fault(Method::GET, NODE, Action::Answer(StatusCode::FORBIDDEN, "Forbidden"), u64::MAX);
    let (mut node, socket) = start_node(&world, true, &flags);
    serves(&socket).await;
    eventually("it has asked", async || (world.api.count(&Method::GET, NODE) > 0).then_some(())).await;
    node.kill().await.unwrap();
    world.api.clear_faults();

    let (mut node, socket) = start_node(&world, true, &flags);
    serves(&socket).await;
    eventually("it has looked", async || (world.api.count(&Method::GET, CSI_NODE) > 0).then_some(())).await;
    assert_eq!(taints(&world), json!([taint]));
    let driver = json!({ "name": DRIVER, "nodeID": "id", "topologyKeys": [], "allocatable": { "count": 11 } });
    world.api.put(CSI_NODE, json!({ "metadata": {}, "spec": { "drivers": [driver] } }));
    let began = Instant::now();
    eventually("the taint is off", async || (taints(&world) == json!([])).then_some(())).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    node.kill().await.unwrap();
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_flag_the_api_server_is_not_spoken_to() {
    if skipped("without_a_flag_the_api_server_is_not_spoken_to") {
        return;
    }
    let world = World::start(Behaviour::instant()).await;
    let (mut node, socket) = start_node(&world, true, &[]);
    serves(&socket).await;
    let mut controller = world.pod_with("controller", &[]);
    controller.active().await;
    controller.end().await;
    node.kill().await.unwrap();
    assert_eq!(world.api.log(), []);
    world.end().await;
}
