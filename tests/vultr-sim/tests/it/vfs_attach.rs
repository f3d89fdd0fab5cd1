//! Attachments of shared file systems, and what their guests see.

use std::{fs, time::Duration};

use serde_json::{Value, json};
use vultr_sim::InstanceChange;

use crate::{
    client::{id_of, quick, start},
    disk::with_disks,
};

#[tokio::test]
async fn an_attach_and_a_detach_take_effect_later() {
    let mut config = quick();
    config.behaviour.vfs_attach = Duration::from_millis(300);
    config.behaviour.vfs_detach = Duration::from_millis(300);
    let (simulation, client) = start(config).await;
    let (one, vfs) = (id_of(&simulation, "one"), client.vfs("a", 10).await);
    let path = format!("/v2/vfs/{vfs}/attachments/{one}");
    client.get(&path).await.refused(404, "Attachment Not Found");
    let begun = client.put(&path, Value::Null).await.is(201).json();
    assert_eq!((&begun["state"], &begun["vfs_id"], &begun["target_id"]), (&json!("PENDING"), &json!(vfs), &json!(one)));
    assert!(begun["mount_tag"].is_u64());

    let attached = client.poll(&path, |attachment| attachment["state"] == "ATTACHED").await;
    assert_eq!(attached["mount_tag"], begun["mount_tag"]);
    // No instance is locked for a file system.
    let instance = client.get(&format!("/v2/instances/{one}")).await.json();
    assert_eq!(instance["instance"]["server_status"], "ok");

    client.delete_at(&path).await.is(204);
    assert_ne!(client.get(&path).await.is(200).json()["state"], "ATTACHED");
    client.poll(&path, |answer| answer["status"] == 404).await;
    client.delete_at(&path).await.refused(404, "Attachment Not Found");
    client.delete_at(&format!("/v2/vfs/{vfs}")).await.is(204);
    simulation.control().assert_clean();
}

#[tokio::test]
async fn many_instances_have_it_at_once_each_under_its_own_tag() {
    let (simulation, client) = start(quick()).await;
    let (one, two, vfs) = (id_of(&simulation, "one"), id_of(&simulation, "two"), client.vfs("a", 10).await);
    let tags = [client.shared(&vfs, &one).await, client.shared(&vfs, &two).await];
    assert_ne!(tags[0], tags[1]);
    let list = client.get(&format!("/v2/vfs/{vfs}/attachments")).await.is(200).json();
    let rows = list["attachments"].as_array().unwrap().clone();
    let seen: Vec<&Value> = rows.iter().map(|row| &row["target_id"]).collect();
    assert_eq!(seen, [&json!(one), &json!(two)]);
    let again = client.put(&format!("/v2/vfs/{vfs}/attachments/{one}"), Value::Null).await;
    again.refused(409, "already attached");
}

#[tokio::test]
async fn an_attach_that_can_t_be_is_refused() {
    let (simulation, client) = start(quick()).await;
    let (one, far) = (id_of(&simulation, "one"), id_of(&simulation, "far"));
    let vfs = client.vfs("a", 10).await;
    let attach = async |vfs: &str, instance: &str| {
        client.put(&format!("/v2/vfs/{vfs}/attachments/{instance}"), Value::Null).await
    };
    attach("nobody", &one).await.refused(404, "Subscription ID Not Found.");
    attach(&vfs, "nobody").await.refused(404, "Not Found");
    attach(&vfs, &far).await.refused(422, "another region");
    let stopped = InstanceChange { power_status: Some("stopped".to_owned()), ..InstanceChange::default() };
    simulation.control().change_instance("one", stopped).unwrap();
    attach(&vfs, &one).await.refused(422, "active state");
    simulation.control().behave(|b| b.vfs_create = Duration::from_secs(3600));
    let body = json!({"region": "ewr", "label": "b", "storage_size": {"gb": 10}});
    let pending = client.post("/v2/vfs", body).await.is(201).json()["id"].as_str().unwrap().to_owned();
    attach(&pending, &id_of(&simulation, "two")).await.refused(422, "not active");
}

#[tokio::test]
async fn an_attached_file_system_is_not_deleted() {
    let (simulation, client) = start(quick()).await;
    let (one, vfs) = (id_of(&simulation, "one"), client.vfs("a", 10).await);
    client.shared(&vfs, &one).await;
    let text = "Can not delete this subscription until it is detatched from all machines";
    client.delete_at(&format!("/v2/vfs/{vfs}")).await.refused(422, text);
    simulation.control().behave(|b| b.vfs_in_use_status = 409);
    client.delete_at(&format!("/v2/vfs/{vfs}")).await.refused(409, text);
    simulation.control().delete_instance("one").await.unwrap();
    client.delete_at(&format!("/v2/vfs/{vfs}")).await.is(204);
    simulation.control().assert_clean();
}

#[tokio::test]
async fn a_detach_during_the_attach_wins() {
    let mut config = quick();
    config.behaviour.vfs_attach = Duration::from_secs(3600);
    let (simulation, client) = start(config).await;
    let path = format!("/v2/vfs/{}/attachments/{}", client.vfs("a", 10).await, id_of(&simulation, "one"));
    let first = client.put(&path, Value::Null).await.is(201).json();
    client.delete_at(&path).await.is(204);
    client.poll(&path, |answer| answer["status"] == 404).await;
    let second = client.put(&path, Value::Null).await.is(201).json();
    assert_eq!(second["state"], "PENDING");
    assert_ne!(first["mount_tag"], second["mount_tag"]);
}

#[tokio::test]
async fn guests_find_one_folder_under_their_tags_and_keep_its_files() {
    let Some((simulation, client)) = with_disks().await else { return };
    let (one, two, vfs) = (id_of(&simulation, "one"), id_of(&simulation, "two"), client.vfs("a", 10).await);
    let tags = [client.shared(&vfs, &one).await, client.shared(&vfs, &two).await];
    let seen = |label: &str, tag: u64| simulation.control().instance(label).unwrap().share_dir.join(tag.to_string());
    let dir = simulation.control().file_system("a").unwrap().dir.unwrap();
    assert!(dir.starts_with(simulation.dir()));
    fs::write(seen("one", tags[0]).join("file"), "kept").unwrap();
    assert_eq!(fs::read_to_string(seen("two", tags[1]).join("file")).unwrap(), "kept");
    assert!(!seen("two", tags[0]).exists());

    let path = format!("/v2/vfs/{vfs}/attachments/{one}");
    client.delete_at(&path).await.is(204);
    client.poll(&path, |answer| answer["status"] == 404).await;
    assert!(fs::symlink_metadata(seen("one", tags[0])).is_err());
    let tag = client.shared(&vfs, &one).await;
    assert_eq!(fs::read_to_string(seen("one", tag).join("file")).unwrap(), "kept");

    simulation.control().delete_vfs("a").await.unwrap();
    assert!(!dir.exists());
    simulation.control().assert_clean();
    simulation.shutdown().await.unwrap();
}
