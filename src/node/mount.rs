//! Mounting by the mount table's truth: device numbers, never paths or `stat`.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::{info, warn};

use super::{
    Core,
    device::Device,
    filesystem,
    host::{DeviceNumber, Errno, MountCall, MountFlags, errno},
    lock::Lock,
    mountinfo::{self, Mount},
    options::Options,
    proven::Proven,
};
use crate::{
    error::Error,
    volume::{FsType, VolumeId},
};

impl Core {
    /// Mounts the disk's file system. One that is damaged, or says that it is, is checked once: after its journal has
    /// been replayed by the mount, as far as that could be.
    pub(super) async fn mount_disk(
        &self,
        device: &Device,
        fs: FsType,
        path: &Path,
        options: &Options,
        lock: &Lock,
    ) -> Result<(), Error> {
        let host = self.host.as_ref();
        let proven = Proven::from(device.clone());
        let read_only = options.is_read_only();
        device.verify().await?;
        if let Err(cause) = self.try_mount(device, fs, path, options).await {
            match errno(&cause) {
                Errno::EINVAL
                    if options.has_data()
                        && (options.forgo_replay() || self.mounts_without_options(device, fs, path).await?) =>
                {
                    let problem = format!("the kernel refuses to mount {fs} with {}; see its log", options.data(fs));
                    return Err(Error::invalid("mount_flags", problem));
                }
                Errno::EROFS => return Err(needs_writes(device, fs, "the disk takes no writes")),
                Errno::EINVAL | Errno::EUCLEAN | Errno::EBADMSG | Errno::EIO if read_only => {
                    let found = format!("its file system does not mount ({cause}), and is not mended for readers");
                    return Err(needs_writes(device, fs, &found));
                }
                Errno::EINVAL | Errno::EUCLEAN | Errno::EBADMSG | Errno::EIO => {}
                _ => return Err(Error::io("mount", device.node(), cause)),
            }
            warn!(volume = %device.volume(), device = %device.node_str(), %fs, error = %cause, "did not mount; checking");
        } else {
            self.check_mounted(&proven, path).await?;
            if read_only || !filesystem::says_it_has_errors(device, fs).await? {
                return Ok(());
            }
            warn!(volume = %device.volume(), device = %device.node_str(), %fs, "says that it has errors; checking");
            if let Some(mount) = mountinfo::at(&host.mounts().await?, path) {
                self.unmount(device.volume(), mount, false).await?;
            }
        }
        filesystem::check(host, device, fs, lock).await?;
        device.verify().await?;
        let mounted = self.try_mount(device, fs, path, options).await;
        mounted.map_err(|cause| Error::io("mount", device.node(), cause))?;
        self.check_mounted(&proven, path).await
    }

    /// Whether it is the options that keep the file system from being mounted: without them it is, read-only.
    async fn mounts_without_options(&self, device: &Device, fs: FsType, path: &Path) -> Result<bool, Error> {
        device.verify().await?;
        if self.try_mount(device, fs, path, &Options::none()).await.is_err() {
            return Ok(false);
        }
        self.check_mounted(&Proven::from(device.clone()), path).await?;
        self.unmount_all(device.volume(), path).await?;
        Ok(true)
    }

    async fn try_mount(&self, device: &Device, fs: FsType, path: &Path, options: &Options) -> io::Result<()> {
        let call = MountCall {
            source: Some(device.node().to_owned()),
            target: path.to_owned(),
            fs_type: Some(fs.as_str()),
            flags: options.flags,
            data: options.data(fs),
        };
        self.host.mount(call).await
    }

    /// Holds what was just mounted against the proof: what came in its place in between is let go at once.
    async fn check_mounted(&self, proven: &Proven, path: &Path) -> Result<(), Error> {
        let mounts = self.host.mounts().await?;
        match mountinfo::at(&mounts, path) {
            Some(mount) if mount.device == proven.number() => {
                info!(volume = %proven.volume(), device = %proven, path = %path.display(), "mounted");
                Ok(())
            }
            found => {
                if found.is_some() {
                    self.host.unmount(path, false).await.map_err(|cause| Error::io("unmount", path, cause))?;
                }
                Err(Error::Precondition(format!(
                    "volume {}: after the mount of {proven}, {} was {}; it was unmounted",
                    proven.volume(),
                    path.display(),
                    found.map_or_else(|| "no mount".to_owned(), |mount| format!("a mount of {}", mount.device)),
                )))
            }
        }
    }

    /// Binds `source` to `target` and holds the result against the proof; a read-only one keeps its other flags.
    pub(super) async fn bind(&self, proven: &Proven, source: &Path, target: &Path) -> Result<(), Error> {
        let call = MountCall {
            source: Some(source.to_owned()),
            target: target.to_owned(),
            fs_type: None,
            flags: MountFlags::MS_BIND,
            data: String::new(),
        };
        if let Proven::Disk(device) = proven {
            device.verify().await?;
        }
        self.host.mount(call).await.map_err(|cause| Error::io("bind", target, cause))?;
        self.check_mounted(proven, target).await
    }

    /// Makes the topmost mount at `target` read-only or writable, and only that one: in this process's mount namespace.
    pub(super) async fn remount(&self, target: &Path, read_only: bool) -> Result<(), Error> {
        let mounts = self.host.mounts().await?;
        // A remount sets all flags anew: those that are not repeated are lost.
        let mut flags = mountinfo::at(&mounts, target).map_or(MountFlags::empty(), Mount::flags);
        flags.set(MountFlags::MS_RDONLY, read_only);
        flags |= MountFlags::MS_BIND | MountFlags::MS_REMOUNT;
        let call = MountCall { source: None, target: target.to_owned(), fs_type: None, flags, data: String::new() };
        self.host.mount(call).await.map_err(|cause| Error::io("remount", target, cause))
    }

    /// Finds out whether the file system takes writes: not every kernel shows in the mount table that an error has frozen it.
    pub(super) async fn takes_writes(&self, volume: &VolumeId, path: &Path) -> Result<(), Error> {
        let (host, at) = (Arc::clone(&self.host), path.to_owned());
        let problem = match self.in_time(path, async move { host.try_write(&at).await }).await {
            Some(Ok(())) => return Ok(()),
            Some(Err(cause)) => match errno(&cause) {
                // One that is full is in order.
                Errno::ENOSPC | Errno::EDQUOT => return Ok(()),
                _ => cause.to_string(),
            },
            None => format!("it does not answer within {} s", self.patience.usage.as_secs()),
        };
        Err(Error::Precondition(format!(
            "volume {volume}: the file system at {} takes no writes ({problem}); see the kernel's log, and stage it again",
            path.display()
        )))
    }
}

/// The error of a file system that a read-only mount cannot bring in order.
fn needs_writes(device: &Device, fs: FsType, found: &str) -> Error {
    let without_replay = match fs {
        FsType::Ext4 => "noload",
        FsType::Xfs => "norecovery",
        FsType::Btrfs => "rescue=nologreplay",
    };
    Error::Precondition(format!(
        "volume {}: {fs} on {} cannot be mounted read-only: {found}; stage it once for writing, or ask for the mount \
         option {without_replay}, which shows it as it was before its last writes",
        device.volume(),
        device.node().display()
    ))
}

/// The places where the disk of `number` is mounted or its node is bound.
pub(super) fn places_of(mounts: &[Mount], number: DeviceNumber) -> Vec<&Mount> {
    mounts.iter().filter(|mount| mount.device == number && !mount.is_gone()).collect()
}

/// Holds an existing mount of the right disk against what is asked for.
///
/// # Errors
/// [`Error::Differs`] if it was made read-only and shall not be, or the other way round (CSI: `ALREADY_EXISTS`);
/// [`Error::Precondition`] if an error turned the file system read-only.
pub(super) fn agree(mount: &Mount, read_only: bool) -> Result<(), Error> {
    let path = mount.target.display();
    if mount.is_read_only() != read_only {
        let word = |read_only| if read_only { "read-only" } else { "read-write" };
        return Err(Error::Differs {
            subject: format!("the mount at {path}"),
            difference: format!("it is {}, {} was asked for", word(!read_only), word(read_only)),
        });
    }
    writable(mount, read_only)
}

/// Refuses a file system that takes no writes where they are wanted.
pub(super) fn writable(mount: &Mount, read_only: bool) -> Result<(), Error> {
    if !read_only && mount.is_frozen() {
        return Err(Error::Precondition(format!(
            "the file system at {} takes no writes ({}): it was staged read-only, or an error froze it; see the \
             kernel's log, and stage it again",
            mount.target.display(),
            mount.super_options.join(",")
        )));
    }
    Ok(())
}

/// The error that a mount of something else at `path` is.
pub(super) fn taken(volume: &VolumeId, path: &Path, mount: &Mount, wanted: &impl fmt::Display) -> Error {
    Error::Precondition(format!(
        "volume {volume}: {} is already a mount of another device ({}, {} {}), not of {wanted}",
        PathBuf::from(path).display(),
        mount.device,
        mount.fs_type,
        mount.source,
    ))
}
