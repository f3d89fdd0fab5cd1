//! Places to mount on: where they really are, made where they are missing, removed only if nothing is in them.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use tokio::fs;
use tracing::info;

use super::{
    Core,
    expand::not_mounted,
    host::{Errno, Found, errno},
};
use crate::{error::Error, volume::VolumeId};

/// Directories that we make are the kubelet's alone.
const DIRECTORY_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o660;

/// What a path has to be to be mounted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

impl Core {
    /// A path of the caller's as the mount table has it.
    ///
    /// # Errors
    /// [`Error::Invalid`] outside of the kubelet's directory, [`Error::Precondition`] if a link leads there.
    pub(super) async fn resolve(&self, field: &str, path: &Path) -> Result<PathBuf, Error> {
        self.host.resolve(path).await.map_err(|cause| match cause.kind() {
            ErrorKind::PermissionDenied => Error::invalid(field, format!("{}: {cause}", path.display())),
            _ if errno(&cause) == Errno::ELOOP => Error::Precondition(format!(
                "{field}: a symbolic link is on the way to {}; none is followed in the kubelet's directory",
                path.display()
            )),
            _ => Error::io("resolve", path, cause),
        })
    }

    /// The same of a path where the volume is said to be; one that cannot be is just not where it is.
    pub(super) async fn resolve_mounted(&self, volume: &VolumeId, path: &Path) -> Result<PathBuf, Error> {
        match self.resolve("volume_path", path).await {
            Err(Error::Invalid { .. }) => Err(not_mounted(volume, path)),
            resolved => resolved,
        }
    }

    /// Makes `path` what can be mounted on, if it is not yet.
    pub(super) async fn prepare(&self, path: &Path, kind: Kind) -> Result<(), Error> {
        let made = match (self.look(path).await?, kind) {
            (Found::File(0), Kind::File) => return Ok(()),
            (Found::Directory, Kind::Directory) => {
                let first = async { fs::read_dir(path).await?.next_entry().await };
                let first = first.await.map_err(|cause| Error::io("list", path, cause))?;
                return match first {
                    None => Ok(()),
                    Some(_) => Err(Error::Precondition(format!(
                        "{} cannot be mounted on: the directory has something in it",
                        path.display()
                    ))),
                };
            }
            (Found::Nothing, Kind::Directory) => make_directory(path).await,
            (Found::Nothing, Kind::File) => {
                make_directory(path.parent().unwrap_or(path)).await?;
                let file = fs::OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path).await;
                file.map(drop).map_err(|cause| Error::io("make", path, cause))
            }
            (found, _) => {
                let (path, found) = (path.display(), in_words(found));
                return Err(Error::Precondition(format!("{path} cannot be mounted on: it is {found}")));
            }
        };
        made.inspect(|()| info!(path = %path.display(), "made"))
    }

    /// Removes the directory or the empty file at `path`, on which nothing is mounted.
    pub(super) async fn remove(&self, path: &Path) -> Result<(), Error> {
        let removed = match self.look(path).await? {
            Found::Nothing => return Ok(()),
            Found::Directory => fs::remove_dir(path).await,
            Found::File(0) => fs::remove_file(path).await,
            found => {
                let (path, found) = (path.display(), in_words(found));
                return Err(Error::Precondition(format!("{path} is not mounted, but {found}; it was left alone")));
            }
        };
        match removed {
            Ok(()) => Ok(()),
            Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(()),
            Err(cause) if cause.kind() == ErrorKind::DirectoryNotEmpty => Err(Error::Precondition(format!(
                "nothing is mounted at {}, but the directory has something in it; it was left alone",
                path.display()
            ))),
            Err(cause) => Err(Error::io("remove", path, cause)),
        }
    }

    /// What is at `path` itself, following no link there.
    pub(super) async fn look(&self, path: &Path) -> Result<Found, Error> {
        self.host.look(path, false).await.map_err(|cause| Error::io("look at", path, cause))
    }
}

async fn make_directory(path: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path).await;
    made.map_err(|cause| Error::io("make", path, cause))
}

fn in_words(found: Found) -> String {
    match found {
        Found::Nothing => "nothing".to_owned(),
        Found::Directory => "a directory".to_owned(),
        Found::File(bytes) => format!("a file of {bytes} bytes"),
        Found::Symlink => "a symbolic link, which is not followed".to_owned(),
        Found::Block(number) => format!("block device {number}"),
        Found::Other => "neither file nor directory".to_owned(),
    }
}
