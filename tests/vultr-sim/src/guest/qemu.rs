//! A qemu guest: disks and shared file systems are plugged into it and out of it while it runs, through its monitor.
//!
//! Each operation makes a connection of its own, so that a guest that was started again on the same socket is the same
//! instance. A guest that is off has let everything go.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    sync::MutexGuard,
    time::{Instant, sleep, timeout},
};

use super::{
    qmp::{Failure, Monitor},
    virtiofsd::{Program, Virtiofsd},
};

/// How long after a request to let a device go it is made again: a guest that starts up may not have heard it.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Between two looks at what qemu is about to finish.
const PAUSE: Duration = Duration::from_millis(50);
/// How long qemu may hold on to what was behind a device that is gone: it frees it a moment later.
const FREED: Duration = Duration::from_secs(5);

/// A virtual machine that somebody else started and ends.
#[derive(Debug)]
pub(crate) struct Qemu {
    monitor: PathBuf,
    dir: PathBuf,
    virtiofsd: Program,
    turn: tokio::sync::Mutex<()>,
    /// By mount tag.
    served: Mutex<HashMap<u32, Virtiofsd>>,
}

/// Something that is plugged in.
#[derive(Clone, Copy, Debug)]
enum Part<'a> {
    /// By its serial, which is also the name of what is behind it.
    Disk(&'a str),
    /// By its mount tag.
    Share(u32),
}

impl Part<'_> {
    fn device(self) -> String {
        match self {
            Self::Disk(serial) => format!("disk-{serial}"),
            Self::Share(tag) => format!("share-{tag}"),
        }
    }
}

impl Qemu {
    /// A guest with this monitor, and a folder for the sockets of its shares.
    pub(crate) fn new(monitor: PathBuf, dir: PathBuf, virtiofsd: Option<PathBuf>) -> Self {
        let (turn, served) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { monitor, dir, virtiofsd: Program::new(virtiofsd), turn, served }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Makes a file appear as the disk with this serial, of which virtio takes 20 characters.
    pub(crate) async fn plug(&self, file: &Path, serial: &str) -> Result<(), Failure> {
        let mut monitor = Monitor::connect(&self.monitor).await?;
        // Qemu's lock would also keep out a copy for a snapshot. What is flushed is safe from all but this machine's end.
        let backend = json!({
            "driver": "raw",
            "node-name": serial,
            "discard": "unmap",
            "file": {
                "driver": "file",
                "filename": file,
                "discard": "unmap",
                "cache": {"no-flush": true},
                "locking": "off",
            },
        });
        monitor.execute("blockdev-add", backend).await?;
        let device = Part::Disk(serial).device();
        let device = json!({"driver": "virtio-blk-pci", "id": device, "drive": serial, "serial": serial});
        let plugged = monitor.execute("device_add", device).await.map(drop);
        undone_by(plugged, &mut monitor, "blockdev-del", json!({"node-name": serial})).await
    }

    /// Whether what is behind a disk is there.
    pub(crate) async fn has_disk(&self, serial: &str) -> Result<bool, Failure> {
        is_there(&mut Monitor::connect(&self.monitor).await?, Part::Disk(serial)).await
    }

    /// Whether the connection to a share's server is there.
    pub(crate) async fn has_share(&self, tag: u32) -> Result<bool, Failure> {
        is_there(&mut Monitor::connect(&self.monitor).await?, Part::Share(tag)).await
    }

    /// Takes a disk from the guest, which must agree to it in time.
    pub(crate) async fn unplug(&self, serial: &str, patience: Duration) -> Result<(), Failure> {
        self.take(Part::Disk(serial), patience).await
    }

    /// Tells the guest the new size of a disk. One that is off learns it when it starts.
    pub(crate) async fn grow(&self, serial: &str, bytes: u64) -> Result<(), Failure> {
        let mut monitor = match Monitor::connect(&self.monitor).await {
            Err(Failure::Off) => return Ok(()),
            other => other?,
        };
        monitor.execute("block_resize", json!({"node-name": serial, "size": bytes})).await.map(drop)
    }

    /// Serves a folder under a mount tag.
    pub(crate) async fn share(&self, dir: &Path, tag: u32) -> io::Result<()> {
        // That of a guest which was switched off has its place until it has ended.
        self.end_server(tag).await?;
        let server = Virtiofsd::start(&self.virtiofsd, dir, &self.dir.join(format!("share-{tag}"))).await?;
        match self.plug_share(server.socket(), tag).await {
            Ok(()) => {
                self.served().insert(tag, server);
                Ok(())
            }
            Err(failure) => {
                server.end().await?;
                Err(failure.into())
            }
        }
    }

    async fn plug_share(&self, socket: &Path, tag: u32) -> Result<(), Failure> {
        let mut monitor = Monitor::connect(&self.monitor).await?;
        let address = json!({"type": "unix", "data": {"path": socket}});
        let backend = json!({"type": "socket", "data": {"addr": address, "server": false}});
        let (device, line) = (Part::Share(tag).device(), line(tag));
        monitor.execute("chardev-add", json!({"id": line, "backend": backend})).await?;
        let device = json!({"driver": "vhost-user-fs-pci", "id": device, "chardev": line, "tag": tag.to_string()});
        let plugged = monitor.execute("device_add", device).await.map(drop);
        undone_by(plugged, &mut monitor, "chardev-remove", json!({ "id": line })).await
    }

    /// Takes a share from the guest, which must agree to it in time, and ends its server.
    pub(crate) async fn unshare(&self, tag: u32, patience: Duration) -> io::Result<()> {
        self.take(Part::Share(tag), patience).await?;
        self.end_server(tag).await
    }

    /// Ends a share's server, if there is one.
    async fn end_server(&self, tag: u32) -> io::Result<()> {
        let server = self.served().remove(&tag);
        match server {
            Some(server) => server.end().await,
            None => Ok(()),
        }
    }

    /// Ends the guest, as the power switch does.
    pub(crate) async fn power_off(&self) -> Result<(), Failure> {
        let ended = async { Monitor::connect(&self.monitor).await?.execute("quit", json!({})).await };
        match ended.await {
            Ok(_) | Err(Failure::Off | Failure::Broken) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    fn served(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Virtiofsd>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a part out. A connection that breaks says nothing: the next one tells whether the guest is off.
    async fn take(&self, part: Part<'_>, patience: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + patience;
        loop {
            let taken = match Monitor::connect(&self.monitor).await {
                Ok(mut monitor) => taken(&mut monitor, part, deadline).await,
                Err(Failure::Off) => return Ok(()),
                Err(failure) => Err(failure),
            };
            match taken {
                Err(Failure::Broken) if Instant::now() < deadline => sleep(PAUSE).await,
                other => return other,
            }
        }
    }
}

/// The name of the connection to a share's server.
fn line(tag: u32) -> String {
    format!("share-{tag}-socket")
}

/// Takes back what was made for a device that could not be added, and tells both failures if that fails too.
async fn undone_by(
    plugged: Result<(), Failure>,
    monitor: &mut Monitor,
    command: &str,
    arguments: Value,
) -> Result<(), Failure> {
    let Err(first) = plugged else {
        return Ok(());
    };
    match monitor.execute(command, arguments).await {
        Ok(_) => Err(first),
        Err(second) => Err(Failure::Unclear(io::Error::other(format!("{first}; then {second}")))),
    }
}

async fn taken(monitor: &mut Monitor, part: Part<'_>, deadline: Instant) -> Result<(), Failure> {
    let_go(monitor, &part.device(), deadline).await?;
    // What is behind the device may be freed a moment after it.
    let deadline = Instant::now() + FREED;
    loop {
        if !is_there(monitor, part).await? {
            return Ok(());
        }
        let freed = match part {
            Part::Disk(serial) => monitor.execute("blockdev-del", json!({"node-name": serial})).await,
            Part::Share(tag) => monitor.execute("chardev-remove", json!({"id": line(tag)})).await,
        };
        match freed {
            Err(Failure::Refused { .. }) if Instant::now() < deadline => sleep(PAUSE).await,
            other => return other.map(drop),
        }
    }
}

/// Whether what is behind a part's device is there.
async fn is_there(monitor: &mut Monitor, part: Part<'_>) -> Result<bool, Failure> {
    let (query, key, name) = match part {
        Part::Disk(serial) => ("query-named-block-nodes", "node-name", serial.to_owned()),
        Part::Share(tag) => ("query-chardev", "label", line(tag)),
    };
    let listed = monitor.execute(query, json!({})).await?;
    Ok(listed.as_array().is_some_and(|things| things.iter().any(|thing| thing[key] == name)))
}

/// Asks the guest to let a device go until it does. Qemu's answer says only that it was asked.
async fn let_go(monitor: &mut Monitor, device: &str, deadline: Instant) -> Result<(), Failure> {
    let mut refusal = None;
    loop {
        match monitor.execute("device_del", json!({ "id": device })).await {
            Ok(_) => {}
            Err(Failure::Refused { class, .. }) if class == "DeviceNotFound" => return Ok(()),
            // That it is on its way already, most likely.
            Err(failure @ Failure::Refused { .. }) => refusal = Some(failure),
            Err(failure) => return Err(failure),
        }
        let wait = ASK_AGAIN.min(deadline.saturating_duration_since(Instant::now()));
        if let Ok(gone) = timeout(wait, monitor.deleted(device)).await {
            return gone;
        }
        if Instant::now() >= deadline {
            let kept = || io::Error::new(io::ErrorKind::TimedOut, format!("the guest does not let {device} go"));
            return Err(refusal.unwrap_or_else(|| Failure::Unclear(kept())));
        }
    }
}

#[cfg(test)]
mod tests;
