//! A test's hand on snapshots.

use std::io;

use super::{Control, absent, only};
use crate::{clock, snapshot::SnapshotState, view::SnapshotView};

impl Control {
    /// One snapshot, by its id or, if only one bears it, its description.
    ///
    /// # Errors
    /// No such snapshot, or several.
    pub fn snapshot(&self, name: &str) -> io::Result<SnapshotView> {
        let state = self.cloud.state();
        let named = state.snapshots.iter().filter(|s| s.id == name || s.description == name);
        Ok(SnapshotView::of(only("snapshot", name, named)?, self.cloud.disks.as_ref()))
    }

    /// Takes a snapshot of a volume at once, as somebody else did.
    ///
    /// # Errors
    /// An unknown volume.
    pub async fn seed_snapshot(&self, volume: &str, description: &str) -> io::Result<SnapshotView> {
        let machine = self.cloud.machine.lock().await;
        let source = self.volume(volume)?.id;
        let id = {
            let mut state = self.cloud.state();
            let source = state.volumes.get(&source).cloned().ok_or_else(|| absent("volume", volume))?;
            state.make_snapshot(&source, description)
        };
        self.cloud.take_snapshot(&machine, &id).await;
        drop(machine);
        self.cloud.state().settle_snapshot(&id, SnapshotState::Complete);
        self.snapshot(&id)
    }

    /// Puts a snapshot into a state; time changes a pending one no more unless it is put back.
    ///
    /// # Errors
    /// No such snapshot, or several.
    pub fn change_snapshot(&self, name: &str, to: SnapshotState) -> io::Result<SnapshotView> {
        let id = self.snapshot(name)?.id;
        if let Some(snapshot) = self.cloud.state().snapshots.get_mut(&id) {
            (snapshot.state, snapshot.updated_at) = (to, clock::now_without_zone());
        }
        self.snapshot(&id)
    }

    /// Deletes a snapshot at once.
    ///
    /// # Errors
    /// No such snapshot, or several.
    pub async fn delete_snapshot(&self, name: &str) -> io::Result<()> {
        self.cloud.drop_snapshot(&self.snapshot(name)?.id).await;
        Ok(())
    }
}
