//! What a test sees of the cloud, and what it may change of an instance.

mod snapshot;
mod vfs;

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use snapshot::SnapshotView;
pub use vfs::{AttachmentView, VfsView};

use crate::{
    cloud::{Cloud, Instance, State},
    disk::{Disks, loops_under},
    metadata::MetadataMode,
    volume::{BlockType, Volume},
};

/// Everything that exists.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct View {
    /// The volumes in the order of their making, fillers too.
    pub volumes: Vec<VolumeView>,
    /// The snapshots in the order of their making.
    pub snapshots: Vec<SnapshotView>,
    /// The shared file systems in the order of their making.
    pub file_systems: Vec<VfsView>,
    /// The machines.
    pub instances: Vec<InstanceView>,
    /// What the simulation itself could not do.
    pub problems: Vec<String>,
}

/// A volume and what is behind it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct VolumeView {
    /// Its id.
    pub id: String,
    /// Its label.
    pub label: String,
    /// Its region.
    pub region: String,
    /// Its size in GB as the API tells it; a disk that could not grow yet may be smaller.
    pub size_gb: u32,
    /// Its kind.
    pub block_type: BlockType,
    /// `pending` or `active`.
    pub status: String,
    /// Its serial in a guest.
    pub mount_id: String,
    /// The id of the instance that has it, if one has.
    pub attached_to: Option<String>,
    /// Whether an attach or detach is on its way.
    pub moving: bool,
    /// Whether it was made only to fill the account.
    pub filler: bool,
    /// Its loop device while it is attached.
    pub loop_device: Option<PathBuf>,
    /// The file behind it, if it has one.
    pub disk_file: Option<PathBuf>,
    /// The id of the snapshot that it was made from, if it was.
    pub snapshot: Option<String>,
}

/// A machine.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct InstanceView {
    /// Its id.
    pub id: String,
    /// Its label.
    pub label: String,
    /// Its region.
    pub region: String,
    /// `active` and so on.
    pub status: String,
    /// `running` or `stopped`.
    pub power_status: String,
    /// `ok` or `locked`.
    pub server_status: String,
    /// Its address, if it has one of its own.
    pub address: Option<IpAddr>,
    /// The address of its metadata service, without a path.
    pub metadata_url: String,
    /// Its folder of links by serial. This and the next two are not there for a qemu guest, which has the real things.
    pub device_dir: PathBuf,
    /// Its tree in the shape of `/sys`.
    pub sysfs_dir: PathBuf,
    /// Its folder of links by mount tag; each leads to the folder of an attached file system.
    pub share_dir: PathBuf,
}

/// A change of an instance by a test's hand; what is none stays.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct InstanceChange {
    /// `active`, `pending`, `suspended` or `resizing`.
    pub status: Option<String>,
    /// `running` or `stopped`.
    pub power_status: Option<String>,
    /// Locks it until it is unlocked in the same way.
    pub locked: Option<bool>,
    /// How its metadata service answers.
    pub metadata: Option<MetadataMode>,
}

/// What is left in the account and on the machine; fillers don't count.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Leftovers {
    /// Volumes, by label and id.
    pub volumes: Vec<String>,
    /// Snapshots, by description and id.
    pub snapshots: Vec<String>,
    /// File systems, by label and id.
    pub file_systems: Vec<String>,
    /// Volumes and file systems that are attached or on their way, with the instance's id.
    pub attachments: Vec<String>,
    /// Loop devices over files of this simulation.
    pub loop_devices: Vec<PathBuf>,
    /// What the simulation itself could not do.
    pub problems: Vec<String>,
}

impl Leftovers {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl VolumeView {
    pub(crate) fn of(volume: &Volume, state: &State, disks: Option<&Disks>) -> Self {
        Self {
            id: volume.id.clone(),
            label: volume.label.clone(),
            region: volume.region.to_owned(),
            size_gb: volume.size_gb,
            block_type: volume.block_type,
            status: volume.status.as_str().to_owned(),
            mount_id: volume.mount_id.clone(),
            attached_to: volume.attached.clone(),
            moving: volume.moving,
            filler: volume.filler,
            loop_device: volume.loop_device.clone(),
            disk_file: state.disk_file(disks, &volume.id),
            snapshot: volume.snapshot.clone(),
        }
    }
}

impl InstanceView {
    pub(crate) fn of(instance: &Instance) -> Self {
        let tree = instance.guest.tree();
        Self {
            id: instance.id.clone(),
            label: instance.label.clone(),
            region: instance.region.to_owned(),
            status: instance.status.clone(),
            power_status: instance.power_status.clone(),
            server_status: instance.server_status().to_owned(),
            address: instance.address,
            metadata_url: instance.metadata_url.clone(),
            device_dir: tree.device_dir(),
            sysfs_dir: tree.sysfs_dir(),
            share_dir: tree.share_dir(),
        }
    }
}

impl Cloud {
    pub(crate) fn view(&self) -> View {
        let state = self.state();
        let volume = |v| VolumeView::of(v, &state, self.disks.as_ref());
        View {
            volumes: state.volumes.iter().map(volume).collect(),
            snapshots: state.snapshots.iter().map(|s| SnapshotView::of(s, self.disks.as_ref())).collect(),
            file_systems: state.file_systems.iter().map(|f| VfsView::of(f, self.share_dir(&f.id))).collect(),
            instances: state.instances.iter().map(InstanceView::of).collect(),
            problems: state.problems.clone(),
        }
    }

    pub(crate) fn leftovers(&self) -> std::io::Result<Leftovers> {
        let loops = match &self.disks {
            Some(_) => loops_under(&self.config.dir)?,
            None => Vec::new(),
        };
        let view = self.view();
        let name = |v: &VolumeView| format!("{} {}", v.label, v.id);
        let counted = || view.volumes.iter().filter(|v| !v.filler);
        let attachment = |v: &VolumeView| {
            let instance = v.attached_to.as_deref().unwrap_or("on its way");
            (v.attached_to.is_some() || v.moving).then(|| format!("{}: {instance}", name(v)))
        };
        let shares = view.file_systems.iter().flat_map(VfsView::attached);
        Ok(Leftovers {
            volumes: counted().map(name).collect(),
            snapshots: view.snapshots.iter().map(|s| format!("{} {}", s.description, s.id)).collect(),
            file_systems: view.file_systems.iter().map(|f| format!("{} {}", f.label, f.id)).collect(),
            attachments: counted().filter_map(attachment).chain(shares).collect(),
            loop_devices: loops.into_iter().map(|(device, _)| device).collect(),
            problems: view.problems.clone(),
        })
    }
}
