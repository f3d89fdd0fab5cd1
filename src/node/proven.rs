//! What a staged volume is on this machine: a disk or a share, proven to be the volume's, and what is recorded of it.

use std::fmt;

use super::{Core, Publish, device::Device, host::DeviceNumber, mountinfo::Mount, record::Staged, share::Share};
use crate::{cloud::Attachment, error::Error, volume::VolumeId};

/// What is mounted for a volume, proven to be that volume's.
pub(super) enum Proven {
    Disk(Box<Device>),
    Share(Share),
}

impl From<Device> for Proven {
    fn from(device: Device) -> Self {
        Self::Disk(Box::new(device))
    }
}

impl Proven {
    pub(super) fn volume(&self) -> &VolumeId {
        match self {
            Self::Disk(device) => device.volume(),
            Self::Share(share) => &share.volume,
        }
    }

    /// The number by which the mount table shows it.
    pub(super) fn number(&self) -> DeviceNumber {
        match self {
            Self::Disk(device) => device.number(),
            Self::Share(share) => share.number,
        }
    }
}

impl fmt::Display for Proven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(device) => device.fmt(f),
            Self::Share(share) => share.fmt(f),
        }
    }
}

impl Core {
    /// What is staged at `staging`.
    pub(super) async fn proven_mount(&self, request: &Publish, staging: &Mount) -> Result<Proven, Error> {
        let told = match &request.attachment {
            Some(Attachment::Share { tag }) => Some(tag.as_str()),
            None if staging.is_share() => None,
            Some(Attachment::Disk { .. }) | None => {
                return self.proven_disk(request, Some(staging)).await.map(Proven::from);
            }
        };
        self.proven_share(&request.volume, told, staging).await.map(Proven::Share)
    }

    /// What is recorded of the volume as this disk or share; of one that another driver staged nothing is yet.
    pub(super) async fn record_of(&self, proven: &Proven) -> Result<Staged, Error> {
        let record = self.records.load::<Staged>(proven.volume()).await?;
        let boot = self.host.boot();
        Ok(match proven {
            Proven::Disk(device) => record.filter(|record| record.is_of(device)).unwrap_or_else(|| Staged::of(device)),
            Proven::Share(share) => record
                .filter(|record| record.share_in(boot) == Some(share.number))
                .unwrap_or_else(|| Staged::of_share(&share.tag, share.number, boot)),
        })
    }
}
