//! Tells of disks that come and go, by inotify.
//!
//! `/dev` is a devtmpfs, where inotify works; the real sysfs gives no events, a directory shaped like it does. Events
//! can be lost, so whoever waits also looks again by himself.

use std::{io, os::fd::OwnedFd, path::Path};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe;
use tracing::debug;

use super::Arrivals;

/// Room for a good many events at once; each has 16 bytes and a name.
const BUFFER_BYTES: usize = 16 << 10;

/// A watch over directories; without one where the kernel has none left to give.
///
/// An inotify descriptor is read like a pipe's end, and tokio's type for those is the one it has for foreign
/// descriptors that takes no `unsafe`.
pub(super) struct Watch(Option<pipe::Receiver>);

impl Watch {
    /// Watches those of `directories` that there are.
    pub(super) fn over(directories: &[&Path]) -> Self {
        match open(directories) {
            Ok(watch) => Self(Some(watch)),
            Err(error) => {
                debug!(%error, "no inotify; looking now and then instead");
                Self(None)
            }
        }
    }
}

fn open(directories: &[&Path]) -> io::Result<pipe::Receiver> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let kinds = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_ATTRIB;
    for directory in directories {
        // One that is missing gives no events; the look after a while finds it.
        inotify.add_watch(*directory, kinds).ok();
    }
    pipe::Receiver::from_owned_fd_unchecked(OwnedFd::from(inotify))
}

#[async_trait::async_trait]
impl Arrivals for Watch {
    async fn changed(&mut self) {
        let Some(watch) = &self.0 else { return std::future::pending().await };
        let mut events = vec![0; BUFFER_BYTES];
        while watch.readable().await.is_ok() {
            match watch.try_read(&mut events) {
                Ok(1..) => return,
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => break,
            }
        }
        std::future::pending::<()>().await;
    }
}
