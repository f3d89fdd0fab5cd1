//! A snapshot of a block volume as the cloud keeps it.

use serde::{Deserialize, Serialize};

use crate::{
    clock,
    cloud::State,
    shelf::{Kept, Shelf},
    volume::Volume,
};

/// Whether a snapshot may be used.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SnapshotState {
    /// It is being made.
    Pending,
    /// It can be restored.
    Complete,
    /// It never will.
    Failed,
}

/// A snapshot. It remembers of its volume what the API doesn't tell, since it may outlive it.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    pub(crate) block_id: String,
    pub(crate) description: String,
    pub(crate) state: SnapshotState,
    pub(crate) added_at: String,
    pub(crate) updated_at: String,
    pub(crate) size_gb: u32,
    pub(crate) region: &'static str,
}

impl Kept for Snapshot {
    fn id(&self) -> &str {
        &self.id
    }
}

/// All snapshots of the account.
pub(crate) type Snapshots = Shelf<Snapshot>;

impl State {
    /// Makes a pending snapshot and says its id; its content is another matter.
    pub(crate) fn make_snapshot(&mut self, volume: &Volume, description: &str) -> String {
        let (id, now) = (self.random.uuid(), clock::now_without_zone());
        self.snapshots.insert(Snapshot {
            id: id.clone(),
            block_id: volume.id.clone(),
            description: description.to_owned(),
            state: SnapshotState::Pending,
            added_at: now.clone(),
            updated_at: now,
            size_gb: volume.size_gb,
            region: volume.region,
        });
        id
    }

    /// Ends the pending of a snapshot, unless a test's hand was faster.
    pub(crate) fn settle_snapshot(&mut self, id: &str, state: SnapshotState) {
        let snapshot = self.snapshots.get_mut(id);
        if let Some(snapshot) = snapshot.filter(|s| s.state == SnapshotState::Pending) {
            (snapshot.state, snapshot.updated_at) = (state, clock::now_without_zone());
        }
    }
}
