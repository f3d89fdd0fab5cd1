//! The start-up taint (`--startup-taint`): keeps pods off a new node until its driver is registered, and is taken off
//! the driver's own Node then.
//!
//! Registered means that the kubelet has said so to this process, where it registers itself, and that the node's CSINode
//! lists the driver with a number of volumes: a scheduler that sees the driver without that number takes it for unlimited.
//! What the CSINode lists alone may be the process before, which the kubelet is about to take out.
//!
//! The Node is asked for, not watched: every 2 s while it has the taint, ever less often (up to 30 s) while it hasn't, and
//! no more once it hasn't had it for 10 minutes. That is about 25 small requests for a start of a node and none
//! afterwards, where a watch would be one more connection to the API server from each of a thousand nodes for ever, and
//! the right to watch all of them. A taint that comes late (from a cloud's controller, or a node pool) is so taken off
//! within half a minute.

use std::time::Duration;

use k8s_openapi::api::{core::v1::Node, storage::v1::CSINode};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::{status, told};
use crate::registration::Registration;

/// How often it is looked while there is something to do.
const SHORTEST_PAUSE: Duration = Duration::from_secs(2);
/// How seldom it is looked at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a node has to be without the taint until nobody looks any more.
const WATCHED: Duration = Duration::from_secs(600);
/// How long one look may take.
const LOOK: Duration = Duration::from_secs(10);
/// How often a change is tried at once when somebody else changes the taints at the same time.
const TRIES: u32 = 3;

/// A taint to be taken off.
#[derive(Debug)]
pub struct StartupTaint {
    nodes: Api<DynamicObject>,
    csi_nodes: Api<CSINode>,
    node: String,
    driver: String,
    registration: Option<Registration>,
    key: String,
}

/// How things stand.
#[derive(Debug)]
enum Standing {
    /// The node does not have the taint.
    Absent,
    /// It has, and needs it still.
    Needed(String),
    /// It had.
    Lifted,
}

impl StartupTaint {
    /// The taint `key` on the node named `node`, which waits for the driver named `driver`. Without a `registration`
    /// somebody else tells the kubelet of the driver.
    pub fn new(client: &Client, node: String, driver: String, registration: Option<Registration>, key: String) -> Self {
        // As it comes: what this build's types do not know of a taint has to stay.
        let nodes = Api::all_with(client.clone(), &ApiResource::erase::<Node>(&()));
        Self { nodes, csi_nodes: Api::all(client.clone()), node, driver, registration, key }
    }

    /// Takes the taint off whenever it is there and the driver is registered, until it is no longer to be expected.
    pub async fn lift(self) {
        let Self { node, key, .. } = &self;
        let mut pause = SHORTEST_PAUSE;
        let mut absent_since: Option<Instant> = None;
        let mut trouble: Option<String> = None;
        loop {
            let standing = timeout(LOOK, self.look()).await.unwrap_or_else(|_| Err("no answer".to_owned()));
            if standing.is_ok() && trouble.take().is_some() {
                info!(node, "the API server answers again");
            }
            match standing {
                Ok(Standing::Absent) => {
                    if absent_since.get_or_insert_with(Instant::now).elapsed() >= WATCHED {
                        info!(node, key, "the start-up taint is no longer looked for");
                        return;
                    }
                    pause = (pause * 3 / 2).min(LONGEST_PAUSE);
                }
                Ok(Standing::Needed(why)) => {
                    debug!(node, key, why, "the start-up taint stays");
                    (absent_since, pause) = (None, SHORTEST_PAUSE);
                }
                Ok(Standing::Lifted) => {
                    info!(node, key, "the driver is registered: the start-up taint is taken off");
                    (absent_since, pause) = (None, SHORTEST_PAUSE);
                }
                Err(reason) => {
                    if trouble.as_ref() != Some(&reason) {
                        warn!(node, key, reason, "the start-up taint cannot be seen to; it is tried again");
                    }
                    trouble = Some(reason);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            // A thousand nodes that start together must not ask together.
            sleep(pause.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
        }
    }

    async fn look(&self) -> Result<Standing, String> {
        for attempt in 1.. {
            let node = self.nodes.get(&self.node).await.map_err(|error| self.refused("get", "nodes", &error))?;
            let taints = node.data.pointer("/spec/taints").and_then(Value::as_array).cloned().unwrap_or_default();
            let is_ours = |taint: &Value| taint["key"] == self.key.as_str();
            if !taints.iter().any(is_ours) {
                return Ok(Standing::Absent);
            }
            if let Err(why) = self.registered().await? {
                return Ok(Standing::Needed(why));
            }
            let rest: Vec<&Value> = taints.iter().filter(|taint| !is_ours(taint)).collect();
            match self.replace(&taints, &rest).await {
                Ok(()) => return Ok(Standing::Lifted),
                // Somebody else changed the taints since they were read.
                Err(error) if attempt < TRIES && matches!(status(&error), Some(409 | 422)) => {}
                Err(error) => return Err(self.refused("patch", "nodes", &error)),
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// Whether pods that need the driver can be sent to the node, or else why not.
    async fn registered(&self) -> Result<Result<(), String>, String> {
        if let Some(why) = self.registration.as_ref().and_then(Registration::trouble) {
            return Ok(Err(why));
        }
        let found = self.csi_nodes.get_opt(&self.node).await;
        let Some(csi_node) = found.map_err(|error| self.refused("get", "csinodes", &error))? else {
            return Ok(Err("the node has no CSINode yet".to_owned()));
        };
        let Some(driver) = csi_node.spec.drivers.into_iter().find(|driver| driver.name == self.driver) else {
            return Ok(Err("its CSINode does not list the driver yet".to_owned()));
        };
        let is_counted = driver.allocatable.is_some_and(|allocatable| allocatable.count.is_some());
        let uncounted = || "its CSINode does not tell how many volumes it may have yet".to_owned();
        Ok(is_counted.then_some(()).ok_or_else(uncounted))
    }

    /// Replaces the taints provided that they are still the ones that were read.
    async fn replace(&self, taints: &[Value], rest: &[&Value]) -> Result<(), kube::Error> {
        let patch = serde_json::from_value(json!([
            { "op": "test", "path": "/spec/taints", "value": taints },
            { "op": "replace", "path": "/spec/taints", "value": rest },
        ]));
        let patch = Patch::<()>::Json(patch.map_err(kube::Error::SerdeError)?);
        self.nodes.patch(&self.node, &PatchParams::default(), &patch).await.map(drop)
    }

    fn refused(&self, verb: &str, resource: &str, error: &kube::Error) -> String {
        let told = told(error);
        match status(error) {
            Some(403) => format!("the service account may not {verb} {resource}: {told}"),
            _ => format!("{verb} {resource} {}: {told}", self.node),
        }
    }
}

#[cfg(test)]
mod tests;
