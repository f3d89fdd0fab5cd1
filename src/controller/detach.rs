//! ControllerUnpublishVolume: a volume is off the instance asked about.
//!
//! ```text
//!   read ──► gone, on another, or on none (and nothing is bringing it on)? ──► done
//!     ▲          │ on this one
//!     │          ▼
//!     │     queue ► detach ► wait ► done
//!     └── refused, busy, unknown, or it does not come about
//! ```
//! A detach names no instance in Vultr's API, so it is sent only on the strength of a read that shows the volume on the
//! instance asked about, and never again without another one.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    Inner,
    attach::holding,
    ours,
    pauses::{Pauses, SETTLING, SETTLING_SLOW},
};
use crate::{
    cloud::{CloudError, InstanceState, queue, watch::Awaited},
    error::Error,
    progress::{Change, Part},
    volume::{NodeId, VolumeId},
};

/// A read older than this, because its operation had to queue, no longer entitles to a detach.
const PROOF_KEPT: Duration = Duration::from_secs(10);

impl Inner {
    pub(super) async fn detach(&self, id: &VolumeId, from: Option<&NodeId>) -> Result<(), Error> {
        let mut pauses = Pauses::new();
        let mut refused: Option<CloudError> = None;
        // What this process has asked for, or soon after its start its predecessor, may be on its way.
        let mut none_is_coming = self.begun.elapsed() > Awaited::Attached.deadline() && !self.doubts.has(id);
        loop {
            let read = Instant::now();
            // Of tries that it took, the first one's time: what it proves is proven by a later one all the more.
            let volume = match self.read_patiently(id, &mut pauses).await {
                Ok(volume) => volume,
                Err(Error::VolumeNotFound(_)) => {
                    self.forget(id);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let node = match (&volume.attached_to, from) {
                // What counts is an instance that is free, and after that a volume that is on none.
                (None, _) if !none_is_coming => {
                    none_is_coming = !self.may_be_coming(from).await;
                    if !none_is_coming && !pauses.wait().await {
                        let problem = format!("volume {id} is on no instance, but may be on its way to one");
                        return Err(Error::NotYet(problem));
                    }
                    continue;
                }
                (None, _) => match self.doubts.proves_detached(id, read) {
                    None => {
                        self.doubts.is_free(id);
                        self.progress.end(id, Part::Place);
                        return Ok(());
                    }
                    Some(when) => {
                        tokio::time::sleep_until(when).await;
                        continue;
                    }
                },
                (Some(on), Some(from)) if on != from => {
                    self.progress.end_on(id, from);
                    return Ok(());
                }
                (Some(on), _) => on.clone(),
            };
            ours(&volume)?;
            if let Some(cause) = refused.take()
                && !pauses.wait().await
            {
                return Err(Error::Cloud { doing: format!("detaching volume {id} from {node}"), cause });
            }
            let turn = self.queues.turn(&node, queue::Change::Detach).await;
            if read.elapsed() > PROOF_KEPT && self.moved_on(id, &node).await? {
                continue;
            }
            self.progress.begin(id, Change::Detach(node.clone()));
            match self.cloud.detach_volume(id, &node).await {
                Ok(()) => {
                    let off = self.volumes.watcher.until(id, Awaited::Detached, Instant::now(), |v| {
                        (v.attached_to.as_ref() != Some(&node)).then_some(())
                    });
                    match holding(turn, off).await {
                        Ok(()) => {
                            tokio::time::sleep_until(self.doubts.safe_from(id)).await;
                            self.doubts.is_free(id);
                            self.has_settled(id);
                            info!(volume = %id, %node, "detached");
                            return Ok(());
                        }
                        Err(Error::Gone { .. }) => {
                            self.forget(id);
                            return Ok(());
                        }
                        // It was taken and does not come about: asked for again, if the volume is still there.
                        Err(Error::NotYet(why)) => {
                            self.progress.tell(id, Part::Place, &why);
                            warn!(volume = %id, %node, why, "the detach does not end");
                            if !pauses.wait().await {
                                return Err(Error::NotYet(why));
                            }
                        }
                        Err(error) => return Err(error),
                    }
                }
                // Also "not currently attached" and the API's flat "unable to detach": a read tells which.
                Err(cause) => {
                    warn!(volume = %id, %node, error = %cause, "the detach was not taken for certain");
                    self.progress.tell(id, Part::Place, &cause);
                    drop(turn);
                    if cause.outcome_is_unknown() {
                        // It may still come, and would take the volume from wherever it is by then: nothing is sent or
                        // reported before it can have come.
                        tokio::time::sleep(SETTLING_SLOW).await;
                    }
                    refused = Some(cause);
                }
            }
        }
    }

    /// Notes that a change of where the volume is has come about.
    pub(super) fn has_settled(&self, id: &VolumeId) {
        self.doubts.attach_over(id);
        self.progress.end(id, Part::Place);
    }

    /// Whether an attach that this process or an earlier one asked for may still be carried out: it was taken, the volume
    /// is not there yet, and the instance is locked for it.
    async fn may_be_coming(&self, node: Option<&NodeId>) -> bool {
        // Before that the request itself may still be on its way, and the instance does not know of it.
        tokio::time::sleep_until(self.begun + SETTLING).await;
        let Some(node) = node else { return self.begun.elapsed() <= SETTLING_SLOW };
        // What cannot be found out is no proof.
        !matches!(self.cloud.instance(node).await, Ok(InstanceState::Idle | InstanceState::Gone))
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
