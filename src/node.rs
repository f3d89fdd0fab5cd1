//! The node domain: makes an attached disk usable by workloads on this machine, and lets go of it again.
//!
//! `rpc` calls [`Node`]; every change of a volume is one operation, which repeated calls join (P7) and which holds the
//! volume's lock, also against programs that an earlier run of the driver left working. The rooms:
//!
//! - `stage`, `publish`, `expand`, `stats`: the operations, each with its states in the header;
//! - `device`: proof of identity; `blank`: proof of blankness; `format` and `filesystem`: what a disk holds, and
//!   making it; `mount`, `mountinfo`, `options`: the mount table and changing it;
//! - `record` and `lock`: what outlives the process; `host`: the seam to the machine.

mod blank;
mod device;
mod expand;
mod filesystem;
mod format;
pub mod host;
mod key;
pub mod lock;
mod mount;
pub mod mountinfo;
mod options;
mod publish;
mod record;
mod stage;
mod stats;

use std::{
    collections::HashSet,
    fmt,
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::task::TaskTracker;

pub use self::{
    host::{Counts, Host, Linux, Paths},
    key::Key,
    stats::{Condition, Stats, Usage},
};
use self::{lock::Lock, record::Records};
use crate::{
    cloud::{Attachment, Profile},
    error::Error,
    operations::Operations,
    volume::{Access, VolumeId},
};

/// A volume to be staged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// The volume.
    pub volume: VolumeId,
    /// Where its file system is mounted for the node as a whole.
    pub staging_path: PathBuf,
    /// How workloads will see it.
    pub access: Access,
    /// What the cloud says of its disk.
    pub attachment: Attachment,
    /// The disk may be formatted if it is proven blank.
    pub blank: bool,
    /// Nobody will write to it.
    pub read_only: bool,
    /// The disk is encrypted with this key.
    pub key: Option<Key>,
    /// Options for the program that makes the file system, checked.
    pub mkfs_options: Vec<String>,
}

/// A staged volume to be published to a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The volume.
    pub volume: VolumeId,
    /// Where it is staged.
    pub staging_path: PathBuf,
    /// Where the workload will find it.
    pub target_path: PathBuf,
    /// How the workload sees it.
    pub access: Access,
    /// The workload may not write to it.
    pub read_only: bool,
    /// No other workload may have it at the same time (CSI: SINGLE_NODE_SINGLE_WRITER).
    pub single_writer: bool,
    /// What the cloud says of its disk, if the request tells.
    pub attachment: Option<Attachment>,
}

/// A change of a volume on this node, described completely.
#[derive(Debug, Clone, PartialEq, Eq)]
enum NodeOperation {
    Stage(Stage),
    Unstage(PathBuf),
    Publish(Publish),
    Unpublish(PathBuf),
    Expand(PathBuf, Option<u64>),
}

impl fmt::Display for NodeOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage(stage) => write!(f, "stage at {}", stage.staging_path.display()),
            Self::Unstage(path) => write!(f, "unstage from {}", path.display()),
            Self::Publish(publish) => write!(f, "publish at {}", publish.target_path.display()),
            Self::Unpublish(path) => write!(f, "unpublish from {}", path.display()),
            Self::Expand(path, _) => write!(f, "expand at {}", path.display()),
        }
    }
}

/// How long is waited for what the machine does by itself.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// For the disk of an attached volume.
    arrival: Duration,
    /// For a disk to show its new size.
    growth: Duration,
    /// For a file system to say how full it is.
    usage: Duration,
    /// For an unmount, before it is asked whether the disk is still there.
    unmount: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            arrival: Duration::from_secs(60),
            growth: Duration::from_secs(15),
            usage: Duration::from_secs(2),
            unmount: Duration::from_secs(5),
        }
    }
}

/// What the operations share.
struct Core {
    host: Arc<dyn Host>,
    profile: &'static Profile,
    records: Records,
    patience: Patience,
    /// Paths whose file systems have not answered yet, so that no second thread hangs on them.
    silent: Mutex<HashSet<PathBuf>>,
}

/// The volumes of this machine.
pub struct Node {
    core: Arc<Core>,
    operations: Operations<NodeOperation>,
}

impl Node {
    /// The volumes of `host`, which are those of the cloud of `profile`; operations are tracked by `tasks`.
    pub fn new(host: Arc<dyn Host>, profile: &'static Profile, tasks: TaskTracker) -> Self {
        Self::with_patience(host, profile, tasks, Patience::default())
    }

    fn with_patience(host: Arc<dyn Host>, profile: &'static Profile, tasks: TaskTracker, patience: Patience) -> Self {
        let records = Records::new(host.paths().state_dir.clone());
        let core = Core { host, profile, records, patience, silent: Mutex::default() };
        Self { core: Arc::new(core), operations: Operations::new(tasks) }
    }

    /// Mounts the volume's file system at its staging path, made first if the disk is blank; of a raw block volume
    /// only the disk's identity is proven. The disk is waited for up to `deadline`; without one a minute.
    pub async fn stage(&self, request: Stage, deadline: Option<Instant>) -> Result<(), Error> {
        let volume = request.volume.clone();
        let operation = NodeOperation::Stage(request.clone());
        let work = move |core: Arc<Core>, lock: Arc<Lock>| async move { core.stage(&request, deadline, &lock).await };
        self.change(volume, operation, work).await
    }

    /// Undoes [`Node::stage`]; the disk can be detached afterwards.
    pub async fn unstage(&self, volume: VolumeId, staging_path: PathBuf) -> Result<(), Error> {
        let operation = NodeOperation::Unstage(staging_path.clone());
        let of = volume.clone();
        self.change(volume, operation, move |core, lock| async move { core.unstage(&of, &staging_path, &lock).await })
            .await
    }

    /// Shows a staged volume at a workload's path.
    pub async fn publish(&self, request: Publish) -> Result<(), Error> {
        let volume = request.volume.clone();
        let operation = NodeOperation::Publish(request.clone());
        self.change(volume, operation, move |core, lock| async move { core.publish(&request, &lock).await }).await
    }

    /// Undoes [`Node::publish`].
    pub async fn unpublish(&self, volume: VolumeId, target_path: PathBuf) -> Result<(), Error> {
        let operation = NodeOperation::Unpublish(target_path.clone());
        let of = volume.clone();
        self.change(volume, operation, move |core, lock| async move { core.unpublish(&of, &target_path, &lock).await })
            .await
    }

    /// Grows the file system to the disk's size, once the kernel sees that as `wanted` bytes at least; gives the disk's
    /// size in bytes as the kernel sees it.
    pub async fn expand(&self, volume: VolumeId, path: PathBuf, wanted: Option<u64>) -> Result<u64, Error> {
        let operation = NodeOperation::Expand(path.clone(), wanted);
        let of = volume.clone();
        self.change(volume, operation, move |core, lock| async move { core.expand(&of, &path, wanted, &lock).await })
            .await
    }

    /// How full the volume is, and whether something is wrong with it. Waits for no operation, and for a dead disk
    /// only two seconds.
    pub async fn stats(&self, volume: VolumeId, path: PathBuf) -> Result<Stats, Error> {
        Core::stats(&self.core, &volume, &path).await
    }

    /// How many of the cloud's volumes hold the running system, and so take up attachments that are nobody's to give.
    pub async fn system_volumes(&self) -> Result<u32, Error> {
        self.core.system_volumes().await
    }

    async fn change<T, F>(
        &self,
        volume: VolumeId,
        operation: NodeOperation,
        work: impl FnOnce(Arc<Core>, Arc<Lock>) -> F + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = Result<T, Error>> + Send,
    {
        let core = Arc::clone(&self.core);
        let subject = volume.as_str().to_owned();
        self.operations
            .run(&subject, operation, async move {
                let lock = Arc::new(Lock::take(&core.host.paths().state_dir, &volume).await?);
                let result = work(Arc::clone(&core), Arc::clone(&lock)).await;
                if core.records.is_empty(&volume) {
                    lock.remove();
                }
                result
            })
            .await
    }
}

#[cfg(test)]
mod tests;
