//! Expand: waits until the kernel shows the disk in its new size, then grows the file system, mounted as it is.
//!
//! ```text
//!  mounted ──disk of the volume, large enough?──no, for too long──► not yet
//!                        │ yes
//!            encrypted? what unlocks it made as large
//!                        │
//!            file system grown to the disk (a raw block volume has none, a read-only one cannot)
//! ```
//!
//! A share is the cloud's own file system, and grown when the cloud has done it.

use std::path::Path;

use tokio::time::{Instant, sleep};
use tracing::debug;

use super::{
    Core, Expand,
    device::Device,
    filesystem,
    host::{Disk, Serial},
    lock::Lock,
    luks,
    mountinfo::{self, Mount},
    owner::Owner,
    record::Staged,
};
use crate::{
    error::Error,
    volume::{FsType, VolumeId},
};

/// How often the size is looked at: the kernel tells of its change by no event that inotify sees.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

impl Core {
    pub(super) async fn expand(&self, request: &Expand, deadline: Option<Instant>, lock: &Lock) -> Result<u64, Error> {
        let Expand { volume, path, wanted, key } = request;
        self.give_back(volume).await?;
        let mounts = self.host.mounts().await?;
        let (mount, Some(disk)) = self.mounted(volume, path, &mounts).await? else {
            return Ok(wanted.unwrap_or_default());
        };
        let Serial::Text(serial) = &disk.serial else { return Err(not_mounted(volume, path)) };
        let record = self.records.load::<Staged>(volume).await?;
        let known = record.and_then(|record| record.known_in(self.host.boot()));
        let deadline = deadline.unwrap_or_else(|| Instant::now() + self.patience.growth);
        let disk = loop {
            let disk = Device::prove(&self.host, self.profile.link_prefix, volume, serial, known).await?;
            let Some(wanted) = wanted.filter(|wanted| disk.size() < *wanted) else { break disk };
            if Instant::now() >= deadline {
                return Err(Error::NotYet(format!(
                    "volume {volume}: the kernel still sees {} bytes of {}, {wanted} are expected",
                    disk.size(),
                    disk.node().display()
                )));
            }
            debug!(%volume, size = disk.size(), wanted, "waiting for the disk's new size");
            sleep(PAUSE).await;
        };
        let device = if mount.device == disk.number() {
            disk.clone()
        } else {
            let unlocked = disk.mapped(&luks::name(volume)).await?.ok_or_else(|| not_mounted(volume, path))?;
            self.grow_mapping(&unlocked, key.as_ref(), lock).await?;
            unlocked
        };
        let fs = FsType::ALL.into_iter().find(|fs| fs.as_str() == mount.fs_type);
        // Through a read-only mount nothing can be grown, but the file system may have another one.
        let whole = |other: &&Mount| other.device == device.number() && !other.is_read_only() && !other.is_frozen();
        if let Some(fs) = fs.filter(|_| !mount.is_node)
            && let Some(writable) = mounts.iter().find(whole)
        {
            filesystem::grow(self.host.as_ref(), &device, fs, &writable.target, lock).await?;
        }
        Ok(disk.size())
    }

    /// The volume's mount at `path`, and the disk behind it; behind a share there is none.
    async fn mounted<'a>(
        &self,
        volume: &VolumeId,
        path: &Path,
        mounts: &'a [Mount],
    ) -> Result<(&'a Mount, Option<Disk>), Error> {
        let mount = mountinfo::at(mounts, path).ok_or_else(|| not_mounted(volume, path))?;
        match self.owner(volume, mount).await? {
            Owner::Volume(disk) => Ok((mount, Some(disk))),
            Owner::Share => Ok((mount, None)),
            Owner::Gone => Err(Error::Precondition(format!(
                "volume {volume}: the disk that is mounted at {} is gone from this machine",
                path.display()
            ))),
            Owner::Other(_) => Err(not_mounted(volume, path)),
        }
    }
}

/// The error of a path where the volume is not.
pub(super) fn not_mounted(volume: &VolumeId, path: &Path) -> Error {
    Error::NotMounted { volume: volume.to_string(), path: path.to_owned() }
}
