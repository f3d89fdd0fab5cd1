//! Snapshots without disks: states, answers, restores, and the errors around them.

use std::time::Duration;

use serde_json::{Value, json};
use vultr_sim::{Action, Fault, Operation, SnapshotAnswer, SnapshotState, When};

use crate::client::{SNAPSHOTS, quick, start};

#[tokio::test]
async fn a_new_snapshot_is_pending_and_then_complete() {
    let mut config = quick();
    config.behaviour.snapshot = Duration::from_millis(300);
    let (simulation, client) = start(config).await;
    let volume = client.create_active("a", 37).await;
    let made = client.post(SNAPSHOTS, json!({"block_id": volume, "description": "s"})).await.is(201).json();
    assert_eq!(made["state"], "PENDING");
    assert_eq!(made["size"], 37_u64 << 30);
    assert_eq!((&made["block_id"], &made["description"]), (&json!(volume), &json!("s")));
    assert_eq!((&made["next_invoice_date"], &made["next_invoice_price"]), (&json!(""), &json!("")));
    // The form of dates is not that of volumes.
    assert_eq!(made["added_at"].as_str().unwrap().len(), "2026-07-17 16:46:05".len());
    assert_eq!(made["added_at"], made["updated_at"]);
    assert!(made.get("region").is_none());

    let path = format!("{SNAPSHOTS}/{}", made["id"].as_str().unwrap());
    client.poll(&path, |snapshot| snapshot["state"] == "COMPLETE").await;

    assert_eq!(client.get(SNAPSHOTS).await.is(200).json()["snapshots"][0]["state"], "COMPLETE");
    let left = simulation.control().leftovers().unwrap();
    assert_eq!((left.volumes.len(), left.snapshots.len()), (1, 1));
}

#[tokio::test]
async fn a_snapshot_outlives_its_volume_and_a_volume_its_snapshot() {
    let (simulation, client) = start(quick()).await;
    let volume = client.create_active("a", 10).await;
    let snapshot = client.snapshot_complete(&volume, "s").await;
    client.delete(&volume).await.is(204);
    let path = format!("{SNAPSHOTS}/{snapshot}");
    assert_eq!(client.get(&path).await.is(200).json()["block_id"], json!(volume));

    let restored = client.restore(&snapshot, "b", 12).await;
    client.delete_at(&path).await.is(204);
    client.get(&path).await.refused(404, "snapshot ID");

    let block = client.block(&restored).await;
    assert_eq!((&block["snapshot_id"], &block["size_gb"]), (&json!(snapshot), &json!(12)));
    client.delete(&restored).await.is(204);
    simulation.control().assert_clean();
}

#[tokio::test]
async fn one_snapshot_is_answered_bare_or_wrapped_and_rows_are_bare() {
    let (simulation, client) = start(quick()).await;
    let volume = client.create_active("a", 10).await;
    for (answer, created, got) in [
        (SnapshotAnswer::Bare, "/description", "/description"),
        (SnapshotAnswer::Wrapped, "/block/description", "/snapshot/description"),
        (SnapshotAnswer::Listed, "/snapshot/0/description", "/snapshot/description"),
    ] {
        simulation.control().behave(|b| b.snapshot_answer = answer);
        let asked = json!({"block_id": volume, "description": format!("{answer:?}")});
        let made = client.post(SNAPSHOTS, asked.clone()).await.is(201).json();
        assert_eq!(made.pointer(created), Some(&asked["description"]), "{made}");
        let id = simulation.control().snapshot(asked["description"].as_str().unwrap()).unwrap().id;
        let shown = client.get(&format!("{SNAPSHOTS}/{id}")).await.is(200).json();
        assert_eq!(shown.pointer(got), Some(&asked["description"]), "{shown}");
    }
    let rows = client.get(SNAPSHOTS).await.is(200).json();
    assert!(rows["snapshots"].as_array().unwrap().iter().all(|row| row["id"].is_string()));
}

#[tokio::test]
async fn only_the_description_is_changed() {
    let (_simulation, client) = start(quick()).await;
    let volume = client.create_active("a", 10).await;
    let path = format!("{SNAPSHOTS}/{}", client.snapshot_complete(&volume, "s").await);
    client.put(&path, json!({"description": "t"})).await.is(204);
    assert_eq!(client.get(&path).await.json()["description"], "t");
    client.put(&path, json!({})).await.refused(400, "description");
    client.put(&format!("{SNAPSHOTS}/nobody"), json!({"description": "t"})).await.refused(404, "snapshot ID");
}

#[tokio::test]
async fn a_snapshot_that_can_t_be_taken_is_refused() {
    let mut config = quick();
    config.behaviour.create = Duration::from_secs(3600);
    let (_simulation, client) = start(config).await;
    let pending = client.create("a", 10).await;
    for (body, status, text) in [
        (json!({"block_id": pending, "description": "s"}), 400, "not active"),
        (json!({"block_id": "nobody", "description": "s"}), 404, "Invalid block storage ID"),
        (json!({"block_id": pending}), 400, "description"),
        (json!({"description": "s"}), 400, "block_id"),
    ] {
        client.post(SNAPSHOTS, body).await.refused(status, text);
    }
    assert_eq!(client.get(SNAPSHOTS).await.json()["meta"]["total"], 0);
}

#[tokio::test]
async fn a_restore_that_can_t_be_is_refused() {
    let (simulation, client) = start(quick()).await;
    let volume = client.create_active("a", 20).await;
    let snapshot = client.snapshot_complete(&volume, "s").await;
    let restore = async |id: &str, region: &str, size: u32| {
        let body = json!({"region": region, "size_gb": size, "snapshot_id": id, "label": "b"});
        client.post("/v2/blocks", body).await
    };
    restore("nobody", "ewr", 20).await.refused(400, "Invalid snapshot ID");
    restore(&snapshot, "ewr", 19).await.refused(400, "at least the snapshot's, 20GB");
    // The region is remembered when the volume is gone.
    client.delete(&volume).await.is(204);
    restore(&snapshot, "ams", 20).await.refused(400, "another region");
    for state in [SnapshotState::Pending, SnapshotState::Failed] {
        simulation.control().change_snapshot("s", state).unwrap();
        restore(&snapshot, "ewr", 20).await.refused(400, "not complete");
    }
    assert!(simulation.control().volume("b").is_err());
    simulation.control().change_snapshot("s", SnapshotState::Complete).unwrap();
    restore(&snapshot, "EWR", 20).await.is(202);
}

#[tokio::test]
async fn snapshots_fail_by_switch_or_by_hand() {
    let (simulation, client) = start(quick()).await;
    let (control, volume) = (simulation.control(), client.create_active("a", 10).await);
    control.behave(|b| b.snapshot_fails = true);
    let failing = client.snapshot(&volume, "by switch").await;
    client.poll(&format!("{SNAPSHOTS}/{failing}"), |snapshot| snapshot["state"] == "FAILED").await;

    control.behave(|b| (b.snapshot_fails, b.snapshot) = (false, Duration::from_secs(3600)));
    let pending = client.snapshot(&volume, "by hand").await;
    control.change_snapshot("by hand", SnapshotState::Failed).unwrap();
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{pending}")).await.json()["state"], "FAILED");
}

#[tokio::test]
async fn an_unknown_snapshot_is_refused_as_it_is_set() {
    let (simulation, client) = start(quick()).await;
    simulation.control().behave(|b| {
        b.unknown_snapshot_status = 400;
        b.unknown_snapshot_text = "never heard of it".to_owned();
    });
    client.get(&format!("{SNAPSHOTS}/nobody")).await.refused(400, "never heard of it");
    client.delete_at(&format!("{SNAPSHOTS}/nobody")).await.refused(400, "never heard of it");
}

#[tokio::test]
async fn faults_meet_snapshots_by_description_id_or_volume() {
    let (simulation, client) = start(quick()).await;
    let (control, volume) = (simulation.control(), client.create_active("a", 10).await);
    let quota = |name: &str| {
        let text = "Unable to create snapshot: not enough balance";
        Fault::error(Operation::CreateSnapshot, When::Before, 400, text).of_volume(name).times(1)
    };
    for name in ["s", &volume, "a"] {
        control.add_fault(quota(name));
        let asked = json!({"block_id": volume, "description": "s"});
        client.post(SNAPSHOTS, asked).await.refused(400, "not enough balance");
    }
    let lost = Action::Cut { when: When::After };
    control.add_fault(Fault::new(Operation::CreateSnapshot, lost).times(1));
    let asked = Some(json!({"block_id": volume, "description": "s"}));
    client.send(reqwest::Method::POST, SNAPSHOTS, asked).await.unwrap_err();
    let id = control.snapshot("s").unwrap().id;
    control.add_fault(Fault::error(Operation::GetSnapshot, When::Before, 500, "oh").of_volume("s"));
    client.get(&format!("{SNAPSHOTS}/{id}")).await.refused(500, "oh");
    assert_eq!(control.stats().count_of(Operation::CreateSnapshot, 400), 3);
}

#[tokio::test]
async fn the_control_interface_takes_changes_and_deletes_snapshots() {
    use crate::client::control;
    use reqwest::Method;
    let (simulation, client) = start(quick()).await;
    let volume = client.create_active("a", 10).await;
    let tell = async |method, path: &str, body| control(&simulation, method, path, body).await;
    let (_, made) = tell(Method::POST, "/snapshots", json!({"volume": "a", "description": "s"})).await;
    assert_eq!((&made["state"], &made["block_id"]), (&json!("COMPLETE"), &json!(volume)));
    tell(Method::PATCH, "/snapshots/s", json!({"state": "FAILED"})).await;
    let (_, shown) = tell(Method::GET, "/snapshots/s", Value::Null).await;
    assert_eq!((&shown["state"], &shown["region"]), (&json!("FAILED"), &json!("ewr")));
    let (_, behaviour) = tell(Method::PATCH, "/behaviour", json!({"snapshot_answer": "listed"})).await;
    assert_eq!(behaviour["snapshot_answer"], "listed");
    tell(Method::DELETE, "/snapshots/s", Value::Null).await;
    let (_, state) = tell(Method::GET, "/state", Value::Null).await;
    assert_eq!(state["snapshots"], json!([]));
}
