//! Create, get, update, delete, and the errors around them.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use vultr_sim::{DeleteAttached, SeedVolume};

use crate::client::{id_of, quick, start};

#[tokio::test]
async fn a_new_volume_is_pending_and_then_active() {
    let mut config = quick();
    config.behaviour.create = Duration::from_millis(300);
    let (_simulation, client) = start(config).await;
    let body = json!({"region": "EWR", "size_gb": 37, "label": "a"});
    let made = client.post("/v2/blocks", body).await.is(202).json()["block"].clone();
    assert_eq!(made["status"], "pending");
    assert_eq!(made["region"], "ewr");
    assert_eq!(made["cost"], json!(3.7));
    assert_eq!(made["attached_to_instance"], "");
    assert_eq!(made["block_type"], "high_perf");
    assert_eq!(made["mount_id"].as_str().unwrap().len(), "ewr-2f5d7a314fe44f".len());
    let id = made["id"].as_str().unwrap();
    client.until(id, |block| block["status"] == "active").await;
}

#[tokio::test]
async fn labels_are_not_unique() {
    let (_simulation, client) = start(quick()).await;
    assert_ne!(client.create("same", 10).await, client.create("same", 10).await);
}

#[tokio::test]
async fn a_size_outside_the_limits_is_refused_in_the_captured_words() {
    let (_simulation, client) = start(quick()).await;
    let create = async |size: u32, kind: &str| {
        let body = json!({"region": "ewr", "size_gb": size, "block_type": kind});
        client.post("/v2/blocks", body).await
    };
    let text = "Unable to add block storage: Failed to add block storage device. \
                Invalid size (8GB) - Must be between 10GB and 10000GB.";
    create(8, "high_perf").await.refused(400, text);
    create(39, "storage_opt").await.refused(400, "Must be between 40GB and 40000GB.");
    create(40_000, "storage_opt").await.is(202);
}

#[tokio::test]
async fn a_region_without_the_tier_is_refused() {
    let (_simulation, client) = start(quick()).await;
    let body = json!({"region": "fra", "size_gb": 10, "block_type": "high_perf"});
    let answer = client.post("/v2/blocks", body).await;
    answer.refused(400, "unable to find a block storage cluster in that location");
}

#[tokio::test]
async fn an_unknown_volume_is_refused_as_it_is_set() {
    let (simulation, client) = start(quick()).await;
    client.get("/v2/blocks/nobody").await.refused(404, "Invalid block storage ID");
    simulation.control().behave(|b| {
        b.unknown_block_status = 400;
        b.unknown_block_text = "Block storage subscription not found.".to_owned();
    });
    client.delete("nobody").await.refused(400, "Block storage subscription not found.");
}

#[tokio::test]
async fn snapshots_are_no_volume_s_id() {
    let (_simulation, client) = start(quick()).await;
    let list = client.get("/v2/blocks/snapshots").await.is(200).json();
    assert_eq!(list["snapshots"], json!([]));
    client.post("/v2/blocks/snapshots/attach", json!({})).await.refused(405, "DELETE, GET, PUT");
}

#[tokio::test]
async fn a_wrong_token_or_verb_is_refused() {
    let (_simulation, mut client) = start(quick()).await;
    let put = client.send(Method::PUT, "/v2/blocks/a", None).await.unwrap();
    put.refused(405, "Method not allowed. Must be one of: DELETE, GET, PATCH");
    client.token = "wrong".to_owned();
    client.get("/v2/blocks").await.refused(401, "Invalid API token.");
}

#[tokio::test]
async fn an_update_changes_label_and_size_and_nothing_else() {
    let (_simulation, client) = start(quick()).await;
    let id = client.create_active("a", 10).await;
    client.patch(&id, json!({"label": "a", "size_gb": 10})).await.refused(400, "Nothing to change");
    client.patch(&id, json!({})).await.refused(400, "Nothing to change");
    client.patch(&id, json!({"size_gb": 9})).await.refused(400, "Must be between");
    client.patch(&id, json!({"label": "b", "size_gb": 12})).await.is(204);
    client.patch(&id, json!({"size_gb": 11})).await.refused(400, "Unable to resize");
    let block = client.block(&id).await;
    assert_eq!((&block["label"], &block["size_gb"]), (&json!("b"), &json!(12)));
}

#[tokio::test]
async fn a_second_resize_within_the_minute_is_refused() {
    let (simulation, client) = start(quick()).await;
    simulation.control().behave(|b| b.resize_every = Duration::from_secs(60));
    let id = client.create_active("a", 10).await;
    client.patch(&id, json!({"size_gb": 11})).await.is(204);
    client.patch(&id, json!({"size_gb": 12})).await.refused(400, "60 seconds");
    client.patch(&id, json!({"label": "b"})).await.is(204);
}

#[tokio::test]
async fn an_attached_volume_is_deleted_only_by_switch() {
    let (simulation, client) = start(quick()).await;
    let control = simulation.control();
    let seed = SeedVolume { attached_to: Some("one".to_owned()), ..SeedVolume::new("a", "ewr", 10) };
    let id = control.seed_volume(seed).await.unwrap().id;
    client.delete(&id).await.refused(400, "attached");
    assert_eq!(client.block(&id).await["attached_to_instance"], id_of(&simulation, "one"));
    control.behave(|b| b.delete_attached = DeleteAttached::Detach);
    client.delete(&id).await.is(204);
    client.delete(&id).await.refused(404, "Invalid block storage ID");
    control.assert_clean();
}

#[tokio::test]
async fn the_rest_of_the_account_can_be_read() {
    let (simulation, client) = start(quick()).await;
    let one = id_of(&simulation, "one");
    let instance = client.get(&format!("/v2/instances/{one}")).await.is(200).json()["instance"].clone();
    assert_eq!((&instance["label"], &instance["region"]), (&json!("one"), &json!("ewr")));
    client.get("/v2/instances/nobody").await.refused(404, "instance not found");
    client.get("/v2/bare-metals/nobody").await.refused(404, "Not found.");
    client.get("/v2/vfs/nobody").await.refused(404, "Subscription ID Not Found.");
    client.get("/v2/account").await.is(200);
}
