//! Faults on demand.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tokio::time::Instant;
use vultr_sim::{Action, Fault, Operation, When};

use crate::client::{quick, start};

fn create() -> (Method, &'static str, Option<serde_json::Value>) {
    (Method::POST, "/v2/blocks", Some(json!({"region": "ewr", "size_gb": 10, "label": "a"})))
}

#[tokio::test]
async fn an_answer_before_the_effect_prevents_it() {
    let (simulation, client) = start(quick()).await;
    let action = Action::Answer {
        when: When::Before,
        status: 503,
        body: "upstream is away".to_owned(),
        retry_after: Some("7".to_owned()),
    };
    simulation.control().add_fault(Fault::new(Operation::CreateBlock, action).times(1));
    let (method, path, body) = create();
    let answer = client.send(method, path, body).await.unwrap();
    assert_eq!((answer.status, answer.text.as_str()), (503, "upstream is away"));
    assert_eq!(answer.retry_after.as_deref(), Some("7"));
    simulation.control().assert_clean();
    client.create("a", 10).await;
}

#[tokio::test]
async fn an_answer_after_the_effect_hides_it() {
    let (simulation, client) = start(quick()).await;
    simulation.control().add_fault(Fault::error(Operation::CreateBlock, When::After, 500, "oh"));
    let (method, path, body) = create();
    client.send(method, path, body).await.unwrap().refused(500, "oh");
    assert_eq!(simulation.control().volume("a").unwrap().size_gb, 10);
}

#[tokio::test]
async fn a_cut_is_a_broken_connection_with_or_without_the_effect() {
    for (when, volumes) in [(When::Before, 0), (When::After, 1)] {
        let (simulation, client) = start(quick()).await;
        simulation.control().add_fault(Fault::cut(Operation::CreateBlock, when).times(1));
        let (method, path, body) = create();
        let error = client.send(method, path, body).await.unwrap_err();
        assert!(error.is_request(), "{error:?}");
        assert_eq!(simulation.control().view().volumes.len(), volumes);
        assert_eq!(simulation.control().stats().count_of(Operation::CreateBlock, 0), 1);
        client.create("again", 10).await;
    }
}

#[tokio::test]
async fn a_delay_is_before_the_effect_or_between_effect_and_answer() {
    for (when, volumes) in [(When::Before, 0), (When::After, 1)] {
        let (simulation, client) = start(quick()).await;
        let delay = Duration::from_millis(300);
        simulation.control().add_fault(Fault::delay(Operation::CreateBlock, when, delay));
        let started = Instant::now();
        let ((), seen) = tokio::join!(
            async {
                client.create("a", 10).await;
            },
            async {
                // The log shows a request as soon as it came; only then does the time count.
                while simulation.control().log().is_empty() {
                    tokio::task::yield_now().await;
                }
                if when == When::After {
                    while simulation.control().view().volumes.is_empty() {
                        tokio::task::yield_now().await;
                    }
                }
                simulation.control().view().volumes.len()
            }
        );
        assert_eq!(seen, volumes);
        assert!(started.elapsed() >= delay);
    }
}

#[tokio::test]
async fn an_effect_happens_even_if_the_client_hangs_up() {
    let (simulation, client) = start(quick()).await;
    let control = simulation.control();
    control.add_fault(Fault::delay(Operation::CreateBlock, When::Before, Duration::from_millis(200)));
    let request = tokio::spawn(async move { client.create("a", 10).await });
    while control.log().is_empty() {
        tokio::task::yield_now().await;
    }
    request.abort();
    while control.view().volumes.is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_fault_meets_one_volume_by_label_or_id_and_skips() {
    let (simulation, client) = start(quick()).await;
    let (a, b) = (client.create("a", 10).await, client.create("b", 10).await);
    let fault = || Fault::error(Operation::GetBlock, When::Before, 500, "oh").after_skipping(1).times(1);
    simulation.control().add_fault(fault().of_volume("a"));
    simulation.control().add_fault(fault().of_volume(&b));
    for id in [&a, &b] {
        let statuses = [
            client.get(&format!("/v2/blocks/{id}")).await.status,
            client.get(&format!("/v2/blocks/{id}")).await.status,
            client.get(&format!("/v2/blocks/{id}")).await.status,
        ];
        assert_eq!(statuses, [200, 500, 200]);
    }
}

#[tokio::test]
async fn faults_by_chance_replay_from_their_seed() {
    let run = async || {
        let (simulation, client) = start(quick()).await;
        let fault = Fault::error(Operation::Any, When::Before, 500, "oh").with_probability(0.5, 11);
        simulation.control().add_fault(fault);
        let mut statuses = Vec::new();
        for _ in 0..20 {
            statuses.push(client.get("/v2/account").await.status);
        }
        statuses
    };
    let first = run().await;
    assert!(first.contains(&500) && first.contains(&200));
    assert_eq!(first, run().await);
}
