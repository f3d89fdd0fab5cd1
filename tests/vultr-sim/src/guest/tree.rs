//! What an instance on this machine sees: a sysfs-shaped tree, a folder of disks by serial, one of file systems by mount tag.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use crate::disk::ignore_absent;

/// The boot disk's device number and its size in sectors of 512 bytes (80 GiB).
const BOOT_DEV: &str = "252:0\n";
const BOOT_PARTITION_DEV: &str = "252:1\n";
const BOOT_SECTORS: &str = "167772160\n";
const BOOT_PARTITION_SECTORS: &str = "167770112\n";

/// An instance's tree.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    root: PathBuf,
}

impl Tree {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn device_dir(&self) -> PathBuf {
        self.root.join("by-id")
    }

    pub(crate) fn sysfs_dir(&self) -> PathBuf {
        self.root.join("sys")
    }

    pub(crate) fn share_dir(&self) -> PathBuf {
        self.root.join("virtiofs")
    }

    fn blocks(&self) -> PathBuf {
        self.sysfs_dir().join("class/block")
    }

    /// Where entries are made before they are moved to their place, and after they were taken from it.
    fn aside(&self) -> PathBuf {
        self.root.join("aside")
    }

    /// Makes the tree of a machine that has only its boot disk, which bears no serial, as on real instances.
    pub(crate) fn make(&self) -> io::Result<()> {
        let boot = self.blocks().join("vda");
        let partition = boot.join("vda1");
        for dir in [&self.device_dir(), &self.share_dir(), &self.aside(), &partition] {
            fs::create_dir_all(dir)?;
        }
        fs::write(boot.join("dev"), BOOT_DEV)?;
        fs::write(boot.join("size"), BOOT_SECTORS)?;
        fs::write(partition.join("dev"), BOOT_PARTITION_DEV)?;
        fs::write(partition.join("size"), BOOT_PARTITION_SECTORS)?;
        fs::write(partition.join("partition"), "1\n")?;
        symlink("vda/vda1", self.blocks().join("vda1"))
    }

    pub(crate) fn remove(&self) -> io::Result<()> {
        ignore_absent(fs::remove_dir_all(&self.root))
    }

    /// Shows a loop device as the disk with this serial. Number and size are the kernel's own, followed by link.
    pub(crate) fn show(&self, device: &Path, serial: &str) -> io::Result<()> {
        let name = name(device)?;
        let (aside, place) = (self.aside().join(name), self.blocks().join(name));
        ignore_absent(fs::remove_dir_all(&aside))?;
        fs::create_dir_all(&aside)?;
        // virtio-blk prints its serial without a newline.
        fs::write(aside.join("serial"), serial)?;
        let kernel = Path::new("/sys/class/block").join(name);
        // Kernels before 5.15 have no diskseq; the link then leads nowhere, which reads as absent.
        for attribute in ["dev", "size", "diskseq"] {
            symlink(kernel.join(attribute), aside.join(attribute))?;
        }
        ignore_absent(fs::remove_dir_all(&place))?;
        fs::rename(&aside, &place)?;
        let link = self.link(serial);
        ignore_absent(fs::remove_file(&link))?;
        symlink(device, link)
    }

    /// Shows the disk no more.
    pub(crate) fn hide(&self, device: &Path, serial: &str) -> io::Result<()> {
        let name = name(device)?;
        ignore_absent(fs::remove_file(self.link(serial)))?;
        let aside = self.aside().join(name);
        ignore_absent(fs::remove_dir_all(&aside))?;
        ignore_absent(fs::rename(self.blocks().join(name), &aside))?;
        ignore_absent(fs::remove_dir_all(&aside))
    }

    /// Lets a folder be found by the tag under which a guest would mount it.
    pub(crate) fn show_share(&self, dir: &Path, mount_tag: u32) -> io::Result<()> {
        let link = self.share_dir().join(mount_tag.to_string());
        ignore_absent(fs::remove_file(&link))?;
        symlink(dir, link)
    }

    /// Lets it be found no more.
    pub(crate) fn hide_share(&self, mount_tag: u32) -> io::Result<()> {
        ignore_absent(fs::remove_file(self.share_dir().join(mount_tag.to_string())))
    }

    fn link(&self, serial: &str) -> PathBuf {
        self.device_dir().join(format!("virtio-{serial}"))
    }
}

fn name(device: &Path) -> io::Result<&std::ffi::OsStr> {
    device.file_name().ok_or_else(|| io::Error::other("a device without a name"))
}
