//! Shares: file systems that the cloud serves to many machines, which the kernel knows by a mount tag (virtiofs).
//!
//! ```text
//!  attached ──mounted there already, of this tag?──yes──► answers? ──► staged
//!                 │ no                                       ▲
//!             recorded ──► mounted by its tag ──mount table agrees, no other volume's──┘
//!                                │ no such tag
//!                              waited for
//! ```
//!
//! There is no disk, so nothing is made, checked or grown. What proves a mounted share is that the kernel found it by the
//! tag, and keeps no two of one tag at a time; and, from the mount on, the number that the kernel gave it, which is in
//! the record: a tag may come again with another share, the number cannot as long as the mount is there.

use std::{fmt, io, path::Path, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use super::{
    Core, Stage,
    health::Ailment,
    host::{Counts, DeviceNumber, Errno, MountCall, MountFlags, errno},
    lock::Lock,
    mount::{agree, taken},
    mountinfo::{self, Mount, VIRTIOFS},
    options::Options,
    place::Kind,
    record::Staged,
    stage::{Before, staged_elsewhere},
    stats::{Stats, Usage},
};
use crate::{
    error::Error,
    volume::{Access, VolumeId},
};

/// The first pause between two tries to mount a share; it doubles up to [`LAST_PAUSE`]. No event tells of a tag.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause between two tries, each of which is a line in the kernel's log.
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// A mounted share that is proven to be a volume's.
#[derive(Debug, Clone)]
pub(super) struct Share {
    pub(super) volume: VolumeId,
    pub(super) tag: String,
    /// What the kernel gave its mount for a number.
    pub(super) number: DeviceNumber,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "share {}", self.tag)?;
        if self.number == DeviceNumber::NONE { Ok(()) } else { write!(f, " ({})", self.number) }
    }
}

/// Why a share tells nothing of itself.
#[derive(Debug)]
enum Mute {
    /// The machine has it no more: what the kernel says from then on.
    Gone,
    /// It does not answer.
    Silent,
    /// It answers with an error.
    Failing(io::Error),
}

impl Core {
    pub(super) async fn stage_share(
        &self,
        request: &Stage,
        tag: &str,
        until: Instant,
        lock: &Lock,
    ) -> Result<(), Error> {
        let (volume, path) = (&request.volume, &request.staging_path);
        let Access::Mount { flags, .. } = &request.access else { return Err(no_device(volume)) };
        if request.key.is_some() {
            let problem = "a shared file system cannot be encrypted by the node; leave it out, or use block storage";
            return Err(Error::invalid("volume_context[encrypted]", problem));
        }
        let options = Options::parse(flags, request.read_only)?;
        let record = self.records.load::<Staged>(volume).await?;
        let mut mounts = self.host.mounts().await?;
        if let Some(mount) = mountinfo::at(&mounts, path)
            && mount.is_share()
            && self.is_share_gone(mount).await
        {
            // It was taken away under its mount, and has come back as another.
            self.clear(volume, path).await?;
            mounts = self.host.mounts().await?;
        }
        if let Some(mount) = mountinfo::at(&mounts, path) {
            let share = self.proven_share(volume, Some(tag), mount).await?;
            agree(mount, options.is_read_only())?;
            self.answers(&share, mount).await?;
            debug!(%volume, path = %path.display(), "is staged already");
            return self.remember_share(&share, path).await;
        }
        let elsewhere = record.as_ref().and_then(|record| Some((record.staging_path.as_ref()?, record.device)));
        if let Some((other, number)) = elsewhere
            && other != path
            && mountinfo::at(&mounts, other).is_some_and(|mount| mount.device == number)
        {
            return Err(staged_elsewhere(volume, other));
        }
        let staged = self.mount_share(volume, tag, path, &options, until).await;
        if staged.is_err() {
            let before = Before { mounted: false, unlocked: true, recorded: record.is_some() };
            self.undo(volume, path, before, lock).await;
        }
        staged
    }

    async fn mount_share(
        &self,
        volume: &VolumeId,
        tag: &str,
        path: &Path,
        options: &Options,
        until: Instant,
    ) -> Result<(), Error> {
        self.prepare(path, Kind::Directory).await?;
        let unmounted = Share { volume: volume.clone(), tag: tag.to_owned(), number: DeviceNumber::NONE };
        self.remember_share(&unmounted, path).await?;
        let mut pause = FIRST_PAUSE;
        while let Err(cause) = self.try_mount_share(tag, path, options.flags, options.share_data()).await {
            let missing = match errno(&cause) {
                Errno::EINVAL if options.has_data() && self.mounts_as_it_is(&unmounted, path).await? => {
                    let problem = format!("the kernel refuses to mount {VIRTIOFS} with {}", options.share_data());
                    return Err(Error::invalid("mount_flags", problem));
                }
                Errno::ENODEV => format!("this kernel has no {VIRTIOFS}"),
                // Which one it is depends on the kernel, and on how far the device has come.
                Errno::EINVAL | Errno::ENOENT | Errno::ENXIO | Errno::ENOTCONN => {
                    format!("this machine has no share of tag {tag}")
                }
                _ => return Err(Error::io("mount", format!("share {tag}"), cause)),
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::NotYet(format!("volume {volume}: {missing} yet ({cause})")));
            }
            debug!(%volume, tag, error = %cause, "waiting for the share");
            sleep(pause.min(left)).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
        let mounts = self.host.mounts().await?;
        let vanished =
            || Error::Precondition(format!("volume {volume}: share {tag} was unmounted while it was staged"));
        let mount = mountinfo::at(&mounts, path).ok_or_else(vanished)?;
        let share = self.proven_share(volume, Some(tag), mount).await?;
        self.is_nobody_elses(&share, &mounts).await?;
        self.answers(&share, mount).await?;
        info!(%volume, tag, path = %path.display(), "mounted");
        self.remember_share(&share, path).await
    }

    async fn try_mount_share(&self, tag: &str, path: &Path, flags: MountFlags, data: String) -> io::Result<()> {
        let (source, target) = (Some(tag.into()), path.to_owned());
        self.host.mount(MountCall { source, target, fs_type: Some(VIRTIOFS), flags, data }).await
    }

    /// Whether it is the options that keep the share from being mounted: without them it is, read-only.
    async fn mounts_as_it_is(&self, share: &Share, path: &Path) -> Result<bool, Error> {
        if self.try_mount_share(&share.tag, path, MountFlags::MS_RDONLY, String::new()).await.is_err() {
            return Ok(false);
        }
        self.unmount_all(&share.volume, path).await?;
        Ok(true)
    }

    /// Refuses a share that is staged as another volume: one of the two was told the other's tag.
    async fn is_nobody_elses(&self, share: &Share, mounts: &[Mount]) -> Result<(), Error> {
        for (other, record) in self.records.all::<Staged>(self.profile.id_form).await? {
            let is_mounted = |path: &Path| mountinfo::at(mounts, path).is_some_and(|at| at.device == share.number);
            if other != share.volume
                && record.share_in(self.host.boot()) == Some(share.number)
                && record.staging_path.as_deref().is_some_and(is_mounted)
            {
                return Err(Error::Precondition(format!(
                    "volume {}: {share} is staged as volume {other}; detach and attach the volume to have its own tag told",
                    share.volume
                )));
            }
        }
        Ok(())
    }

    /// The share that is mounted at the volume's staging path, by the tag in the request, in the record, or of the mount
    /// itself, if another driver made it.
    pub(super) async fn proven_share(
        &self,
        volume: &VolumeId,
        told: Option<&str>,
        staging: &Mount,
    ) -> Result<Share, Error> {
        let record = self.records.load::<Staged>(volume).await?;
        let recorded = record.as_ref().filter(|record| record.is_share);
        let own = Some(staging.source.as_str()).filter(|source| (self.profile.is_share_tag)(source));
        let tag = told.or(recorded.map(|record| record.serial.as_str())).or(own).unwrap_or_default();
        let number =
            recorded.filter(|record| record.serial == tag).and_then(|record| record.share_in(self.host.boot()));
        let number = number.unwrap_or(staging.device);
        let is_it =
            staging.is_share() && staging.root == Path::new("/") && staging.source == tag && staging.device == number;
        if is_it {
            return Ok(Share { volume: volume.clone(), tag: tag.to_owned(), number });
        }
        let wanted = Share { volume: volume.clone(), tag: tag.to_owned(), number: DeviceNumber::NONE };
        Err(taken(volume, &staging.target, staging, &wanted))
    }

    /// Refuses a share that would keep whoever uses it waiting.
    ///
    /// # Errors
    /// [`Error::NotYet`] if it does not answer, [`Error::Precondition`] if it is gone.
    pub(super) async fn answers(&self, share: &Share, mount: &Mount) -> Result<(), Error> {
        let (volume, at) = (&share.volume, mount.target.display());
        match self.ask_share(mount).await {
            Ok(_) => Ok(()),
            Err(Mute::Silent) => Err(Error::NotYet(format!(
                "volume {volume}: {share} at {at} does not answer within {} s",
                self.patience.usage.as_secs()
            ))),
            Err(Mute::Gone) => Err(Error::Precondition(format!(
                "volume {volume}: {share} at {at} is gone from this machine; attach the volume and stage it again"
            ))),
            Err(Mute::Failing(cause)) => Err(Error::io("ask", &mount.target, cause)),
        }
    }

    /// Whether the machine has lost the share behind a mount.
    pub(super) async fn is_share_gone(&self, mount: &Mount) -> bool {
        matches!(self.ask_share(mount).await, Err(Mute::Gone))
    }

    /// Whether the share behind a mount is gone or does not answer.
    pub(super) async fn is_share_mute(&self, mount: &Mount) -> bool {
        matches!(self.ask_share(mount).await, Err(Mute::Gone | Mute::Silent))
    }

    async fn ask_share(&self, mount: &Mount) -> Result<(Counts, Counts), Mute> {
        let (host, path) = (Arc::clone(&self.host), mount.target.clone());
        match self.in_time(&mount.target, async move { host.usage(&path).await }).await {
            Some(Ok(usage)) => Ok(usage),
            Some(Err(cause)) if errno(&cause) == Errno::ENOTCONN => Err(Mute::Gone),
            Some(Err(cause)) => Err(Mute::Failing(cause)),
            None => Err(Mute::Silent),
        }
    }

    /// What the share at `mount` says of itself.
    pub(super) async fn examine_share(&self, mount: &Mount) -> Stats {
        let ailment = match self.ask_share(mount).await {
            Ok((bytes, inodes)) => {
                return Stats { usage: Some(Usage::FileSystem { bytes, inodes }), ailments: Vec::new() };
            }
            Err(Mute::Gone) => Ailment::share_gone(&mount.source),
            Err(Mute::Silent) => Ailment::silent("the share", self.patience.usage),
            Err(Mute::Failing(cause)) => Ailment::failing(&cause),
        };
        Stats { usage: None, ailments: vec![ailment] }
    }

    /// Records which share the volume is staged as, keeping what else is recorded of that one.
    async fn remember_share(&self, share: &Share, path: &Path) -> Result<(), Error> {
        let known = self.records.load::<Staged>(&share.volume).await?;
        let boot = self.host.boot();
        let same = known.clone().filter(|record| record.share_in(boot) == Some(share.number));
        let mut record = same.unwrap_or_else(|| Staged::of_share(&share.tag, share.number, boot));
        record.staging_path = Some(path.to_owned());
        if known.as_ref() == Some(&record) {
            return Ok(());
        }
        self.records.save(&share.volume, &record).await
    }
}

/// The error of a raw block volume that a share cannot be.
pub(super) fn no_device(volume: &VolumeId) -> Error {
    let problem = format!("volume {volume} is a shared file system and has no block device; use volumeMode Filesystem");
    Error::invalid("volume_capability", problem)
}
