//! The Controller service.

mod capacity;
mod health;
mod snapshot;
mod volume;

use tonic::{Request, Response, Status};

use super::{About, answer, unsupported};
use crate::{
    cloud::Profile,
    controller::Controller,
    csi::{self, controller_server, controller_service_capability::rpc::Type as Rpc},
    error::Error,
    metrics::Metrics,
};

/// The key of the volume context that says where a volume's content comes from.
pub(super) const SOURCE: &str = "source";
/// A volume that this driver made without content: the only kind that a node may format unasked.
pub(super) const BLANK: &str = "blank";

/// What a Controller can do with volumes.
const OF_VOLUMES: [Rpc; 11] = [
    Rpc::CreateDeleteVolume,
    Rpc::PublishUnpublishVolume,
    Rpc::ListVolumes,
    Rpc::ListVolumesPublishedNodes,
    Rpc::GetVolume,
    Rpc::VolumeCondition,
    Rpc::ExpandVolume,
    Rpc::SingleNodeMultiWriter,
    Rpc::GetCapacity,
    Rpc::GetVolumeHealth,
    Rpc::ListVolumeHealth,
];
/// What it can do where the cloud has snapshots; clones are made by way of them.
const OF_SNAPSHOTS: [Rpc; 4] = [Rpc::CreateDeleteSnapshot, Rpc::ListSnapshots, Rpc::GetSnapshot, Rpc::CloneVolume];

/// The Controller service.
#[derive(Clone)]
pub struct ControllerService {
    controller: Controller,
    profile: &'static Profile,
    metrics: Metrics,
}

impl std::fmt::Debug for ControllerService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControllerService").field("cloud", &self.profile.name).finish_non_exhaustive()
    }
}

impl ControllerService {
    /// Serves this controller's volumes.
    pub fn new(controller: Controller, profile: &'static Profile, metrics: Metrics) -> Self {
        Self { controller, profile, metrics }
    }
}

/// How many entries a page may have; 0 for all.
fn entries(most: i32) -> Result<u32, Error> {
    u32::try_from(most).map_err(|_| Error::invalid("max_entries", format!("{most} is negative")))
}

#[tonic::async_trait]
impl controller_server::Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(&self.metrics, "CreateVolume", About::volume(&request.name), service.create(request)).await
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(&self.metrics, "DeleteVolume", About::volume(&request.volume_id), service.delete(request)).await
    }

    async fn controller_publish_volume(
        &self,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerPublishVolumeResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(
            &self.metrics,
            "ControllerPublishVolume",
            About::volume(&request.volume_id).on(&request.node_id),
            service.publish(request),
        )
        .await
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(
            &self.metrics,
            "ControllerUnpublishVolume",
            About::volume(&request.volume_id).on(&request.node_id),
            service.unpublish(request),
        )
        .await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(
            &self.metrics,
            "ValidateVolumeCapabilities",
            About::volume(&request.volume_id),
            service.validate(request),
        )
        .await
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(&self.metrics, "ListVolumes", About::default(), service.list(request)).await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Result<Response<csi::ControllerExpandVolumeResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(&self.metrics, "ControllerExpandVolume", About::volume(&request.volume_id), service.expand(request))
            .await
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(&self.metrics, "ControllerGetVolume", About::volume(&request.volume_id), service.get(request)).await
    }

    async fn get_capacity(
        &self,
        request: Request<csi::GetCapacityRequest>,
    ) -> Result<Response<csi::GetCapacityResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(&self.metrics, "GetCapacity", About::default(), service.capacity(request)).await
    }

    async fn create_snapshot(
        &self,
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Result<Response<csi::CreateSnapshotResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(&self.metrics, "CreateSnapshot", About::volume(&request.name), service.create_snapshot(request)).await
    }

    async fn delete_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<Response<csi::DeleteSnapshotResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(&self.metrics, "DeleteSnapshot", About::volume(&request.snapshot_id), service.delete_snapshot(request))
            .await
    }

    async fn list_snapshots(
        &self,
        request: Request<csi::ListSnapshotsRequest>,
    ) -> Result<Response<csi::ListSnapshotsResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(&self.metrics, "ListSnapshots", About::default(), service.list_snapshots(request)).await
    }

    async fn get_snapshot(
        &self,
        request: Request<csi::GetSnapshotRequest>,
    ) -> Result<Response<csi::GetSnapshotResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(&self.metrics, "GetSnapshot", About::volume(&request.snapshot_id), service.get_snapshot(request)).await
    }

    async fn controller_list_volume_health(
        &self,
        request: Request<csi::ControllerListVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerListVolumeHealthResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(&self.metrics, "ControllerListVolumeHealth", About::default(), service.list_health(request)).await
    }

    async fn controller_get_volume_health(
        &self,
        request: Request<csi::ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeHealthResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(
            &self.metrics,
            "ControllerGetVolumeHealth",
            About::volume(&request.volume_id),
            service.get_health(request),
        )
        .await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        use csi::controller_service_capability::{Rpc as RpcCapability, Type};
        let of_snapshots = if self.controller.has_snapshots() { &OF_SNAPSHOTS[..] } else { &[] };
        let capabilities = OF_VOLUMES.iter().chain(of_snapshots).map(|kind| csi::ControllerServiceCapability {
            r#type: Some(Type::Rpc(RpcCapability { r#type: (*kind).into() })),
        });
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities: capabilities.collect() }))
    }

    // What is not among the capabilities.

    async fn controller_modify_volume(
        &self,
        _: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Result<Response<csi::ControllerModifyVolumeResponse>, Status> {
        unsupported("ControllerModifyVolume")
    }
}
