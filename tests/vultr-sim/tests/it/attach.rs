//! Attach and detach without disks: transitions, locks, refusals.

use serde_json::json;
use std::time::Duration;
use vultr_sim::{InstanceChange, SeedVolume};

use crate::client::{id_of, quick, start, stuck};

#[tokio::test]
async fn an_attach_and_a_detach_take_effect_later() {
    let mut config = quick();
    config.behaviour.attach = Duration::from_millis(300);
    config.behaviour.detach = Duration::from_millis(300);
    let (simulation, client) = start(config).await;
    let (one, id) = (id_of(&simulation, "one"), client.create_active("a", 10).await);
    client.attach(&id, &one).await.is(204);
    assert_eq!(client.block(&id).await["attached_to_instance"], "");
    let block = client.until(&id, |block| block["attached_to_instance"] == *one).await;
    assert_eq!(block["attached_to_instance_label"], "one");
    client.until_unlocked(&one).await;
    client.detach(&id).await.is(204);
    assert_eq!(client.block(&id).await["attached_to_instance"], *one);
    client.until(&id, |block| block["attached_to_instance"] == "").await;
    client.delete(&id).await.is(204);
    simulation.control().assert_clean();
    assert!(simulation.control().stats().reboots.is_empty());
}

#[tokio::test]
async fn an_instance_is_locked_while_a_volume_comes() {
    let (simulation, client) = start(stuck()).await;
    let (one, two) = (id_of(&simulation, "one"), id_of(&simulation, "two"));
    let (a, b) = (client.create_active("a", 10).await, client.create_active("b", 10).await);
    client.attach(&a, &one).await.is(204);
    let instance = client.get(&format!("/v2/instances/{one}")).await.json();
    assert_eq!(instance["instance"]["server_status"], "locked");
    client.attach(&b, &one).await.refused(400, "Server is currently locked");
    simulation.control().behave(|b| b.locked_status = 500);
    client.attach(&b, &one).await.refused(500, "Server is currently locked");
    client.attach(&a, &two).await.refused(400, "already attached to a server");
    client.attach(&b, &two).await.is(204);
    client.delete(&a).await.refused(400, "in progress");
    assert_eq!(simulation.control().stats().locked, 2);
}

#[tokio::test]
async fn a_volume_is_at_one_instance_at_a_time() {
    let (simulation, client) = start(quick()).await;
    let (one, two) = (id_of(&simulation, "one"), id_of(&simulation, "two"));
    let id = client.create_active("a", 10).await;
    client.detach(&id).await.refused(400, "Block storage volume is not currently attached to a server");
    client.attached(&id, &one).await;
    for instance in [&one, &two] {
        let answer = client.attach(&id, instance).await;
        answer.refused(400, "Block storage volume is already attached to a server");
    }
}

#[tokio::test]
async fn an_attach_that_can_t_be_is_refused() {
    let (simulation, client) = start(quick()).await;
    let (one, id) = (id_of(&simulation, "one"), client.create_active("a", 10).await);
    client.attach(&id, "nobody").await.refused(404, "instance not found");
    client.attach("nothing", &one).await.refused(404, "Invalid block storage ID");
    client.attach(&id, &id_of(&simulation, "far")).await.refused(400, "Unable to attach block storage");
    let stopped = InstanceChange { power_status: Some("stopped".to_owned()), ..InstanceChange::default() };
    simulation.control().change_instance("one", stopped).unwrap();
    client.attach(&id, &one).await.refused(400, "Server must be in an active state");
}

#[tokio::test]
async fn a_pending_volume_is_not_attached() {
    let mut config = quick();
    config.behaviour.create = Duration::from_secs(3600);
    let (simulation, client) = start(config).await;
    let id = client.create("a", 10).await;
    client.attach(&id, &id_of(&simulation, "one")).await.refused(400, "not active");
}

#[tokio::test]
async fn the_twelfth_volume_is_refused() {
    let (simulation, client) = start(quick()).await;
    for number in 0..11 {
        let seed = SeedVolume::new(&format!("v{number}"), "ewr", 10);
        let seed = SeedVolume { attached_to: Some("one".to_owned()), ..seed };
        simulation.control().seed_volume(seed).await.unwrap();
    }
    let id = client.create_active("a", 10).await;
    client.attach(&id, &id_of(&simulation, "one")).await.refused(400, "maximum number of volumes");
}

#[tokio::test]
async fn what_is_not_expressly_live_restarts_the_instance() {
    let (simulation, client) = start(quick()).await;
    let (one, id) = (id_of(&simulation, "one"), client.create_active("a", 10).await);
    client.post(&format!("/v2/blocks/{id}/attach"), json!({"instance_id": one})).await.is(204);
    client.until(&id, |block| block["attached_to_instance"] == *one).await;
    client.until_unlocked(&one).await;
    let detach = client.send(reqwest::Method::POST, &format!("/v2/blocks/{id}/detach"), None).await.unwrap();
    detach.is(204);
    assert_eq!(simulation.control().stats().reboots["one"], 2);
}
