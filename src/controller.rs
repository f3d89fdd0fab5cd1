//! Decides what to ask of the cloud so that it ends up as Kubernetes wants it, whatever crashed, timed out or repeated.
//!
//! Every operation is convergent: it finds out how things stand, does what is missing, and reports success only on
//! the cloud's own word. A reply that did not come (`CloudError::Unknown`) sends it back to finding out.

mod attach;
mod create;
mod delete;
mod expand;
mod list;
#[cfg(test)]
mod model;
#[cfg(test)]
mod scenarios;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::OnceCell, time::Instant};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

pub use create::Create;
pub use list::VolumeList;

use crate::{
    cloud::{Cloud, CloudError, Profile, Region, Volume, names::Names, queue::Queues, watch::Watcher},
    error::Error,
    operations::Operations,
    volume::{Gib, NodeId, VolumeId},
};

/// How long an operation goes on trying against a cloud that gives no certain answer or is busy, before the caller is
/// told and may repeat the call.
const PATIENCE: Duration = Duration::from_secs(120);
/// The pause before a busy or uncertain cloud is asked again; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// How long after a request without a certain answer, or after the start of this process (an earlier one may have died
/// between a request and its effect), what the cloud shows counts as what came of it.
const SETTLING: Duration = Duration::from_secs(2);
/// The same after a request that was slow to fail: its effect may be as slow as its answer.
const SETTLING_SLOW: Duration = Duration::from_secs(30);

/// What can be under way for a volume, or for a name.
#[derive(Debug, Clone, PartialEq)]
enum Operation {
    Create(Create),
    Delete,
    Attach(NodeId),
    Detach(Option<NodeId>),
    Expand { required_bytes: u64, limit_bytes: u64 },
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(create) => {
                write!(f, "a create of {} bytes as {}", create.required_bytes, create.volume_type)
            }
            Self::Delete => f.write_str("a delete"),
            Self::Attach(node) => write!(f, "an attach to {node}"),
            Self::Detach(Some(node)) => write!(f, "a detach from {node}"),
            Self::Detach(None) => f.write_str("a detach from every node"),
            Self::Expand { required_bytes, .. } => write!(f, "an expansion to {required_bytes} bytes"),
        }
    }
}

/// Where volumes go that come without a requirement: `--region`, else the region of the machine the controller runs on.
#[derive(Debug)]
pub struct HomeRegion {
    given: Option<String>,
    profile: &'static Profile,
    metadata_url: String,
    found: OnceCell<String>,
}

impl HomeRegion {
    /// The region given, or else the one that the metadata service at `metadata_url` tells when it is first needed.
    pub fn new(given: Option<String>, profile: &'static Profile, metadata_url: String) -> Self {
        Self { given, profile, metadata_url, found: OnceCell::new() }
    }

    async fn get(&self) -> Result<String, Error> {
        if let Some(given) = &self.given {
            return Ok(given.to_ascii_lowercase());
        }
        let ask = async {
            let identity = (self.profile.identity)(&self.metadata_url).await?;
            Ok(identity.region.to_ascii_lowercase())
        };
        self.found.get_or_try_init(|| ask).await.cloned().map_err(|error: Error| {
            Error::Precondition(format!(
                "the request names no region and the controller's own is not known ({error}); set --region or use a \
                 StorageClass with volumeBindingMode WaitForFirstConsumer"
            ))
        })
    }
}

/// The controller's side of every volume.
#[derive(Clone)]
pub struct Controller {
    inner: Arc<Inner>,
}

struct Inner {
    cloud: Arc<dyn Cloud>,
    watcher: Watcher,
    names: Names,
    queues: Queues,
    operations: Operations<Operation>,
    home: HomeRegion,
    /// What the regions offer, and when they were asked.
    regions: tokio::sync::Mutex<Option<(Instant, Arc<Vec<Region>>)>>,
    /// When this process began: an index from before a create of an earlier process could take effect proves nothing.
    begun: Instant,
    /// Names of which a POST has gone out that nobody has answered for certain, and since when a listing proves what came
    /// of it. It outlives the operation, whose retry must not take an older listing for proof.
    unanswered: Mutex<HashMap<String, Instant>>,
    /// Volumes that an attach has gone out for whose end nobody has seen, and when: that such a volume is on no instance
    /// proves nothing yet.
    attaching: Mutex<HashMap<VolumeId, Instant>>,
    /// When each volume was last changed by us, for clouds that want a pause between changes.
    changed: Mutex<HashMap<VolumeId, Instant>>,
}

impl Controller {
    /// A controller of this cloud's volumes whose operations are tracked by `tasks`.
    pub fn new(cloud: Arc<dyn Cloud>, home: HomeRegion, tasks: TaskTracker) -> Self {
        Self {
            inner: Arc::new(Inner {
                watcher: Watcher::new(Arc::clone(&cloud)),
                cloud,
                names: Names::new(),
                queues: Queues::default(),
                operations: Operations::new(tasks),
                home,
                regions: tokio::sync::Mutex::new(None),
                begun: Instant::now(),
                unanswered: Mutex::default(),
                attaching: Mutex::default(),
                changed: Mutex::default(),
            }),
        }
    }

    /// Lists the account, so that the first create does not have to; ends after one attempt, successful or not.
    pub async fn start(&self) {
        match self.inner.names.list_since(&self.inner.watcher, self.inner.begun).await {
            Ok(()) => info!("the account's volumes are listed"),
            Err(error) => warn!(%error, "the account cannot be listed yet; the first create tries again"),
        }
    }

    /// Makes the volume of this name, or finds it.
    ///
    /// # Errors
    /// [`Error::Differs`] if the name is taken by a volume that is not what is asked.
    pub async fn create(&self, create: Create) -> Result<Volume, Error> {
        let inner = Arc::clone(&self.inner);
        let work = create.clone();
        self.inner
            .operations
            .run(&create.name.clone(), Operation::Create(create), async move { inner.create(work).await })
            .await
    }

    /// Deletes a volume; one that is gone is deleted.
    ///
    /// # Errors
    /// [`Error::Precondition`] while an instance has it.
    pub async fn delete(&self, id: VolumeId) -> Result<(), Error> {
        let inner = Arc::clone(&self.inner);
        self.inner.operations.run(id.clone().as_str(), Operation::Delete, async move { inner.delete(&id).await }).await
    }

    /// Attaches a volume to an instance and returns it as it then stands.
    ///
    /// # Errors
    /// [`Error::AttachedElsewhere`] if another instance has it.
    pub async fn attach(&self, id: VolumeId, node: NodeId) -> Result<Volume, Error> {
        let inner = Arc::clone(&self.inner);
        self.inner
            .operations
            .run(id.clone().as_str(), Operation::Attach(node.clone()), async move { inner.attach(&id, &node).await })
            .await
    }

    /// Detaches a volume from `node`, or from whichever instance has it where none is named.
    ///
    /// # Errors
    /// The cloud's; a volume that is gone or elsewhere is detached.
    pub async fn detach(&self, id: VolumeId, node: Option<NodeId>) -> Result<(), Error> {
        let inner = Arc::clone(&self.inner);
        let operation = Operation::Detach(node.clone());
        self.inner
            .operations
            .run(id.clone().as_str(), operation, async move { inner.detach(&id, node.as_ref()).await })
            .await
    }

    /// Makes a volume at least as large as `required_bytes`, and returns it as it then stands.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if the cloud has no such size within the limit.
    pub async fn expand(&self, id: VolumeId, required_bytes: u64, limit_bytes: u64) -> Result<Volume, Error> {
        let inner = Arc::clone(&self.inner);
        let operation = Operation::Expand { required_bytes, limit_bytes };
        self.inner
            .operations
            .run(id.clone().as_str(), operation, async move { inner.expand(&id, required_bytes, limit_bytes).await })
            .await
    }

    /// How a volume stands, with its type, which a shared listing does not tell.
    ///
    /// # Errors
    /// [`Error::VolumeNotFound`] if the cloud has no such volume.
    pub async fn get_whole(&self, id: VolumeId) -> Result<Volume, Error> {
        self.inner.cloud.volume(&id).await.map_err(|cause| unread(&id, cause))
    }

    /// How a volume stands.
    ///
    /// # Errors
    /// [`Error::VolumeNotFound`] if the cloud has no such volume.
    pub async fn get(&self, id: VolumeId) -> Result<Volume, Error> {
        self.inner.read(&id).await
    }
}

impl Inner {
    /// How a volume stands, by a read that begins now.
    async fn read(&self, id: &VolumeId) -> Result<Volume, Error> {
        self.watcher.read(id).await.map_err(|cause| unread(id, cause))
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

/// How long a request that failed after `took` may still be on its way to its effect.
fn settling(took: Duration) -> Duration {
    if took > SETTLING { SETTLING_SLOW } else { SETTLING }
}

/// The pauses between tries against a busy or silent cloud.
struct Pauses {
    began: Instant,
    next: Duration,
}

impl Pauses {
    fn new() -> Self {
        Self { began: Instant::now(), next: FIRST_PAUSE }
    }

    /// Waits before the next try, unless there was enough of them.
    async fn wait(&mut self) -> bool {
        if self.began.elapsed() >= PATIENCE {
            return false;
        }
        tokio::time::sleep(self.next.mul_f64(0.75 + 0.5 * fastrand::f64())).await;
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        true
    }
}

/// The size that a request means in a cloud with these limits: rounded up to whole steps, raised to the minimum.
///
/// # Errors
/// [`Error::OutOfRange`] if that is more than the type has, or than the request allows.
fn size_for(kind: &crate::cloud::VolumeType, required_bytes: u64, limit_bytes: u64) -> Result<Gib, Error> {
    let asked = Gib::holding(required_bytes).max(kind.min);
    let size = Gib(asked.0.div_ceil(kind.step.0) * kind.step.0);
    if size > kind.max {
        return Err(Error::OutOfRange(format!(
            "{required_bytes} bytes are asked for, but a {kind} volume has at most {}",
            kind.max
        )));
    }
    if limit_bytes != 0 && size.bytes() > limit_bytes {
        return Err(Error::OutOfRange(format!(
            "the smallest {kind} volume that holds {required_bytes} bytes has {size}, which is over the limit of \
             {limit_bytes} bytes; sizes go from {} to {} in steps of {}",
            kind.min, kind.max, kind.step
        )));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::vultr::PROFILE;

    #[test]
    fn sizes_are_rounded_up_raised_and_limited() {
        const GIB: u64 = 1 << 30;
        let (nvme, hdd) = (PROFILE.volume_types[0], PROFILE.volume_types[1]);
        for (kind, required, limit, size) in [
            (nvme, 0, 0, Some(10)),
            (nvme, 1, 0, Some(10)),
            (nvme, 8 * GIB, 0, Some(10)),
            (nvme, 10 * GIB - 1, 10 * GIB, Some(10)),
            (nvme, 10 * GIB + 1, 0, Some(11)),
            (nvme, 10 * GIB + 1, 11 * GIB - 1, None),
            (nvme, 1, 8 * GIB, None),
            (nvme, 10_000 * GIB, 0, Some(10_000)),
            (nvme, 10_000 * GIB + 1, 0, None),
            (nvme, u64::MAX, 0, None),
            (hdd, 1, 0, Some(40)),
            (hdd, 40_000 * GIB, 0, Some(40_000)),
            (hdd, 40_001 * GIB, 0, None),
        ] {
            let found = size_for(kind, required, limit);
            assert_eq!(found.as_ref().ok().map(|size| size.0), size, "{kind} {required} {limit}: {found:?}");
            if let Err(error) = found {
                assert_eq!(error.code(), tonic::Code::OutOfRange);
            }
        }
    }
}
