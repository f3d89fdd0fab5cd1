//! ControllerPublishVolume and ControllerUnpublishVolume: a volume is on the instance asked for, or off it.
//!
//! ```text
//!   read ──► on the instance? ──► done        read ──► gone, on none, or on another? ──► done
//!     ▲          │ on none                      ▲          │ on this one
//!     │          ▼                              │          ▼
//!     │     queue ► attach ► wait ► done        │     queue ► detach ► wait ► done
//!     └── refused, busy or unknown              └── refused, busy or unknown
//! ```
//! What is taken but does not come about within its deadline is told (`progress`), looked at, and asked for again. A
//! detach names no instance in Vultr's API, so it is sent only on the strength of a read that shows the volume on
//! the instance asked about, and never again without another one.

use std::{
    collections::HashMap,
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::{Inner, Pauses, SETTLING, SETTLING_SLOW, ours, settling};
use crate::{
    cloud::{
        CloudError, InstanceState, Volume, VolumeState,
        queue::{self, Turn},
        watch::Awaited,
    },
    error::Error,
    progress::{Change, Part},
    volume::{NodeId, VolumeId},
};

/// A read older than this, because its operation had to queue, no longer entitles to a detach.
const PROOF_KEPT: Duration = Duration::from_secs(10);

/// How long a change keeps its instance's turn.
const TURN_KEPT: Duration = Duration::from_secs(30);

/// How long an attach that is refused without a reason that can be seen is tried again.
const REFUSALS_TRIED: Duration = Duration::from_secs(15);

impl Inner {
    pub(super) async fn attach(&self, id: &VolumeId, node: &NodeId) -> Result<Volume, Error> {
        let mut pauses = Pauses::new();
        let mut refused: Option<CloudError> = None;
        let mut refused_since: Option<Instant> = None;
        let mut in_doubt = false;
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
                Some(on) if on == node => {
                    self.settled(id);
                    return with_serial(volume);
                }
                Some(other) => {
                    self.progress.end(id, Part::Place);
                    return Err(Error::AttachedElsewhere { volume: id.to_string(), node: other.to_string() });
                }
                None => {}
            }
            ours(&volume)?;
            if let Some(cause) = refused.take() {
                // It may be an earlier attach, still under way, that this one was refused for.
                let since = *refused_since.get_or_insert_with(Instant::now);
                let last = since.elapsed() > REFUSALS_TRIED && !in_doubt;
                if let Some(error) = self.why_not_attached(id, node, &cause).await {
                    return Err(error);
                }
                if last || !pauses.wait().await {
                    return Err(Error::Cloud { doing: format!("attaching volume {id} to {node}"), cause });
                }
                continue;
            }
            if volume.state != VolumeState::Active {
                self.volumes
                    .watcher
                    .until(id, Awaited::Created, Instant::now(), |v| (v.state == VolumeState::Active).then_some(()))
                    .await?;
            }
            let turn = self.queues.turn(node, queue::Change::Attach).await;
            let asked = Instant::now();
            self.attaching().insert(id.clone(), asked);
            self.progress.begin(id, Change::Attach(node.clone()));
            match self.cloud.attach_volume(id, node).await {
                Ok(()) => {
                    let taken = Instant::now();
                    let arrived = |v: &Volume| v.attached_to.is_some().then(|| v.clone());
                    let on = self.volumes.watcher.until(id, Awaited::Attached, taken, arrived);
                    match holding(turn, on).await {
                        Ok(attached) if attached.attached_to.as_ref() == Some(node) => {
                            self.settled(id);
                            info!(volume = %id, %node, "attached");
                            return with_serial(attached);
                        }
                        // The next read says where it is.
                        Ok(_) => self.settled(id),
                        // It was taken and does not come about: asked for again after another look. Vultr refuses that
                        // if the first one is still on its way.
                        Err(Error::NotYet(why)) => {
                            self.progress.tell(id, Part::Place, &why);
                            warn!(volume = %id, %node, why, "the attach does not end");
                            in_doubt = true;
                            if !pauses.wait().await {
                                return Err(Error::NotYet(why));
                            }
                        }
                        Err(Error::Gone { .. }) => return Err(Error::VolumeNotFound(id.to_string())),
                        Err(error) => return Err(error),
                    }
                }
                // The instance is busy with something that is not ours.
                Err(cause @ CloudError::Busy(_)) => {
                    self.progress.tell(id, Part::Place, &cause);
                    if !in_doubt {
                        self.attaching().remove(id);
                    }
                    if !pauses.wait().await {
                        return Err(Error::Cloud { doing: format!("attaching volume {id} to {node}"), cause });
                    }
                }
                Err(cause) if cause.outcome_is_unknown() => {
                    warn!(volume = %id, %node, error = %cause, "not known whether the attach was taken");
                    in_doubt = true;
                    if !pauses.wait().await {
                        let subject = format!("attaching volume {id} to {node}");
                        return Err(Error::OutcomeUnknown { subject, cause });
                    }
                }
                // The truth is what the volume says: it may be attached already, or gone.
                Err(cause) => {
                    self.progress.tell(id, Part::Place, &cause);
                    if !in_doubt {
                        self.attaching().remove(id);
                    }
                    refused = Some(cause);
                }
            }
        }
    }

    /// The error for an attach that was refused though the volume is there and unattached, if its reason is to be seen.
    async fn why_not_attached(&self, id: &VolumeId, node: &NodeId, cause: &CloudError) -> Option<Error> {
        match self.cloud.instance(node).await {
            Ok(InstanceState::Gone) => return Some(Error::NodeNotFound(node.to_string())),
            Ok(InstanceState::Idle | InstanceState::Locked) => {}
            Err(cause) => return Some(Error::Cloud { doing: format!("attaching volume {id} to {node}"), cause }),
        }
        let most = self.cloud.profile().attachments_per_instance as usize;
        let volumes = self.volumes.watcher.list().await.ok()?;
        let count = volumes.iter().filter(|volume| volume.attached_to.as_ref() == Some(node)).count();
        (count >= most).then(|| Error::Exhausted(format!("node {node} has {count} of at most {most} volumes: {cause}")))
    }

    pub(super) async fn detach(&self, id: &VolumeId, from: Option<&NodeId>) -> Result<(), Error> {
        let mut pauses = Pauses::new();
        let mut refused: Option<CloudError> = None;
        let mut none_is_coming = self.begun.elapsed() > Awaited::Attached.deadline();
        loop {
            let read = Instant::now();
            let volume = match self.read(id).await {
                Ok(volume) => volume,
                Err(Error::VolumeNotFound(_)) => {
                    self.forget(id);
                    return Ok(());
                }
                Err(Error::Cloud { doing, cause }) => {
                    if !pauses.wait().await {
                        return Err(Error::Cloud { doing, cause });
                    }
                    continue;
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
                (None, _) => match self.proves_detached(id, read) {
                    None => {
                        self.is_free(id);
                        self.progress.end(id, Part::Place);
                        return Ok(());
                    }
                    Some(when) => {
                        tokio::time::sleep_until(when).await;
                        continue;
                    }
                },
                // What is wanted of it on another node is not over.
                (Some(on), Some(from)) if on != from => return Ok(()),
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
            let asked = Instant::now();
            self.progress.begin(id, Change::Detach(node.clone()));
            match self.cloud.detach_volume(id, &node).await {
                Ok(()) => {
                    let off = self.volumes.watcher.until(id, Awaited::Detached, Instant::now(), |v| {
                        (v.attached_to.as_ref() != Some(&node)).then_some(())
                    });
                    match holding(turn, off).await {
                        Ok(()) => {
                            self.is_free(id);
                            self.settled(id);
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
                        tokio::time::sleep(settling(asked.elapsed())).await;
                    }
                    refused = Some(cause);
                }
            }
        }
    }

    /// Notes that a change of where the volume is has come about.
    fn settled(&self, id: &VolumeId) {
        self.attaching().remove(id);
        self.progress.end(id, Part::Place);
    }

    /// Notes that nothing of an earlier process can still bring a volume to an instance.
    pub(super) fn is_free(&self, id: &VolumeId) {
        if self.begun.elapsed() <= SETTLING_SLOW {
            self.free_since_start.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        }
    }

    /// From when on a read that shows a volume on no instance proves that no earlier process brings it to one.
    pub(super) fn free_from(&self, id: &VolumeId) -> Instant {
        let mut free = self.free_since_start.lock().unwrap_or_else(PoisonError::into_inner);
        if self.begun.elapsed() > SETTLING_SLOW {
            free.clear();
        }
        if free.contains(id) { self.begun } else { self.begun + SETTLING_SLOW }
    }

    fn attaching(&self) -> MutexGuard<'_, HashMap<VolumeId, Instant>> {
        self.attaching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` if a read of that time which shows the volume on no instance proves that none will have it; else when
    /// to read again. An attach that nobody saw the end of, ours or an earlier process's, may still be coming.
    pub(super) fn proves_detached(&self, id: &VolumeId, read: Instant) -> Option<Instant> {
        let of_ours = self.attaching().get(id).map(|asked| *asked + SETTLING_SLOW);
        let settled = of_ours.unwrap_or(self.begun + SETTLING).max(self.begun + SETTLING);
        if read >= settled {
            self.attaching().remove(id);
            return None;
        }
        Some(settled)
    }

    /// Whether an attach that an earlier process asked for may still be carried out: the cloud has taken it, the volume
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

/// Waits with the instance's turn, but not for longer than a change usually takes: should the instance never answer,
/// others go on, and the cloud's own lock keeps them apart.
async fn holding<T>(turn: Turn, wait: impl Future<Output = T>) -> T {
    let mut wait = std::pin::pin!(wait);
    if let Ok(done) = timeout(TURN_KEPT, &mut wait).await {
        return done;
    }
    drop(turn);
    wait.await
}

/// A node can prove a disk only by a serial.
fn with_serial(volume: Volume) -> Result<Volume, Error> {
    if volume.serial.is_empty() {
        return Err(Error::NotYet(format!(
            "volume {} is attached, but the cloud does not show its serial yet",
            volume.id
        )));
    }
    Ok(volume)
}
