//! Decides what to ask of the cloud so that it ends up as Kubernetes wants it, whatever crashed, timed out or repeated.
//!
//! Every operation is convergent: it finds out how things stand, does what is missing, and reports success only on
//! the cloud's own word. A reply that did not come (`CloudError::Unknown`) sends it back to finding out.

mod attach;
mod create;
mod delete;
mod detach;
mod doubt;
mod expand;
mod health;
mod list;
#[cfg(test)]
mod model;
mod once;
mod operation;
mod pauses;
mod region;
#[cfg(test)]
mod scenarios;
mod share;
mod size;
mod snapshot;
mod sources;
mod sweep;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex},
};

use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

pub use create::{Create, Source};
pub use health::Ailment;
pub use list::{Shown, VolumeList};
pub use region::HomeRegion;
pub use snapshot::{Restorable, SnapshotList};

pub use crate::cloud::label::Cluster;

use self::{
    doubt::Doubts, list::LastShares, once::Things, operation::Operation, region::Offers, share::KnownAttachments,
    sources::Sources,
};
use crate::{
    cloud::{Attachment, Cloud, CloudError, Share, Snapshot, Volume, VolumeType, queue::Queues},
    error::Error,
    metrics::Metrics,
    operations::Operations,
    progress::{Part, Progress},
    volume::{Gib, NodeId, SnapshotId, VolumeId},
};

/// What a controller is told beforehand.
#[derive(Debug)]
pub struct Setting {
    /// Where volumes go that come without a requirement.
    pub home: HomeRegion,
    /// Whom it works for.
    pub cluster: Cluster,
    /// Where it notes what is under way, and what does not come about.
    pub metrics: Metrics,
}

/// What an id names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// A volume that is a disk of one instance.
    Disk,
    /// A file system that many instances share.
    Share,
    /// Nothing.
    Gone,
}

/// The controller's side of every volume.
#[derive(Clone)]
pub struct Controller {
    inner: Arc<Inner>,
}

struct Inner {
    cloud: Arc<dyn Cloud>,
    volumes: Things<Volume>,
    snapshots: Things<Snapshot>,
    shares: Things<Share>,
    queues: Queues,
    operations: Operations<Operation>,
    home: HomeRegion,
    offers: Offers,
    cluster: Cluster,
    progress: Progress,
    sources: Sources,
    /// When this process began: an earlier one may have died between a request and its effect.
    begun: Instant,
    doubts: Doubts,
    /// The same of shared file systems, for each instance by itself.
    share_doubts: Doubts<(VolumeId, NodeId)>,
    /// When each volume was last changed by us, for clouds that want a pause between changes.
    changed: Mutex<HashMap<VolumeId, Instant>>,
    /// Names of snapshots that were asked for here and whose id no caller has been told yet.
    untold: Mutex<HashSet<String>>,
    /// Volumes that are gone and of which there are snapshots by somebody else.
    gone_sources: Mutex<HashSet<VolumeId>>,
    known_attachments: KnownAttachments,
    last_shares: LastShares,
    /// Snapshots that look like a clone's leftovers, and when they were first seen to be done.
    leftovers: tokio::sync::Mutex<BTreeMap<SnapshotId, Instant>>,
}

impl Controller {
    /// A controller of this cloud's volumes whose operations are tracked by `tasks`.
    pub fn new(cloud: Arc<dyn Cloud>, setting: Setting, tasks: TaskTracker) -> Self {
        let Setting { home, cluster, metrics } = setting;
        let inner = Arc::new(Inner {
            volumes: Things::new(Arc::clone(&cloud), metrics.clone()),
            snapshots: Things::new(Arc::clone(&cloud), metrics.clone()),
            shares: Things::new(Arc::clone(&cloud), metrics.clone()),
            cloud,
            queues: Queues::default(),
            operations: Operations::new(tasks, metrics.clone()),
            home,
            offers: Offers::default(),
            cluster,
            progress: metrics.progress.clone(),
            sources: Sources::default(),
            begun: Instant::now(),
            doubts: Doubts::new(),
            share_doubts: Doubts::new(),
            changed: Mutex::default(),
            untold: Mutex::default(),
            gone_sources: Mutex::default(),
            known_attachments: KnownAttachments::default(),
            last_shares: LastShares::default(),
            leftovers: tokio::sync::Mutex::default(),
        });
        Self { inner }
    }

    /// Lists the account, so that the first create does not have to; ends after one attempt, successful or not.
    pub async fn start(&self) {
        match self.inner.volumes.known().await {
            Ok(()) => info!("the account's volumes are listed"),
            Err(error) => warn!(%error, "the account cannot be listed yet; the first create tries again"),
        }
    }

    /// Tells what an earlier process has made beside this one, once that has to be there; then it ends.
    pub async fn look_back(&self) {
        let Inner { volumes, snapshots, shares, .. } = &*self.inner;
        tokio::join!(volumes.look_back(), snapshots.look_back(), shares.look_back());
    }

    /// Whether the cloud has snapshots.
    pub fn has_snapshots(&self) -> bool {
        self.inner.cloud.snapshots().is_some()
    }

    /// Makes the volume of this name, or finds it.
    ///
    /// # Errors
    /// [`Error::Differs`] if the name is taken by a volume that is not what is asked.
    pub async fn create(&self, create: Create) -> Result<Shown, Error> {
        let inner = Arc::clone(&self.inner);
        let work = create.clone();
        let run = async move {
            if work.volume_type.shared {
                inner.create_share(work).await.map(Shown::from)
            } else {
                inner.create(work).await.map(Shown::from)
            }
        };
        self.inner.operations.run(&create.name.clone(), Operation::Create(create), run).await
    }

    /// Deletes a volume; one that is gone is deleted.
    ///
    /// # Errors
    /// [`Error::Precondition`] while an instance has it, or something is made from it.
    pub async fn delete(&self, id: VolumeId) -> Result<(), Error> {
        let which = self.inner.which(&id).await?;
        let inner = Arc::clone(&self.inner);
        let subject = id.to_string();
        // A create under its name that is still in flight would find it gone and make another, for nobody.
        let names = [self.inner.volumes.names.name_of(&id), self.inner.shares.names.name_of(&id)];
        for name in names.into_iter().flatten() {
            self.inner.operations.free(&name, &Operation::Delete)?;
        }
        let run = async move {
            inner.sources.free(id.as_str())?;
            match which {
                Which::Gone => {
                    inner.forget(&id);
                    Ok(())
                }
                Which::Disk => inner.delete(&id).await,
                Which::Share => inner.delete_share(&id).await,
            }
        };
        self.inner.operations.run(&subject, Operation::Delete, run).await
    }

    /// Attaches a volume to an instance, and returns what that is told of it.
    ///
    /// # Errors
    /// [`Error::AttachedElsewhere`] if another instance has it and it is not to be shared.
    pub async fn attach(&self, id: VolumeId, node: NodeId) -> Result<Attachment, Error> {
        let inner = Arc::clone(&self.inner);
        let operation = Operation::Attach(node.clone());
        match self.inner.which(&id).await? {
            Which::Gone => Err(Error::VolumeNotFound(id.to_string())),
            Which::Disk => {
                let subject = id.to_string();
                let run = async move { inner.attach(&id, &node).await };
                let volume = self.inner.operations.run(&subject, operation, run).await?;
                Ok(Attachment::Disk { serial: volume.serial, size: Some(volume.size) })
            }
            Which::Share => {
                // Each instance by itself: they do not wait for each other.
                let subject = format!("{id} on {node}");
                let run = async move { inner.attach_share(&id, &node).await };
                self.inner.operations.run(&subject, operation, run).await
            }
        }
    }

    /// Detaches a volume from `node`, or from whichever instances have it where none is named.
    ///
    /// # Errors
    /// The cloud's; a volume that is gone or elsewhere is detached.
    pub async fn detach(&self, id: VolumeId, node: Option<NodeId>) -> Result<(), Error> {
        let inner = Arc::clone(&self.inner);
        let operation = Operation::Detach(node.clone());
        match self.inner.which(&id).await? {
            Which::Gone => {
                self.inner.forget(&id);
                Ok(())
            }
            Which::Disk => {
                let subject = id.to_string();
                let run = async move { inner.detach(&id, node.as_ref()).await };
                self.inner.operations.run(&subject, operation, run).await
            }
            Which::Share => {
                let subject = node.as_ref().map_or_else(|| id.to_string(), |node| format!("{id} on {node}"));
                let run = async move { inner.detach_share(&id, node.as_ref()).await };
                self.inner.operations.run(&subject, operation, run).await
            }
        }
    }

    /// Makes a volume at least as large as `required_bytes`, and returns it as it then stands.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if the cloud has no such size within the limit.
    pub async fn expand(&self, id: VolumeId, required_bytes: u64, limit_bytes: u64) -> Result<Shown, Error> {
        let which = self.inner.which(&id).await?;
        let now = match which {
            Which::Gone => return Err(Error::VolumeNotFound(id.to_string())),
            Which::Disk => Shown::from(self.inner.read(&id).await?),
            Which::Share => Shown::from(self.inner.read_share(&id).await?),
        };
        // What is there already has to wait for nothing.
        if now.size.bytes() >= required_bytes && (limit_bytes == 0 || now.size.bytes() <= limit_bytes) {
            self.inner.progress.end(&id, Part::Size);
            return Ok(now);
        }
        let inner = Arc::clone(&self.inner);
        // It may have to wait for a minute; nobody who wants the volume elsewhere has to wait for that.
        let subject = format!("size of {id}");
        let run = async move {
            match which {
                Which::Share => inner.expand_share(&id, required_bytes, limit_bytes).await.map(Shown::from),
                _ => inner.expand(&id, required_bytes, limit_bytes).await.map(Shown::from),
            }
        };
        let operation = Operation::Expand { required_bytes, limit_bytes };
        self.inner.operations.run(&subject, operation, run).await
    }

    /// The largest volume of a kind that can be had in a region (in lower case), or in any.
    ///
    /// # Errors
    /// The cloud's.
    pub async fn capacity(&self, kind: &'static VolumeType, region: Option<&str>) -> Result<Gib, Error> {
        self.inner.capacity(kind, region).await
    }
}

impl Inner {
    /// What an id names. Disks are asked first; an id names nothing only when both say so.
    async fn which(&self, id: &VolumeId) -> Result<Which, Error> {
        if self.volumes.names.knows(id) {
            return Ok(Which::Disk);
        }
        if self.shares.names.knows(id) {
            return Ok(Which::Share);
        }
        let unread = |cause| Error::Cloud { doing: format!("reading volume {id}"), cause };
        match self.volumes.watcher.read(id).await {
            Ok(volume) => {
                self.volumes.names.insert(&volume);
                return Ok(Which::Disk);
            }
            Err(CloudError::NotFound(_)) if self.cloud.shares().is_none() => return Ok(Which::Gone),
            Err(CloudError::NotFound(_)) => {}
            Err(cause) => return Err(unread(cause)),
        }
        match self.shares.watcher.read(id).await {
            Ok(share) => {
                self.shares.names.insert(&share);
                Ok(Which::Share)
            }
            Err(CloudError::NotFound(_)) => Ok(Which::Gone),
            // Disks do not know it; as long as nobody can ask the other half it is not known to be gone.
            Err(CloudError::Refused { status, text }) => {
                Err(unread(CloudError::Unknown(format!("disks do not know it, and the rest says {status}: {text}"))))
            }
            Err(cause) => Err(unread(cause)),
        }
    }

    /// Forgets a volume that is gone.
    fn forget(&self, id: &VolumeId) {
        self.volumes.names.remove(id);
        self.shares.names.remove(id);
        self.progress.forget(id);
    }

    /// How a disk stands, by a read that begins now.
    async fn read(&self, id: &VolumeId) -> Result<Volume, Error> {
        self.volumes.watcher.read(id).await.map_err(|cause| unread(id, cause))
    }
}

/// The error of a read.
fn unread(id: &VolumeId, cause: CloudError) -> Error {
    match cause {
        CloudError::NotFound(_) => Error::VolumeNotFound(id.to_string()),
        cause => Error::Cloud { doing: format!("reading volume {id}"), cause },
    }
}

/// Refuses a volume that boots an instance: whatever its name, it was never Kubernetes'.
fn ours(volume: &Volume) -> Result<(), Error> {
    if volume.bootable {
        let problem = format!("volume {} boots an instance; it is none of Kubernetes'", volume.id);
        return Err(Error::Precondition(problem));
    }
    Ok(())
}
