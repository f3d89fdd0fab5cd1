//! Statistics of a volume with what ails it, and the count of volumes that are the system's own.
//!
//! Nothing here takes part in the operations: it waits for none of them, and for a file system that does not answer
//! only a moment.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

use tokio::time::timeout;
use tracing::warn;

use super::{
    Core,
    expand::not_mounted,
    health::Ailment,
    host::{Counts, Disk, Open, Serial},
    mountinfo::{self, Mount},
    owner::Owner,
    record::Staged,
};
use crate::{
    error::Error,
    volume::{FsType, VolumeId},
};

/// What is read of a device to find out whether it can be.
const BLOCK: usize = 4096;

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
            Owner::Share => Ok(self.examine_share(mount).await),
            Owner::Gone if self.records.load::<Staged>(volume).await?.is_some() => {
                Ok(Stats { usage: None, ailments: vec![Ailment::gone_at(mount)] })
            }
            Owner::Gone | Owner::Other(_) => Err(not_mounted(volume, path)),
        }
    }

    /// What the file system at `mount` and the device beneath it, or the device that is shown there, say of themselves.
    pub(super) async fn examine(self: &Arc<Self>, mounts: &[Mount], mount: &Mount) -> Result<Stats, Error> {
        let Some(device) = self.host.disk(mount.device).await? else {
            return Ok(Stats { usage: None, ailments: vec![Ailment::gone(mount.device)] });
        };
        let mut ailments = Vec::new();
        let path = (!mount.is_node).then(|| mount.target.clone());
        let answer = self.ask(&device, path).await.map_err(|ailment| ailments.push(ailment)).ok();
        if mount.is_node {
            return Ok(Stats { usage: Some(Usage::Block { total: device.size }), ailments });
        }
        if mount.is_frozen() && is_meant_writable(mounts, mount) {
            ailments.push(Ailment::read_only(&mount.super_options));
        }
        let fs = FsType::ALL.into_iter().find(|fs| fs.as_str() == mount.fs_type);
        if let Some(fs) = fs
            && let Some(message) = self.host.fs_errors(fs, &device.name).await
        {
            ailments.push(Ailment::errors(message));
        }
        ailments.sort();
        Ok(Stats { usage: answer.flatten(), ailments })
    }

    /// The file system's own account, and whether the device can be read, if they answer in time. What hangs goes on
    /// hanging, so a device that does is not asked again until it has come back.
    async fn ask(self: &Arc<Self>, device: &Disk, path: Option<PathBuf>) -> Result<Option<Usage>, Ailment> {
        // Of an encrypted one the disk beneath: whoever has the mapping open keeps it from being locked.
        let disk = match device.mapping.as_ref().and_then(|mapping| mapping.over.first()) {
            Some(beneath) => self.host.disk(*beneath).await.ok().flatten(),
            None => None,
        };
        let node = self.host.paths().dev_dir.join(&disk.as_ref().unwrap_or(device).name);
        let (core, of) = (Arc::clone(self), node.clone());
        let asked = self.in_time(&node, async move {
            let usage = match path {
                Some(path) => Some(core.host.usage(&path).await.map_err(|cause| Ailment::failing(&cause))?),
                None => None,
            };
            // What a file system knows by heart it tells also when its disk is dead.
            let disk = core.host.open(&of, Open::Shared).await.map_err(|cause| Ailment::unreadable(&cause))?;
            let read = tokio::task::spawn_blocking(move || disk.read(0, BLOCK)).await;
            match read {
                Ok(Ok(_)) => Ok(usage.map(|(bytes, inodes)| Usage::FileSystem { bytes, inodes })),
                Ok(Err(cause)) => Err(Ailment::unreadable(&cause)),
                Err(panicked) => Err(Ailment::unreadable(&panicked)),
            }
        });
        asked.await.unwrap_or_else(|| Err(Ailment::silent("the disk or its file system", self.patience.usage)))
    }

    /// What is asked of a device or of what is mounted of it, if it answers in time. What hangs goes on hanging, so it is
    /// not asked again until it has come back.
    pub(super) async fn in_time<T: Send + 'static>(
        &self,
        subject: &Path,
        question: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        if self.silent.lock().unwrap_or_else(PoisonError::into_inner).contains(subject) {
            return None;
        }
        let mut asked = tokio::spawn(question);
        if let Ok(answer) = timeout(self.patience.usage, &mut asked).await {
            return answer.ok();
        }
        warn!(subject = %subject.display(), "does not answer");
        let (silent, subject) = (Arc::clone(&self.silent), subject.to_owned());
        silent.lock().unwrap_or_else(PoisonError::into_inner).insert(subject.clone());
        tokio::spawn(async move {
            // Whatever it says by now: it has come back.
            drop(asked.await);
            silent.lock().unwrap_or_else(PoisonError::into_inner).remove(&subject);
        });
        None
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

/// Whether any mount of the file system was made for writing; else it is what it was meant to be.
fn is_meant_writable(mounts: &[Mount], of: &Mount) -> bool {
    mounts.iter().any(|mount| mount.device == of.device && !mount.is_read_only())
}
