//! ControllerPublishVolume: a volume is on the instance asked for.
//!
//! ```text
//!   read ──► on the instance? ──► done
//!     ▲          │ on none
//!     │          ▼
//!     │     queue ► attach ► wait ► done
//!     └── refused, busy, unknown, or it does not come about
//! ```
//! What is taken but does not come about within its deadline is told (`progress`), looked at, and asked for again.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::{
    Inner, ours,
    pauses::{Pauses, SETTLING_SLOW},
};
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

/// How long a change keeps its instance's turn.
const TURN_KEPT: Duration = Duration::from_secs(30);

/// How long an attach that is refused without a reason that can be seen is tried again.
const REFUSALS_TRIED: Duration = Duration::from_secs(15);
const FIRST_LOOK: Duration = Duration::from_millis(100);

impl Inner {
    pub(super) async fn attach(&self, id: &VolumeId, node: &NodeId) -> Result<Volume, Error> {
        let attached = self.bring(id, node).await;
        // The operation is in flight for as long as something can come of it: a process that ends in order with none says
        // that nothing of its own is still to come.
        if attached.is_err()
            && let Some(over) = self.doubts.over(id)
        {
            tokio::time::sleep_until(over).await;
        }
        attached
    }

    async fn bring(&self, id: &VolumeId, node: &NodeId) -> Result<Volume, Error> {
        let mut pauses = Pauses::new();
        let mut refused: Option<CloudError> = None;
        let mut refused_since: Option<Instant> = None;
        let mut in_doubt = false;
        loop {
            let volume = self.read_patiently(id, &mut pauses).await?;
            match &volume.attached_to {
                Some(on) if on == node => {
                    self.has_settled(id);
                    return with_serial(volume);
                }
                // Vultr leaves a deleted instance's volumes behind; such an attachment is nobody's.
                Some(other) if self.cloud.instance(other).await == Ok(InstanceState::Gone) => {
                    self.detach(id, Some(other)).await?;
                    continue;
                }
                Some(other) => {
                    // Getting it off there may be wanted as well, and hang.
                    self.progress.end_on(id, node);
                    return Err(Error::AttachedElsewhere { volume: id.to_string(), node: other.to_string() });
                }
                None => {}
            }
            ours(&volume)?;
            if let Some(cause) = refused.take() {
                // It may be an earlier attach, still under way, that this one was refused for.
                let since = *refused_since.get_or_insert_with(Instant::now);
                let last = since.elapsed() > REFUSALS_TRIED && !in_doubt;
                // Whether the instance is full is asked of the whole account, so only once at first and once at last.
                let first = since.elapsed() < FIRST_LOOK;
                if (first || last)
                    && let Some(error) = self.why_not_attached(id, node, &cause).await
                {
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
            self.doubts.attach_sent(id);
            self.progress.begin(id, Change::Attach(node.clone()));
            match self.cloud.attach_volume(id, node).await {
                Ok(()) => {
                    let taken = Instant::now();
                    self.progress.taken(id, Part::Place);
                    let arrived = |v: &Volume| v.attached_to.is_some().then(|| v.clone());
                    let on = self.volumes.watcher.until(id, Awaited::Attached, taken, arrived);
                    match holding(turn, on).await {
                        Ok(attached) if attached.attached_to.as_ref() == Some(node) => {
                            return self.brought(attached, node);
                        }
                        // The next read says where it is.
                        Ok(_) => self.has_settled(id),
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
                    drop(turn);
                    self.progress.tell(id, Part::Place, &cause);
                    if !in_doubt {
                        self.doubts.attach_over(id);
                    }
                    if !pauses.wait().await {
                        return Err(Error::Cloud { doing: format!("attaching volume {id} to {node}"), cause });
                    }
                }
                Err(cause) if cause.outcome_is_unknown() => {
                    drop(turn);
                    self.progress.not_done(id, Part::Place, &cause, SETTLING_SLOW);
                    warn!(volume = %id, %node, error = %cause, "not known whether the attach was taken");
                    in_doubt = true;
                    // It may have waited for its turn before it went out.
                    self.doubts.attach_sent(id);
                    if !pauses.wait().await {
                        let subject = format!("attaching volume {id} to {node}");
                        return Err(Error::OutcomeUnknown { subject, cause });
                    }
                }
                // The truth is what the volume says: it may be attached already, or gone.
                Err(cause) => {
                    self.progress.not_done(id, Part::Place, &cause, SETTLING_SLOW);
                    if !in_doubt {
                        self.doubts.attach_over(id);
                    }
                    refused = Some(cause);
                }
            }
        }
    }

    /// Notes that an attach of ours has come about.
    fn brought(&self, volume: Volume, node: &NodeId) -> Result<Volume, Error> {
        self.doubts.brought(&volume.id);
        self.has_settled(&volume.id);
        info!(volume = %volume.id, %node, "attached");
        with_serial(volume)
    }

    /// How a volume stands, asked for again for as long as the cloud gives no answer. A refused token is told at once: no
    /// pause mends it, and the event is where an operator finds the cloud's reason.
    pub(super) async fn read_patiently(&self, id: &VolumeId, pauses: &mut Pauses) -> Result<Volume, Error> {
        loop {
            match self.read(id).await {
                Err(Error::Cloud { ref cause, .. })
                    if !matches!(cause, CloudError::Unauthorized(_)) && pauses.wait().await => {}
                read => return read,
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
}

/// Waits with the instance's turn, but not for longer than a change usually takes: should the instance never answer,
/// others go on, and the cloud's own lock keeps them apart.
pub(super) async fn holding<T>(turn: Turn, wait: impl Future<Output = T>) -> T {
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
