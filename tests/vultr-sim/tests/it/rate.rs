//! The rate limit.

use vultr_sim::{Behaviour, Operation};

use crate::client::{Answer, Client, quick, start};

async fn burst(client: &Client, requests: usize) -> Vec<Answer> {
    let mut answers = Vec::new();
    for _ in 0..requests {
        answers.push(client.get("/v2/account").await);
    }
    answers
}

/// Requests until one is refused; a slow machine may need more than 31.
async fn until_refused(client: &Client) -> Answer {
    for _ in 0..1000 {
        let answer = client.get("/v2/account").await;
        if answer.status == 429 {
            return answer;
        }
    }
    panic!("never refused");
}

#[tokio::test]
async fn the_thirty_first_request_within_a_second_is_refused() {
    let mut config = quick();
    config.behaviour.requests_per_second = Behaviour::default().requests_per_second;
    let (simulation, client) = start(config).await;
    let answers = burst(&client, 30).await;
    assert!(answers.iter().all(|answer| answer.status == 200));

    let refused = until_refused(&client).await;

    assert_eq!(refused.text, r#"{"status": 429,"error": "rate limit exceeded"}"#);
    assert_eq!(refused.retry_after.as_deref(), Some("1"));
    let stats = simulation.control().stats();
    assert_eq!(stats.rate_limited, 1);
    assert_eq!(stats.count_of(Operation::GetAccount, 429), 1);
    assert!(stats.peak_per_second >= 31, "{}", stats.peak_per_second);
}

#[tokio::test]
async fn the_header_can_be_left_out() {
    let mut config = quick();
    config.behaviour.requests_per_second = 1;
    config.behaviour.retry_after = false;
    let (_simulation, client) = start(config).await;
    assert_eq!(until_refused(&client).await.retry_after, None);
}

#[tokio::test]
async fn a_refused_client_is_served_again_later() {
    let mut config = quick();
    config.behaviour.requests_per_second = 1;
    let (_simulation, client) = start(config).await;
    until_refused(&client).await;
    while client.get("/v2/account").await.status == 429 {}
}
