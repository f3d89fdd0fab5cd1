//! Whose disk is behind a mount.

use std::path::Path;

use super::{
    Core, device,
    host::{DeviceNumber, Disk, Found, Serial},
    luks,
    mountinfo::Mount,
    record::Staged,
};
use crate::{
    cloud::Attachment,
    error::Error,
    volume::{FsType, VolumeId},
};

/// Whose disk is behind a mount.
#[derive(Debug)]
pub(super) enum Owner {
    /// The volume's; this is the disk itself, also where what unlocks it is mounted.
    Volume(Disk),
    /// The volume's share.
    Share,
    /// A disk or a share that the machine has no more.
    Gone,
    /// Something else; this.
    Other(String),
}

impl Core {
    /// Whose disk is behind `mount`. A volume without a record was staged by another driver of this cloud: then any of
    /// the cloud's disks or shares passes, since the path is the kubelet's own for the volume. No other disk is waited
    /// for.
    pub(super) async fn owner(&self, volume: &VolumeId, mount: &Mount) -> Result<Owner, Error> {
        if mount.is_gone() {
            return Ok(Owner::Gone);
        }
        let record = self.records.load::<Staged>(volume).await?;
        if mount.is_share() {
            let is_ours = match &record {
                Some(record) if record.is_share && record.serial == mount.source => true,
                Some(record) if !record.is_share || self.is_share_mounted(record).await? => false,
                // Another driver let go what is recorded, or what is there is of another run of the kernel.
                Some(_) | None => (self.profile.is_share_tag)(&mount.source),
            };
            return Ok(match is_ours {
                true => Owner::Share,
                // Left by an attachment that ended before its mounts did.
                false if self.is_share_gone(mount).await => Owner::Gone,
                false => Owner::Other(format!("share {}", mount.source)),
            });
        }
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
            (_, Some(record)) if record.is_share => false,
            (Serial::Text(shown), Some(record)) if !shown.is_empty() => device::is_same(shown, &record.serial),
            (Serial::Text(shown), None) if !shown.is_empty() => (self.profile.is_volume_serial)(shown),
            // A disk that fails tells no serial any more, and virtio then an empty one; it is still the one that was
            // proven in this run of the kernel.
            (_, Some(record)) => {
                let known = record.known_in(self.host.boot());
                known.is_some() && known == disk.diskseq
            }
            (_, None) => false,
        };
        if is_ours { Ok(Owner::Volume(disk)) } else { other() }
    }

    /// Whether the share that a record is of is mounted anywhere.
    async fn is_share_mounted(&self, record: &Staged) -> Result<bool, Error> {
        let Some(number) = record.share_in(self.host.boot()) else { return Ok(false) };
        let mounts = self.host.mounts().await?;
        Ok(mounts.iter().any(|mount| mount.device == number && mount.source == record.serial))
    }

    /// Whether something of the volume is mounted at `path`; what cannot be found out may be.
    pub(super) async fn may_be_at(&self, volume: &VolumeId, path: &Path, attachment: Option<&Attachment>) -> bool {
        let Ok(mounts) = self.host.mounts().await else { return true };
        for mount in mounts.iter().filter(|mount| mount.target == path) {
            let is_another = match (self.owner(volume, mount).await, attachment) {
                (Ok(Owner::Other(_)), _) => true,
                // Without a record any of the cloud's passes for the volume's.
                (
                    Ok(Owner::Volume(Disk { serial: Serial::Text(shown), .. })),
                    Some(Attachment::Disk { serial, .. }),
                ) => !shown.is_empty() && !device::is_same(&shown, serial),
                (Ok(Owner::Share), Some(Attachment::Share { tag })) => mount.source != *tag,
                _ => false,
            };
            if !is_another {
                return true;
            }
        }
        false
    }

    /// Whether the kernel has any block device of this number.
    pub(super) async fn exists(&self, number: DeviceNumber) -> Result<bool, Error> {
        let exists = self.host.exists(number).await;
        exists.map_err(|cause| Error::io("look for", format!("block device {number}"), cause))
    }
}
