//! The control interface over HTTP, and what acts behind the driver's back.

use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{control, id_of, quick, start};

#[tokio::test]
async fn it_seeds_shows_and_changes_volumes() {
    let (simulation, client) = start(quick()).await;
    let tell = async |method, path: &str, body| control(&simulation, method, path, body).await;
    let seed = json!({"label": "old", "region": "ewr", "size_gb": 10, "attached_to": "one"});
    let (status, made) = tell(Method::POST, "/volumes", seed).await;
    assert!(status.is_success(), "{made}");
    assert_eq!(made["attached_to"], id_of(&simulation, "one"));
    tell(Method::POST, "/fillers", json!({"count": 3, "region": "ewr"})).await;
    let (_, state) = tell(Method::GET, "/state", Value::Null).await;
    assert_eq!(state["volumes"].as_array().unwrap().len(), 4);
    let (_, left) = tell(Method::GET, "/leftovers", Value::Null).await;
    assert_eq!(left["attachments"].as_array().unwrap().len(), 1);

    tell(Method::POST, "/volumes/old/detach", Value::Null).await;
    assert_eq!(client.block(made["id"].as_str().unwrap()).await["attached_to_instance"], "");
    tell(Method::POST, "/volumes/old/attach", json!({"instance": "two"})).await;
    let (_, volume) = tell(Method::GET, "/volumes/old", Value::Null).await;
    assert_eq!(volume["attached_to"], id_of(&simulation, "two"));
    tell(Method::DELETE, "/volumes/old", Value::Null).await;
    let (status, _) = tell(Method::GET, "/volumes/old", Value::Null).await;
    assert_eq!(status, 404);
    simulation.control().assert_clean();
}

#[tokio::test]
async fn it_sets_faults_and_behaviour_and_counts() {
    let (simulation, client) = start(quick()).await;
    let tell = async |method, path: &str, body| control(&simulation, method, path, body).await;
    let fault =
        json!({"operation": "*", "action": {"answer": {"when": "before", "status": 502, "body": "x"}}, "times": 1});
    let (_, added) = tell(Method::POST, "/faults", fault).await;
    assert_eq!(client.get("/v2/account").await.status, 502);
    let (_, faults) = tell(Method::GET, "/faults", Value::Null).await;
    assert_eq!((&faults[0]["id"], &faults[0]["struck"]), (&added["id"], &json!(1)));
    let (status, _) = tell(Method::DELETE, &format!("/faults/{}", added["id"]), Value::Null).await;
    assert_eq!(status, 204);

    let (_, behaviour) = tell(Method::PATCH, "/behaviour", json!({"create_status": 201, "attach_ms": 5})).await;
    assert_eq!((&behaviour["attach_ms"], &behaviour["detach_ms"]), (&json!(5), &json!(0)));
    let (status, _) = tell(Method::PATCH, "/behaviour", json!({"no_such": 1})).await;
    assert_eq!(status, 400);
    client.post("/v2/blocks", json!({"region": "ewr", "size_gb": 10, "label": "a"})).await.is(201);

    let (_, counters) = tell(Method::GET, "/stats", Value::Null).await;
    assert_eq!(counters["requests"]["get_account"]["502"], 1);
    assert_eq!(counters["requests"]["create_block"]["201"], 1);
    let (_, log) = tell(Method::GET, "/log", Value::Null).await;
    assert_eq!((&log[1]["volume"], &log[1]["method"]), (&json!("a"), &json!("POST")));
    tell(Method::DELETE, "/stats", Value::Null).await;
    let (_, log) = tell(Method::GET, "/log", Value::Null).await;
    assert_eq!(log, json!([]));
}

#[tokio::test]
async fn it_adds_locks_and_destroys_instances() {
    let (simulation, client) = start(quick()).await;
    let tell = async |method, path: &str, body| control(&simulation, method, path, body).await;
    let (_, added) = tell(Method::POST, "/instances", json!({"label": "new", "region": "EWR"})).await;
    let (new, id) = (added["id"].as_str().unwrap(), client.create_active("a", 10).await);
    tell(Method::PATCH, "/instances/new", json!({"locked": true})).await;
    client.attach(&id, new).await.refused(400, "Server is currently locked");
    tell(Method::PATCH, "/instances/new", json!({"locked": false})).await;
    client.attached(&id, new).await;
    tell(Method::DELETE, "/instances/new", Value::Null).await;
    client.get(&format!("/v2/instances/{new}")).await.refused(404, "instance not found");
    assert_eq!(client.block(&id).await["attached_to_instance"], "");
}

#[tokio::test]
async fn it_changes_the_token() {
    let (simulation, mut client) = start(quick()).await;
    let new = json!({"token": "another"});
    assert_eq!(control(&simulation, Method::PUT, "/token", new).await.0, 204);
    client.get("/v2/account").await.refused(401, "Invalid API token");
    "another".clone_into(&mut client.token);
    client.get("/v2/account").await.is(200);
}

#[tokio::test]
async fn it_shuts_the_api_and_opens_it_again() {
    let mut config = quick();
    config.behaviour.create = std::time::Duration::from_millis(50);
    let (simulation, client) = start(config).await;
    let id = client.create("a", 10).await;
    let listen = async |api: bool| control(&simulation, Method::PUT, "/listening", json!({ "api": api })).await.0;
    assert_eq!(listen(false).await, 204);
    let refused = client.send(Method::GET, "/v2/account", None).await.unwrap_err();
    assert!(refused.is_connect(), "{refused:?}");
    assert_eq!(listen(false).await, 204);
    assert_eq!(listen(true).await, 204);
    assert_eq!(listen(true).await, 204);
    client.until(&id, |block| block["status"] == "active").await;
}
