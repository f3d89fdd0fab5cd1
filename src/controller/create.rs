//! CreateVolume: one CSI name is one volume, blank, restored or cloned, or a shared file system.
//!
//! ```text
//!   blank:    find or make the volume                                    ──► wait until active ──► done
//!   restored: find or make it from the snapshot, in the snapshot's region ──► wait until active ──► done
//!   cloned:   find or make a temporary snapshot of the source, wait until complete,
//!             find or make the volume from it                            ──► wait until active ──► drop the snapshot
//! ```
//! A volume that exists is found before its source is asked for, which may be gone by then.

use tokio::time::Instant;
use tracing::warn;

use super::{
    Inner, Which,
    once::{NotMade, Wanted},
    ours,
    size::size_for,
    snapshot::Taken,
};
use crate::{
    cloud::{
        CloudError, NewShare, NewVolume, Origin, Share, Snapshot, SnapshotState, Volume, VolumeType, label::Purpose,
    },
    error::Error,
    volume::{Gib, SnapshotId, VolumeId},
};

/// A volume wanted under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// The CSI name.
    pub name: String,
    /// The least size; 0 where the request names none.
    pub required_bytes: u64,
    /// The greatest size; 0 where the request names none.
    pub limit_bytes: u64,
    /// The kind.
    pub volume_type: &'static VolumeType,
    /// The regions allowed, in lower case, best first; empty where the request does not care.
    pub regions: Vec<String>,
    /// What it is to have the content of.
    pub source: Source,
}

/// What a new volume is to have the content of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nothing.
    Blank,
    /// A snapshot.
    Snapshot {
        /// Its id.
        id: SnapshotId,
        /// The region that the class says it is in, in lower case; needed where it does not tell.
        region: Option<String>,
    },
    /// Another volume.
    Volume(VolumeId),
}

/// What there is to make a volume from: a snapshot, the size that holds it, and the region that has it.
struct Material {
    snapshot: SnapshotId,
    size: Gib,
    region: String,
}

/// A disk wanted.
struct Disk<'a> {
    inner: &'a Inner,
    wanted: &'a Create,
}

#[async_trait::async_trait]
impl Wanted<Volume> for Disk<'_> {
    fn name(&self) -> String {
        self.wanted.name.clone()
    }

    fn what(&self) -> String {
        format!("{} volume {}", self.wanted.volume_type, self.wanted.name)
    }

    fn agrees(&self, found: &Volume) -> Result<(), Error> {
        agrees(found, self.wanted)
    }

    async fn make(&self) -> Result<Volume, NotMade> {
        let Self { inner, wanted } = *self;
        match &wanted.source {
            Source::Blank => inner.make(wanted, None).await,
            Source::Snapshot { id, region } => {
                let snapshot = inner.restorable(id).await?;
                let region = inner.region_of(&snapshot, region.as_deref()).await?;
                inner.make(wanted, Some(material(&snapshot, region))).await
            }
            Source::Volume(id) => {
                let snapshot = inner.temporary(wanted, id).await?;
                let region = inner.region_of(&snapshot, None).await?;
                inner.make(wanted, Some(material(&snapshot, region))).await
            }
        }
    }
}

/// A shared file system wanted.
struct Shared<'a> {
    inner: &'a Inner,
    wanted: &'a Create,
}

#[async_trait::async_trait]
impl Wanted<Share> for Shared<'_> {
    fn name(&self) -> String {
        self.wanted.name.clone()
    }

    fn what(&self) -> String {
        format!("{} volume {}", self.wanted.volume_type, self.wanted.name)
    }

    fn agrees(&self, found: &Share) -> Result<(), Error> {
        agrees_in(found.size, found.volume_type, &found.region, self.wanted, &found.id)
    }

    async fn make(&self) -> Result<Share, NotMade> {
        let Self { inner, wanted } = *self;
        let size = size_for(wanted.volume_type, wanted.required_bytes, wanted.limit_bytes)?;
        let region = inner.region_for(wanted).await?;
        let (name, volume_type, tags) = (wanted.name.clone(), wanted.volume_type, inner.cluster.tags());
        let new = NewShare { name, size, volume_type, region, tags };
        inner.shares_api()?.create_share(&new).await.map_err(NotMade::Cloud)
    }
}

impl Inner {
    pub(super) async fn create(&self, wanted: Create) -> Result<Volume, Error> {
        size_for(wanted.volume_type, wanted.required_bytes, wanted.limit_bytes)?;
        // The cloud may go on reading from it until the volume is ready.
        let _held = match &wanted.source {
            Source::Blank => None,
            Source::Snapshot { id, .. } => Some(self.sources.hold(id.as_str())),
            Source::Volume(id) => Some(self.sources.hold(id.as_str())),
        };
        let found = self.volumes.find_or_make(&Disk { inner: self, wanted: &wanted }).await?;
        let kind = found.volume_type;
        let mut volume = self.volumes.once_ready(found, Instant::now()).await?;
        // Rows of a listing do not tell the type.
        volume.volume_type = volume.volume_type.or(kind);
        if let Source::Volume(source) = &wanted.source {
            self.end_clone(&wanted.name, source, &volume).await?;
        }
        Ok(volume)
    }

    pub(super) async fn create_share(&self, wanted: Create) -> Result<Share, Error> {
        size_for(wanted.volume_type, wanted.required_bytes, wanted.limit_bytes)?;
        let found = self.shares.find_or_make(&Shared { inner: self, wanted: &wanted }).await?;
        self.shares.once_ready(found, Instant::now()).await
    }

    async fn make(&self, wanted: &Create, material: Option<Material>) -> Result<Volume, NotMade> {
        let least = material.as_ref().map_or(0, |material| material.size.bytes()).max(wanted.required_bytes);
        let size = size_for(wanted.volume_type, least, wanted.limit_bytes)?;
        let region = match &material {
            None => self.region_for(wanted).await?,
            Some(material) => self.region_with(wanted, &material.region).await?,
        };
        let snapshot = material.map(|material| material.snapshot);
        let new = NewVolume { name: wanted.name.clone(), size, volume_type: wanted.volume_type, region, snapshot };
        let made = self.cloud.create_volume(&new).await.map_err(|cause| {
            NotMade::Cloud(match cause {
                CloudError::Exhausted(text) => CloudError::Exhausted(format!("region {}: {text}", new.region)),
                cause => cause,
            })
        })?;
        self.doubts.is_free(&made.id);
        Ok(made)
    }

    /// The snapshot, if a volume can be made of it.
    async fn restorable(&self, id: &SnapshotId) -> Result<Snapshot, Error> {
        let snapshot = self.read_snapshot(id).await?;
        match snapshot.state {
            SnapshotState::Complete => Ok(snapshot),
            SnapshotState::Failed => {
                Err(Error::Precondition(format!("snapshot {id} has failed; there is nothing to restore")))
            }
            state => Err(Error::NotYet(format!("snapshot {id} is {state}; it can be restored when it is complete"))),
        }
    }

    /// The region that a snapshot is in: what the driver wrote on it, else its volume's, else the class's word.
    async fn region_of(&self, snapshot: &Snapshot, class: Option<&str>) -> Result<String, Error> {
        if let Some(region) = self.told_region(snapshot).await? {
            return Ok(region);
        }
        class.map(str::to_owned).ok_or_else(|| {
            Error::Precondition(format!(
                "snapshot {} does not tell its region, and {}, which it was taken of, is gone; name the region by \
                 the parameter snapshot_region of the StorageClass",
                snapshot.id,
                snapshot.of_what()
            ))
        })
    }

    /// The complete snapshot that a clone is made by way of.
    async fn temporary(&self, wanted: &Create, source: &VolumeId) -> Result<Snapshot, Error> {
        let read = match self.which(source).await? {
            Which::Gone => Err(Error::VolumeNotFound(source.to_string())),
            Which::Share => Err(Error::invalid("volume_content_source", "a shared file system cannot be cloned")),
            Which::Disk => self.read(source).await,
        };
        let volume = read?;
        ours(&volume)?;
        self.region_with(wanted, &volume.region).await?;
        size_for(wanted.volume_type, volume.size.bytes().max(wanted.required_bytes), wanted.limit_bytes)?;
        let taken = Taken { inner: self, purpose: Purpose::Clone, name: &wanted.name, source, regions: &[] };
        let snapshot = self.snapshots.find_or_make(&taken).await?;
        let id = snapshot.id.clone();
        match self.snapshots.once_ready(snapshot, Instant::now()).await {
            // It would be found again and again.
            Err(error @ Error::Failed(_)) => {
                self.drop_snapshot(&id).await?;
                Err(error)
            }
            ready => ready,
        }
    }

    /// Makes sure that a volume is the clone of `source`, and drops the snapshot that it was made by way of.
    async fn end_clone(&self, name: &str, source: &VolumeId, volume: &Volume) -> Result<(), Error> {
        let differs = |what: String| {
            let subject = format!("a volume named {name} ({})", volume.id);
            Error::Differs { subject, difference: format!("it was made from {what}, not from volume {source}") }
        };
        let temporary = self.snapshots.find_known(&Purpose::Clone.key(name)).await?;
        match (temporary, &volume.origin) {
            (Some(temporary), _) if temporary.source.as_ref() != Some(source) => Err(differs(temporary.of_what())),
            (Some(temporary), Origin::Snapshot(origin)) if temporary.id != *origin => {
                Err(differs(format!("snapshot {origin}")))
            }
            (Some(temporary), _) => {
                // The clone is made, and must not be given up for this.
                if let Err(error) = self.drop_snapshot(&temporary.id).await {
                    warn!(snapshot = %temporary.id, error = error.chain(), "a clone's snapshot is left to the sweep");
                }
                Ok(())
            }
            // The one that it was made by way of has been dropped. One that is still there is somebody's own.
            (None, Origin::Snapshot(origin)) => match self.read_snapshot(origin).await {
                Err(Error::SnapshotNotFound(_)) => Ok(()),
                Ok(other) => Err(differs(format!("snapshot {}", other.id))),
                Err(error) => Err(error),
            },
            (None, _) => Ok(()),
        }
    }
}

fn material(snapshot: &Snapshot, region: String) -> Material {
    Material { snapshot: snapshot.id.clone(), size: Gib::holding(snapshot.size_bytes), region }
}

/// Whether a volume that has the name is the one wanted.
fn agrees(volume: &Volume, wanted: &Create) -> Result<(), Error> {
    agrees_in(volume.size, volume.volume_type, &volume.region, wanted, &volume.id)?;
    let fits = match (&volume.origin, &wanted.source) {
        // Which volume a clone's snapshot was of is looked up in the end.
        (Origin::Untold, _) | (Origin::Blank, Source::Blank) | (Origin::Snapshot(_), Source::Volume(_)) => true,
        (Origin::Snapshot(origin), Source::Snapshot { id, .. }) => origin == id,
        _ => false,
    };
    if fits {
        return Ok(());
    }
    let made = match &volume.origin {
        Origin::Snapshot(origin) => format!("from snapshot {origin}"),
        _ => "blank".to_owned(),
    };
    let asked = match &wanted.source {
        Source::Blank => "a blank one".to_owned(),
        Source::Snapshot { id, .. } => format!("one from snapshot {id}"),
        Source::Volume(id) => format!("a clone of volume {id}"),
    };
    differs(wanted, &volume.id, format!("it was made {made}, {asked} is asked for"))
}

fn agrees_in(
    has: Gib,
    kind: Option<&'static VolumeType>,
    region: &String,
    wanted: &Create,
    id: &VolumeId,
) -> Result<(), Error> {
    let size = size_for(wanted.volume_type, wanted.required_bytes, wanted.limit_bytes)?;
    let fits = if wanted.limit_bytes == 0 && wanted.source == Source::Blank {
        has == size
    } else {
        // What has a source is at least as large as that.
        has >= size && (wanted.limit_bytes == 0 || has.bytes() <= wanted.limit_bytes)
    };
    if !fits {
        return differs(wanted, id, format!("it has {has}, {size} is asked for"));
    }
    if kind != Some(wanted.volume_type) {
        let kind = kind.map_or("of an unknown kind", |kind| kind.name);
        return differs(wanted, id, format!("it is {kind}, {} is asked for", wanted.volume_type));
    }
    if !wanted.regions.is_empty() && !wanted.regions.contains(region) {
        return differs(wanted, id, format!("it is in {region}, {} is asked for", wanted.regions.join(" or ")));
    }
    Ok(())
}

fn differs(wanted: &Create, id: &VolumeId, difference: String) -> Result<(), Error> {
    Err(Error::Differs { subject: format!("a volume named {} ({id})", wanted.name), difference })
}
