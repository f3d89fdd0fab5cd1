//! Stage: the volume's file system is mounted for the node; unstage: it is not, and the disk can be detached.
//!
//! ```text
//!  attached ──disk proven──► known ──encrypted? unlocked (`luks`)──► mounted there already?──yes──┐
//!                                                                   │ no                          │
//!                              ┌────────────────────────────────────┘                             │
//!                       file system found,                        ┌───────────────────────────────┘
//!                       or made on a blank disk (`format`)        │
//!                              │                                  ▼
//!                           mounted ──mount table agrees──► grown to the disk ──► staged
//!
//!  staged ──published nowhere──► unmounted ──flushed──encrypted? locked──► forgotten
//! ```
//!
//! Every step finds out from the machine what is done already, so that a call can be repeated from anywhere. A raw
//! block volume is staged when its disk is proven: nothing is read of it and nothing is mounted. Shares are staged in
//! `share`, and unstaged here.

use std::{path::Path, time::SystemTime};

use tokio::time::Instant;
use tracing::{debug, warn};

use super::{
    Core, Stage,
    device::{self, Device},
    filesystem,
    format::Wanted,
    host::{DeviceNumber, Disk, Open, Serial, on_disk},
    lock::Lock,
    luks,
    mount::{agree, places_of, taken},
    mountinfo::{self, Mount},
    options::Options,
    owner::Owner,
    place::Kind,
    record::{Formatting, Staged, Trim},
    trim::week_of,
};
use crate::{
    cloud::Attachment,
    error::Error,
    volume::{Access, Discard, FsType, Gib, MkfsOptions, VolumeId},
};

/// How things stood before a stage.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    pub(super) mounted: bool,
    pub(super) unlocked: bool,
    pub(super) recorded: bool,
}

impl Core {
    pub(super) async fn stage(&self, request: &Stage, deadline: Option<Instant>, lock: &Lock) -> Result<(), Error> {
        let until = deadline.unwrap_or_else(|| Instant::now() + self.patience.arrival);
        self.give_back(&request.volume).await?;
        match &request.attachment {
            Attachment::Disk { serial, size } => self.stage_disk(request, serial, *size, until, lock).await,
            Attachment::Share { tag } => self.stage_share(request, tag, until, lock).await,
        }
    }

    async fn stage_disk(
        &self,
        request: &Stage,
        serial: &str,
        size: Option<Gib>,
        until: Instant,
        lock: &Lock,
    ) -> Result<(), Error> {
        let (volume, path) = (&request.volume, &request.staging_path);
        let prefix = self.profile.link_prefix;
        let record = self.records.load::<Staged>(volume).await?;
        let known = record.as_ref().and_then(|record| record.known_in(self.host.boot()));
        let disk = Device::arrive(&self.host, prefix, volume, serial, known, until).await?;
        let options = match &request.access {
            Access::Mount { flags, .. } => Some(Options::parse(flags, request.read_only)?.with(request.discard)),
            Access::Block => None,
        };
        let no_file_system = MkfsOptions::default();
        let wanted = Wanted {
            fs: request.access.fs_type(),
            size,
            blank: request.blank,
            mkfs_options: if options.is_some() { &request.mkfs_options } else { &no_file_system },
            discard: request.discard != Discard::Never || options.as_ref().is_some_and(Options::discards),
        };
        let mounts = self.free_of_the_dead(volume, path, &disk, lock).await?;
        if options.is_some() || request.key.is_some() {
            not_shown(&disk, &mounts)?;
        }
        let before = Before {
            mounted: mountinfo::at(&mounts, path).is_some(),
            unlocked: self
                .mapping(volume)
                .await?
                .is_some_and(|mapping| device::lies_on(&mapping, &luks::name(volume), disk.number())),
            recorded: record.is_some(),
        };
        let staged = async {
            let device = match &request.key {
                None => disk,
                Some(key) => self.unlocked(&disk, wanted, key, options.is_none(), lock).await?,
            };
            // Anew: what was unlocked may have the number of a mapping that another volume had a moment ago.
            let mounts = self.host.mounts().await?;
            match options {
                None => self.stage_node(&device, &mounts).await,
                Some(options) => self.stage_mount(request, &device, wanted, &options, &mounts, lock).await,
            }
        };
        let staged = staged.await;
        if staged.is_err() {
            self.undo(volume, path, before, lock).await;
        }
        staged
    }

    /// Undoes what a stage has done that failed: the kubelet takes that for none, and never asks for its end.
    pub(super) async fn undo(&self, volume: &VolumeId, path: &Path, before: Before, lock: &Lock) {
        let undone = async {
            let is_mounted = !before.mounted && mountinfo::at(&self.host.mounts().await?, path).is_some();
            if is_mounted {
                self.unmount_all(volume, path).await?;
            }
            if !before.unlocked {
                self.lock_volume(volume, lock).await?;
            }
            if !before.recorded {
                self.records.forget::<Staged>(volume).await?;
            }
            if is_mounted { self.remove(path).await } else { Ok(()) }
        };
        if let Err(error) = undone.await {
            warn!(%volume, path = %path.display(), error = error.chain(), "a stage that failed is not wholly undone");
        }
    }

    /// Of a raw block volume nothing is read and nothing mounted.
    async fn stage_node(&self, device: &Device, mounts: &[Mount]) -> Result<(), Error> {
        if let Some(mount) = places_of(mounts, device.number()).into_iter().find(|mount| !mount.is_node) {
            let (volume, at) = (device.volume(), mount.target.display());
            return Err(Error::Precondition(format!("volume {volume} is mounted as a file system at {at}")));
        }
        if !device.is_mapping() && device.mapped(&luks::name(device.volume())).await?.is_some() {
            let volume = device.volume();
            return Err(Error::Precondition(format!("volume {volume} is staged as an encrypted one")));
        }
        // What the workload writes must never be taken for what a mkfs has left.
        self.records.forget::<Formatting>(device.volume()).await?;
        self.remember(device, None, None).await
    }

    /// The mount table, after a mount of a disk that is gone was taken away from `path`: the volume was taken away under
    /// it, and has come back as another disk.
    async fn free_of_the_dead(
        &self,
        volume: &VolumeId,
        path: &Path,
        disk: &Device,
        lock: &Lock,
    ) -> Result<Vec<Mount>, Error> {
        let mounts = self.host.mounts().await?;
        match mountinfo::at(&mounts, path) {
            Some(mount) if mount.device != disk.number() && matches!(self.owner(volume, mount).await?, Owner::Gone) => {
                self.clear(volume, path).await?;
                self.lock_volume(volume, lock).await?;
                self.host.mounts().await
            }
            _ => Ok(mounts),
        }
    }

    async fn stage_mount(
        &self,
        request: &Stage,
        device: &Device,
        wanted: Wanted<'_>,
        options: &Options,
        mounts: &[Mount],
        lock: &Lock,
    ) -> Result<(), Error> {
        let (volume, path) = (&request.volume, &request.staging_path);
        let trim = (request.discard == Discard::Weekly).then(|| Trim { week: week_of(volume, SystemTime::now()) });
        let mounted = mountinfo::at(mounts, path);
        let fs = match mounted {
            Some(mount) if mount.device != device.number() => return Err(taken(volume, path, mount, device)),
            Some(mount) => {
                agree(mount, options.is_read_only())?;
                let fs = FsType::ALL.into_iter().find(|fs| fs.as_str() == mount.fs_type);
                let Some(fs) = fs.filter(|fs| wanted.fs.is_none_or(|asked| asked == *fs)) else {
                    return Err(Error::Differs {
                        subject: format!("the mount at {}", path.display()),
                        difference: format!("it is {}, {} was asked for", mount.fs_type, wanted.fs.unwrap_or_default()),
                    });
                };
                debug!(%volume, path = %path.display(), "is staged already");
                self.remember(device, Some(path), trim).await?;
                fs
            }
            None => {
                self.is_free(device, path, mounts).await?;
                let fs = self.file_system(device, wanted, lock).await?;
                self.prepare(path, Kind::Directory).await?;
                self.remember(device, Some(path), trim).await?;
                self.mount_disk(device, fs, path, options, lock).await?;
                fs
            }
        };
        // Restored into a larger volume, or grown while it was not mounted.
        if !options.is_read_only() {
            filesystem::grow(self.host.as_ref(), device, fs, path, lock).await?;
        }
        Ok(())
    }

    /// Refuses a disk that a workload has as a raw block volume, or that is staged at another path (CSI: all publishes
    /// of a volume on a node are of one staging path).
    async fn is_free(&self, device: &Device, path: &Path, mounts: &[Mount]) -> Result<(), Error> {
        not_shown(device, mounts)?;
        let volume = device.volume();
        let record = self.records.load::<Staged>(volume).await?;
        let elsewhere = record.and_then(|record| record.staging_path).filter(|staged| staged != path);
        let places = places_of(mounts, device.number());
        match elsewhere.filter(|staged| places.iter().any(|mount| mount.target == *staged)) {
            Some(staged) => Err(staged_elsewhere(volume, &staged)),
            None => Ok(()),
        }
    }

    /// Records which disk the volume is staged as, keeping what else is recorded of that one.
    async fn remember(&self, device: &Device, path: Option<&Path>, trim: Option<Trim>) -> Result<(), Error> {
        let known = self.records.load::<Staged>(device.volume()).await?;
        let staging_path = path.map(Path::to_owned);
        let record = match known.clone().filter(|record| record.is_of(device)) {
            Some(record) => Staged {
                boot_id: device.boot_id().to_owned(),
                diskseq: device.diskseq(),
                staging_path,
                trim: trim.map(|trim| record.trim.unwrap_or(trim)),
                ..record
            },
            None => Staged { staging_path, trim, ..Staged::of(device) },
        };
        if known.as_ref() == Some(&record) {
            return Ok(());
        }
        self.records.save(device.volume(), &record).await
    }

    pub(super) async fn unstage(&self, volume: &VolumeId, path: &Path, lock: &Lock) -> Result<(), Error> {
        let mounts = self.host.mounts().await?;
        let record = self.records.load::<Staged>(volume).await?;
        let number = match (mountinfo::at(&mounts, path), &record) {
            (Some(mount), _) => Some(mount.device),
            // Raw block, or unmounted by an earlier call that did not come to its end.
            (None, Some(record)) => self.number_of(volume, record).await?,
            (None, None) => self.mapping(volume).await?.map(|mapping| mapping.number),
        };
        if let Some(number) = number
            && let Some(other) = places_of(&mounts, number).into_iter().find(|mount| mount.target != path)
        {
            return Err(Error::Precondition(format!(
                "volume {volume} is still published at {}; it has to be unpublished there first",
                other.target.display()
            )));
        }
        self.unmount_all(volume, path).await?;
        if record.as_ref().is_some_and(|record| record.set_read_only) {
            self.make_disk_writable(volume, lock).await?;
        }
        if let Some(number) = number {
            self.flush(volume, number).await;
        }
        if let Some(mapping) = self.mapping(volume).await? {
            self.lock_volume(volume, lock).await?;
            for number in mapping.mapping.into_iter().flat_map(|mapping| mapping.over) {
                self.flush(volume, number).await;
            }
        }
        self.records.forget::<Staged>(volume).await?;
        // Last, since it may fail for what the kubelet or somebody put there.
        self.remove(path).await
    }

    /// The number of the device that is mounted or shown where the volume is, if it is there: the disk's, that of what
    /// unlocks this very disk, or the share's.
    pub(super) async fn number_of(&self, volume: &VolumeId, record: &Staged) -> Result<Option<DeviceNumber>, Error> {
        if record.is_share {
            return Ok(record.share_in(self.host.boot()));
        }
        let disks = self.host.disks().await?;
        let known = record.known_in(self.host.boot());
        let is = |disk: &&Disk| match &disk.serial {
            Serial::Text(shown) if !shown.is_empty() => device::is_same(shown, &record.serial),
            // One that fails tells none any more.
            _ => known.is_some() && disk.diskseq == known,
        };
        let Some(disk) = disks.iter().find(is) else { return Ok(None) };
        if !record.encrypted {
            return Ok(Some(disk.number));
        }
        let name = luks::name(volume);
        Ok(disks.iter().find(|other| device::lies_on(other, &name, disk.number)).map(|mapping| mapping.number))
    }

    /// Brings what the kernel still holds for the disk to its medium. A disk that takes no more is no reason to keep
    /// the volume: what could be saved was, by the unmount.
    async fn flush(&self, volume: &VolumeId, number: DeviceNumber) {
        let flushed = async {
            let Some(disk) = self.host.disk(number).await? else { return Ok(()) };
            let node = self.host.paths().dev_dir.join(&disk.name);
            let open = self.host.open(&node, Open::Shared).await.map_err(|cause| Error::io("open", &node, cause))?;
            if open.number() != number {
                return Ok(());
            }
            on_disk(open, "sync", &node, |disk| disk.sync()).await
        };
        if let Err(error) = flushed.await {
            warn!(%volume, error = %error.chain(), "the disk could not be flushed");
        }
    }
}

/// The error of a volume that is staged at another path.
pub(super) fn staged_elsewhere(volume: &VolumeId, path: &Path) -> Error {
    let path = path.display();
    Error::Precondition(format!("volume {volume} is staged at {path}; it has to be unstaged there first"))
}

/// Refuses a device that a workload has as a raw block volume.
fn not_shown(device: &Device, mounts: &[Mount]) -> Result<(), Error> {
    match places_of(mounts, device.number()).into_iter().find(|mount| mount.is_node) {
        Some(mount) => Err(Error::Precondition(format!(
            "volume {} is published as a raw block volume at {}; it has to be unpublished there first",
            device.volume(),
            mount.target.display()
        ))),
        None => Ok(()),
    }
}
