//! DeleteVolume: a volume that no machine uses is deleted; one that is gone is deleted already.

use tracing::info;

use super::{Inner, Pauses, ours};
use crate::{cloud::CloudError, error::Error, volume::VolumeId};

impl Inner {
    pub(super) async fn delete(&self, id: &VolumeId) -> Result<(), Error> {
        let mut pauses = Pauses::new();
        loop {
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
                match self.cloud.instance_exists(node).await {
                    Ok(false) => {
                        self.detach(id, Some(node)).await?;
                        continue;
                    }
                    Ok(true) => {
                        return Err(Error::Precondition(format!(
                            "volume {id} is attached to {node}; it has to be unpublished there before it is deleted"
                        )));
                    }
                    Err(cause) => return Err(Error::Cloud { doing: format!("reading instance {node}"), cause }),
                }
            }
            match self.cloud.delete_volume(id).await {
                Ok(()) | Err(CloudError::NotFound(_)) => {
                    self.forget(id);
                    info!(volume = %id, name = volume.name, "deleted");
                    return Ok(());
                }
                Err(cause) if cause.outcome_is_unknown() || matches!(cause, CloudError::Busy(_)) => {
                    if !pauses.wait().await {
                        return Err(Error::OutcomeUnknown { subject: format!("deleting volume {id}"), cause });
                    }
                }
                Err(cause) => return Err(Error::Cloud { doing: format!("deleting volume {id}"), cause }),
            }
        }
    }
}
