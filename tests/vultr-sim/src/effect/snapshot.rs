//! Snapshots: their content comes and goes with them.

use crate::{cloud::Cloud, snapshot::SnapshotState};

impl Cloud {
    /// Puts into a new snapshot what its volume holds now; one that can't be read fails.
    pub(crate) async fn take_snapshot(&self, _machine: &tokio::sync::MutexGuard<'_, ()>, snapshot: &str) {
        let plan = {
            let state = self.state();
            let volume = state.snapshots.get(snapshot).and_then(|s| state.volumes.get(&s.block_id));
            volume.map(|v| (v.id.clone(), v.size_gb, v.loop_device.clone()))
        };
        let (Some(disks), Some((volume, size_gb, device))) = (&self.disks, plan) else {
            return;
        };
        let taken = async {
            if !disks.file(&volume).exists() {
                // Fillers get a disk only when they need one.
                disks.provide(&volume, size_gb)?;
            }
            disks.take(&volume, device, snapshot).await
        };
        if let Err(error) = taken.await {
            self.problem("taking a snapshot", &error);
            self.state().settle_snapshot(snapshot, SnapshotState::Failed);
        }
    }

    /// Removes a snapshot and its file.
    pub(crate) async fn drop_snapshot(&self, snapshot: &str) {
        let _machine = self.machine.lock().await;
        self.state().snapshots.remove(snapshot);
        if let Some(disks) = &self.disks
            && let Err(error) = disks.remove_snapshot(snapshot)
        {
            self.problem("removing a snapshot", &error);
        }
    }
}
