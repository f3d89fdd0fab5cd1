//! Lists: paging, regions, instances.

use std::collections::HashSet;

use serde_json::Value;
use vultr_sim::SeedVfs;

use crate::client::{Client, quick, start};

/// Follows a list to its end: its rows and the number of its pages.
async fn follow(client: &Client, path: &str, per_page: usize) -> (Vec<Value>, usize) {
    let key = path.rsplit('/').next().unwrap();
    let (mut rows, mut pages, mut cursor) = (Vec::new(), 0, String::new());
    loop {
        let path = format!("/v2/{path}?per_page={per_page}&cursor={cursor}");
        let page = client.get(&path).await.is(200).json();
        rows.extend(page[key].as_array().unwrap().clone());
        pages += 1;
        page["meta"]["links"]["next"].as_str().unwrap().clone_into(&mut cursor);
        if cursor.is_empty() {
            assert_eq!(page["meta"]["total"], rows.len());
            return (rows, pages);
        }
    }
}

#[tokio::test]
async fn paging_shows_every_volume_once() {
    for (count, pages) in [(0, 1), (1, 1), (500, 1), (501, 2)] {
        let (simulation, client) = start(quick()).await;
        simulation.control().seed_fillers(count, "ewr").unwrap();
        let (rows, asked) = follow(&client, "blocks", 500).await;
        let ids: HashSet<&str> = rows.iter().map(|row| row["id"].as_str().unwrap()).collect();
        assert_eq!((rows.len(), ids.len(), asked), (count, count, pages));
        simulation.control().assert_clean();
    }
}

#[tokio::test]
async fn paging_shows_every_snapshot_and_file_system_once() {
    let (simulation, client) = start(quick()).await;
    let (control, volume) = (simulation.control(), client.create_active("a", 10).await);
    for number in 0..7 {
        control.seed_snapshot(&volume, &format!("s{number}")).await.unwrap();
        control.seed_vfs(SeedVfs::new(&format!("f{number}"), "ewr", 10)).await.unwrap();
    }
    for (path, key, first) in [("blocks/snapshots", "description", "s"), ("vfs", "label", "f")] {
        let (rows, pages) = follow(&client, path, 3).await;
        let names: Vec<&str> = rows.iter().map(|row| row[key].as_str().unwrap()).collect();
        assert_eq!(names, (0..7).map(|n| format!("{first}{n}")).collect::<Vec<_>>());
        assert_eq!(pages, 3);
    }
}

#[tokio::test]
async fn a_list_without_further_pages_has_empty_links() {
    let (_simulation, client) = start(quick()).await;
    for path in ["/v2/blocks", "/v2/blocks/snapshots", "/v2/vfs", "/v2/instances", "/v2/regions"] {
        let meta = client.get(path).await.is(200).json()["meta"].clone();
        assert_eq!(meta["links"], serde_json::json!({"next": "", "prev": ""}), "{path}");
    }
}

#[tokio::test]
async fn a_cursor_survives_the_volume_that_it_names() {
    let (simulation, client) = start(quick()).await;
    simulation.control().seed_fillers(3, "ewr").unwrap();
    let page = client.get("/v2/blocks?per_page=1").await.json();
    let cursor = page["meta"]["links"]["next"].as_str().unwrap();
    let second = simulation.control().view().volumes[1].id.clone();
    client.delete(&second).await.is(204);

    let rest = client.get(&format!("/v2/blocks?cursor={cursor}")).await.is(200).json();

    assert_eq!(rest["blocks"].as_array().unwrap().len(), 1);
    assert_eq!(rest["blocks"][0]["label"], "filler-2");
}

#[tokio::test]
async fn a_senseless_cursor_is_refused() {
    let (_simulation, client) = start(quick()).await;
    client.get("/v2/blocks?cursor=senseless").await.refused(400, "Invalid cursor");
}

#[tokio::test]
async fn list_rows_have_a_block_type_only_by_switch() {
    let (simulation, client) = start(quick()).await;
    simulation.control().seed_fillers(1, "ewr").unwrap();
    let row = async || client.get("/v2/blocks").await.json()["blocks"][0]["block_type"].clone();
    assert_eq!(row().await, Value::Null);
    simulation.control().behave(|b| b.list_block_type = true);
    assert_eq!(row().await, "high_perf");
}

#[tokio::test]
async fn regions_are_public_paged_and_tell_their_storage() {
    let (_simulation, mut client) = start(quick()).await;
    client.token = "wrong".to_owned();
    let (regions, pages) = follow(&client, "regions", 10).await;
    assert_eq!((regions.len(), pages), (33, 4));
    let has = |id: &str, option: &str| {
        let region = regions.iter().find(|region| region["id"] == id).unwrap();
        region["options"].as_array().unwrap().contains(&Value::from(option))
    };
    assert!(has("syd", "block_storage_high_perf") && !has("syd", "block_storage_storage_opt"));
    assert!(has("fra", "block_storage_storage_opt") && !has("fra", "block_storage_high_perf"));
}

#[tokio::test]
async fn instances_are_filtered_by_label_and_region() {
    let (_simulation, client) = start(quick()).await;
    let labels = async |query: &str| {
        let page = client.get(&format!("/v2/instances?{query}")).await.is(200).json();
        let rows = page["instances"].as_array().unwrap().clone();
        rows.iter().map(|row| row["label"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(labels("label=two").await, ["two"]);
    assert_eq!(labels("region=ewr").await, ["one", "two"]);
    assert_eq!(labels("per_page=2").await, ["one", "two"]);
    assert!(labels("label=nobody").await.is_empty());
}
