//! Shared file systems: create, list, get, update, delete, and the errors around them.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use vultr_sim::{Fault, Operation, SeedVfs, When};

use crate::client::{control, id_of, quick, start};

#[tokio::test]
async fn a_new_file_system_is_pending_and_then_active() {
    let mut config = quick();
    config.behaviour.vfs_create = Duration::from_millis(300);
    let (simulation, client) = start(config).await;
    let body = json!({"region": "EWR", "label": "a", "storage_size": {"gb": 100}, "tags": ["x", "y"]});
    let made = client.post("/v2/vfs", body).await.is(201).json();
    assert_eq!((&made["status"], &made["region"]), (&json!("pending"), &json!("ewr")));
    assert_eq!(made["storage_size"], json!({"bytes": 107_374_182_400_u64, "gb": 100}));
    assert_eq!(made["storage_used"], json!({"bytes": 0, "gb": 0}));
    assert_eq!((&made["disk_type"], &made["tags"]), (&json!("nvme"), &json!(["x", "y"])));
    assert_eq!(made["billing"]["monthly"], json!(10.0));
    assert_eq!(made["date_created"].as_str().unwrap().len(), "2025-01-06 16:31:03".len());

    let path = format!("/v2/vfs/{}", made["id"].as_str().unwrap());
    client.poll(&path, |vfs| vfs["status"] == "active").await;

    let list = client.get("/v2/vfs").await.is(200).json();
    assert_eq!((&list["vfs"][0]["tags"], &list["meta"]["total"]), (&json!(["x", "y"]), &json!(1)));
    assert_eq!(simulation.control().leftovers().unwrap().file_systems.len(), 1);
}

#[tokio::test]
async fn a_create_that_can_t_be_is_refused() {
    let (simulation, client) = start(quick()).await;
    let good = json!({"region": "ewr", "label": "a", "storage_size": {"gb": 10}});
    for (key, value, text) in [
        ("region", json!("nowhere"), "region"),
        ("region", json!("fra"), "region"),
        ("region", Value::Null, "Invalid request body"),
        ("label", Value::Null, "Invalid request body"),
        ("storage_size", json!({}), "gb"),
        ("storage_size", json!({"gb": 9}), "at least 10GB"),
        ("disk_type", json!("hdd"), "disk type"),
    ] {
        let mut body = good.clone();
        body[key] = value;
        client.post("/v2/vfs", body).await.refused(422, text);
    }
    simulation.control().assert_clean();
    client.post("/v2/vfs", good).await.is(201);
}

#[tokio::test]
async fn an_update_changes_label_and_size_and_only_grows() {
    let (_simulation, client) = start(quick()).await;
    let path = format!("/v2/vfs/{}", client.vfs("a", 20).await);
    let changed = client.put(&path, json!({"label": "b", "storage_size": {"gb": 30}})).await.is(200).json();
    assert_eq!((&changed["label"], &changed["storage_size"]["gb"]), (&json!("b"), &json!(30)));
    client.put(&path, json!({"storage_size": {"gb": 29}})).await.refused(422, "only be increased");
    client.put(&path, json!({})).await.refused(422, "Nothing to change");
    // As the official client writes a change of the label only.
    client.put(&path, json!({"label": "c", "storage_size": {"gb": 0}})).await.is(200);
    client.put(&path, json!({"storage_size": {"gb": 31}})).await.is(200);
    let vfs = client.get(&path).await.is(200).json();
    assert_eq!((&vfs["label"], &vfs["storage_size"]["gb"]), (&json!("c"), &json!(31)));
}

#[tokio::test]
async fn an_unknown_file_system_is_not_found_and_a_deleted_one_is_closed() {
    let (simulation, client) = start(quick()).await;
    for path in ["/v2/vfs/nobody", "/v2/vfs/nobody/attachments", "/v2/vfs/nobody/attachments/one"] {
        client.get(path).await.refused(404, "Subscription ID Not Found.");
    }
    client.put("/v2/vfs/nobody", json!({"label": "b"})).await.refused(404, "Subscription ID Not Found.");
    client.delete_at("/v2/vfs/nobody").await.refused(404, "Subscription ID Not Found.");
    let path = format!("/v2/vfs/{}", client.vfs("a", 10).await);
    client.delete_at(&path).await.is(204);
    client.get(&path).await.refused(404, "Subscription ID Not Found.");
    client.delete_at(&path).await.refused(409, "closed");
    simulation.control().assert_clean();
}

#[tokio::test]
async fn the_regions_of_file_systems_tell_prices_and_minima() {
    let (_simulation, client) = start(quick()).await;
    let regions = client.get("/v2/vfs/regions").await.is(200).json()["regions"].clone();
    let ewr = regions.as_array().unwrap().iter().find(|region| region["id"] == "ewr").unwrap();
    assert_eq!((&ewr["price_per_gb"]["nvme"], &ewr["min_size_gb"]["nvme"]), (&json!(0.1), &json!(10)));
    assert_eq!((&ewr["country"], &ewr["description"]), (&json!("US"), &json!("New Jersey")));
}

#[tokio::test]
async fn all_of_it_can_be_down_while_volumes_work() {
    let (simulation, client) = start(quick()).await;
    let (one, vfs) = (id_of(&simulation, "one"), client.vfs("a", 10).await);
    simulation.control().behave(|b| b.vfs_down = true);
    let (whole, attachment) = (format!("/v2/vfs/{vfs}"), format!("/v2/vfs/{vfs}/attachments/{one}"));
    let attachments = format!("/v2/vfs/{vfs}/attachments");
    for (method, path) in [
        (Method::GET, "/v2/vfs"),
        (Method::POST, "/v2/vfs"),
        (Method::GET, "/v2/vfs/regions"),
        (Method::GET, &whole),
        (Method::PUT, &whole),
        (Method::DELETE, &whole),
        (Method::GET, &attachments),
        (Method::GET, &attachment),
        (Method::PUT, &attachment),
        (Method::DELETE, &attachment),
    ] {
        client.send(method, path, None).await.unwrap().refused(503, "unavailable");
    }
    client.create_active("b", 10).await;
    simulation.control().behave(|b| b.vfs_down = false);
    client.get(&whole).await.is(200);
}

#[tokio::test]
async fn faults_meet_file_systems_by_label_or_id() {
    let (simulation, client) = start(quick()).await;
    let quota = Fault::error(Operation::CreateVfs, When::Before, 400, "the quota is used up").of_volume("a").times(1);
    simulation.control().add_fault(quota);
    let body = json!({"region": "ewr", "label": "a", "storage_size": {"gb": 10}});
    client.post("/v2/vfs", body).await.refused(400, "the quota is used up");
    let (vfs, one) = (client.vfs("a", 10).await, id_of(&simulation, "one"));
    let lost = Fault::error(Operation::AttachVfs, When::After, 500, "oh").of_volume("a").times(1);
    simulation.control().add_fault(lost);
    let attachment = format!("/v2/vfs/{vfs}/attachments/{one}");
    client.put(&attachment, Value::Null).await.refused(500, "oh");
    client.get(&attachment).await.is(200);
    assert_eq!(simulation.control().stats().count_of(Operation::CreateVfs, 400), 1);
}

#[tokio::test]
async fn the_control_interface_seeds_attaches_and_deletes_file_systems() {
    let (simulation, _client) = start(quick()).await;
    let tell = async |method, path: &str, body| control(&simulation, method, path, body).await;
    let seed = json!({"label": "a", "region": "ewr", "size_gb": 10, "attached_to": ["one"]});
    let (status, made) = tell(Method::POST, "/file-systems", seed).await;
    assert!(status.is_success(), "{made}");
    assert_eq!(made["attachments"][0]["state"], "ATTACHED");
    tell(Method::POST, "/file-systems/a/attach", json!({"instance": "two"})).await;
    let (_, shown) = tell(Method::GET, "/file-systems/a", Value::Null).await;
    assert_eq!(shown["attachments"].as_array().unwrap().len(), 2);
    tell(Method::POST, "/file-systems/a/detach", json!({"instance": "one"})).await;
    let (_, state) = tell(Method::GET, "/state", Value::Null).await;
    assert_eq!(state["file_systems"][0]["attachments"][0]["instance"], id_of(&simulation, "two"));
    tell(Method::DELETE, "/file-systems/a", Value::Null).await;
    simulation.control().assert_clean();
    let wrong = SeedVfs { attached_to: vec!["nobody".to_owned()], ..SeedVfs::new("a", "ewr", 10) };
    assert!(simulation.control().seed_vfs(wrong).await.is_err());
    simulation.control().assert_clean();
}
