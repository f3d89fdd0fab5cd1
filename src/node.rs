//! The node domain: makes an attached disk usable by workloads on this machine, and lets go of it again.
//!
//! `rpc` calls [`Node`]; every change of a volume is one operation, which repeated calls join (P7) and which holds the
//! volume's lock, also against programs that an earlier run of the driver left working. The rooms:
//!
//! - `stage`, `publish`, `expand`, `trim`, `stats`, `health`: the operations, each with its states in the header;
//! - `share`: file systems that the cloud serves to many machines; `proven`: a disk or a share, once it is mounted;
//! - `device`: proof of identity; `blank`: proof of blankness; `format`, `filesystem` and `mkfs`: what a disk
//!   holds, and making it; `encrypt`, `luks` and `key`: encrypted disks; `mount`, `unmount`, `mountinfo`, `options`: the mount table and
//!   changing it; `owner` and `place`: whose disk is where, and where that is;
//! - `record` and `lock`: what outlives the process; `host`: the seam to the machine.

mod blank;
mod device;
mod encrypt;
mod expand;
mod filesystem;
mod format;
mod health;
pub mod host;
mod key;
pub mod lock;
mod luks;
mod mkfs;
mod mount;
pub mod mountinfo;
mod options;
mod owner;
mod place;
mod proven;
mod publish;
mod record;
mod share;
mod stage;
mod stats;
mod trim;
mod unmount;

use std::{
    collections::HashSet,
    fmt,
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::task::TaskTracker;

pub(crate) use self::luks::{PASSPHRASE, no_key};
use self::{health::Refusals, lock::Lock, mountinfo::Mount, record::Records};
pub use self::{
    health::{Ailment, Severity},
    host::{Counts, Host, Linux, Paths, check_programs, forbid_core_dumps},
    key::Key,
    stats::{Stats, Usage},
};
use crate::{
    cloud::{Attachment, Profile},
    error::Error,
    metrics::Metrics,
    operations::{Description, Operations},
    volume::{Access, Discard, MkfsOptions, VolumeId},
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
    /// What the cloud says of its disk or share.
    pub attachment: Attachment,
    /// The disk may be formatted if it is proven blank.
    pub blank: bool,
    /// Nobody will write to it.
    pub read_only: bool,
    /// The disk is encrypted with this key.
    pub key: Option<Key>,
    /// How a file system that has to be made is laid out.
    pub mkfs_options: MkfsOptions,
    /// When what is deleted is told to the disk.
    pub discard: Discard,
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
    /// What the cloud says of its disk or share, if the request tells.
    pub attachment: Option<Attachment>,
}

/// A volume whose file system is to grow to its disk's size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expand {
    /// The volume.
    pub volume: VolumeId,
    /// Where it is staged or published.
    pub path: PathBuf,
    /// The size in bytes that the kernel has to show first.
    pub wanted: Option<u64>,
    /// The key of an encrypted disk.
    pub key: Option<Key>,
}

/// A change of a volume on this node, described completely.
#[derive(Debug, Clone, PartialEq, Eq)]
enum NodeOperation {
    Stage(Stage),
    Unstage(PathBuf),
    Publish(Publish),
    Unpublish(PathBuf),
    Expand(Expand),
}

impl Description for NodeOperation {
    fn kind(&self) -> &'static str {
        match self {
            Self::Stage(_) => "node_stage",
            Self::Unstage(_) => "node_unstage",
            Self::Publish(_) => "node_publish",
            Self::Unpublish(_) => "node_unpublish",
            Self::Expand(_) => "node_expand",
        }
    }
}

impl fmt::Display for NodeOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage(stage) => write!(f, "stage at {}", stage.staging_path.display()),
            Self::Unstage(path) => write!(f, "unstage from {}", path.display()),
            Self::Publish(publish) => write!(f, "publish at {}", publish.target_path.display()),
            Self::Unpublish(path) => write!(f, "unpublish from {}", path.display()),
            Self::Expand(expand) => write!(f, "expand at {}", expand.path.display()),
        }
    }
}

/// How long is waited for what the machine does by itself.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// For the disk or the share of an attached volume.
    arrival: Duration,
    /// For a disk to show its new size.
    growth: Duration,
    /// For a device and its file system to answer.
    usage: Duration,
    /// For an unmount, before it is asked whether the disk is still there.
    unmount: Duration,
    /// For a share that does not answer, before what was not brought to it is given up.
    silence: Duration,
    /// For whoever has something open on what is to be unmounted.
    busy: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            arrival: Duration::from_secs(60),
            growth: Duration::from_secs(15),
            usage: Duration::from_secs(2),
            unmount: Duration::from_secs(5),
            silence: Duration::from_secs(20),
            busy: Duration::from_secs(2),
        }
    }
}

/// What the operations share.
struct Core {
    host: Arc<dyn Host>,
    profile: &'static Profile,
    records: Records,
    metrics: Metrics,
    patience: Patience,
    /// Devices and mounts that have not answered yet, so that no second thread hangs on them.
    silent: Arc<Mutex<HashSet<PathBuf>>>,
    refusals: Refusals,
    /// Volumes whose file systems are being trimmed.
    trimming: Mutex<HashSet<VolumeId>>,
}

impl Core {
    /// The error of a change as the kubelet has to hear it. What is final to it is over, so that it would never ask for the
    /// end of a mount that is there all the same, and its disk would stay here. What only other arguments can mend keeps its
    /// code (CSI: ALREADY_EXISTS, INVALID_ARGUMENT).
    async fn told(&self, volume: &VolumeId, operation: &NodeOperation, error: Error) -> Error {
        let is_there = match operation {
            _ if !error.is_final() || matches!(error, Error::Differs { .. } | Error::Invalid { .. }) => false,
            NodeOperation::Stage(stage) => {
                self.may_be_at(volume, &stage.staging_path, Some(&stage.attachment)).await
                    || !matches!(self.mapping(volume).await, Ok(None))
            }
            NodeOperation::Publish(publish) => {
                self.may_be_at(volume, &publish.target_path, publish.attachment.as_ref()).await
            }
            NodeOperation::Unstage(_) | NodeOperation::Unpublish(_) | NodeOperation::Expand(_) => false,
        };
        if is_there { Error::StillThere(Box::new(error)) } else { error }
    }
}

/// The volumes of this machine.
pub struct Node {
    core: Arc<Core>,
    operations: Operations<NodeOperation>,
}

impl Node {
    /// The volumes of `host`, which are those of the cloud of `profile`; operations are tracked by `tasks`.
    pub fn new(host: Arc<dyn Host>, profile: &'static Profile, tasks: TaskTracker, metrics: Metrics) -> Self {
        Self::with_patience(host, profile, tasks, metrics, Patience::default())
    }

    fn with_patience(
        host: Arc<dyn Host>,
        profile: &'static Profile,
        tasks: TaskTracker,
        metrics: Metrics,
        patience: Patience,
    ) -> Self {
        let records = Records::new(host.paths().state_dir.clone());
        let core = Core {
            host,
            profile,
            records,
            metrics: metrics.clone(),
            patience,
            silent: Arc::default(),
            refusals: Refusals::default(),
            trimming: Mutex::default(),
        };
        Self { core: Arc::new(core), operations: Operations::new(tasks, metrics) }
    }

    /// Mounts the volume's file system at its staging path, made first if the disk is blank; of a raw block volume
    /// only the disk's identity is proven. The disk, or the share that is mounted in its place, is waited for up to
    /// `deadline`; without one a minute.
    pub async fn stage(&self, mut request: Stage, deadline: Option<Instant>) -> Result<(), Error> {
        request.staging_path = self.core.resolve("staging_target_path", &request.staging_path).await?;
        let volume = request.volume.clone();
        let operation = NodeOperation::Stage(request.clone());
        let work = move |core: Arc<Core>, lock: Arc<Lock>| async move {
            let staged = core.stage(&request, deadline, &lock).await;
            core.refusals.note(&request.volume, staged.as_ref().err());
            if let Err(Error::DiskRefused { why, .. }) = &staged {
                core.metrics.refused(*why);
            }
            staged
        };
        self.change(volume, operation, work).await
    }

    /// Undoes [`Node::stage`]; the disk can be detached afterwards.
    pub async fn unstage(&self, volume: VolumeId, staging_path: PathBuf) -> Result<(), Error> {
        let path = self.core.resolve("staging_target_path", &staging_path).await?;
        let operation = NodeOperation::Unstage(path.clone());
        let of = volume.clone();
        let work = move |core: Arc<Core>, lock: Arc<Lock>| async move {
            core.unstage(&of, &path, &lock).await?;
            core.refusals.note(&of, None);
            Ok(())
        };
        self.change(volume, operation, work).await
    }

    /// Shows a staged volume at a workload's path.
    pub async fn publish(&self, mut request: Publish) -> Result<(), Error> {
        request.staging_path = self.core.resolve("staging_target_path", &request.staging_path).await?;
        request.target_path = self.core.resolve("target_path", &request.target_path).await?;
        let volume = request.volume.clone();
        let operation = NodeOperation::Publish(request.clone());
        self.change(volume, operation, move |core, lock| async move { core.publish(&request, &lock).await }).await
    }

    /// Undoes [`Node::publish`].
    pub async fn unpublish(&self, volume: VolumeId, target_path: PathBuf) -> Result<(), Error> {
        let path = self.core.resolve("target_path", &target_path).await?;
        let operation = NodeOperation::Unpublish(path.clone());
        let of = volume.clone();
        self.change(volume, operation, move |core, lock| async move { core.unpublish(&of, &path, &lock).await }).await
    }

    /// Grows the file system to the disk's size, once the kernel sees that as large as it is wanted at least, which is
    /// waited for up to `deadline`; gives the disk's size in bytes as the kernel sees it. A share is as large as the
    /// cloud says.
    pub async fn expand(&self, mut request: Expand, deadline: Option<Instant>) -> Result<u64, Error> {
        request.path = self.core.resolve_mounted(&request.volume, &request.path).await?;
        let volume = request.volume.clone();
        let operation = NodeOperation::Expand(request.clone());
        self.change(volume, operation, move |core, lock| async move { core.expand(&request, deadline, &lock).await })
            .await
    }

    /// Whether a share is mounted at `path`.
    pub async fn has_share(&self, volume: &VolumeId, path: &Path) -> Result<bool, Error> {
        let path = self.core.resolve_mounted(volume, path).await?;
        Ok(mountinfo::at(&self.core.host.mounts().await?, &path).is_some_and(Mount::is_share))
    }

    /// How full the volume is, and whether something is wrong with it. Waits for no operation, and for a dead disk
    /// only two seconds.
    pub async fn stats(&self, volume: VolumeId, path: PathBuf) -> Result<Stats, Error> {
        let path = self.core.resolve_mounted(&volume, &path).await?;
        Core::stats(&self.core, &volume, &path).await
    }

    /// What ails the volume, as this node sees it: at the paths that the caller knows of, and wherever else it is
    /// mounted or shown. Waits no longer than [`Node::stats`].
    pub async fn health(&self, volume: VolumeId, paths: Vec<PathBuf>) -> Result<Vec<Ailment>, Error> {
        Core::health(&self.core, &volume, &paths).await
    }

    /// What ails this node's use of disks as a whole.
    pub async fn storage_health(&self) -> Vec<Ailment> {
        self.core.storage_health().await
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
            .run(&subject, operation.clone(), async move {
                let changed = async {
                    let lock = Arc::new(Lock::take(&core.host.paths().state_dir, &volume).await?);
                    let result = work(Arc::clone(&core), Arc::clone(&lock)).await;
                    if core.records.is_empty(&volume) {
                        lock.remove();
                    }
                    result
                };
                match changed.await {
                    Err(error) => Err(core.told(&volume, &operation, error).await),
                    changed => changed,
                }
            })
            .await
    }
}

#[cfg(test)]
mod tests;
