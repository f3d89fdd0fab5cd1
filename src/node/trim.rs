//! Trim: the free space of file systems is told to their disks once a week, where the class says so.
//!
//! It goes in slices, for each of which it has the volume's lock, so that no call waits for more than a slice. Which hour of the week is a volume's own follows from its id, so that a fleet does not trim at once; and since that hour is
//! fixed, a volume that moves often is trimmed too.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{debug, info, warn};

use super::{
    Core, Node,
    host::Tool,
    lock::Lock,
    mount::places_of,
    record::{Staged, Trim},
};
use crate::{error::Error, volume::VolumeId};

const WEEK: u64 = 7 * 24 * 3600;

/// How often is looked for what is due.
const LOOK: Duration = Duration::from_secs(3600);

/// How much of a file system is trimmed in one go: seconds, on the disks that clouds have.
const SLICE: u64 = 64 << 30;

/// Longer than between two tries for a volume's lock.
const BETWEEN_SLICES: Duration = Duration::from_millis(500);

/// Which week it is to a volume.
pub(super) fn week_of(volume: &VolumeId, now: SystemTime) -> u64 {
    let mut hasher = DefaultHasher::new();
    volume.as_str().hash(&mut hasher);
    let since = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    (since + hasher.finish() % WEEK) / WEEK
}

impl Node {
    /// Trims what is due, now and then, for as long as it is polled.
    pub async fn trim(&self) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            drop(self.trim_what_is_due(SystemTime::now()).await);
        }
    }

    /// Begins to trim what is due, each volume for itself: one that hangs keeps no other waiting.
    pub(super) async fn trim_what_is_due(&self, now: SystemTime) -> Vec<JoinHandle<()>> {
        let staged = match self.core.records.all::<Staged>(self.core.profile.id_form).await {
            Ok(staged) => staged,
            Err(error) => {
                warn!(error = error.chain(), "what is to be trimmed is not known");
                return Vec::new();
            }
        };
        let due = staged.into_iter().filter_map(|(volume, record)| {
            let week = week_of(&volume, now);
            // What another run of the kernel has left is not staged.
            let is_staged = record.boot_id == self.core.host.boot().id;
            (is_staged && record.trim.is_some_and(|trim| trim.week < week)).then_some((volume, week))
        });
        due.map(|(volume, week)| {
            let core = Arc::clone(&self.core);
            tokio::spawn(async move {
                if !core.trimming.lock().unwrap_or_else(PoisonError::into_inner).insert(volume.clone()) {
                    return debug!(%volume, "is being trimmed since the last look");
                }
                let trimmed = core.trim(&volume, week).await;
                core.trimming.lock().unwrap_or_else(PoisonError::into_inner).remove(&volume);
                match trimmed {
                    Ok(true) => info!(%volume, "trimmed"),
                    Ok(false) => debug!(%volume, "not trimmed now: it is worked on, or not mounted for writing"),
                    Err(error @ Error::NotYet(_)) => debug!(%volume, %error, "not trimmed now"),
                    Err(error) => warn!(%volume, error = error.chain(), "not trimmed"),
                }
            })
        })
        .collect()
    }
}

impl Core {
    /// Trims the volume's file system; gives whether it came to the end.
    async fn trim(&self, volume: &VolumeId, week: u64) -> Result<bool, Error> {
        let state_dir = &self.host.paths().state_dir;
        let Some(mut lock) = Lock::try_take(state_dir, volume)? else { return Ok(false) };
        let mut offset = 0;
        loop {
            let end = self.trim_slice(volume, offset, week, &lock).await;
            if self.records.is_empty(volume) {
                lock.remove();
            }
            let Some(end) = end? else { return Ok(false) };
            offset += SLICE;
            if offset >= end {
                return Ok(true);
            }
            drop(lock);
            // Whoever waits for the lock has it before the next slice.
            sleep(BETWEEN_SLICES).await;
            lock = Lock::take(state_dir, volume).await?;
        }
    }

    /// Trims a slice; gives where the last one ends, or nothing if there is nothing to be trimmed.
    async fn trim_slice(&self, volume: &VolumeId, offset: u64, week: u64, lock: &Lock) -> Result<Option<u64>, Error> {
        let Some(mut record) = self.records.load::<Staged>(volume).await? else { return Ok(None) };
        let Some(device) = self.staged_device(volume, &record).await? else { return Ok(None) };
        let mounts = self.host.mounts().await?;
        let writable = places_of(&mounts, device.number())
            .into_iter()
            .find(|mount| !mount.is_node && !mount.is_read_only() && !mount.is_frozen());
        let Some(path) = writable.and_then(|mount| mount.target.to_str()) else { return Ok(None) };
        let (from, length) = (offset.to_string(), SLICE.to_string());
        let arguments = ["--offset", &from, "--length", &length, path];
        let trimmed = self.host.run(Tool::Fstrim, &arguments, None, lock).await?.ok(Tool::Fstrim, device.node());
        if trimmed.is_err() || offset + SLICE >= device.size() {
            // Also if it failed: a disk that takes no trim is not to be asked again every hour.
            record.trim = Some(Trim { week });
            self.records.save(volume, &record).await?;
        }
        trimmed.map(|_| Some(device.size()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::IdForm;

    #[test]
    fn every_volume_has_an_hour_of_its_own_each_week() {
        let start = UNIX_EPOCH + Duration::from_secs(1000 * WEEK);
        let mut hours = std::collections::BTreeSet::new();
        for number in 1..=200 {
            let volume = VolumeId::parse(IdForm::Decimal, &number.to_string()).unwrap();
            let week = |hour: u64| week_of(&volume, start + Duration::from_secs(hour * 3600));
            let changes: Vec<u64> = (1..=7 * 24).filter(|hour| week(*hour) != week(hour - 1)).collect();
            assert_eq!(changes.len(), 1, "{volume}");
            hours.extend(changes);
        }
        assert!(hours.len() > 80, "{hours:?}");
    }
}
