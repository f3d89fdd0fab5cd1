//! Unix sockets: how one is taken, also from a process that is no more, how it is listened to, and how it is left.

mod authority;

use std::{
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use tokio::{
    net::{UnixListener, UnixStream},
    time::sleep,
};
use tokio_stream::wrappers::UnixListenerStream;
use tracing::warn;

use self::authority::Renamed;

/// How often it is looked whether a socket's file is still there.
pub(crate) const LOOK: Duration = Duration::from_secs(10);

/// The connections that come, whatever their clients call the server.
pub(crate) fn connections(listener: UnixListener) -> impl Stream<Item = io::Result<Renamed<UnixStream>>> {
    UnixListenerStream::new(listener).map(|connection| connection.map(Renamed::new))
}

/// Takes the socket, in place of one that a process left behind which is no more.
pub(crate) async fn listen(path: &Path) -> Result<UnixListener, String> {
    let problem = |what: &str, error: io::Error| format!("socket {}: {what}: {error}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| problem("its folder cannot be made", error))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            match UnixStream::connect(path).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                // A server whose backlog is full lives too.
                _ => return Err(format!("socket {}: another process serves on it", path.display())),
            }
            std::fs::remove_file(path).map_err(|error| problem("a stale one cannot be removed", error))?;
        }
        Ok(_) => return Err(format!("socket {}: there is something else, which is left alone", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(problem("cannot be looked at", error)),
    }
    let listener = UnixListener::bind(path).map_err(|error| problem("cannot be bound", error))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .map_err(|error| problem("its mode cannot be set", error))?;
    Ok(listener)
}

/// The file of a socket that this process listens on; removed when the server stops accepting.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    number: Option<(u64, u64)>,
}

impl SocketFile {
    /// The file of a socket that this process listens on.
    pub(crate) fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), number: number(path) }
    }

    /// Whether it is still there: nobody has removed it, or put another in its place.
    pub(crate) fn is_there(&self) -> bool {
        self.number.is_some() && number(&self.path) == self.number
    }

    /// Returns when it is not there any more.
    pub(crate) async fn removed(&self) {
        while self.is_there() {
            sleep(LOOK).await;
        }
    }
}

fn number(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.is_there() {
            warn!(socket = %self.path.display(), "somebody else has removed or replaced the socket");
        } else if let Err(error) = std::fs::remove_file(&self.path) {
            warn!(socket = %self.path.display(), %error, "the socket is left behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_and_a_file_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folder/csi.sock");
        let living = listen(&path).await.unwrap();
        assert!(listen(&path).await.unwrap_err().contains("another process"));
        drop(living);
        assert!(path.exists(), "a socket outlives its process");
        listen(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);

        let mine = SocketFile::of(&path);
        assert!(mine.is_there());
        // A second name for it, so that its number is not given to the next.
        std::fs::hard_link(&path, dir.path().join("kept")).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _successor = listen(&path).await.unwrap();
        assert!(!mine.is_there());
        drop(mine);
        assert!(path.exists(), "what a successor listens on is not removed");

        let file = dir.path().join("file");
        std::fs::write(&file, "data").unwrap();
        assert!(listen(&file).await.unwrap_err().contains("left alone"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "data");
    }
}
