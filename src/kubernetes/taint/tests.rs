//! The start-up taint in simulated time, against a simulated API server in memory.

use std::path::Path;

use axum::http::{Method, StatusCode};
use kube_sim::{Action, KubeSim};
use tokio::task::JoinHandle;
use tonic::Request;

use super::*;
use crate::registration::wire::{RegistrationStatus, registration_server::Registration as _};

const NODE: &str = "/api/v1/nodes/one";
const CSI_NODE: &str = "/apis/storage.k8s.io/v1/csinodes/one";
const KEY: &str = "block.csi.example.com/agent-not-ready";

const DRIVER: &str = "block.csi.example.com";

fn of(sim: &KubeSim, registration: Option<Registration>) -> StartupTaint {
    let client = Client::new(sim.router(), "kube-system");
    StartupTaint::new(&client, "one".to_owned(), DRIVER.to_owned(), registration, KEY.to_owned())
}

fn start(sim: &KubeSim) -> JoinHandle<()> {
    tokio::spawn(of(sim, None).lift())
}

fn taint(key: &str) -> Value {
    // A field that no version of the API has yet: it has to survive.
    json!({ "key": key, "effect": "NoExecute", "ofTheFuture": true })
}

fn put_node(sim: &KubeSim, keys: &[&str]) {
    let taints: Vec<Value> = keys.iter().map(|key| taint(key)).collect();
    sim.put(NODE, json!({ "metadata": {}, "spec": { "taints": taints } }));
}

/// The driver is registered, with a number of volumes or (yet) without.
fn register(sim: &KubeSim, count: Option<u32>) {
    let mut driver = json!({ "name": DRIVER, "nodeID": "id", "topologyKeys": ["region"] });
    if let Some(count) = count {
        driver["allocatable"] = json!({ "count": count });
    }
    let other = json!({ "name": "other.example.com", "nodeID": "id", "allocatable": { "count": 1 } });
    sim.put(CSI_NODE, json!({ "metadata": {}, "spec": { "drivers": [other, driver] } }));
}

fn keys(sim: &KubeSim) -> Vec<String> {
    let node = sim.object(NODE).unwrap();
    let taints = node["spec"]["taints"].as_array().unwrap().clone();
    taints.iter().map(|taint| taint["key"].as_str().unwrap().to_owned()).collect()
}

/// How long it takes until the node has these taints and no others.
async fn until(sim: &KubeSim, wanted: &[&str]) -> Duration {
    let began = Instant::now();
    while keys(sim) != wanted {
        assert!(began.elapsed() < Duration::from_secs(120), "{:?} and not {wanted:?}", keys(sim));
        sleep(Duration::from_millis(50)).await;
    }
    began.elapsed()
}

const FIVE_SECONDS: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn the_taint_stays_until_the_driver_is_registered_with_its_number_of_volumes() {
    let sim = KubeSim::default();
    put_node(&sim, &["other.example.com/not-ready", KEY]);
    let task = start(&sim);
    sleep(Duration::from_secs(600)).await;
    sim.put(CSI_NODE, json!({ "metadata": {}, "spec": { "drivers": [] } }));
    sleep(Duration::from_secs(600)).await;
    register(&sim, None);
    sleep(Duration::from_secs(600)).await;
    sim.edit(CSI_NODE, |node| node["spec"]["drivers"][1]["allocatable"] = json!({}));
    sleep(Duration::from_secs(600)).await;
    assert_eq!(keys(&sim), ["other.example.com/not-ready", KEY]);
    assert_eq!(sim.count(&Method::PATCH, NODE), 0);
    register(&sim, Some(16));
    let took = until(&sim, &["other.example.com/not-ready"]).await;
    assert!(took <= FIVE_SECONDS, "{took:?}");
    assert_eq!(sim.object(NODE).unwrap()["spec"]["taints"][0], taint("other.example.com/not-ready"));
    assert!(!task.is_finished());
}

/// After an update, or a reboot, the CSINode still lists the process before.
#[tokio::test(start_paused = true)]
async fn the_taint_stays_until_the_kubelet_has_registered_this_very_process() {
    let sim = KubeSim::default();
    put_node(&sim, &[KEY]);
    register(&sim, Some(16));
    let registration = Registration::new(Path::new("/registry"), DRIVER, Path::new("/plugins/csi.sock"));
    let task = tokio::spawn(of(&sim, Some(registration.clone())).lift());
    let says = async |plugin_registered, error: &str| {
        let status = RegistrationStatus { plugin_registered, error: error.to_owned() };
        registration.notify_registration_status(Request::new(status)).await.unwrap();
        sleep(Duration::from_secs(60)).await;
    };
    sleep(Duration::from_secs(60)).await;
    says(false, "rpc error: node unknown").await;
    assert_eq!(sim.count(&Method::PATCH, NODE), 0);
    says(true, "").await;
    assert_eq!(keys(&sim), [""; 0]);
    assert!(!task.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_taint_that_comes_late_is_taken_off_as_well() {
    let sim = KubeSim::default();
    put_node(&sim, &[]);
    register(&sim, Some(16));
    let task = start(&sim);
    for late in [30, 120, 599] {
        sleep(Duration::from_secs(late)).await;
        put_node(&sim, &[KEY]);
        let took = until(&sim, &[]).await;
        assert!(took <= LONGEST_PAUSE.mul_f64(1.2) + FIVE_SECONDS, "{late}: {took:?}");
        assert!(!task.is_finished(), "it is looked for anew");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_without_the_taint_costs_few_requests_and_then_none() {
    let sim = KubeSim::default();
    put_node(&sim, &["other.example.com/not-ready"]);
    let began = Instant::now();
    start(&sim).await.unwrap();
    assert!((WATCHED..WATCHED * 11 / 10).contains(&began.elapsed()), "{:?}", began.elapsed());
    let requests = sim.log().len();
    assert!((15..=35).contains(&requests), "{requests}");
    assert_eq!(sim.count(&Method::GET, NODE), requests);
}

#[tokio::test(start_paused = true)]
async fn a_taint_of_somebody_else_that_changes_meanwhile_is_kept() {
    let sim = KubeSim::default();
    put_node(&sim, &[KEY, "first.example.com/x"]);
    register(&sim, Some(16));
    sim.before(Method::PATCH, NODE, |sim| put_node(sim, &["second.example.com/x", KEY]));
    start(&sim);
    until(&sim, &["second.example.com/x"]).await;
    assert_eq!(sim.count(&Method::PATCH, NODE), 2);
    let refused = sim.log().into_iter().find(|entry| entry.method == Method::PATCH).unwrap();
    assert_eq!(refused.status, Some(StatusCode::UNPROCESSABLE_ENTITY));
}

#[tokio::test(start_paused = true)]
async fn without_rights_or_an_answer_it_goes_on_and_comes_to_its_end() {
    for (method, path) in [(Method::GET, NODE), (Method::GET, CSI_NODE), (Method::PATCH, NODE)] {
        for action in [Action::Answer(StatusCode::FORBIDDEN, "Forbidden"), Action::Silence] {
            let sim = KubeSim::default();
            put_node(&sim, &[KEY]);
            register(&sim, Some(16));
            sim.add_fault(method.clone(), path, action, u64::MAX);
            let task = start(&sim);
            sleep(Duration::from_secs(3600)).await;
            assert!(!task.is_finished(), "what cannot be seen is not absent");
            assert_eq!(keys(&sim), [KEY]);
            let requests = sim.log().len();
            assert!(requests < 500, "{method} {path}: {requests} requests in an hour");
            sim.clear_faults();
            until(&sim, &[]).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_which_right_is_missing() {
    let sim = KubeSim::default();
    put_node(&sim, &[KEY]);
    sim.add_fault(Method::GET, CSI_NODE, Action::Answer(StatusCode::FORBIDDEN, "Forbidden"), 1);
    let reason = of(&sim, None).look().await.unwrap_err();
    assert!(reason.starts_with("the service account may not get csinodes"), "{reason}");
}
