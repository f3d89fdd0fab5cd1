//! The hook in simulated time, against a simulated API server in memory.

use axum::http::{Method, StatusCode};
use kube_sim::{Action, KubeSim};
use serde_json::{Value, json};

use super::*;

const NODE: &str = "/api/v1/nodes/one";
const ATTACHMENTS: &str = "/apis/storage.k8s.io/v1/volumeattachments";
const GRACE: Duration = Duration::from_secs(60);

fn put_node(sim: &KubeSim, spec: &Value) {
    sim.put(NODE, json!({ "metadata": {}, "spec": spec }));
}

fn attach(sim: &KubeSim, name: &str, driver: &str, node: &str) {
    let spec = json!({ "attacher": driver, "nodeName": node, "source": { "persistentVolumeName": name } });
    sim.put(&format!("{ATTACHMENTS}/{name}"), json!({ "metadata": {}, "spec": spec }));
}

async fn ended(sim: &KubeSim) -> (Ended, Duration) {
    let client = Client::new(sim.router(), "kube-system");
    let drain = Drain::new(&client, "one".to_owned(), "block.csi.example.com".to_owned());
    let began = Instant::now();
    let ended = drain.wait(began + GRACE).await;
    (ended, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn without_a_drain_nothing_is_waited_for() {
    let sim = KubeSim::default();
    attach(&sim, "a", "block.csi.example.com", "one");
    for spec in [
        json!({}),
        json!({ "unschedulable": false }),
        json!({ "taints": [{ "key": "example.com/dedicated", "effect": "NoSchedule" }] }),
    ] {
        put_node(&sim, &spec);
        let (how, took) = ended(&sim).await;
        assert_eq!(how, Ended::NoDrain, "{spec}");
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    assert_eq!(sim.count(&Method::GET, ATTACHMENTS), 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_is_waited_for_until_this_drivers_volumes_are_off_this_node() {
    let taint = |key: &str| json!({ "taints": [{ "key": key, "effect": "NoSchedule" }] });
    let drains = [
        Some(json!({ "unschedulable": true })),
        Some(taint("node.kubernetes.io/unschedulable")),
        Some(taint("ToBeDeletedByClusterAutoscaler")),
        Some(taint("karpenter.sh/disrupted")),
        Some(taint("karpenter.sh/disruption")),
        // The Node is gone.
        None,
    ];
    for drain in drains {
        let sim = KubeSim::default();
        if let Some(spec) = &drain {
            put_node(&sim, spec);
        }
        attach(&sim, "of-another-driver", "other.example.com", "one");
        attach(&sim, "on-another-node", "block.csi.example.com", "two");
        attach(&sim, "a", "block.csi.example.com", "one");
        attach(&sim, "b", "block.csi.example.com", "one");
        let kubelet = sim.clone();
        tokio::spawn(async move {
            for name in ["a", "b"] {
                sleep(Duration::from_secs(15)).await;
                kubelet.remove(&format!("{ATTACHMENTS}/{name}"));
            }
        });
        let (how, took) = ended(&sim).await;
        assert_eq!(how, Ended::Empty, "{drain:?}");
        let thirty = Duration::from_secs(30);
        assert!((thirty..=thirty + PAUSE).contains(&took), "{drain:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_goes_on_after_all_is_not_waited_for() {
    let sim = KubeSim::default();
    put_node(&sim, &json!({ "unschedulable": true }));
    attach(&sim, "a", "block.csi.example.com", "one");
    let operator = sim.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(10)).await;
        put_node(&operator, &json!({}));
    });
    let (how, took) = ended(&sim).await;
    assert_eq!(how, Ended::NoDrain);
    assert!(took <= Duration::from_secs(10) + PAUSE, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn every_page_of_the_attachments_is_looked_at() {
    let sim = KubeSim::default();
    put_node(&sim, &json!({ "unschedulable": true }));
    for number in 0..1200 {
        attach(&sim, &format!("other-{number:04}"), "block.csi.example.com", "two");
    }
    attach(&sim, "the-last", "block.csi.example.com", "one");
    let (how, took) = ended(&sim).await;
    assert_eq!(how, Ended::TimeIsOver("1 volume of this driver is still attached".to_owned()));
    assert!(took <= GRACE && took + PAUSE >= GRACE, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn in_a_drain_what_cannot_be_found_out_is_asked_again_until_the_time_is_nearly_over() {
    let forbidden = Action::Answer(StatusCode::FORBIDDEN, "Forbidden");
    for fault in [Action::Silence, Action::Answer(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"), forbidden] {
        let sim = KubeSim::default();
        put_node(&sim, &json!({ "unschedulable": true }));
        sim.add_fault(Method::GET, ATTACHMENTS, fault.clone(), 5);
        let (how, took) = ended(&sim).await;
        assert_eq!(how, Ended::Empty, "{fault:?}");
        assert!(took >= PAUSE * 5, "{took:?}");

        sim.add_fault(Method::GET, ATTACHMENTS, fault.clone(), u64::MAX);
        let (how, took) = ended(&sim).await;
        if matches!(fault, Action::Answer(StatusCode::FORBIDDEN, _)) {
            // Its rights have gone with the driver that is uninstalled.
            assert!(matches!(&how, Ended::Unknown(reason) if reason.contains("403")), "{how:?}");
            assert!((FORBIDDEN..=FORBIDDEN + PAUSE * 2).contains(&took), "{took:?}");
            continue;
        }
        let Ended::TimeIsOver(standing) = how else { panic!("{fault:?}: {how:?}") };
        assert!(standing.contains("cannot be found out what is attached"), "{standing}");
        assert!(took <= GRACE && took + LOOK + PAUSE >= GRACE, "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_not_held_up_where_nothing_can_be_found_out() {
    let sim = KubeSim::default();
    put_node(&sim, &json!({ "unschedulable": true }));
    sim.add_fault(Method::GET, NODE, Action::Answer(StatusCode::FORBIDDEN, "Forbidden"), 1);
    let (how, took) = ended(&sim).await;
    assert!(matches!(&how, Ended::Unknown(reason) if reason.contains("403")), "{how:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");

    for fault in [Action::Silence, Action::Answer(StatusCode::SERVICE_UNAVAILABLE, "")] {
        sim.clear_faults();
        sim.add_fault(Method::GET, NODE, fault.clone(), u64::MAX);
        let (how, took) = ended(&sim).await;
        assert!(matches!(how, Ended::Unknown(_)), "{how:?}");
        assert!(took <= FIRST_LOOK + LOOK, "{took:?}");
        // A short trouble is outlived.
        sim.clear_faults();
        sim.add_fault(Method::GET, NODE, fault, 1);
        assert_eq!(ended(&sim).await.0, Ended::Empty);
    }
}
