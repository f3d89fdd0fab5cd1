//! The calls of Kubernetes' sidecars.

use std::collections::BTreeMap;

use tonic::{Code, Request, Response, Status};

use crate::{
    csi::{
        CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest,
        CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest, DeleteVolumeRequest, VolumeCapability,
        VolumeContentSource,
        controller_server::Controller,
        volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
        volume_content_source::{SnapshotSource, Type, VolumeSource},
    },
    rpc::ControllerService,
};

pub(super) const GIB: i64 = 1 << 30;

/// What a class asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Nvme,
    Hdd,
    Vfs,
}

impl Class {
    fn parameters(self) -> BTreeMap<String, String> {
        let (key, value) = match self {
            Self::Nvme => ("disk_type", "nvme"),
            Self::Hdd => ("disk_type", "hdd"),
            Self::Vfs => ("storage_type", "vfs"),
        };
        BTreeMap::from([(key.to_owned(), value.to_owned())])
    }

    /// The cloud's word for it.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Nvme => "high_perf",
            Self::Hdd => "storage_opt",
            Self::Vfs => "vfs",
        }
    }
}

/// What a volume is to have the content of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum From {
    Nothing,
    Snapshot(String),
    Volume(String),
}

/// What is asked of the controller.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ask {
    Create { name: String, gib: i64, class: Class, from: From },
    Delete { id: String },
    Publish { id: String, node: String, shared: bool },
    Unpublish { id: String, node: String },
    Expand { id: String, gib: i64 },
    Snapshot { name: String, source: String },
    DeleteSnapshot { snapshot: String },
}

/// What the controller says, as far as anybody acts on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// A volume's id, its size in bytes and its region.
    Volume(String, i64, String),
    /// A snapshot's id, the volume it is of, its size in bytes, and whether it is ready.
    Snapshot(String, String, i64, bool),
    /// A publish context.
    Context(BTreeMap<String, String>),
    /// A size in bytes.
    Size(i64),
    Done,
}

/// Every answer to a call: what is said, or a code and a text.
pub(super) type Answered = Result<Said, (Code, String)>;

fn capability(shared: bool) -> VolumeCapability {
    let mount = MountVolume { fs_type: "ext4".to_owned(), ..MountVolume::default() };
    let mode = if shared { Mode::MultiNodeMultiWriter } else { Mode::SingleNodeWriter };
    VolumeCapability {
        access_type: Some(AccessType::Mount(mount)),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

fn range(gib: i64) -> CapacityRange {
    CapacityRange { required_bytes: gib * GIB, limit_bytes: 0 }
}

fn map<T>(answer: Result<Response<T>, Status>, said: impl FnOnce(T) -> Said) -> Answered {
    match answer {
        Ok(response) => Ok(said(response.into_inner())),
        Err(status) => Err((status.code(), status.message().to_owned())),
    }
}

impl Ask {
    /// The create of a blank disk.
    pub(super) fn disk(name: String) -> Self {
        Self::Create { name, gib: 10, class: Class::Nvme, from: From::Nothing }
    }

    /// The word for it where it is counted.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Create { class: Class::Vfs, .. } => "shared file systems made",
            Self::Create { from: From::Nothing, .. } => "disks made",
            Self::Create { from: From::Snapshot(_), .. } => "disks restored",
            Self::Create { from: From::Volume(_), .. } => "disks cloned",
            Self::Delete { .. } => "volumes deleted",
            Self::Publish { shared: false, .. } => "disks published",
            Self::Publish { shared: true, .. } => "shared file systems published",
            Self::Unpublish { .. } => "volumes unpublished",
            Self::Expand { .. } => "volumes expanded",
            Self::Snapshot { .. } => "snapshots taken",
            Self::DeleteSnapshot { .. } => "snapshots deleted",
        }
    }

    /// The volume that it is about, unless that has yet to be made.
    pub(super) fn id(&self) -> Option<&str> {
        match self {
            Self::Create { .. } | Self::Snapshot { .. } | Self::DeleteSnapshot { .. } => None,
            Self::Delete { id } | Self::Publish { id, .. } | Self::Unpublish { id, .. } | Self::Expand { id, .. } => {
                Some(id)
            }
        }
    }

    /// Makes the call.
    pub(super) async fn make(&self, service: &ControllerService) -> Answered {
        match self.clone() {
            Self::Create { name, gib, class, from } => {
                let request = CreateVolumeRequest {
                    name,
                    capacity_range: Some(range(gib)),
                    volume_capabilities: vec![capability(class == Class::Vfs)],
                    parameters: class.parameters(),
                    volume_content_source: content(from),
                    ..CreateVolumeRequest::default()
                };
                map(service.create_volume(Request::new(request)).await, |made| {
                    let volume = made.volume.expect("a volume");
                    let region = volume.accessible_topology[0].segments["region"].clone();
                    Said::Volume(volume.volume_id, volume.capacity_bytes, region)
                })
            }
            Self::Delete { id } => {
                let request = DeleteVolumeRequest { volume_id: id, ..DeleteVolumeRequest::default() };
                map(service.delete_volume(Request::new(request)).await, |_| Said::Done)
            }
            Self::Publish { id, node, shared } => {
                let request = ControllerPublishVolumeRequest {
                    volume_id: id,
                    node_id: node,
                    volume_capability: Some(capability(shared)),
                    ..ControllerPublishVolumeRequest::default()
                };
                let answer = service.controller_publish_volume(Request::new(request)).await;
                map(answer, |published| Said::Context(published.publish_context.into_iter().collect()))
            }
            Self::Unpublish { id, node } => {
                let request = ControllerUnpublishVolumeRequest {
                    volume_id: id,
                    node_id: node,
                    ..ControllerUnpublishVolumeRequest::default()
                };
                map(service.controller_unpublish_volume(Request::new(request)).await, |_| Said::Done)
            }
            Self::Expand { id, gib } => {
                let request = ControllerExpandVolumeRequest {
                    volume_id: id,
                    capacity_range: Some(range(gib)),
                    ..ControllerExpandVolumeRequest::default()
                };
                let answer = service.controller_expand_volume(Request::new(request)).await;
                map(answer, |grown| Said::Size(grown.capacity_bytes))
            }
            Self::Snapshot { name, source } => {
                let request =
                    CreateSnapshotRequest { name, source_volume_id: source, ..CreateSnapshotRequest::default() };
                map(service.create_snapshot(Request::new(request)).await, |taken| {
                    let taken = taken.snapshot.expect("a snapshot");
                    Said::Snapshot(taken.snapshot_id, taken.source_volume_id, taken.size_bytes, taken.ready_to_use)
                })
            }
            Self::DeleteSnapshot { snapshot } => {
                let request = DeleteSnapshotRequest { snapshot_id: snapshot, ..DeleteSnapshotRequest::default() };
                map(service.delete_snapshot(Request::new(request)).await, |_| Said::Done)
            }
        }
    }
}

fn content(from: From) -> Option<VolumeContentSource> {
    let r#type = match from {
        From::Nothing => return None,
        From::Snapshot(snapshot_id) => Type::Snapshot(SnapshotSource { snapshot_id }),
        From::Volume(volume_id) => Type::Volume(VolumeSource { volume_id }),
    };
    Some(VolumeContentSource { r#type: Some(r#type) })
}
