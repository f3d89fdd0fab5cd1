//! Trim: the free space of file systems is told to their disks once a week, where the class says so.
//!
//! It goes in slices, each an operation of its own, so that no unpublish or unstage waits for more than a slice. Which
//! hour of the week is a volume's own follows from its id, so that a fleet does not trim at once; and since that hour is
//! fixed, a volume that moves often is trimmed too.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use super::{
    Core, Node, NodeOperation,
    device::Device,
    host::Tool,
    lock::Lock,
    luks,
    mount::places_of,
    record::{Staged, Trim},
};
use crate::{error::Error, volume::VolumeId};

const WEEK: u64 = 7 * 24 * 3600;

/// How often is looked for what is due.
const LOOK: Duration = Duration::from_secs(3600);

/// How much of a file system is trimmed in one go: seconds, on the disks that clouds have.
const SLICE: u64 = 64 << 30;

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
            self.trim_what_is_due(SystemTime::now()).await;
        }
    }

    pub(super) async fn trim_what_is_due(&self, now: SystemTime) {
        let staged = match self.core.records.all::<Staged>(self.core.profile.id_form).await {
            Ok(staged) => staged,
            Err(error) => return warn!(error = error.chain(), "what is to be trimmed is not known"),
        };
        for (volume, record) in staged {
            let week = week_of(&volume, now);
            if record.trim.is_none_or(|trim| trim.week >= week) {
                continue;
            }
            match self.trim_volume(&volume, week).await {
                Ok(()) => info!(%volume, "trimmed"),
                // It is worked on or gone; the next look comes.
                Err(error @ (Error::Contradicted { .. } | Error::NotHere(_) | Error::ShuttingDown)) => {
                    debug!(%volume, %error, "not trimmed now");
                }
                Err(error) => warn!(%volume, error = error.chain(), "not trimmed"),
            }
        }
    }

    async fn trim_volume(&self, volume: &VolumeId, week: u64) -> Result<(), Error> {
        let mut offset = 0;
        loop {
            let of = volume.clone();
            let work = move |core: Arc<Core>, lock: Arc<Lock>| async move { core.trim(&of, offset, week, &lock).await };
            let is_last = self.change(volume.clone(), NodeOperation::Trim(offset), work).await?;
            if is_last {
                return Ok(());
            }
            offset += SLICE;
        }
    }
}

impl Core {
    /// Trims a slice; gives whether it was the last.
    async fn trim(&self, volume: &VolumeId, offset: u64, week: u64, lock: &Lock) -> Result<bool, Error> {
        let gone = || Error::NotHere(volume.to_string());
        let mut record = self.records.load::<Staged>(volume).await?.ok_or_else(gone)?;
        let disk = Device::prove(&self.host, self.profile.link_prefix, volume, &record.serial).await?;
        let device = if record.encrypted { disk.mapped(&luks::name(volume)).await?.ok_or_else(gone)? } else { disk };
        let mounts = self.host.mounts().await?;
        let writable = places_of(&mounts, device.number())
            .into_iter()
            .find(|mount| !mount.is_node && !mount.is_read_only() && !mount.is_frozen());
        let path = writable.and_then(|mount| mount.target.to_str()).ok_or_else(gone)?;
        let is_last = offset.saturating_add(SLICE) >= device.size();
        if offset == 0 {
            // Before it is done: a disk that takes no trim is not to be asked again every hour.
            record.trim = Some(Trim { week });
            self.records.save(volume, &record).await?;
        }
        let (from, length) = (offset.to_string(), SLICE.to_string());
        let arguments = ["--offset", &from, "--length", &length, path];
        self.host.run(Tool::Fstrim, &arguments, None, lock).await?.ok(Tool::Fstrim, device.node())?;
        Ok(is_last)
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
