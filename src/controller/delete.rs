//! DeleteVolume: a volume that no machine uses is deleted; one that is gone is deleted already.

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Inner, ours, pauses::Pauses};
use crate::{
    cloud::{CloudError, InstanceState},
    error::Error,
    volume::VolumeId,
};

/// How often a delete that is refused is tried again.
const REFUSALS_TRIED: u32 = 4;

impl Inner {
    pub(super) async fn delete(&self, id: &VolumeId) -> Result<(), Error> {
        let mut pauses = Pauses::new();
        loop {
            let read = Instant::now();
            let volume = match self.read(id).await {
                Ok(volume) => volume,
                Err(Error::VolumeNotFound(_)) => {
                    self.forget(id);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            ours(&volume)?;
            if let Some(node) = &volume.attached_to {
                // Vultr leaves a deleted instance's volumes behind; such an attachment is nobody's.
                match self.cloud.instance(node).await {
                    Ok(InstanceState::Gone) => {
                        self.detach(id, Some(node)).await?;
                        continue;
                    }
                    Ok(InstanceState::Idle | InstanceState::Locked) => {
                        return Err(Error::Precondition(format!(
                            "volume {id} is attached to {node}; it has to be unpublished there before it is deleted"
                        )));
                    }
                    Err(cause) => return Err(Error::Cloud { doing: format!("reading instance {node}"), cause }),
                }
            }
            // What an earlier process, or an attach that nobody saw the end of, may still bring about comes first.
            let free = self.doubts.free_from(id);
            if let Some(when) = self.doubts.proves_detached(id, read).or((read < free).then_some(free)) {
                tokio::time::sleep_until(when).await;
                continue;
            }
            match self.cloud.delete_volume(id).await {
                Ok(()) => {
                    self.forget(id);
                    info!(volume = %id, name = volume.name, "deleted");
                    return Ok(());
                }
                Err(cause) if cause.outcome_is_unknown() || matches!(cause, CloudError::Busy(_)) => {
                    if !pauses.wait().await {
                        return Err(Error::OutcomeUnknown { subject: format!("deleting volume {id}"), cause });
                    }
                }
                // Perhaps it is on its way to an instance, or gone: the next read tells.
                Err(cause @ (CloudError::Refused { .. } | CloudError::NotFound(_)))
                    if pauses.tried() < REFUSALS_TRIED =>
                {
                    warn!(volume = %id, error = %cause, "the delete was refused");
                    pauses.wait().await;
                }
                Err(cause) => return Err(Error::Cloud { doing: format!("deleting volume {id}"), cause }),
            }
        }
    }
}
