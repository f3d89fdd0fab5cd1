//! What clones leave behind when a process dies on the way.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::warn;

use super::{Controller, Inner, Operation, pauses::SETTLING};
use crate::{
    cloud::{
        Snapshot, Volume,
        kind::Kind as _,
        label::{Label, Purpose},
    },
    error::Error,
    volume::SnapshotId,
};

/// How often leftovers of clones are looked for.
const SWEEP: Duration = Duration::from_secs(3600);

impl Controller {
    /// Drops what clones have left behind, at once and then every hour; never returns. A clone cleans up after itself,
    /// but a process may die on the way, and its claim may be deleted before a successor goes on.
    pub async fn keep_clean(&self) {
        if self.inner.cloud.snapshots().is_none() {
            return;
        }
        // A volume that an earlier process asked for at its end has to be seen before its snapshot is dropped.
        tokio::time::sleep_until(self.inner.begun + SETTLING).await;
        loop {
            if let Err(error) = self.inner.sweep().await {
                warn!(error = error.chain(), "leftovers of clones cannot be looked for; the next try is in an hour");
            }
            tokio::time::sleep(SWEEP).await;
        }
    }
}

impl Inner {
    /// Drops the snapshots that clones of this cluster were made by way of and that nobody needs any more.
    async fn sweep(self: &Arc<Self>) -> Result<(), Error> {
        let failed = |cause| Error::Cloud { doing: "looking for leftovers of clones".to_owned(), cause };
        let snapshots = self.snapshots.watcher.list().await.map_err(failed)?;
        let mut leftovers: Vec<&Snapshot> = snapshots.iter().filter(|one| self.is_leftover(one)).collect();
        self.leftovers.lock().await.retain(|id, _| leftovers.iter().any(|one| one.id == *id));
        if self.cluster.name().is_empty() {
            let mut seen = self.leftovers.lock().await;
            leftovers.retain(|one| is_nobodys(one, &mut seen));
        }
        if leftovers.is_empty() {
            return Ok(());
        }
        let volumes = self.volumes.watcher.list_whole().await.map_err(failed)?;
        for one in leftovers {
            let Some(label) = Label::parse(&one.description) else { continue };
            let filling = |volume: &Volume| volume.name == label.name && !volume.is_ready();
            if volumes.iter().any(filling) {
                continue;
            }
            warn!(snapshot = %one.id, clone = label.name, "a clone has left its snapshot behind; it is dropped");
            let (inner, id) = (Arc::clone(self), one.id.clone());
            let drop = async move { inner.drop_snapshot(&id).await };
            // Under the name of the clone: one that is being made needs its snapshot.
            if let Err(error) = self.operations.run(label.name, Operation::Sweep, drop).await {
                warn!(snapshot = %one.id, error = error.chain(), "not dropped; the next try is in an hour");
            }
        }
        Ok(())
    }

    fn is_leftover(&self, snapshot: &Snapshot) -> bool {
        Label::parse(&snapshot.description)
            .is_some_and(|label| label.purpose == Purpose::Clone && label.cluster == self.cluster.name())
    }
}

/// Whether a snapshot that may be another cluster's of this account, which has no name either, is a leftover all the same:
/// it has been done for so long that no clone waits for it. A large one may take longer than that until it is.
fn is_nobodys(snapshot: &Snapshot, done_since: &mut BTreeMap<SnapshotId, Instant>) -> bool {
    let is_done = snapshot.is_ready() || snapshot.has_failed();
    is_done && done_since.entry(snapshot.id.clone()).or_insert_with(Instant::now).elapsed() >= SWEEP
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cloud::SnapshotState, volume::IdForm};

    #[tokio::test(start_paused = true)]
    async fn what_may_be_another_clusters_is_dropped_when_it_has_been_done_for_an_hour() {
        let mut done_since = BTreeMap::new();
        let mut snapshot = Snapshot {
            id: SnapshotId::parse(IdForm::Decimal, "1").unwrap(),
            source: None,
            description: String::new(),
            size_bytes: 10 << 30,
            state: SnapshotState::Pending,
            created: String::new(),
        };
        for _ in 0..3 {
            assert!(!is_nobodys(&snapshot, &mut done_since), "it is not done");
            tokio::time::sleep(SWEEP).await;
        }
        snapshot.state = SnapshotState::Complete;
        assert!(!is_nobodys(&snapshot, &mut done_since), "somebody may be about to use it");
        tokio::time::sleep(SWEEP).await;
        assert!(is_nobodys(&snapshot, &mut done_since));
    }
}
