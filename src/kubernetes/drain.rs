//! What a node's pod waits for before it ends (`cloud-block-csi pre-stop`, its preStop hook): that the volumes of a node
//! that is being drained are off it, for which the driver is needed until the end.
//!
//! Where a driver goes before its node's volumes do, they stay attached, and their pods wait elsewhere for the six minutes
//! after which Kubernetes detaches by force. On a node that is not being drained nothing is waited for: an update of the
//! driver takes no longer than before. Only attachments of this driver count. A node that is only cordoned cannot be
//! told from one that is being drained, so there an update takes the whole grace period.

use std::time::Duration;

use k8s_openapi::api::{core::v1::Node, storage::v1::VolumeAttachment};
use kube::{Api, Client, api::ListParams};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{info, warn};

use super::{connect, status, told};
use crate::{RunError, config::PreStopConfig};

/// The taints that say that a node is to be emptied: of kubectl and the node controller, the cluster autoscaler,
/// Karpenter since its v1 and Karpenter before.
const DRAIN_TAINTS: &[&str] = &[
    "node.kubernetes.io/unschedulable",
    "ToBeDeletedByClusterAutoscaler",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
];
/// How often it is looked.
const PAUSE: Duration = Duration::from_secs(2);
/// How long one answer may take.
const LOOK: Duration = Duration::from_secs(5);
/// How long the first look may be tried, while it is not known that there is a drain.
const FIRST_LOOK: Duration = Duration::from_secs(8);
/// How long it is tried to look at the attachments while that is forbidden: an API server that has just started knows of no
/// rights for a moment, and those of a driver that is uninstalled are gone.
const FORBIDDEN: Duration = Duration::from_secs(30);
/// How much of a pod's grace period is left to the driver itself, to end in order.
const LEFT_TO_THE_DRIVER: Duration = Duration::from_secs(5);
/// How many attachments are asked for at a time.
const PAGE: u32 = 500;

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// The node goes on: there is nothing to wait for.
    NoDrain,
    /// None of the driver's volumes is attached to the node.
    Empty,
    /// It is not known whether there is a drain, or the hook has no right to know what is attached.
    Unknown(String),
    /// The time is over, and this is how things were last.
    TimeIsOver(String),
}

/// Waits until the driver's volumes are off the node, if that is being drained.
///
/// # Errors
/// If some are still attached when the pod's grace period is nearly over; Kubernetes tells of that in an event of the pod.
pub async fn pre_stop(config: PreStopConfig) -> Result<(), RunError> {
    let deadline = Instant::now() + config.grace.saturating_sub(LEFT_TO_THE_DRIVER);
    let client = match connect().await {
        Ok(client) => client,
        Err(error) => {
            // A pod must not be held up by a hook that can find out nothing.
            warn!("{error}; nothing is waited for");
            return Ok(());
        }
    };
    match (Drain::new(&client, config.node_name, config.driver_name)).wait(deadline).await {
        Ended::NoDrain => info!("the node is not being drained: nothing is waited for"),
        Ended::Empty => info!("no volume of this driver is attached to the node"),
        Ended::Unknown(reason) => {
            warn!("it cannot be found out whether there is something to wait for, so nothing is waited for: {reason}");
        }
        Ended::TimeIsOver(standing) => {
            return Err(RunError::Failed(format!("the pod's grace period is nearly over, and {standing}")));
        }
    }
    Ok(())
}

/// Why it could not be found out what is attached.
struct Unseen {
    reason: String,
    is_forbidden: bool,
}

/// The driver's volumes on a node that may be being drained.
#[derive(Debug)]
struct Drain {
    nodes: Api<Node>,
    attachments: Api<VolumeAttachment>,
    node: String,
    driver: String,
}

impl Drain {
    fn new(client: &Client, node: String, driver: String) -> Self {
        Self { nodes: Api::all(client.clone()), attachments: Api::all(client.clone()), node, driver }
    }

    async fn wait(&self, deadline: Instant) -> Ended {
        match timeout_at(deadline, self.is_drained()).await {
            Ok(Ok(Some(why))) => info!("{why}: waiting until its volumes are off it"),
            Ok(Ok(None)) => return Ended::NoDrain,
            Ok(Err(reason)) => return Ended::Unknown(reason),
            Err(_) => return Ended::Unknown("no answer".to_owned()),
        }
        let mut standing = "it was not found out what is attached".to_owned();
        let mut forbidden_since = None;
        loop {
            let looked = timeout_at(deadline, self.attached()).await;
            if !matches!(looked, Ok(Err(Unseen { is_forbidden: true, .. }))) {
                forbidden_since = None;
            }
            let now = match looked {
                Ok(Ok(0)) => return Ended::Empty,
                Ok(Ok(1)) => "1 volume of this driver is still attached".to_owned(),
                Ok(Ok(count)) => format!("{count} volumes of this driver are still attached"),
                // A look that was cut short says less than the one before.
                Err(_) => return Ended::TimeIsOver(standing),
                Ok(Err(Unseen { reason, is_forbidden: true }))
                    if forbidden_since.get_or_insert_with(Instant::now).elapsed() >= FORBIDDEN =>
                {
                    return Ended::Unknown(format!("what is attached: {reason}"));
                }
                // During a drain it is worth every try.
                Ok(Err(Unseen { reason, .. })) => format!("it cannot be found out what is attached: {reason}"),
            };
            if now != standing {
                info!("{now}");
                standing = now;
            }
            if Instant::now() + PAUSE >= deadline {
                return Ended::TimeIsOver(standing);
            }
            sleep(PAUSE).await;
            // One that goes on after all keeps its volumes, and gets more. Where that can't be found out, nothing has changed.
            let until = deadline.min(Instant::now() + LOOK);
            if let Ok(Ok(node)) = timeout_at(until, self.nodes.get_opt(&self.node)).await
                && self.reason_to_empty(node).is_none()
            {
                return Ended::NoDrain;
            }
        }
    }

    /// Why the node is to be emptied, if it is.
    async fn is_drained(&self) -> Result<Option<String>, String> {
        let began = Instant::now();
        loop {
            let reason = match timeout(LOOK, self.nodes.get_opt(&self.node)).await {
                Ok(Ok(node)) => return Ok(self.reason_to_empty(node)),
                // Rights do not come while one waits.
                Ok(Err(error)) if matches!(status(&error), Some(401 | 403)) => return Err(told(&error)),
                Ok(Err(error)) => told(&error),
                Err(_) => "no answer".to_owned(),
            };
            if began.elapsed() + PAUSE > FIRST_LOOK {
                return Err(reason);
            }
            warn!("the node cannot be looked at, which is tried again: {reason}");
            sleep(PAUSE).await;
        }
    }

    fn reason_to_empty(&self, node: Option<Node>) -> Option<String> {
        let name = &self.node;
        let Some(spec) = node.map(|node| node.spec.unwrap_or_default()) else {
            return Some(format!("the node {name} is gone from the cluster"));
        };
        let taint = spec.taints.iter().flatten().find(|taint| DRAIN_TAINTS.contains(&taint.key.as_str()));
        match taint {
            Some(taint) => Some(format!("the node {name} has the taint {}", taint.key)),
            None if spec.unschedulable == Some(true) => Some(format!("the node {name} is cordoned")),
            None => None,
        }
    }

    /// How many of the driver's volumes are attached to the node. An attachment that is on its way out counts.
    async fn attached(&self) -> Result<usize, Unseen> {
        let mut page = ListParams::default().limit(PAGE);
        let mut count = 0;
        loop {
            let found = match timeout(LOOK, self.attachments.list(&page)).await {
                Ok(Ok(found)) => found,
                Ok(Err(error)) => {
                    let is_forbidden = matches!(status(&error), Some(401 | 403));
                    return Err(Unseen { reason: told(&error), is_forbidden });
                }
                Err(_) => return Err(Unseen { reason: "no answer".to_owned(), is_forbidden: false }),
            };
            let is_ours = |one: &&VolumeAttachment| one.spec.attacher == self.driver && one.spec.node_name == self.node;
            count += found.items.iter().filter(is_ours).count();
            match found.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(count),
            }
        }
    }
}

#[cfg(test)]
mod tests;
