//! ControllerPublishVolume and ControllerUnpublishVolume: a volume is on the instance asked for, or off it.
//!
//! ```text
//!   read ──► on the instance? ──► done        read ──► gone, on none, or on another? ──► done
//!     ▲          │ on none                      ▲          │ on this one
//!     │          ▼                              │          ▼
//!     │     queue ► attach ► wait ► done        │     queue ► detach ► wait ► done
//!     └── refused, busy or unknown              └── refused, busy or unknown
//! ```
//! A detach names no instance in Vultr's API, so it is sent only on the strength of a read that shows the volume on
//! the instance asked about, and never again without another one.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Inner, Pauses};
use crate::{
    cloud::{CloudError, Volume, VolumeState, queue::Change, watch::Awaited},
    error::Error,
    volume::{NodeId, VolumeId},
};

/// A read older than this, because its operation had to queue, no longer entitles to a detach.
const PROOF_KEPT: Duration = Duration::from_secs(10);

/// How long an attach that is refused without a reason that can be seen is tried again.
const REFUSALS_TRIED: Duration = Duration::from_secs(15);

impl Inner {
    pub(super) async fn attach(&self, id: &VolumeId, node: &NodeId) -> Result<Volume, Error> {
        let mut pauses = Pauses::new();
        let mut refused: Option<CloudError> = None;
        loop {
            let volume = match self.read(id).await {
                Ok(volume) => volume,
                Err(Error::Cloud { doing, cause }) => {
                    if !pauses.wait().await {
                        return Err(Error::Cloud { doing, cause });
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            match &volume.attached_to {
                Some(on) if on == node => return Ok(volume),
                Some(other) => {
                    return Err(Error::AttachedElsewhere { volume: id.to_string(), node: other.to_string() });
                }
                None => {}
            }
            if volume.bootable {
                return Err(Error::Precondition(format!("volume {id} boots an instance; it is none of Kubernetes'")));
            }
            if let Some(cause) = refused.take() {
                // It may be an earlier attach, still under way, that this one was refused for.
                let last = pauses.began.elapsed() > REFUSALS_TRIED;
                if let Some(error) = self.why_not_attached(id, node, &cause).await {
                    return Err(error);
                }
                if last || !pauses.wait().await {
                    return Err(Error::Cloud { doing: format!("attaching volume {id} to {node}"), cause });
                }
                continue;
            }
            if volume.state != VolumeState::Active {
                self.watcher
                    .until(id, Awaited::Created, Instant::now(), |v| (v.state == VolumeState::Active).then_some(()))
                    .await?;
            }
            let turn = self.queues.turn(node, Change::Attach).await;
            let asked = Instant::now();
            match self.cloud.attach_volume(id, node).await {
                Ok(()) => {
                    let attached = self
                        .watcher
                        .until(id, Awaited::Attached, asked, |v| v.attached_to.is_some().then(|| v.clone()))
                        .await?;
                    drop(turn);
                    if attached.attached_to.as_ref() == Some(node) {
                        info!(volume = %id, %node, "attached");
                        return Ok(attached);
                    }
                }
                // The instance is busy with something that is not ours.
                Err(cause @ CloudError::Busy(_)) => {
                    if !pauses.wait().await {
                        return Err(Error::Cloud { doing: format!("attaching volume {id} to {node}"), cause });
                    }
                }
                Err(cause) if cause.outcome_is_unknown() => {
                    warn!(volume = %id, %node, error = %cause, "not known whether the attach was taken");
                    if !pauses.wait().await {
                        let subject = format!("attaching volume {id} to {node}");
                        return Err(Error::OutcomeUnknown { subject, cause });
                    }
                }
                // The truth is what the volume says: it may be attached already, or gone.
                Err(cause) => refused = Some(cause),
            }
        }
    }

    /// The error for an attach that was refused though the volume is there and unattached, if its reason is to be seen.
    async fn why_not_attached(&self, id: &VolumeId, node: &NodeId, cause: &CloudError) -> Option<Error> {
        match self.cloud.instance_exists(node).await {
            Ok(false) => return Some(Error::NodeNotFound(node.to_string())),
            Ok(true) => {}
            Err(cause) => return Some(Error::Cloud { doing: format!("attaching volume {id} to {node}"), cause }),
        }
        let most = self.cloud.profile().attachments_per_instance as usize;
        let volumes = self.watcher.list().await.ok()?;
        let count = volumes.iter().filter(|volume| volume.attached_to.as_ref() == Some(node)).count();
        (count >= most).then(|| Error::Exhausted(format!("node {node} has {count} of at most {most} volumes: {cause}")))
    }

    pub(super) async fn detach(&self, id: &VolumeId, from: Option<&NodeId>) -> Result<(), Error> {
        let mut pauses = Pauses::new();
        let mut refused: Option<CloudError> = None;
        loop {
            let read = Instant::now();
            let volume = match self.read(id).await {
                Ok(volume) => volume,
                Err(Error::VolumeNotFound(_)) => return Ok(()),
                Err(Error::Cloud { doing, cause }) => {
                    if matches!(cause, CloudError::Unsupported(_)) || !pauses.wait().await {
                        return Err(Error::Cloud { doing, cause });
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            let node = match (volume.attached_to, from) {
                (None, _) => return Ok(()),
                (Some(on), Some(from)) if on != *from => return Ok(()),
                (Some(on), _) => on,
            };
            if volume.bootable {
                return Err(Error::Precondition(format!("volume {id} boots an instance; it is none of Kubernetes'")));
            }
            if let Some(cause) = refused.take()
                && !pauses.wait().await
            {
                return Err(Error::Cloud { doing: format!("detaching volume {id} from {node}"), cause });
            }
            let turn = self.queues.turn(&node, Change::Detach).await;
            if read.elapsed() > PROOF_KEPT && self.moved_on(id, &node).await? {
                continue;
            }
            let asked = Instant::now();
            match self.cloud.detach_volume(id, &node).await {
                Ok(()) => {
                    let off = self
                        .watcher
                        .until(id, Awaited::Detached, asked, |v| (v.attached_to.as_ref() != Some(&node)).then_some(()))
                        .await;
                    drop(turn);
                    return match off {
                        Ok(()) | Err(Error::VolumeNotFound(_)) => {
                            info!(volume = %id, %node, "detached");
                            Ok(())
                        }
                        Err(error) => Err(error),
                    };
                }
                // Also "not currently attached" and the API's flat "unable to detach": a read tells which.
                Err(cause) => {
                    warn!(volume = %id, %node, error = %cause, "the detach was not taken for certain");
                    refused = Some(cause);
                }
            }
        }
    }

    /// Whether the volume is no longer on `node`, by a read that begins now.
    async fn moved_on(&self, id: &VolumeId, node: &NodeId) -> Result<bool, Error> {
        match self.read(id).await {
            Ok(volume) => Ok(volume.attached_to.as_ref() != Some(node)),
            Err(Error::VolumeNotFound(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }
}
