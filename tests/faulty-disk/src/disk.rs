//! One disk: a loop device over a file in a folder whose files misbehave.

use std::{
    fs, io,
    ops::Deref,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use nix::mount::{MntFlags, umount2};

use crate::{
    faults::Faults,
    folder::{FaultyFolder, give_back, wait_until},
};

/// What the file is called.
const NAME: &str = "disk";

/// What the directories of all disks are called, before the id of the process.
const PREFIX: &str = "faulty-disk-";

/// Where the file is shown with its faults.
const SHOWN: &str = "shown";

/// A disk that misbehaves on demand.
#[derive(Debug)]
pub struct FaultyDisk {
    device: PathBuf,
    image: PathBuf,
    /// Before the folder that it is in.
    served: FaultyFolder,
    _dir: TempDir,
}

impl FaultyDisk {
    /// A blank disk of this size, with its files in a new directory in `dir`. What processes that were killed have left
    /// there goes.
    ///
    /// # Errors
    /// No root, no FUSE, no free loop device.
    pub fn new(dir: &Path, bytes: u64) -> io::Result<Self> {
        sweep(dir)?;
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(dir)?;
        let (behind, shown) = (dir.path().join("behind"), dir.path().join(SHOWN));
        fs::create_dir(&behind)?;
        fs::create_dir(&shown)?;
        let image = behind.join(NAME);
        fs::File::create(&image)?.set_len(bytes)?;
        let served = FaultyFolder::serve(&behind, &shown)?;
        let mut device = Err(io::Error::other("no loop device"));
        // Another process may take the device that losetup found; then it says so, and looks again.
        wait_until(|| {
            device = losetup(&shown.join(NAME));
            device.is_ok()
        });
        Ok(Self { device: device?, image, served, _dir: dir })
    }

    /// The disk's node.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// The file behind it, which can be read whatever the faults are. Flush the device first.
    #[must_use]
    pub fn image(&self) -> &Path {
        &self.image
    }
}

impl Deref for FaultyDisk {
    type Target = Faults;

    fn deref(&self) -> &Faults {
        &self.served
    }
}

/// Takes away the disks of processes that are no more.
fn sweep(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if owner.is_none_or(|owner| Path::new(&format!("/proc/{owner}")).exists()) {
            continue;
        }
        let shown = entry.path().join(SHOWN);
        give_back(&shown);
        umount2(&shown, MntFlags::MNT_DETACH).ok();
        fs::remove_dir_all(entry.path()).ok();
    }
    Ok(())
}

fn losetup(file: &Path) -> io::Result<PathBuf> {
    let output = Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(file).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().into());
    }
    Err(io::Error::other(format!("losetup: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
