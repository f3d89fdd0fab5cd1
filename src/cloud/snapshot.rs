//! Snapshots of volumes, as clouds show them.

use std::fmt;

use super::{CloudError, Page};
use crate::volume::{SnapshotId, VolumeId};

/// A snapshot as the cloud shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The volume that it was taken of, which may be gone by now; `None` where the cloud does not tell.
    pub source: Option<VolumeId>,
    /// What was written on it when it was taken.
    pub description: String,
    /// The size of the volume it was taken of.
    pub size_bytes: u64,
    /// Whether it can be used.
    pub state: SnapshotState,
    /// When it was taken, in RFC 3339, which sorts by time.
    pub created: String,
}

impl Snapshot {
    /// What it was taken of, for a message.
    pub fn of_what(&self) -> String {
        self.source.as_ref().map_or_else(|| "a volume that is not told".to_owned(), |id| format!("volume {id}"))
    }
}

/// Whether a snapshot can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotState {
    /// It can.
    Complete,
    /// It is being taken.
    Pending,
    /// It never will.
    Failed,
    /// Something that the API's documents do not name.
    Other(String),
}

impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete => f.write_str("complete"),
            Self::Pending => f.write_str("pending"),
            Self::Failed => f.write_str("failed"),
            Self::Other(state) => f.write_str(state),
        }
    }
}

/// The part of a cloud's API that deals in snapshots of volumes.
#[async_trait::async_trait]
pub trait Snapshots: Send + Sync {
    /// One page of the account's snapshots, of `size` rows at most, from `cursor` on.
    async fn list_snapshots(&self, cursor: Option<&str>, size: u32) -> Result<Page<Snapshot>, CloudError>;

    /// One snapshot.
    async fn snapshot(&self, id: &SnapshotId) -> Result<Snapshot, CloudError>;

    /// Takes a snapshot. The one returned may still be pending.
    async fn create_snapshot(&self, source: &VolumeId, description: &str) -> Result<Snapshot, CloudError>;

    /// Deletes a snapshot for good.
    async fn delete_snapshot(&self, id: &SnapshotId) -> Result<(), CloudError>;
}
