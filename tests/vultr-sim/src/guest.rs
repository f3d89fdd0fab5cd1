//! How what the cloud attaches gets to an instance: onto this machine, or into a virtual machine that runs on it.

mod qemu;
mod qmp;
mod tree;
mod virtiofsd;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::MutexGuard;

pub(crate) use qemu::Qemu;
pub(crate) use tree::Tree;
pub use virtiofsd::{Cache, virtiofsd};

use crate::disk::Disks;

/// Where an instance's programs run.
#[derive(Clone, Debug)]
pub(crate) enum Guest {
    /// On this machine: disks are loop devices, and what else the instance has is shown in a tree of its own.
    Local(Tree),
    /// In a qemu guest, which finds its disks and file systems where real instances do.
    Qemu(Arc<Qemu>),
}

impl Guest {
    /// The instance's folder; a qemu guest has no tree in it.
    pub(crate) fn tree(&self) -> Tree {
        match self {
            Self::Local(tree) => tree.clone(),
            Self::Qemu(qemu) => Tree::new(qemu.dir().to_owned()),
        }
    }

    pub(crate) fn make(&self) -> io::Result<()> {
        match self {
            Self::Local(tree) => tree.make(),
            Self::Qemu(qemu) => std::fs::create_dir_all(qemu.dir()),
        }
    }

    pub(crate) fn remove(&self) -> io::Result<()> {
        self.tree().remove()
    }

    /// Waits until nothing else changes a virtual machine. Taken before the cloud's machine, never after it.
    pub(crate) async fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        match self {
            Self::Local(_) => None,
            Self::Qemu(qemu) => Some(qemu.turn().await),
        }
    }

    /// Makes a volume's disk appear under its serial, and says its loop device where it has one.
    pub(crate) async fn plug(&self, disks: &Disks, volume: &str, serial: &str) -> io::Result<Option<PathBuf>> {
        match self {
            Self::Local(tree) => {
                let device = disks.attach(volume).await?;
                tree.show(&device, serial)?;
                Ok(Some(device))
            }
            Self::Qemu(qemu) => {
                qemu.plug(&disks.file(volume), serial).await?;
                Ok(None)
            }
        }
    }

    /// Plugs a disk into a virtual machine that lacks it.
    pub(crate) async fn replug(&self, disks: &Disks, volume: &str, serial: &str) -> io::Result<()> {
        match self {
            Self::Qemu(qemu) if !qemu.has_disk(serial).await? => Ok(qemu.plug(&disks.file(volume), serial).await?),
            Self::Local(_) | Self::Qemu(_) => Ok(()),
        }
    }

    /// Asks the system in a virtual machine to let a disk go, and waits for it; an error means that it still has it.
    ///
    /// On this machine nobody is asked.
    pub(crate) async fn release(&self, serial: &str, patience: Duration) -> io::Result<()> {
        match self {
            Self::Local(_) => Ok(()),
            Self::Qemu(qemu) => Ok(qemu.unplug(serial, patience).await?),
        }
    }

    /// Shows a local disk no more.
    pub(crate) fn hide(&self, device: &Path, serial: &str) -> io::Result<()> {
        match self {
            Self::Local(tree) => tree.hide(device, serial),
            Self::Qemu(_) => Ok(()),
        }
    }

    /// Lets the guest see that the file of a disk that it has is larger now.
    pub(crate) async fn grow(&self, device: Option<&Path>, serial: &str, bytes: u64) -> io::Result<()> {
        match (self, device) {
            (Self::Local(_), Some(device)) => Disks::reread_size(device).await,
            (Self::Local(_), None) => Ok(()),
            (Self::Qemu(qemu), _) => Ok(qemu.grow(serial, bytes).await?),
        }
    }

    /// Lets a folder be mounted by its tag.
    pub(crate) async fn share(&self, dir: &Path, mount_tag: u32) -> io::Result<()> {
        match self {
            Self::Local(tree) => tree.show_share(dir, mount_tag),
            Self::Qemu(qemu) => qemu.share(dir, mount_tag).await,
        }
    }

    /// Shares a folder with a virtual machine that lacks it.
    pub(crate) async fn reshare(&self, dir: &Path, mount_tag: u32) -> io::Result<()> {
        match self {
            Self::Qemu(qemu) if !qemu.has_share(mount_tag).await? => qemu.share(dir, mount_tag).await,
            Self::Local(_) | Self::Qemu(_) => Ok(()),
        }
    }

    /// Asks the system in a virtual machine to let a folder go, as [`Self::release`] does.
    pub(crate) async fn release_share(&self, mount_tag: u32, patience: Duration) -> io::Result<()> {
        match self {
            Self::Local(_) => Ok(()),
            Self::Qemu(qemu) => qemu.unshare(mount_tag, patience).await,
        }
    }

    /// Shows a folder on this machine no more.
    pub(crate) fn hide_share(&self, mount_tag: u32) -> io::Result<()> {
        match self {
            Self::Local(tree) => tree.hide_share(mount_tag),
            Self::Qemu(_) => Ok(()),
        }
    }

    /// Ends a virtual machine; what runs on this one is not the cloud's to end.
    pub(crate) async fn power_off(&self) -> io::Result<()> {
        match self {
            Self::Local(_) => Ok(()),
            Self::Qemu(qemu) => Ok(qemu.power_off().await?),
        }
    }
}
