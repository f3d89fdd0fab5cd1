//! The metadata service.

use std::time::Duration;

use vultr_sim::{InstanceChange, MetadataMode, Simulation};

use crate::client::{quick, start};

fn set(simulation: &Simulation, mode: MetadataMode) {
    let change = InstanceChange { metadata: Some(mode), ..InstanceChange::default() };
    simulation.control().change_instance("one", change).unwrap();
}

#[tokio::test]
async fn it_tells_id_and_region() {
    let (simulation, _client) = start(quick()).await;
    let instance = simulation.control().instance("one").unwrap();
    let get = async |path: &str| reqwest::get(format!("{}{path}", instance.metadata_url)).await.unwrap();
    let document: serde_json::Value = get("/v1.json").await.json().await.unwrap();
    assert_eq!(document["instance-v2-id"], *instance.id);
    assert_eq!(document["region"]["regioncode"], "EWR");
    assert_eq!(get("/v1/instance-v2-id").await.text().await.unwrap(), instance.id);
    assert_eq!(get("/v1/region/regioncode").await.text().await.unwrap(), "EWR");
    assert_eq!(get("/v1/hostname").await.text().await.unwrap(), "one");
    assert_eq!(get("/v1/nothing").await.status(), 404);
}

#[tokio::test]
async fn it_can_be_off_or_a_black_hole() {
    let (simulation, _client) = start(quick()).await;
    let url = format!("{}/v1.json", simulation.instances()[0].metadata_url);
    set(&simulation, MetadataMode::Off);
    assert!(reqwest::get(&url).await.unwrap_err().is_request());
    set(&simulation, MetadataMode::BlackHole);
    let short = reqwest::Client::builder().timeout(Duration::from_millis(100)).build().unwrap();
    assert!(short.get(&url).send().await.unwrap_err().is_timeout());
    set(&simulation, MetadataMode::On);
    assert!(reqwest::get(&url).await.unwrap().status().is_success());
}
