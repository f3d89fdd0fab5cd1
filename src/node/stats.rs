//! Statistics and condition of a volume, and the count of volumes that are the system's own.
//!
//! Nothing here takes part in the operations: it waits for none of them, and for a file system that does not answer
//! only a moment.

use std::{
    path::Path,
    sync::{Arc, PoisonError},
};

use tokio::time::timeout;
use tracing::warn;

use super::{
    Core,
    expand::not_mounted,
    host::{Counts, Serial},
    mount::Owner,
    mountinfo::{self, Mount},
    record::Staged,
};
use crate::{error::Error, volume::VolumeId};

/// How full a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Of a file system.
    FileSystem {
        /// Its bytes.
        bytes: Counts,
        /// Its inodes; all zero where it has no fixed number.
        inodes: Counts,
    },
    /// Of a raw block volume nothing is known but its size.
    Block {
        /// The size in bytes.
        total: u64,
    },
}

/// Whether a volume is well (CSI 1.12: `VolumeCondition`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Something is wrong.
    pub abnormal: bool,
    /// What it is.
    pub message: String,
}

impl Condition {
    fn well() -> Self {
        Self { abnormal: false, message: "the volume is in order".to_owned() }
    }

    fn wrong(message: impl Into<String>) -> Self {
        Self { abnormal: true, message: message.into() }
    }
}

/// What is known of a published or staged volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// How full it is, where that could be found out.
    pub usage: Option<Usage>,
    /// Whether it is well.
    pub condition: Condition,
}

impl Core {
    pub(super) async fn stats(self: &Arc<Self>, volume: &VolumeId, path: &Path) -> Result<Stats, Error> {
        let mounts = self.host.mounts().await?;
        let mount = mountinfo::at(&mounts, path).ok_or_else(|| not_mounted(volume, path))?;
        let disk = match self.owner(volume, mount).await? {
            Owner::Volume(disk) => disk,
            Owner::Gone if self.records.load::<Staged>(volume).await?.is_some() => {
                let condition = Condition::wrong(format!("disk {} is gone from this machine", mount.device));
                return Ok(Stats { usage: None, condition });
            }
            Owner::Gone | Owner::Other(_) => return Err(not_mounted(volume, path)),
        };
        if mount.is_node {
            return Ok(Stats { usage: Some(Usage::Block { total: disk.size }), condition: Condition::well() });
        }
        let usage = self.usage(path).await;
        let condition = match &usage {
            Err(message) => Condition::wrong(message),
            Ok(_) if mount.is_frozen() && !mount.is_read_only() && staged_writable(&mounts, mount) => {
                Condition::wrong(format!("the file system turned read-only ({})", mount.super_options.join(",")))
            }
            Ok(_) => Condition::well(),
        };
        Ok(Stats { usage: usage.ok(), condition })
    }

    /// The file system's own account, if it gives one in time. A call that hangs goes on hanging, so once one does no
    /// further one is made for its path until it has come back.
    async fn usage(self: &Arc<Self>, path: &Path) -> Result<Usage, String> {
        let silence = || format!("the file system does not answer within {} s", self.patience.usage.as_secs());
        if self.silent.lock().unwrap_or_else(PoisonError::into_inner).contains(path) {
            return Err(silence());
        }
        let (core, of) = (Arc::clone(self), path.to_owned());
        let mut asked = tokio::spawn(async move { core.host.usage(&of).await });
        match timeout(self.patience.usage, &mut asked).await {
            Ok(Ok(Ok((bytes, inodes)))) => Ok(Usage::FileSystem { bytes, inodes }),
            Ok(Ok(Err(cause))) => Err(format!("the file system answers with an error: {cause}")),
            Ok(Err(panicked)) => Err(panicked.to_string()),
            Err(_) => {
                warn!(path = %path.display(), "the file system does not answer");
                let (core, of) = (Arc::clone(self), path.to_owned());
                core.silent.lock().unwrap_or_else(PoisonError::into_inner).insert(of.clone());
                tokio::spawn(async move {
                    // Whatever it says by now: it has come back.
                    drop(asked.await);
                    core.silent.lock().unwrap_or_else(PoisonError::into_inner).remove(&of);
                });
                Err(silence())
            }
        }
    }

    pub(super) async fn system_volumes(&self) -> Result<u32, Error> {
        let (mounts, disks) = (self.host.mounts().await?, self.host.disks().await?);
        let is_mounted = |number| mounts.iter().any(|mount| mount.device == number);
        let is_root = |number| mounts.iter().any(|mount| mount.device == number && mount.target == Path::new("/"));
        let count = disks.iter().filter(|disk| {
            matches!(&disk.serial, Serial::Text(serial) if (self.profile.is_volume_serial)(serial))
                && (disk.partitions.iter().copied().any(is_mounted) || is_root(disk.number))
        });
        Ok(u32::try_from(count.count()).unwrap_or(u32::MAX))
    }
}

/// Whether no mount of the file system was made read-only; else it is what it was meant to be.
fn staged_writable(mounts: &[Mount], of: &Mount) -> bool {
    !mounts.iter().any(|mount| mount.device == of.device && mount.is_read_only())
}
