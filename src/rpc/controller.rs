//! The Controller service.

use std::collections::BTreeMap;

use tonic::{Request, Response, Status};

use super::{About, answer, content::Content, unsupported, validate};
use crate::{
    cloud::{self, Profile, VolumeState},
    controller::{Controller, Create},
    csi::{self, controller_server, controller_service_capability::rpc::Type as Rpc},
    error::Error,
    metrics::Metrics,
};

/// The key of the volume context that says where a volume's content comes from.
pub(super) const SOURCE: &str = "source";
/// A volume that this driver made without content: the only kind that a node may format unasked.
pub(super) const BLANK: &str = "blank";

/// What a Controller can do here.
const CAPABILITIES: [Rpc; 8] = [
    Rpc::CreateDeleteVolume,
    Rpc::PublishUnpublishVolume,
    Rpc::ListVolumes,
    Rpc::ListVolumesPublishedNodes,
    Rpc::GetVolume,
    Rpc::VolumeCondition,
    Rpc::ExpandVolume,
    Rpc::SingleNodeMultiWriter,
];

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

    async fn create(self, request: csi::CreateVolumeRequest) -> Result<csi::CreateVolumeResponse, Error> {
        let name = validate::name(&request.name)?;
        validate::capabilities(&request.volume_capabilities)?;
        let (required_bytes, limit_bytes) = validate::capacity(request.capacity_range.as_ref())?;
        if request.volume_content_source.is_some() {
            return Err(Error::invalid(
                "volume_content_source",
                "is not supported: there are no snapshots or clones yet",
            ));
        }
        if let Some(key) = request.mutable_parameters.keys().min() {
            let problem =
                format!("'{key}' is set, but volumes of {} have nothing that can be modified", self.profile.name);
            return Err(Error::invalid("mutable_parameters", problem));
        }
        let mut parameters = validate::map("parameters", request.parameters)?;
        let content = Content::take(&mut parameters, &validate::file_systems(&request.volume_capabilities)?)?;
        let volume_type = (self.profile.volume_type)(&parameters)?;
        let regions = validate::regions(self.profile, request.accessibility_requirements.as_ref())?;
        let create = Create { name, required_bytes, limit_bytes, volume_type, regions };
        let volume = self.controller.create(create).await?;
        Ok(csi::CreateVolumeResponse { volume: Some(self.shown(&volume, content)) })
    }

    async fn validate(
        self,
        request: csi::ValidateVolumeCapabilitiesRequest,
    ) -> Result<csi::ValidateVolumeCapabilitiesResponse, Error> {
        use csi::validate_volume_capabilities_response::Confirmed;
        let id = validate::maybe_volume_id(self.profile, &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(Error::invalid("volume_capabilities", "are missing"));
        }
        if request.volume_capabilities.iter().any(|one| one.access_type.is_none()) {
            return Err(Error::invalid("volume_capabilities", "have one that is neither block nor mount"));
        }
        let id = id.ok_or_else(|| Error::VolumeNotFound(super::printable(&request.volume_id)))?;
        let volume = self.controller.get_whole(id).await?;
        let mutable = request.mutable_parameters.keys().min();
        let immutable = |key| Error::invalid("mutable_parameters", format!("'{key}' cannot be modified here"));
        let refusal =
            validate::capabilities(&request.volume_capabilities).err().or(mutable.map(immutable)).or_else(|| {
                let mut parameters = request.parameters.clone();
                let file_systems = validate::file_systems(&request.volume_capabilities);
                if let Err(error) = file_systems.and_then(|all| Content::take(&mut parameters, &all)) {
                    return Some(error);
                }
                match (self.profile.volume_type)(&parameters) {
                    // Only a type that was asked for can be the wrong one.
                    Ok(asked) if !parameters.is_empty() && volume.volume_type != Some(asked) => {
                        Some(Error::invalid("parameters", format!("ask for {asked}, which the volume is not")))
                    }
                    Ok(_) => None,
                    Err(error) => Some(error),
                }
            });
        Ok(match refusal {
            Some(refusal) => csi::ValidateVolumeCapabilitiesResponse { confirmed: None, message: refusal.to_string() },
            None => csi::ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: request.mutable_parameters,
                }),
                message: String::new(),
            },
        })
    }

    async fn list(self, request: csi::ListVolumesRequest) -> Result<csi::ListVolumesResponse, Error> {
        let most = u32::try_from(request.max_entries)
            .map_err(|_| Error::invalid("max_entries", format!("{} is negative", request.max_entries)))?;
        let list = self.controller.list(&request.starting_token, most).await?;
        let entries = list.volumes.iter().map(|volume| csi::list_volumes_response::Entry {
            volume: Some(self.listed(volume)),
            status: Some(csi::list_volumes_response::VolumeStatus {
                published_node_ids: nodes(volume),
                volume_condition: Some(condition(volume)),
            }),
        });
        Ok(csi::ListVolumesResponse { entries: entries.collect(), next_token: list.next_token.unwrap_or_default() })
    }

    /// A volume as the answer to a create shows it.
    fn shown(&self, volume: &cloud::Volume, mut volume_context: BTreeMap<String, String>) -> csi::Volume {
        volume_context.insert(SOURCE.to_owned(), BLANK.to_owned());
        csi::Volume { volume_context, ..self.listed(volume) }
    }

    /// A volume as a listing shows it: where its content came from is known only to its `PersistentVolume`.
    fn listed(&self, volume: &cloud::Volume) -> csi::Volume {
        let region = (self.profile.topology_key.to_owned(), volume.region.to_ascii_uppercase());
        csi::Volume {
            capacity_bytes: bytes(volume),
            volume_id: volume.id.to_string(),
            volume_context: BTreeMap::new(),
            content_source: None,
            accessible_topology: vec![csi::Topology { segments: [region].into() }],
        }
    }
}

fn bytes(volume: &cloud::Volume) -> i64 {
    i64::try_from(volume.size.bytes()).unwrap_or(i64::MAX)
}

fn nodes(volume: &cloud::Volume) -> Vec<String> {
    volume.attached_to.iter().map(ToString::to_string).collect()
}

fn condition(volume: &cloud::Volume) -> csi::VolumeCondition {
    let abnormal = volume.state != VolumeState::Active;
    csi::VolumeCondition { abnormal, message: format!("the cloud says that it is {}", volume.state) }
}

#[tonic::async_trait]
impl controller_server::Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        let about = About::volume(&request.name);
        answer(&self.metrics, "CreateVolume", about, self.clone().create(request)).await
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(&self.metrics, "DeleteVolume", About::volume(&request.volume_id), async move {
            if let Some(id) = validate::maybe_volume_id(service.profile, &request.volume_id)? {
                service.controller.delete(id).await?;
            }
            Ok(csi::DeleteVolumeResponse {})
        })
        .await
    }

    async fn controller_publish_volume(
        &self,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerPublishVolumeResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        let about = About::volume(&request.volume_id).on(&request.node_id);
        answer(&self.metrics, "ControllerPublishVolume", about, async move {
            let profile = service.profile;
            let id = validate::maybe_volume_id(profile, &request.volume_id)?;
            if request.node_id.is_empty() {
                return Err(Error::invalid("node_id", "is missing"));
            }
            validate::needed(request.volume_capability.as_ref())?;
            if request.readonly {
                let problem =
                    "is set, but volumes cannot be attached for reading only (no PUBLISH_READONLY capability)";
                return Err(Error::invalid("readonly", problem));
            }
            let id = id.ok_or_else(|| Error::VolumeNotFound(super::printable(&request.volume_id)))?;
            let volume = match validate::node_id(profile, &request.node_id) {
                Ok(node) => service.controller.attach(id, node).await?,
                // Of two that do not exist, the volume is told of first.
                Err(error) => return Err(service.controller.get(id).await.err().unwrap_or(error)),
            };
            let publish_context = (profile.publish_context)(&volume).into_iter().collect();
            Ok(csi::ControllerPublishVolumeResponse { publish_context })
        })
        .await
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        let about = About::volume(&request.volume_id).on(&request.node_id);
        answer(&self.metrics, "ControllerUnpublishVolume", about, async move {
            let done = csi::ControllerUnpublishVolumeResponse {};
            let Some(id) = validate::maybe_volume_id(service.profile, &request.volume_id)? else { return Ok(done) };
            let node = match request.node_id.as_str() {
                // CSI 1.13: without a node id, from every node.
                "" => None,
                node => match validate::node_id(service.profile, node) {
                    Ok(node) => Some(node),
                    // Nothing is attached to a node that cannot exist.
                    Err(_) => return Ok(done),
                },
            };
            service.controller.detach(id, node).await?;
            Ok(done)
        })
        .await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        let about = About::volume(&request.volume_id);
        answer(&self.metrics, "ValidateVolumeCapabilities", about, self.clone().validate(request)).await
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>, Status> {
        answer(&self.metrics, "ListVolumes", About::default(), self.clone().list(request.into_inner())).await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        use csi::controller_service_capability::{Rpc as RpcCapability, Type};
        let capabilities = CAPABILITIES.map(|kind| csi::ControllerServiceCapability {
            r#type: Some(Type::Rpc(RpcCapability { r#type: kind.into() })),
        });
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Result<Response<csi::ControllerExpandVolumeResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        let about = About::volume(&request.volume_id);
        answer(&self.metrics, "ControllerExpandVolume", about, async move {
            let id = validate::maybe_volume_id(service.profile, &request.volume_id)?;
            if request.capacity_range.is_none() {
                return Err(Error::invalid("capacity_range", "is missing"));
            }
            let (required, limit) = validate::capacity(request.capacity_range.as_ref())?;
            if let Some(capability) = &request.volume_capability {
                validate::capability(capability)?;
            }
            let id = id.ok_or_else(|| Error::VolumeNotFound(super::printable(&request.volume_id)))?;
            let volume = service.controller.expand(id, required, limit).await?;
            // Raw block volumes too: the node proves that the kernel sees the new size.
            Ok(csi::ControllerExpandVolumeResponse { capacity_bytes: bytes(&volume), node_expansion_required: true })
        })
        .await
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        let about = About::volume(&request.volume_id);
        answer(&self.metrics, "ControllerGetVolume", about, async move {
            let id = validate::volume_id(service.profile, &request.volume_id)?;
            let volume = service.controller.get(id).await?;
            Ok(csi::ControllerGetVolumeResponse {
                volume: Some(service.listed(&volume)),
                status: Some(csi::controller_get_volume_response::VolumeStatus {
                    published_node_ids: nodes(&volume),
                    volume_condition: Some(condition(&volume)),
                }),
            })
        })
        .await
    }

    // What is not among the capabilities.

    async fn get_capacity(
        &self,
        _: Request<csi::GetCapacityRequest>,
    ) -> Result<Response<csi::GetCapacityResponse>, Status> {
        unsupported("GetCapacity")
    }

    async fn create_snapshot(
        &self,
        _: Request<csi::CreateSnapshotRequest>,
    ) -> Result<Response<csi::CreateSnapshotResponse>, Status> {
        unsupported("CreateSnapshot")
    }

    async fn delete_snapshot(
        &self,
        _: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<Response<csi::DeleteSnapshotResponse>, Status> {
        unsupported("DeleteSnapshot")
    }

    async fn list_snapshots(
        &self,
        _: Request<csi::ListSnapshotsRequest>,
    ) -> Result<Response<csi::ListSnapshotsResponse>, Status> {
        unsupported("ListSnapshots")
    }

    async fn get_snapshot(
        &self,
        _: Request<csi::GetSnapshotRequest>,
    ) -> Result<Response<csi::GetSnapshotResponse>, Status> {
        unsupported("GetSnapshot")
    }

    async fn controller_modify_volume(
        &self,
        _: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Result<Response<csi::ControllerModifyVolumeResponse>, Status> {
        unsupported("ControllerModifyVolume")
    }

    async fn controller_list_volume_health(
        &self,
        _: Request<csi::ControllerListVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerListVolumeHealthResponse>, Status> {
        unsupported("ControllerListVolumeHealth")
    }

    async fn controller_get_volume_health(
        &self,
        _: Request<csi::ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeHealthResponse>, Status> {
        unsupported("ControllerGetVolumeHealth")
    }
}
