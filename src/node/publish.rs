//! Publish: a staged volume is shown at a workload's path; unpublish: it is not.
//!
//! ```text
//!  staged ──disk proven, the staging mount is of it──► bound to the target, read-only if asked for ──► published
//!  staged share ──the staging mount is of it──► bound to the target, read-only if asked for ──► published
//!  staged as raw block ──disk proven──read-only? disk made so──► its node bound to a file ──► published
//! ```
//!
//! A bind mount that is read-only keeps nobody from writing to a device's node, so a raw block volume is made
//! read-only itself (`blockdev --setro`: writes fail with EPERM, for root too), for as long as it is published so; then
//! no writable publish can be beside it.
//!
//! A mount that is bound has the mode of the one that it is bound from, and so have those that it becomes in the mount
//! namespaces of the node and of its pods. A remount stays in the namespace of this process's container. So for a read-only
//! target the staging mount is read-only as seen from here for the moment of the bind, and a record tells so, should the
//! driver end right there.

use std::path::Path;

use tracing::{debug, info, warn};

use super::{
    Core, Publish,
    device::Device,
    host::{DeviceNumber, Disk, Serial, Tool},
    lock::Lock,
    luks,
    mount::{agree, places_of, taken, writable},
    mountinfo::{self, Mount},
    options::Options,
    owner::Owner,
    place::Kind,
    proven::Proven,
    record::Staged,
    share,
};
use crate::{
    cloud::Attachment,
    error::Error,
    volume::{Access, VolumeId},
};

impl Core {
    pub(super) async fn publish(&self, request: &Publish, lock: &Lock) -> Result<(), Error> {
        match &request.access {
            Access::Block if matches!(request.attachment, Some(Attachment::Share { .. })) => {
                Err(share::no_device(&request.volume))
            }
            Access::Block => self.publish_node(request, lock).await,
            Access::Mount { flags, .. } => {
                let read_only = Options::parse(flags, request.read_only)?.is_read_only();
                self.publish_mount(request, read_only).await
            }
        }
    }

    async fn publish_mount(&self, request: &Publish, read_only: bool) -> Result<(), Error> {
        let (volume, target) = (&request.volume, &request.target_path);
        self.give_back(volume).await?;
        let mounts = self.host.mounts().await?;
        let staging = mountinfo::at(&mounts, &request.staging_path);
        let Some(staging) = staging.filter(|mount| !mount.is_node) else {
            return Err(not_staged(request));
        };
        let proven = self.proven_mount(request, staging).await?;
        if staging.device != proven.number() {
            return Err(taken(volume, &request.staging_path, staging, &proven));
        }
        if let Some(mount) = mountinfo::at(&mounts, target) {
            if mount.device != proven.number() || mount.is_node {
                return Err(taken(volume, target, mount, &proven));
            }
            debug!(%volume, path = %target.display(), "is published already");
            return agree(mount, read_only);
        }
        alone(request, &mounts, &proven)?;
        writable(staging, read_only)?;
        if staging.is_read_only() && !read_only {
            return Err(Error::Precondition(format!(
                "volume {volume} is staged read-only at {}",
                request.staging_path.display()
            )));
        }
        match &proven {
            Proven::Share(share) => self.answers(share, staging).await?,
            Proven::Disk(_) if read_only => {}
            Proven::Disk(_) => self.takes_writes(volume, &request.staging_path).await?,
        }
        self.prepare(target, Kind::Directory).await?;
        if read_only && !staging.is_read_only() {
            self.bind_read_only(&proven, request).await?;
        } else {
            self.bind(&proven, &request.staging_path, target).await?;
        }
        info!(%volume, path = %target.display(), read_only, "published");
        Ok(())
    }

    /// Binds a writable staging mount to the target so that it is read-only there, for the node and its pods as well.
    async fn bind_read_only(&self, proven: &Proven, request: &Publish) -> Result<(), Error> {
        let (volume, staging) = (&request.volume, &request.staging_path);
        let mut record = self.record_of(proven).await?;
        // Recorded first, so that it will be undone whatever happens.
        record.lent = Some(staging.clone());
        self.records.save(volume, &record).await?;
        let bound = async {
            self.remount(staging, true).await?;
            self.bind(proven, staging, &request.target_path).await
        };
        let bound = bound.await;
        let given_back = self.give_back(volume).await;
        bound.and(given_back)
    }

    /// Makes the staging mount writable again that was read-only for the moment of a bind.
    pub(super) async fn give_back(&self, volume: &VolumeId) -> Result<(), Error> {
        let Some(mut record) = self.records.load::<Staged>(volume).await? else { return Ok(()) };
        let Some(staging) = record.lent.take() else { return Ok(()) };
        // If the process ended meanwhile, a container of its own began with the mount as the node has it.
        if mountinfo::at(&self.host.mounts().await?, &staging).is_some_and(Mount::is_read_only) {
            self.remount(&staging, false).await?;
        }
        self.records.save(volume, &record).await
    }

    async fn publish_node(&self, request: &Publish, lock: &Lock) -> Result<(), Error> {
        let (volume, target) = (&request.volume, &request.target_path);
        // No other driver stages raw block volumes, and only the record tells of an encrypted one that its disk is not to be
        // shown.
        if self.records.load::<Staged>(volume).await?.is_none_or(|record| record.is_share) {
            return Err(not_staged(request));
        }
        let device = self.proven_disk(request, None).await?;
        let proven = Proven::from(device.clone());
        let mut record = self.record_of(&proven).await?;
        let mut mounts = self.host.mounts().await?;
        if mountinfo::at(&mounts, target).is_some_and(Mount::is_gone) {
            // The disk was taken away under it, and has come back.
            self.clear(volume, target).await?;
            mounts = self.host.mounts().await?;
        }
        if let Some(mount) = mountinfo::at(&mounts, target) {
            if mount.device != device.number() || !mount.is_node {
                return Err(taken(volume, target, mount, &device));
            }
            return same_mode(target, record.set_read_only, request.read_only);
        }
        alone(request, &mounts, &proven)?;
        if let Some(other) = places_of(&mounts, device.number()).first() {
            if !other.is_node {
                let path = other.target.display();
                return Err(Error::Precondition(format!("volume {volume} is mounted as a file system at {path}")));
            }
            same_mode(&other.target, record.set_read_only, request.read_only)?;
        }
        if request.read_only {
            // Recorded first, so that it will be undone whatever happens.
            record.set_read_only = true;
            self.records.save(volume, &record).await?;
            device.verify().await?;
            let tool = Tool::Blockdev;
            self.host.run(tool, &["--setro", device.node_str()], None, lock).await?.ok(tool, device.node())?;
        } else if record.set_read_only {
            self.make_disk_writable(volume, lock).await?;
        }
        self.prepare(target, Kind::File).await?;
        self.bind(&proven, device.node(), target).await?;
        info!(%volume, path = %target.display(), read_only = request.read_only, "published");
        Ok(())
    }

    pub(super) async fn unpublish(&self, volume: &VolumeId, target: &Path, lock: &Lock) -> Result<(), Error> {
        self.clear(volume, target).await?;
        let Some(record) = self.records.load::<Staged>(volume).await? else { return Ok(()) };
        if record.set_read_only {
            self.make_disk_writable(volume, lock).await?;
        }
        Ok(())
    }

    /// Undoes `blockdev --setro` once nobody has the disk any more.
    pub(super) async fn make_disk_writable(&self, volume: &VolumeId, lock: &Lock) -> Result<(), Error> {
        let Some(mut record) = self.records.load::<Staged>(volume).await? else { return Ok(()) };
        if let Some(number) = self.number_of(volume, &record).await? {
            if !places_of(&self.host.mounts().await?, number).is_empty() {
                return Ok(());
            }
            let device = match self.staged_device(volume, &record).await {
                Ok(device) => device,
                Err(error) if self.tells_its_serial(number).await? => return Err(error),
                Err(error) => {
                    // It is let go of as it is; the flag goes with it.
                    warn!(%volume, error = error.chain(), "a disk that fails was not made writable again");
                    return Ok(());
                }
            };
            if let Some(device) = device {
                let tool = Tool::Blockdev;
                self.host.run(tool, &["--setrw", device.node_str()], None, lock).await?.ok(tool, device.node())?;
            }
        }
        record.set_read_only = false;
        self.records.save(volume, &record).await
    }

    /// The disk that the record is of, or what unlocks it, proven; of an encrypted one that is locked there is none.
    pub(super) async fn staged_device(&self, volume: &VolumeId, record: &Staged) -> Result<Option<Device>, Error> {
        let (prefix, known) = (self.profile.link_prefix, record.known_in(self.host.boot()));
        let disk = Device::prove(&self.host, prefix, volume, &record.serial, known).await?;
        if record.encrypted { disk.mapped(&luks::name(volume)).await } else { Ok(Some(disk)) }
    }

    /// Whether the disk of this number, or beneath it, tells what its serial is.
    async fn tells_its_serial(&self, number: DeviceNumber) -> Result<bool, Error> {
        let found = self.host.disk(number).await?;
        let disk = match found.as_ref().and_then(|found| found.mapping.as_ref()?.over.first()) {
            Some(beneath) => self.host.disk(*beneath).await?,
            None => found,
        };
        Ok(disk.is_some_and(|disk| matches!(disk.serial, Serial::Text(shown) if !shown.is_empty())))
    }

    /// The volume's disk, or what unlocks it, by the serial in the request, in the record, or of the disk that is staged.
    pub(super) async fn proven_disk(&self, request: &Publish, staging: Option<&Mount>) -> Result<Device, Error> {
        let volume = &request.volume;
        let record = self.records.load::<Staged>(volume).await?;
        let told = match &request.attachment {
            Some(Attachment::Disk { serial, .. }) => Some(serial.clone()),
            Some(Attachment::Share { .. }) | None => None,
        };
        if let (Some(record), Some(told)) = (&record, &told)
            && (record.is_share || record.serial != *told)
        {
            return Err(Error::Precondition(format!(
                "volume {volume} is staged as serial {}, the request says {told}",
                record.serial
            )));
        }
        let is_encrypted = record.as_ref().is_some_and(|record| record.encrypted);
        let known = record.as_ref().and_then(|record| record.known_in(self.host.boot()));
        let serial = match (told.or(record.map(|record| record.serial)), staging) {
            (Some(serial), _) => Some(serial),
            (None, Some(mount)) => match self.owner(volume, mount).await? {
                Owner::Volume(Disk { serial: Serial::Text(serial), .. }) => Some(serial),
                _ => None,
            },
            (None, None) => None,
        };
        let serial = serial.ok_or_else(|| not_staged(request))?;
        let disk = Device::prove(&self.host, self.profile.link_prefix, volume, &serial, known).await?;
        match disk.mapped(&luks::name(volume)).await? {
            Some(unlocked) => Ok(unlocked),
            // Of an encrypted volume the disk itself is never shown.
            None if is_encrypted => Err(not_staged(request)),
            None => Ok(disk),
        }
    }
}

/// Holds to SINGLE_NODE_SINGLE_WRITER: a volume that one workload has is not given to another.
fn alone(request: &Publish, mounts: &[Mount], proven: &Proven) -> Result<(), Error> {
    let another = |mount: &&Mount| mount.target != request.staging_path && mount.target != request.target_path;
    match places_of(mounts, proven.number()).into_iter().find(another) {
        Some(other) if request.single_writer => Err(Error::Precondition(format!(
            "volume {} is for a single writer and is published at {} already",
            request.volume,
            other.target.display()
        ))),
        _ => Ok(()),
    }
}

fn not_staged(request: &Publish) -> Error {
    let (volume, path) = (&request.volume, request.staging_path.display());
    Error::Precondition(format!("volume {volume} is not staged at {path}"))
}

fn same_mode(path: &Path, is_read_only: bool, read_only: bool) -> Result<(), Error> {
    if is_read_only == read_only {
        return Ok(());
    }
    let word = |read_only| if read_only { "read-only" } else { "read-write" };
    Err(Error::Differs {
        subject: format!("the raw block publish at {}", path.display()),
        difference: format!("the whole disk is {}, {} was asked for", word(is_read_only), word(read_only)),
    })
}
