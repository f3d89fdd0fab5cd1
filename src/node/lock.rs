//! One lock per volume, which outlives the driver for as long as a program that it started for the volume runs.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use tracing::warn;

use crate::{error::Error, volume::VolumeId};

/// How long between two tries for a lock that another process holds.
const RETRY: Duration = Duration::from_millis(100);

/// A volume's lock, held.
///
/// It belongs to the open file (flock(2)): programs that are given a copy of that go on holding it after we are gone.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits for the volume's lock and takes it.
    pub(crate) async fn take(state_dir: &Path, volume: &VolumeId) -> Result<Self, Error> {
        let path = state_dir.join(format!("{volume}.lock"));
        let mut told = false;
        loop {
            match try_take(&path) {
                Ok(Some(file)) => return Ok(Self { file, path }),
                Ok(None) => {}
                Err(cause) => return Err(Error::io("lock", path, cause)),
            }
            if !told {
                told = true;
                warn!(%volume, "a program of an earlier run or a trim still works on the volume; waiting for it");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Takes the volume's lock, if nobody has it.
    pub(crate) fn try_take(state_dir: &Path, volume: &VolumeId) -> Result<Option<Self>, Error> {
        let path = state_dir.join(format!("{volume}.lock"));
        let file = try_take(&path).map_err(|cause| Error::io("lock", &path, cause))?;
        Ok(file.map(|file| Self { file, path }))
    }

    /// The lock, to be handed to a program.
    pub(crate) fn share(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Removes the lock's file, while holding it; whoever waits for it makes a new one.
    pub(crate) fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "a lock file is left behind");
        }
    }
}

fn try_take(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(cause)) => return Err(cause),
    }
    // Its former holder may have removed it in between; then it locks nothing any more.
    let same = fs::metadata(path).is_ok_and(|found| file.metadata().is_ok_and(|held| held.ino() == found.ino()));
    Ok(same.then_some(file))
}
