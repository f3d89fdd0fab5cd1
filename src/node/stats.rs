//! Statistics of a volume with what ails it, and the count of volumes that are the system's own.
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
    health::Ailment,
    host::{Counts, Serial},
    mount::Owner,
    mountinfo::{self, Mount},
    record::Staged,
};
use crate::{
    error::Error,
    volume::{FsType, VolumeId},
};

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

/// What is known of a published or staged volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// How full it is, where that could be found out.
    pub usage: Option<Usage>,
    /// What ails it; nothing if it is well.
    pub ailments: Vec<Ailment>,
}

impl Core {
    pub(super) async fn stats(self: &Arc<Self>, volume: &VolumeId, path: &Path) -> Result<Stats, Error> {
        let mounts = self.host.mounts().await?;
        let mount = mountinfo::at(&mounts, path).ok_or_else(|| not_mounted(volume, path))?;
        match self.owner(volume, mount).await? {
            Owner::Volume(_) => self.examine(&mounts, mount).await,
            Owner::Gone if self.records.load::<Staged>(volume).await?.is_some() => {
                Ok(Stats { usage: None, ailments: vec![Ailment::gone(mount.device)] })
            }
            Owner::Gone | Owner::Other(_) => Err(not_mounted(volume, path)),
        }
    }

    /// What the file system at `mount`, or the disk that is shown there, says of itself.
    pub(super) async fn examine(self: &Arc<Self>, mounts: &[Mount], mount: &Mount) -> Result<Stats, Error> {
        let Some(device) = self.host.disk(mount.device).await? else {
            return Ok(Stats { usage: None, ailments: vec![Ailment::gone(mount.device)] });
        };
        if mount.is_node {
            return Ok(Stats { usage: Some(Usage::Block { total: device.size }), ailments: Vec::new() });
        }
        let mut ailments = Vec::new();
        let usage = self.usage(&mount.target).await.map_err(|ailment| ailments.push(ailment)).ok();
        if mount.is_frozen() && staged_writable(mounts, mount) {
            ailments.push(Ailment::read_only(&mount.super_options));
        }
        let fs = FsType::ALL.into_iter().find(|fs| fs.as_str() == mount.fs_type);
        if let Some(fs) = fs
            && let Some(message) = self.host.fs_errors(fs, &device.name).await
        {
            ailments.push(Ailment::errors(message));
        }
        ailments.sort();
        Ok(Stats { usage, ailments })
    }

    /// The file system's own account, if it gives one in time. A call that hangs goes on hanging, so once one does no
    /// further one is made for its path until it has come back.
    async fn usage(self: &Arc<Self>, path: &Path) -> Result<Usage, Ailment> {
        let silence = || Ailment::silent(self.patience.usage);
        if self.silent.lock().unwrap_or_else(PoisonError::into_inner).contains(path) {
            return Err(silence());
        }
        let (core, of) = (Arc::clone(self), path.to_owned());
        let mut asked = tokio::spawn(async move { core.host.usage(&of).await });
        match timeout(self.patience.usage, &mut asked).await {
            Ok(Ok(Ok((bytes, inodes)))) => Ok(Usage::FileSystem { bytes, inodes }),
            Ok(Ok(Err(cause))) => Err(Ailment::failing(&cause)),
            Ok(Err(panicked)) => Err(Ailment::failing(&panicked)),
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
