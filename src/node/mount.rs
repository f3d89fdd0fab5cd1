//! Mounting and unmounting by the mount table's truth: device numbers, never paths or `stat`.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    fs,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::{
    Core,
    device::{self, Device},
    expand::not_mounted,
    filesystem,
    host::{DeviceNumber, Disk, Errno, Found, MountCall, MountFlags, Serial, errno},
    lock::Lock,
    luks,
    mountinfo::{self, Mount},
    options::Options,
    record::Staged,
};
use crate::{
    error::Error,
    volume::{FsType, VolumeId},
};

/// More mounts than this on one path are not of our making.
const MAX_STACKED: usize = 32;

/// Between two tries to unmount what is in use.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Directories that we make are the kubelet's alone.
const DIRECTORY_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o660;

/// Whose disk is behind a mount.
#[derive(Debug)]
pub(super) enum Owner {
    /// The volume's; this is the disk itself, also where what unlocks it is mounted.
    Volume(Disk),
    /// A disk that the machine has no more.
    Gone,
    /// Something else; this.
    Other(String),
}

/// What a path has to be to be mounted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

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
        let read_only = options.is_read_only();
        device.verify().await?;
        if let Err(cause) = self.try_mount(device, fs, path, options).await {
            match errno(&cause) {
                Errno::EINVAL if options.has_data() => {
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
            self.check_mounted(device, path).await?;
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
        self.check_mounted(device, path).await
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

    /// Holds what was just mounted against the proof: a disk that came in its place in between is let go at once.
    async fn check_mounted(&self, device: &Device, path: &Path) -> Result<(), Error> {
        let mounts = self.host.mounts().await?;
        match mountinfo::at(&mounts, path) {
            Some(mount) if mount.device == device.number() => {
                info!(volume = %device.volume(), device = %device.node_str(), path = %path.display(), "mounted");
                Ok(())
            }
            found => {
                if found.is_some() {
                    self.host.unmount(path, false).await.map_err(|cause| Error::io("unmount", path, cause))?;
                }
                Err(Error::Precondition(format!(
                    "volume {}: after the mount of {} ({}), {} was {}; it was unmounted",
                    device.volume(),
                    device.node().display(),
                    device.number(),
                    path.display(),
                    found.map_or_else(|| "no mount".to_owned(), |mount| format!("a mount of {}", mount.device)),
                )))
            }
        }
    }

    /// Binds `source` to `target` and holds the result against the proof; a read-only one keeps its other flags.
    pub(super) async fn bind(&self, device: &Device, source: &Path, target: &Path) -> Result<(), Error> {
        let call = MountCall {
            source: Some(source.to_owned()),
            target: target.to_owned(),
            fs_type: None,
            flags: MountFlags::MS_BIND,
            data: String::new(),
        };
        device.verify().await?;
        self.host.mount(call).await.map_err(|cause| Error::io("bind", target, cause))?;
        self.check_mounted(device, target).await
    }

    /// Makes the topmost mount at `target` read-only, and only that one.
    pub(super) async fn make_read_only(&self, target: &Path) -> Result<(), Error> {
        let mounts = self.host.mounts().await?;
        // A remount sets all flags anew: those that are not repeated are lost.
        let flags = mountinfo::at(&mounts, target).map_or(MountFlags::empty(), Mount::flags)
            | MountFlags::MS_BIND
            | MountFlags::MS_REMOUNT
            | MountFlags::MS_RDONLY;
        let call = MountCall { source: None, target: target.to_owned(), fs_type: None, flags, data: String::new() };
        self.host.mount(call).await.map_err(|cause| Error::io("remount", target, cause))
    }

    /// Unmounts everything that is mounted at exactly `path`, and removes the directory or file.
    pub(super) async fn clear(&self, volume: &VolumeId, path: &Path) -> Result<(), Error> {
        for _ in 0..MAX_STACKED {
            let mounts = self.host.mounts().await?;
            let Some(mount) = mountinfo::at(&mounts, path) else { return self.remove(path).await };
            let gone = match self.owner(volume, mount).await? {
                Owner::Volume(_) => false,
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

    async fn unmount(&self, volume: &VolumeId, mount: &Mount, gone: bool) -> Result<(), Error> {
        let path = &mount.target;
        let busy_until = Instant::now() + self.patience.busy;
        let mut unmounting = self.host.unmount(path, false);
        let lazily = loop {
            match timeout(self.patience.unmount, &mut unmounting).await {
                Ok(Ok(())) => break false,
                Ok(Err(cause)) => match errno(&cause) {
                    // Somebody else was faster.
                    Errno::EINVAL | Errno::ENOENT => return Ok(()),
                    Errno::EIO | Errno::ENXIO | Errno::ENODEV => break true,
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
                Err(_) if matches!(self.owner(volume, mount).await?, Owner::Gone) => break true,
                Err(_) => {
                    warn!(%volume, path = %path.display(), "the unmount takes long; the disk is there, so waiting");
                }
            }
        };
        if lazily {
            warn!(%volume, path = %path.display(), "the disk is dead; unmounting lazily");
            match self.host.unmount(path, true).await {
                Ok(()) => {}
                Err(cause) if errno(&cause) == Errno::EINVAL => {}
                Err(cause) => return Err(Error::io("unmount", path, cause)),
            }
        }
        info!(%volume, path = %path.display(), "unmounted");
        Ok(())
    }

    /// Finds out whether the file system takes writes: not every kernel shows in the mount table that an error has frozen it.
    pub(super) async fn takes_writes(&self, volume: &VolumeId, path: &Path) -> Result<(), Error> {
        let problem = match timeout(self.patience.usage, self.host.try_write(path)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(cause)) => match errno(&cause) {
                // One that is full is in order.
                Errno::ENOSPC | Errno::EDQUOT => return Ok(()),
                _ => cause.to_string(),
            },
            Err(_) => format!("it does not answer within {} s", self.patience.usage.as_secs()),
        };
        Err(Error::Precondition(format!(
            "volume {volume}: the file system at {} takes no writes ({problem}); see the kernel's log, and stage it again",
            path.display()
        )))
    }

    async fn remove(&self, path: &Path) -> Result<(), Error> {
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

    /// Makes `path` what can be mounted on, if it is not yet.
    pub(super) async fn prepare(&self, path: &Path, kind: Kind) -> Result<(), Error> {
        let made = match (self.look(path).await?, kind) {
            (Found::Directory, Kind::Directory) | (Found::File(0), Kind::File) => return Ok(()),
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

    /// What is at `path` itself, following no link there.
    pub(super) async fn look(&self, path: &Path) -> Result<Found, Error> {
        self.host.look(path, false).await.map_err(|cause| Error::io("look at", path, cause))
    }

    /// Whose disk is behind `mount`. A volume without a record was staged by another driver of this cloud: then any of
    /// the cloud's disks passes, since the path is the kubelet's own for the volume. No other disk is waited for.
    pub(super) async fn owner(&self, volume: &VolumeId, mount: &Mount) -> Result<Owner, Error> {
        if mount.is_gone() {
            return Ok(Owner::Gone);
        }
        let record = self.records.load::<Staged>(volume).await?;
        let number = mount.device;
        let Some(found) = self.host.disk(number).await? else {
            // Btrfs shows no number of its disk; the node that it names goes with that, and as long as it is mounted no
            // other disk gets the name.
            let lost_btrfs = mount.fs_type == FsType::Btrfs.as_str()
                && Path::new(&mount.source).starts_with(&self.host.paths().dev_dir)
                && self.look(Path::new(&mount.source)).await? == Found::Nothing;
            let is_recorded = record.is_some_and(|record| record.device == number);
            // Numbers of major 0 are of no disk: tmpfs, overlay, NFS. What the kernel has is not gone, though it may
            // not be among the disks with a serial.
            let is_gone = lost_btrfs || is_recorded || (number.major != 0 && !self.exists(number).await?);
            return Ok(if is_gone { Owner::Gone } else { Owner::Other(format!("{} ({number})", mount.fs_type)) });
        };
        let other = || Ok(Owner::Other(format!("disk {} ({number})", found.name)));
        let disk = match &found.mapping {
            None if found.number == number => found.clone(),
            // One of its partitions.
            None => return other(),
            Some(mapping) if mapping.name != luks::name(volume) => return other(),
            Some(mapping) => match mapping.over.as_slice() {
                [] => return Ok(Owner::Gone),
                [beneath] => match self.host.disk(*beneath).await? {
                    Some(disk) => disk,
                    None if self.exists(*beneath).await? => return other(),
                    None => return Ok(Owner::Gone),
                },
                _ => return other(),
            },
        };
        let is_ours = match (&disk.serial, &record) {
            (Serial::Text(shown), Some(record)) => device::is_same(shown, &record.serial),
            (Serial::Text(shown), None) => (self.profile.is_volume_serial)(shown),
            (Serial::Absent | Serial::Unreadable(_), _) => false,
        };
        if is_ours { Ok(Owner::Volume(disk)) } else { other() }
    }

    /// Whether the kernel has any block device of this number.
    pub(super) async fn exists(&self, number: DeviceNumber) -> Result<bool, Error> {
        let exists = self.host.exists(number).await;
        exists.map_err(|cause| Error::io("look for", format!("block device {number}"), cause))
    }

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

/// The error that another disk's mount at `path` is.
pub(super) fn taken(volume: &VolumeId, path: &Path, mount: &Mount, wanted: &Device) -> Error {
    Error::Precondition(format!(
        "volume {volume}: {} is already a mount of another device ({}, {} {}), not of {} ({})",
        PathBuf::from(path).display(),
        mount.device,
        mount.fs_type,
        mount.source,
        wanted.node().display(),
        wanted.number(),
    ))
}
