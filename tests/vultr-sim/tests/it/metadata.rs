//! The metadata service.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use serde_json::Value;
use vultr_sim::{InstanceChange, InstanceSpec, MetadataMode, Simulation};

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
    let document: Value = get("/v1.json").await.json().await.unwrap();
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

#[tokio::test]
async fn the_shared_one_knows_each_instance_by_its_address() {
    let at = |last| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
    let mut config = quick();
    config.metadata_listen = Some(SocketAddr::new(at(1), 0));
    config.instances = ["one", "two"]
        .iter()
        .zip([11, 12])
        .map(|(label, last)| InstanceSpec { address: Some(at(last)), ..InstanceSpec::new(label, "ewr") })
        .collect();
    let (simulation, client) = start(config).await;
    let url = simulation.metadata_url().unwrap();
    let get = async |last, path: &str| {
        let client = reqwest::Client::builder().local_address(at(last)).build().unwrap();
        client.get(format!("{url}{path}")).send().await
    };
    for (last, label) in [(11, "one"), (12, "two")] {
        let id = simulation.control().instance(label).unwrap().id;
        let document: Value = get(last, "/v1.json").await.unwrap().json().await.unwrap();
        assert_eq!(document["instance-v2-id"], *id);
        assert_eq!(document["interfaces"][0]["ipv4"]["address"], at(last).to_string());
        let told = client.get(&format!("/v2/instances/{id}")).await.json();
        assert_eq!(told["instance"]["main_ip"], at(last).to_string());
    }
    assert_eq!(get(13, "/v1.json").await.unwrap().status(), 404);
    set(&simulation, MetadataMode::Off);
    assert!(get(11, "/v1.json").await.unwrap_err().is_request());
    assert!(get(12, "/v1.json").await.unwrap().status().is_success());

    let taken = InstanceSpec { address: Some(at(11)), ..InstanceSpec::new("three", "ewr") };
    let refused = simulation.control().add_instance(&taken).await.unwrap_err();
    assert!(refused.to_string().contains("127.0.0.11 is taken"), "{refused}");
}
