//! The calls of Kubernetes' sidecars.

use std::collections::BTreeMap;

use tonic::{Code, Request, Response, Status};

use crate::{
    csi::{
        CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest,
        CreateVolumeRequest, DeleteVolumeRequest, VolumeCapability,
        controller_server::Controller,
        volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    },
    rpc::ControllerService,
};

pub(super) const GIB: i64 = 1 << 30;

/// What is asked of the controller.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ask {
    Create { name: String, gib: i64, hdd: bool },
    Delete { id: String },
    Publish { id: String, node: String },
    Unpublish { id: String, node: String },
    Expand { id: String, gib: i64 },
}

/// What the controller says, as far as anybody acts on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// A volume's id, its size in bytes and its region.
    Volume(String, i64, String),
    /// A publish context.
    Context(BTreeMap<String, String>),
    /// A size in bytes.
    Size(i64),
    Done,
}

/// Every answer to a call: what is said, or a code and a text.
pub(super) type Answered = Result<Said, (Code, String)>;

pub(super) fn capability() -> VolumeCapability {
    let mount = MountVolume { fs_type: "ext4".to_owned(), ..MountVolume::default() };
    VolumeCapability {
        access_type: Some(AccessType::Mount(mount)),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    }
}

fn range(gib: i64) -> Option<CapacityRange> {
    Some(CapacityRange { required_bytes: gib * GIB, limit_bytes: 0 })
}

fn map<T>(answer: Result<Response<T>, Status>, said: impl FnOnce(T) -> Said) -> Answered {
    match answer {
        Ok(response) => Ok(said(response.into_inner())),
        Err(status) => Err((status.code(), status.message().to_owned())),
    }
}

impl Ask {
    /// The volume that it is about, unless that has yet to be made.
    pub(super) fn id(&self) -> Option<&str> {
        match self {
            Self::Create { .. } => None,
            Self::Delete { id } | Self::Publish { id, .. } | Self::Unpublish { id, .. } | Self::Expand { id, .. } => {
                Some(id)
            }
        }
    }

    /// Makes the call.
    pub(super) async fn make(&self, service: &ControllerService) -> Answered {
        match self.clone() {
            Self::Create { name, gib, hdd } => {
                let kind = if hdd { "hdd" } else { "nvme" };
                let request = CreateVolumeRequest {
                    name,
                    capacity_range: range(gib),
                    volume_capabilities: vec![capability()],
                    parameters: [("disk_type".to_owned(), kind.to_owned())].into(),
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
            Self::Publish { id, node } => {
                let request = ControllerPublishVolumeRequest {
                    volume_id: id,
                    node_id: node,
                    volume_capability: Some(capability()),
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
                    capacity_range: range(gib),
                    volume_capability: Some(capability()),
                    ..ControllerExpandVolumeRequest::default()
                };
                let answer = service.controller_expand_volume(Request::new(request)).await;
                map(answer, |grown| Said::Size(grown.capacity_bytes))
            }
        }
    }
}
