//! ControllerExpandVolume: the volume is at least as large as asked.

use std::sync::PoisonError;

use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    Inner,
    pauses::{Pauses, SETTLING_SLOW},
    size::size_for,
    unread,
};
use crate::{
    cloud::{Change, CloudError, Volume, watch::Awaited},
    error::Error,
    progress::{self, Part},
    volume::VolumeId,
};

impl Inner {
    pub(super) async fn expand(&self, id: &VolumeId, required_bytes: u64, limit_bytes: u64) -> Result<Volume, Error> {
        let mut pauses = Pauses::new();
        let mut refused = false;
        loop {
            // Asked for by itself, since rows of a listing do not tell the type, whose limits apply.
            let volume = self.cloud.volume(id).await.map_err(|cause| unread(id, cause))?;
            if limit_bytes != 0 && volume.size.bytes() > limit_bytes {
                return Err(Error::OutOfRange(format!(
                    "volume {id} has {}, more than the limit of {limit_bytes} bytes; volumes cannot shrink",
                    volume.size
                )));
            }
            if volume.size.bytes() >= required_bytes {
                self.progress.end(id, Part::Size);
                return Ok(volume);
            }
            let Some(kind) = volume.volume_type else {
                return Err(Error::Precondition(format!("the type of volume {id} is not known, nor then its limits")));
            };
            let size = size_for(kind, required_bytes, limit_bytes)?;
            if self.rest_between_changes(id).await {
                // Somebody else may have grown it meanwhile, or an earlier request of ours whose answer was lost.
                continue;
            }
            let asked = Instant::now();
            self.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), asked);
            match self.cloud.change_volume(id, &Change { size }).await {
                Ok(()) => {
                    let taken = Instant::now();
                    self.progress.begin(id, progress::Change::Grow);
                    let grown = |seen: &Volume| (seen.size >= size).then(|| seen.clone());
                    let mut grown = self.volumes.watcher.until(id, Awaited::Grown, taken, grown).await?;
                    self.progress.end(id, Part::Size);
                    grown.volume_type = grown.volume_type.or(Some(kind));
                    info!(volume = %id, from = %volume.size, to = %grown.size, "grown");
                    return Ok(grown);
                }
                Err(cause) if cause.outcome_is_unknown() || matches!(cause, CloudError::Busy(_)) => {
                    warn!(volume = %id, error = %cause, "not known whether the volume was grown");
                    if cause.outcome_is_unknown() {
                        tokio::time::sleep(SETTLING_SLOW).await;
                    }
                    if !pauses.wait().await {
                        return Err(Error::OutcomeUnknown { subject: format!("growing volume {id}"), cause });
                    }
                }
                Err(CloudError::NotFound(_)) => return Err(Error::VolumeNotFound(id.to_string())),
                // Perhaps because an earlier request, whose answer was lost, has had its effect by now; or because somebody
                // else changed the volume within the cloud's pause, an earlier process of ours among them.
                Err(cause @ CloudError::Refused { .. }) => {
                    warn!(volume = %id, error = %cause, "the growth was refused");
                    let now = self.cloud.volume(id).await.map_err(|cause| unread(id, cause))?;
                    if now.size >= size {
                        self.progress.end(id, Part::Size);
                        return Ok(now);
                    }
                    if refused {
                        return Err(Error::Cloud { doing: format!("growing volume {id} to {size}"), cause });
                    }
                    refused = true;
                }
                Err(cause) => return Err(Error::Cloud { doing: format!("growing volume {id} to {size}"), cause }),
            }
        }
    }

    /// Waits out the pause that the cloud wants between two changes of a volume, as far as this process knows of one.
    /// Whether it had to wait.
    async fn rest_between_changes(&self, id: &VolumeId) -> bool {
        let between = self.cloud.profile().between_changes;
        let last = {
            let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
            changed.retain(|_, at| at.elapsed() < between);
            changed.get(id).copied()
        };
        let Some(last) = last else { return false };
        tokio::time::sleep_until(last + between).await;
        true
    }
}
