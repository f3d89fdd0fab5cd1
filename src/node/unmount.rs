//! Unmounting, also of disks and shares that are dead: nothing of another volume's, and nothing that is still needed.

use std::{path::Path, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::{
    Core,
    host::{Errno, errno},
    mountinfo::{self, Mount},
    owner::Owner,
};
use crate::{error::Error, volume::VolumeId};

/// More mounts than this on one path are not of our making.
const MAX_STACKED: usize = 32;

/// Between two tries to unmount what is in use.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

impl Core {
    /// Unmounts everything that is mounted at exactly `path`, and removes the directory or file.
    pub(super) async fn clear(&self, volume: &VolumeId, path: &Path) -> Result<(), Error> {
        self.unmount_all(volume, path).await?;
        self.remove(path).await
    }

    /// Unmounts everything that is mounted at exactly `path`.
    pub(super) async fn unmount_all(&self, volume: &VolumeId, path: &Path) -> Result<(), Error> {
        for _ in 0..MAX_STACKED {
            let mounts = self.host.mounts().await?;
            let Some(mount) = mountinfo::at(&mounts, path) else { return Ok(()) };
            let gone = match self.owner(volume, mount).await? {
                Owner::Volume(_) => false,
                Owner::Share => self.is_share_gone(mount).await,
                Owner::Gone => true,
                Owner::Other(other) => {
                    let path = path.display();
                    return Err(Error::Precondition(format!(
                        "{path} is a mount of {other}, not of volume {volume}; it was left alone"
                    )));
                }
            };
            self.unmount(volume, mount, gone).await?;
        }
        Err(Error::Precondition(format!("more than {MAX_STACKED} mounts are stacked at {}", path.display())))
    }

    pub(super) async fn unmount(&self, volume: &VolumeId, mount: &Mount, gone: bool) -> Result<(), Error> {
        let path = &mount.target;
        let busy_until = Instant::now() + self.patience.busy;
        let given_up = Instant::now() + self.patience.silence;
        let mut unmounting = self.host.unmount(path, false);
        let lazily = loop {
            match timeout(self.patience.unmount, &mut unmounting).await {
                Ok(Ok(())) => break false,
                Ok(Err(cause)) => match errno(&cause) {
                    // Somebody else was faster.
                    Errno::EINVAL | Errno::ENOENT => return Ok(()),
                    Errno::EIO | Errno::ENXIO | Errno::ENODEV | Errno::ENOTCONN => break true,
                    Errno::EBUSY if gone => break true,
                    // A program that looks at all disks, or one that is just being started and still has a copy of what
                    // its parent has open, is done in a moment.
                    Errno::EBUSY if Instant::now() < busy_until => {
                        sleep(BUSY_PAUSE).await;
                        unmounting = self.host.unmount(path, false);
                    }
                    Errno::EBUSY => {
                        return Err(Error::Precondition(format!(
                            "volume {volume}: {} is in use, so it was not unmounted; a process of this node has a file \
                             or its working directory there",
                            path.display()
                        )));
                    }
                    _ => return Err(Error::io("unmount", path, cause)),
                },
                // A disk that is there may just have much to write, and must not be detached before it is done.
                Err(_) if self.is_lost(volume, mount, given_up).await? => break true,
                Err(_) => {
                    warn!(%volume, path = %path.display(), "the unmount takes long; what is mounted is there, so waiting");
                }
            }
        };
        if lazily {
            // It would unmount whatever is there when it comes to itself.
            drop(unmounting);
            warn!(%volume, path = %path.display(), "the disk or the share is dead; unmounting lazily");
            // It may be out of the table already, and only its end take so long.
            let is_there =
                mountinfo::at(&self.host.mounts().await?, path).is_some_and(|top| top.device == mount.device);
            match if is_there { self.host.unmount(path, true).await } else { Ok(()) } {
                Ok(()) => {}
                Err(cause) if errno(&cause) == Errno::EINVAL => {}
                Err(cause) => return Err(Error::io("unmount", path, cause)),
            }
        }
        info!(%volume, path = %path.display(), "unmounted");
        Ok(())
    }

    /// Whether nothing more can be brought to what is mounted: its disk or share is gone. So is a share that has been
    /// silent up to `given_up`: the cloud's server may never come back, and unlike a disk it has all that was written to
    /// it but what was through a shared mapping.
    async fn is_lost(&self, volume: &VolumeId, mount: &Mount, given_up: Instant) -> Result<bool, Error> {
        match self.owner(volume, mount).await? {
            Owner::Gone => Ok(true),
            Owner::Share if Instant::now() < given_up => Ok(self.is_share_gone(mount).await),
            Owner::Share => {
                let is_there = mountinfo::at(&self.host.mounts().await?, &mount.target).is_some_and(|top| top == mount);
                Ok(!is_there || self.is_share_mute(mount).await)
            }
            Owner::Volume(_) | Owner::Other(_) => Ok(false),
        }
    }
}
