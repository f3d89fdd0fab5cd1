//! CreateSnapshot, DeleteSnapshot, ListSnapshots, GetSnapshot, and the snapshots that clones are made by way of.

use std::sync::PoisonError;

use tracing::info;

use super::{
    Controller, Inner, Operation, Which,
    list::most,
    once::{NotMade, Wanted},
    ours,
    pauses::Pauses,
};
use crate::{
    cloud::{
        CloudError, Snapshot, Snapshots, Volume,
        kind::Kind as _,
        label::{Label, Purpose},
    },
    error::Error,
    volume::{SnapshotId, VolumeId},
};

/// What our page tokens begin with, before the cloud's own cursor.
const TOKEN: &str = "page:";

/// A snapshot, and where it can be restored.
#[derive(Debug, Clone)]
pub struct Restorable {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Its region, in lower case, if that is known.
    pub region: Option<String>,
}

/// A snapshot wanted of a disk.
pub(super) struct Taken<'a> {
    pub(super) inner: &'a Inner,
    pub(super) purpose: Purpose,
    pub(super) name: &'a str,
    pub(super) source: &'a VolumeId,
    /// Where it has to be restorable; empty where that does not matter.
    pub(super) regions: &'a [String],
}

#[async_trait::async_trait]
impl Wanted<Snapshot> for Taken<'_> {
    fn name(&self) -> String {
        self.purpose.key(self.name)
    }

    fn what(&self) -> String {
        format!("a snapshot of volume {}", self.source)
    }

    fn agrees(&self, found: &Snapshot) -> Result<(), Error> {
        if found.source.as_ref() == Some(self.source) {
            return Ok(());
        }
        let subject = format!("a snapshot named {} ({})", self.name, found.id);
        let difference = format!("it was taken of {}, volume {} is asked for", found.of_what(), self.source);
        Err(Error::Differs { subject, difference })
    }

    async fn make(&self) -> Result<Snapshot, NotMade> {
        let Self { inner, purpose, name, source, regions } = *self;
        let volume = inner.can_be_taken(source, regions).await?;
        let label = Label { region: &volume.region, cluster: inner.cluster.name(), purpose, name }.to_string();
        inner.untold.lock().unwrap_or_else(PoisonError::into_inner).insert(self.name());
        inner.snapshots_api()?.create_snapshot(source, &label).await.map_err(NotMade::Cloud)
    }
}

/// Some of the account's snapshots.
#[derive(Debug, Clone)]
pub struct SnapshotList {
    /// The snapshots.
    pub snapshots: Vec<Restorable>,
    /// Where the next call goes on.
    pub next_token: Option<String>,
}

impl Controller {
    /// Takes a snapshot under a name, or finds it. It may still be pending.
    ///
    /// # Errors
    /// [`Error::Differs`] if the name is taken by a snapshot of another volume.
    pub async fn create_snapshot(
        &self,
        name: String,
        source: VolumeId,
        regions: Vec<String>,
    ) -> Result<Restorable, Error> {
        let inner = self.inner.clone();
        let key = Purpose::Snapshot.key(&name);
        let operation = Operation::Snapshot { source: source.clone(), regions: regions.clone() };
        self.inner
            .operations
            .run(&key, operation, async move { inner.create_snapshot(&name, &source, &regions).await })
            .await
    }

    /// Deletes a snapshot; one that is gone is deleted.
    ///
    /// # Errors
    /// [`Error::Precondition`] while a volume is being made from it.
    pub async fn delete_snapshot(&self, id: SnapshotId) -> Result<(), Error> {
        let inner = self.inner.clone();
        let subject = format!("snapshot {id}");
        // A create under its name that is still in flight would find it gone and take another, for nobody.
        if let Some(name) = self.inner.snapshots.names.name_of(&id) {
            self.inner.operations.free(&name, &Operation::Delete)?;
        }
        let run = async move {
            inner.sources.free(id.as_str())?;
            inner.drop_snapshot(&id).await
        };
        self.inner.operations.run(&subject, Operation::Delete, run).await
    }

    /// A snapshot.
    ///
    /// # Errors
    /// [`Error::SnapshotNotFound`] if the cloud has no such snapshot.
    pub async fn get_snapshot(&self, id: SnapshotId) -> Result<Restorable, Error> {
        let snapshot = self.inner.read_snapshot(&id).await?;
        self.inner.restorable_in(snapshot).await
    }

    /// The snapshots from `starting_token` on, at most `max_entries` (0: all there are). Those that clones are made by
    /// way of are not shown.
    ///
    /// # Errors
    /// [`Error::BadPage`] for a token that is not ours or that the cloud no longer knows.
    pub async fn list_snapshots(&self, starting_token: &str, max_entries: u32) -> Result<SnapshotList, Error> {
        let mut cursor = match starting_token.strip_prefix(TOKEN) {
            Some(cursor) if !cursor.is_empty() => Some(cursor.to_owned()),
            _ if starting_token.is_empty() => None,
            _ => return Err(Error::BadPage(starting_token.to_owned())),
        };
        let most = most(max_entries);
        let mut snapshots = Vec::new();
        loop {
            let room = most - snapshots.len();
            let page = self.inner.page::<Snapshot>(cursor.as_deref(), room, starting_token).await?;
            snapshots.extend(page.items.into_iter().filter(|snapshot| !is_temporary(snapshot)));
            if page.next.is_none() || snapshots.len() >= most || page.next == cursor {
                let next_token = page.next.filter(|next| Some(next) != cursor.as_ref());
                let next_token = next_token.map(|next| format!("{TOKEN}{next}"));
                return Ok(SnapshotList { snapshots: self.inner.all_restorable(snapshots).await?, next_token });
            }
            cursor = page.next;
        }
    }

    /// The snapshots of one volume, by id, from the one after `starting_token` on, at most `max_entries` (0: all).
    ///
    /// # Errors
    /// The cloud's.
    pub async fn list_snapshots_of(
        &self,
        source: &VolumeId,
        starting_token: &str,
        max_entries: u32,
    ) -> Result<SnapshotList, Error> {
        let form = self.inner.cloud.profile().id_form;
        if !starting_token.is_empty() && SnapshotId::parse(form, starting_token).is_none() {
            return Err(Error::BadPage(starting_token.to_owned()));
        }
        let listed = self.inner.snapshots.watcher.list_whole().await;
        let mut snapshots =
            listed.map_err(|cause| Error::Cloud { doing: format!("listing the snapshots of {source}"), cause })?;
        snapshots.retain(|one| {
            one.source.as_ref() == Some(source) && !is_temporary(one) && one.id.as_str() > starting_token
        });
        snapshots.sort_by(|a, b| a.id.cmp(&b.id));
        let most = most(max_entries);
        let more = snapshots.len() > most;
        snapshots.truncate(most);
        let next_token = snapshots.last().filter(|_| more).map(|last| last.id.to_string());
        Ok(SnapshotList { snapshots: self.inner.all_restorable(snapshots).await?, next_token })
    }
}

impl Inner {
    async fn create_snapshot(&self, name: &str, source: &VolumeId, regions: &[String]) -> Result<Restorable, Error> {
        let _held = self.sources.hold(source.as_str());
        let taken = Taken { inner: self, purpose: Purpose::Snapshot, name, source, regions };
        let snapshot = self.snapshots.find_or_make(&taken).await?;
        let key = Purpose::Snapshot.key(name);
        if snapshot.has_failed() {
            let untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner).contains(&key);
            if untold {
                // Nobody knows its id, so nobody would ever ask for it to be deleted. It holds nothing.
                self.drop_snapshot(&snapshot.id).await?;
            }
            let problem = format!("the cloud says that snapshot {} of volume {source} has failed", snapshot.id);
            return Err(Error::Failed(problem));
        }
        let restorable = self.restorable_in(snapshot).await?;
        self.untold.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        Ok(restorable)
    }

    /// The disk that a snapshot is wanted of, if it can be had in one of these regions (if any are named).
    async fn can_be_taken(&self, source: &VolumeId, regions: &[String]) -> Result<Volume, Error> {
        let volume = match self.which(source).await? {
            Which::Gone => return Err(Error::VolumeNotFound(source.to_string())),
            Which::Share => {
                let problem = format!("volume {source} is a shared file system, of which there are no snapshots");
                return Err(Error::Precondition(problem));
            }
            Which::Disk => self.read(source).await?,
        };
        ours(&volume)?;
        if !regions.is_empty() && !regions.contains(&volume.region) {
            return Err(Error::Exhausted(format!(
                "volume {source} is in region {}, and so is its snapshot, but the request allows {} only",
                volume.region,
                regions.join(", ")
            )));
        }
        Ok(volume)
    }

    pub(super) async fn read_snapshot(&self, id: &SnapshotId) -> Result<Snapshot, Error> {
        self.snapshots.watcher.read(id).await.map_err(|cause| match cause {
            CloudError::NotFound(_) => Error::SnapshotNotFound(id.to_string()),
            cause => Error::Cloud { doing: format!("reading snapshot {id}"), cause },
        })
    }

    /// Deletes a snapshot. Its id is never given to another, so that asking again does no harm.
    pub(super) async fn drop_snapshot(&self, id: &SnapshotId) -> Result<(), Error> {
        let mut pauses = Pauses::new();
        loop {
            match self.snapshots_api()?.delete_snapshot(id).await {
                Ok(()) | Err(CloudError::NotFound(_)) => {
                    self.snapshots.names.remove(id);
                    info!(snapshot = %id, "deleted");
                    return Ok(());
                }
                Err(cause) if cause.outcome_is_unknown() || matches!(cause, CloudError::Busy(_)) => {
                    if !pauses.wait().await {
                        return Err(Error::OutcomeUnknown { subject: format!("deleting snapshot {id}"), cause });
                    }
                }
                Err(cause) => return Err(Error::Cloud { doing: format!("deleting snapshot {id}"), cause }),
            }
        }
    }

    /// The region of a snapshot: as the driver wrote it down, else its volume's. `None` where that is gone.
    pub(super) async fn told_region(&self, snapshot: &Snapshot) -> Result<Option<String>, Error> {
        if let Some(label) = Label::parse(&snapshot.description) {
            return Ok(Some(label.region.to_owned()));
        }
        let Some(source) = &snapshot.source else { return Ok(None) };
        // What is gone never comes back under its id, and a list of snapshots need not ask for it each time.
        if self.gone_sources.lock().unwrap_or_else(PoisonError::into_inner).contains(source) {
            return Ok(None);
        }
        match self.read(source).await {
            Ok(volume) => Ok(Some(volume.region)),
            Err(Error::VolumeNotFound(_)) => {
                self.gone_sources.lock().unwrap_or_else(PoisonError::into_inner).insert(source.clone());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn restorable_in(&self, snapshot: Snapshot) -> Result<Restorable, Error> {
        let region = self.told_region(&snapshot).await?;
        Ok(Restorable { snapshot, region })
    }

    async fn all_restorable(&self, snapshots: Vec<Snapshot>) -> Result<Vec<Restorable>, Error> {
        futures_util::future::try_join_all(snapshots.into_iter().map(|snapshot| self.restorable_in(snapshot))).await
    }

    pub(super) fn snapshots_api(&self) -> Result<&dyn Snapshots, Error> {
        let missing = || Error::Precondition(format!("{} has no snapshots", self.cloud.profile().name));
        self.cloud.snapshots().ok_or_else(missing)
    }
}

/// Whether a snapshot is there only for a clone to be made by way of it.
fn is_temporary(snapshot: &Snapshot) -> bool {
    Label::parse(&snapshot.description).is_some_and(|label| label.purpose == Purpose::Clone)
}
