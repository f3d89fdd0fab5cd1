//! What a test sees of a snapshot.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    disk::Disks,
    snapshot::{Snapshot, SnapshotState},
};

/// A snapshot and what is behind it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SnapshotView {
    /// Its id.
    pub id: String,
    /// The id of its volume, which may be gone.
    pub block_id: String,
    /// Its description.
    pub description: String,
    /// Whether it may be used.
    pub state: SnapshotState,
    /// Its volume's size when it was taken.
    pub size_gb: u32,
    /// Its volume's region, which the API doesn't tell.
    pub region: String,
    /// The file with its content, if it has one.
    pub file: Option<PathBuf>,
}

impl SnapshotView {
    pub(crate) fn of(snapshot: &Snapshot, disks: Option<&Disks>) -> Self {
        Self {
            id: snapshot.id.clone(),
            block_id: snapshot.block_id.clone(),
            description: snapshot.description.clone(),
            state: snapshot.state,
            size_gb: snapshot.size_gb,
            region: snapshot.region.to_owned(),
            file: disks.map(|disks| disks.snapshot_file(&snapshot.id)).filter(|file| file.exists()),
        }
    }
}
