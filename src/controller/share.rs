//! File systems that many instances share: attached to each by itself, deleted when none has them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    Inner,
    pauses::{Pauses, SETTLING_SLOW},
    size::size_for,
};
use crate::{
    cloud::{Attachment, CloudError, InstanceState, Share, ShareAttachment, Shares, watch::Awaited},
    error::Error,
    progress::{Change, Part},
    volume::{NodeId, VolumeId},
};

/// For how long lists show where a shared file system was seen, before it is asked again.
const ATTACHMENTS_KEPT: Duration = Duration::from_secs(60);

/// How often an instance that is getting a shared file system is asked whether it has it.
const LOOK: Duration = Duration::from_secs(1);
/// How long that takes at most.
const LONGEST: Duration = Duration::from_secs(90);

/// Where shared file systems were last seen, for lists.
#[derive(Debug, Default)]
pub(super) struct KnownAttachments {
    seen: Mutex<BTreeMap<VolumeId, (Instant, Vec<NodeId>)>>,
}

impl KnownAttachments {
    fn of(&self, id: &VolumeId) -> Option<Vec<NodeId>> {
        let seen = self.lock();
        seen.get(id).filter(|(when, _)| when.elapsed() < ATTACHMENTS_KEPT).map(|(_, nodes)| nodes.clone())
    }

    fn note(&self, id: &VolumeId, when: Instant, nodes: Vec<NodeId>) {
        self.lock().insert(id.clone(), (when, nodes));
    }

    /// What was seen no longer holds.
    fn forget(&self, id: &VolumeId) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeId, (Instant, Vec<NodeId>)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    pub(super) async fn attach_share(&self, id: &VolumeId, node: &NodeId) -> Result<Attachment, Error> {
        let doing = || format!("attaching shared file system {id} to {node}");
        let mut pauses = Pauses::new();
        let began = Instant::now();
        loop {
            let found = match self.shares_api()?.share_attachment(id, node).await {
                Err(CloudError::NotFound(_)) => {
                    self.share_doubts.attach_sent(&(id.clone(), node.clone()));
                    self.progress.begin_shared(id, Change::Attach(node.clone()));
                    let attached = self.shares_api()?.attach_share(id, node).await;
                    if !attached.as_ref().is_err_and(CloudError::outcome_is_unknown) {
                        self.share_doubts.attach_over(&(id.clone(), node.clone()));
                    }
                    if let Err(cause) = &attached {
                        self.progress.not_done(id, Part::On(node.clone()), cause, SETTLING_SLOW);
                    }
                    self.known_attachments.forget(id);
                    attached
                }
                found => found,
            };
            match found {
                Ok(ShareAttachment { ready: true, tag, .. }) => {
                    self.progress.end(id, Part::On(node.clone()));
                    info!(volume = %id, %node, "attached");
                    return Ok(Attachment::Share { tag });
                }
                // On its way, whoever asked for it
                Ok(_) if began.elapsed() < LONGEST => {
                    self.progress.begin_shared(id, Change::Attach(node.clone()));
                    self.progress.taken(id, Part::On(node.clone()));
                    tokio::time::sleep(LOOK).await;
                }
                Ok(_) => {
                    let after = began.elapsed().as_secs();
                    return Err(Error::NotYet(format!("volume {id} is not attached to {node} after {after} s")));
                }
                Err(CloudError::NotFound(_)) => return Err(self.why_share_not_attached(id, node).await),
                Err(cause) if cause.outcome_is_unknown() || matches!(cause, CloudError::Busy(_)) => {
                    if !pauses.wait().await {
                        return Err(Error::OutcomeUnknown { subject: doing(), cause });
                    }
                }
                // Perhaps because it is attached by now, by a request whose answer was lost: a read tells.
                Err(cause @ CloudError::Refused { .. }) => {
                    if self.cloud.instance(node).await == Ok(InstanceState::Gone) {
                        return Err(Error::NodeNotFound(node.to_string()));
                    }
                    if pauses.tried() >= 2 || !pauses.wait().await {
                        return Err(Error::Cloud { doing: doing(), cause });
                    }
                }
                Err(cause) => return Err(Error::Cloud { doing: doing(), cause }),
            }
        }
    }

    /// Which of the two does not exist.
    async fn why_share_not_attached(&self, id: &VolumeId, node: &NodeId) -> Error {
        match self.read_share(id).await {
            Err(error) => error,
            Ok(_) => match self.cloud.instance(node).await {
                Ok(InstanceState::Gone) => Error::NodeNotFound(node.to_string()),
                Ok(InstanceState::Idle | InstanceState::Locked) => {
                    Error::NotYet(format!("neither volume {id} nor node {node} is missing; the call can be repeated"))
                }
                Err(cause) => Error::Cloud { doing: format!("reading instance {node}"), cause },
            },
        }
    }

    pub(super) async fn detach_share(&self, id: &VolumeId, node: Option<&NodeId>) -> Result<(), Error> {
        let nodes = match node {
            Some(node) => vec![node.clone()],
            None => match self.attachments(id).await {
                Ok(nodes) => nodes,
                Err(Error::VolumeNotFound(_)) => return Ok(()),
                Err(error) => return Err(error),
            },
        };
        for node in nodes {
            self.detach_share_from(id, &node).await?;
        }
        Ok(())
    }

    async fn detach_share_from(&self, id: &VolumeId, node: &NodeId) -> Result<(), Error> {
        let doing = || format!("detaching shared file system {id} from {node}");
        let mut pauses = Pauses::new();
        let mut taken: Option<Instant> = None;
        loop {
            // That it is off is what the cloud shows, not what it was asked; and that nothing brings it on any more.
            let read = Instant::now();
            match self.shares_api()?.share_attachment(id, node).await {
                Err(CloudError::NotFound(_)) => {
                    if let Some(when) = self.share_doubts.proves_detached(&(id.clone(), node.clone()), read) {
                        tokio::time::sleep_until(when).await;
                        continue;
                    }
                    self.known_attachments.forget(id);
                    self.progress.end(id, Part::On(node.clone()));
                    info!(volume = %id, %node, "detached");
                    return Ok(());
                }
                Err(cause) => {
                    if !pauses.wait().await {
                        return Err(Error::Cloud { doing: doing(), cause });
                    }
                    continue;
                }
                Ok(_) => {}
            }
            match taken {
                Some(since) if since.elapsed() < LONGEST => {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                Some(since) => {
                    let after = since.elapsed().as_secs();
                    return Err(Error::NotYet(format!("volume {id} is still attached to {node} after {after} s")));
                }
                None => {}
            }
            self.progress.begin_shared(id, Change::Detach(node.clone()));
            match self.shares_api()?.detach_share(id, node).await {
                Ok(()) | Err(CloudError::NotFound(_)) => taken = Some(Instant::now()),
                Err(cause @ CloudError::Unauthorized(_)) => return Err(Error::Cloud { doing: doing(), cause }),
                // Perhaps because it is on its way off: the next look tells.
                Err(cause) => {
                    warn!(volume = %id, %node, error = %cause, "the detach was not taken for certain");
                    if !pauses.wait().await {
                        return Err(Error::Cloud { doing: doing(), cause });
                    }
                }
            }
        }
    }

    pub(super) async fn delete_share(&self, id: &VolumeId) -> Result<(), Error> {
        let mut pauses = Pauses::new();
        loop {
            let nodes = match self.attachments(id).await {
                Ok(nodes) => nodes,
                Err(Error::VolumeNotFound(_)) => {
                    self.forget(id);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            for node in &nodes {
                match self.cloud.instance(node).await {
                    // An attachment to an instance that is gone is nobody's.
                    Ok(InstanceState::Gone) => self.detach_share_from(id, node).await?,
                    Ok(InstanceState::Idle | InstanceState::Locked) => {
                        return Err(Error::Precondition(format!(
                            "volume {id} is attached to {node}; it has to be unpublished there before it is deleted"
                        )));
                    }
                    Err(cause) => return Err(Error::Cloud { doing: format!("reading instance {node}"), cause }),
                }
            }
            match self.shares_api()?.delete_share(id).await {
                Ok(()) | Err(CloudError::NotFound(_)) => {
                    self.forget(id);
                    self.known_attachments.forget(id);
                    info!(volume = %id, "deleted");
                    return Ok(());
                }
                Err(cause) if cause.outcome_is_unknown() || matches!(cause, CloudError::Busy(_)) => {
                    if !pauses.wait().await {
                        return Err(Error::OutcomeUnknown { subject: format!("deleting volume {id}"), cause });
                    }
                }
                // 409 means that it is closed already: the next read tells.
                Err(CloudError::Refused { status: 409, text }) if pauses.tried() < 2 => {
                    warn!(volume = %id, text, "the delete was refused; perhaps it is deleted already");
                    pauses.wait().await;
                }
                Err(cause) => return Err(Error::Cloud { doing: format!("deleting volume {id}"), cause }),
            }
        }
    }

    pub(super) async fn expand_share(&self, id: &VolumeId, required: u64, limit: u64) -> Result<Share, Error> {
        let mut pauses = Pauses::new();
        loop {
            let share = self.read_share(id).await?;
            if limit != 0 && share.size.bytes() > limit {
                return Err(Error::OutOfRange(format!(
                    "volume {id} has {}, more than the limit of {limit} bytes; volumes cannot shrink",
                    share.size
                )));
            }
            if share.size.bytes() >= required {
                return Ok(share);
            }
            let Some(kind) = share.volume_type else {
                return Err(Error::Precondition(format!("the type of volume {id} is not known, nor then its limits")));
            };
            let size = size_for(kind, required, limit)?;
            match self.shares_api()?.grow_share(id, size).await {
                Ok(()) => {
                    let taken = Instant::now();
                    let grown = |seen: &Share| (seen.size >= size).then(|| seen.clone());
                    let grown = self.shares.watcher.until(id, Awaited::Grown, taken, grown).await?;
                    info!(volume = %id, from = %share.size, to = %grown.size, "grown");
                    return Ok(grown);
                }
                Err(cause) if cause.outcome_is_unknown() || matches!(cause, CloudError::Busy(_)) => {
                    if !pauses.wait().await {
                        return Err(Error::OutcomeUnknown { subject: format!("growing volume {id}"), cause });
                    }
                }
                Err(CloudError::NotFound(_)) => return Err(Error::VolumeNotFound(id.to_string())),
                Err(cause) => return Err(Error::Cloud { doing: format!("growing volume {id} to {size}"), cause }),
            }
        }
    }

    pub(super) async fn read_share(&self, id: &VolumeId) -> Result<Share, Error> {
        self.shares.watcher.read(id).await.map_err(|cause| super::unread(id, cause))
    }

    /// The instances that have it, by a read that begins now.
    pub(super) async fn attachments(&self, id: &VolumeId) -> Result<Vec<NodeId>, Error> {
        let read = Instant::now();
        let attachments = self.shares_api()?.share_attachments(id).await;
        let attachments = attachments.map_err(|cause| super::unread(id, cause))?;
        let nodes: Vec<NodeId> = attachments.into_iter().map(|attachment| attachment.node).collect();
        self.known_attachments.note(id, read, nodes.clone());
        Ok(nodes)
    }

    /// The instances that have it, as seen within the last minute.
    pub(super) async fn attachments_of_late(&self, id: &VolumeId) -> Result<Vec<NodeId>, Error> {
        match self.known_attachments.of(id) {
            Some(nodes) => Ok(nodes),
            None => self.attachments(id).await,
        }
    }

    pub(super) fn shares_api(&self) -> Result<&dyn Shares, Error> {
        let missing = || Error::Precondition(format!("{} has no shared file systems", self.cloud.profile().name));
        self.cloud.shares().ok_or_else(missing)
    }
}
