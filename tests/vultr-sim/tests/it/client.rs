//! A plain HTTP client of the simulated API, and the arrangement that most tests share.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;
use vultr_sim::{Behaviour, Config, InstanceSpec, Simulation};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) const SNAPSHOTS: &str = "/v2/blocks/snapshots";

/// A client with a token.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    pub(crate) token: String,
}

/// An answer that came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) text: String,
    pub(crate) retry_after: Option<String>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    #[track_caller]
    pub(crate) fn is(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// Asserts the API's error form with this text in it.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, text: &str) {
        self.is(status);
        let body = self.json();
        assert_eq!(body["status"], status);
        let told = body["error"].as_str().unwrap();
        assert!(told.contains(text), "{told:?} has no {text:?}");
    }
}

impl Client {
    pub(crate) fn new(simulation: &Simulation) -> Self {
        Self { http: reqwest::Client::new(), url: simulation.api_url(), token: simulation.token().to_owned() }
    }

    /// Sends a request; the error is that of the connection.
    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<Value>) -> reqwest::Result<Answer> {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await?;
        let header = response.headers().get("retry-after");
        Ok(Answer {
            status: response.status().as_u16(),
            retry_after: header.map(|h| h.to_str().unwrap().to_owned()),
            text: response.text().await?,
        })
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, Some(body)).await.unwrap()
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, Some(body)).await.unwrap()
    }

    pub(crate) async fn delete_at(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, None).await.unwrap()
    }

    pub(crate) async fn patch(&self, id: &str, body: Value) -> Answer {
        self.send(Method::PATCH, &format!("/v2/blocks/{id}"), Some(body)).await.unwrap()
    }

    pub(crate) async fn delete(&self, id: &str) -> Answer {
        self.send(Method::DELETE, &format!("/v2/blocks/{id}"), None).await.unwrap()
    }

    pub(crate) async fn block(&self, id: &str) -> Value {
        self.get(&format!("/v2/blocks/{id}")).await.is(200).json()["block"].clone()
    }

    /// Makes a volume in `ewr` and says its id, at once.
    pub(crate) async fn create(&self, label: &str, size_gb: u32) -> String {
        let body = json!({"region": "ewr", "size_gb": size_gb, "label": label, "block_type": "high_perf"});
        let made = self.post("/v2/blocks", body).await;
        made.is(202).json()["block"]["id"].as_str().unwrap().to_owned()
    }

    /// Makes a volume and waits until it may be used.
    pub(crate) async fn create_active(&self, label: &str, size_gb: u32) -> String {
        let id = self.create(label, size_gb).await;
        self.until(&id, |block| block["status"] == "active").await;
        id
    }

    /// Asks for an attach, live.
    pub(crate) async fn attach(&self, id: &str, instance: &str) -> Answer {
        let body = json!({"instance_id": instance, "live": true});
        self.post(&format!("/v2/blocks/{id}/attach"), body).await
    }

    /// Asks for a detach, live.
    pub(crate) async fn detach(&self, id: &str) -> Answer {
        self.post(&format!("/v2/blocks/{id}/detach"), json!({"live": true})).await
    }

    /// Attaches and waits for the effect.
    pub(crate) async fn attached(&self, id: &str, instance: &str) {
        self.attach(id, instance).await.is(204);
        self.until(id, |block| block["attached_to_instance"] == instance).await;
        self.until_unlocked(instance).await;
    }

    /// Detaches and waits for the effect.
    pub(crate) async fn detached(&self, id: &str) {
        let instance = self.block(id).await["attached_to_instance"].as_str().unwrap().to_owned();
        self.detach(id).await.is(204);
        self.until(id, |block| block["attached_to_instance"] == "").await;
        self.until_unlocked(&instance).await;
    }

    /// Asks for a volume until it is as wanted.
    pub(crate) async fn until(&self, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let path = format!("/v2/blocks/{id}");
        self.poll(&path, |body| wanted(&body["block"])).await["block"].clone()
    }

    pub(crate) async fn until_unlocked(&self, instance: &str) {
        let path = format!("/v2/instances/{instance}");
        self.poll(&path, |body| body["instance"]["server_status"] == "ok").await;
    }

    /// Makes a volume of a snapshot and waits until it may be used.
    pub(crate) async fn restore(&self, snapshot: &str, label: &str, size_gb: u32) -> String {
        let body = json!({"region": "ewr", "size_gb": size_gb, "label": label, "snapshot_id": snapshot});
        let made = self.post("/v2/blocks", body).await.is(202).json();
        let id = made["block"]["id"].as_str().unwrap().to_owned();
        self.until(&id, |block| block["status"] == "active").await;
        id
    }

    /// Takes a snapshot and says its id, at once.
    pub(crate) async fn snapshot(&self, volume: &str, description: &str) -> String {
        let made = self.post(SNAPSHOTS, json!({"block_id": volume, "description": description})).await;
        made.is(201).json()["id"].as_str().unwrap().to_owned()
    }

    /// Takes a snapshot and waits until it may be used.
    pub(crate) async fn snapshot_complete(&self, volume: &str, description: &str) -> String {
        let id = self.snapshot(volume, description).await;
        self.poll(&format!("{SNAPSHOTS}/{id}"), |snapshot| snapshot["state"] == "COMPLETE").await;
        id
    }

    /// Makes a shared file system in `ewr` and waits until it may be used.
    pub(crate) async fn vfs(&self, label: &str, size_gb: u32) -> String {
        let body = json!({"region": "ewr", "label": label, "storage_size": {"gb": size_gb}});
        let id = self.post("/v2/vfs", body).await.is(201).json()["id"].as_str().unwrap().to_owned();
        self.poll(&format!("/v2/vfs/{id}"), |vfs| vfs["status"] == "active").await;
        id
    }

    /// Attaches a file system, waits for the effect and says its mount tag.
    pub(crate) async fn shared(&self, vfs: &str, instance: &str) -> u64 {
        let path = format!("/v2/vfs/{vfs}/attachments/{instance}");
        self.put(&path, Value::Null).await.is(201);
        let attachment = self.poll(&path, |attachment| attachment["state"] == "ATTACHED").await;
        attachment["mount_tag"].as_u64().unwrap()
    }

    /// Asks for anything until it is as wanted.
    pub(crate) async fn poll(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let body = self.get(path).await.json();
            if wanted(&body) {
                return body;
            }
            assert!(Instant::now() < deadline, "never as wanted: {body}");
            // The answers come over a socket, so the simulation moves on between two of them.
            tokio::task::yield_now().await;
        }
    }
}

/// A cloud without disks that does things at once, and two instances in `ewr` and one in `ams`.
pub(crate) fn quick() -> Config {
    let instances = [("one", "ewr"), ("two", "ewr"), ("far", "ams")];
    Config {
        disks: false,
        instances: instances.iter().map(|(label, region)| InstanceSpec::new(label, region)).collect(),
        behaviour: Behaviour::instant(),
        ..Config::default()
    }
}

/// The same with transitions that last until a test changes them, so that the time between is certain.
pub(crate) fn stuck() -> Config {
    let mut config = quick();
    let hour = Duration::from_secs(3600);
    (config.behaviour.attach, config.behaviour.detach) = (hour, hour);
    config
}

pub(crate) async fn start(config: Config) -> (Simulation, Client) {
    let simulation = Simulation::start(config).await.unwrap();
    let client = Client::new(&simulation);
    (simulation, client)
}

/// The id of an instance by its label.
pub(crate) fn id_of(simulation: &Simulation, label: &str) -> String {
    simulation.control().instance(label).unwrap().id
}

/// An answer of the control interface.
pub(crate) async fn control(simulation: &Simulation, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
    let request = reqwest::Client::new().request(method, format!("{}{path}", simulation.control_url()));
    let response = request.json(&body).send().await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}
