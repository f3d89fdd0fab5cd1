//! Volumes: made, deleted, published, grown, listed and looked at.

use std::collections::BTreeMap;

use super::{BLANK, ControllerService, SOURCE, entries};
use crate::{
    cloud::VolumeType,
    controller::{Create, Shown, Source},
    csi::{self, VolumeCapability, volume_content_source::Type as ContentType},
    error::Error,
    rpc::{content::Content, printable, share, validate},
    volume::{SnapshotId, VolumeId},
};

/// The parameter that tells where a snapshot is that does not tell it itself.
const SNAPSHOT_REGION: &str = "snapshot_region";

impl ControllerService {
    pub(super) async fn create(self, request: csi::CreateVolumeRequest) -> Result<csi::CreateVolumeResponse, Error> {
        let name = validate::name(&request.name)?;
        if request.volume_capabilities.is_empty() {
            return Err(Error::invalid("volume_capabilities", "are missing"));
        }
        let (required_bytes, limit_bytes) = validate::capacity(request.capacity_range.as_ref())?;
        if let Some(key) = request.mutable_parameters.keys().min() {
            let problem =
                format!("'{key}' is set, but volumes of {} have nothing that can be modified", self.profile.name);
            return Err(Error::invalid("mutable_parameters", problem));
        }
        let mut parameters = validate::map("parameters", request.parameters)?;
        let snapshot_region = parameters.remove(SNAPSHOT_REGION);
        let (volume_type, content) = self.wanted(&mut parameters, &request.volume_capabilities)?;
        let regions = validate::regions(self.profile, request.accessibility_requirements.as_ref())?;
        let source = self.source(request.volume_content_source.as_ref(), snapshot_region, volume_type)?;
        let create = Create { name, required_bytes, limit_bytes, volume_type, regions, source: source.clone() };
        let volume = self.controller.create(create).await?;
        let mut volume_context = content;
        let word = match source {
            Source::Blank => BLANK,
            Source::Snapshot { .. } => "snapshot",
            Source::Volume(_) => "volume",
        };
        volume_context.insert(SOURCE.to_owned(), word.to_owned());
        let content_source = request.volume_content_source;
        let volume = csi::Volume { volume_context, content_source, ..self.listed(&volume) };
        Ok(csi::CreateVolumeResponse { volume: Some(volume) })
    }

    /// The kind that parameters ask for, and what the node is to be told of its content; both checked against how the
    /// volume is to be used.
    pub(super) fn wanted(
        &self,
        parameters: &mut BTreeMap<String, String>,
        capabilities: &[VolumeCapability],
    ) -> Result<(&'static VolumeType, BTreeMap<String, String>), Error> {
        let mut of_cloud = parameters.clone();
        let own = Content::keys(&mut of_cloud);
        let volume_type = (self.profile.volume_type)(&of_cloud)?;
        if volume_type.shared {
            capabilities.iter().try_for_each(share::capability)?;
            Content::of_share(&own)?;
            return Ok((volume_type, BTreeMap::new()));
        }
        for capability in capabilities {
            validate::capability(capability)?;
        }
        Ok((volume_type, Content::take(parameters, &validate::file_systems(capabilities)?)?))
    }

    fn source(
        &self,
        source: Option<&csi::VolumeContentSource>,
        snapshot_region: Option<String>,
        volume_type: &VolumeType,
    ) -> Result<Source, Error> {
        const FIELD: &str = "volume_content_source";
        let Some(source) = source else { return Ok(Source::Blank) };
        if volume_type.shared {
            return Err(Error::invalid(
                FIELD,
                format!("a {volume_type} volume cannot be made from another volume's content"),
            ));
        }
        if !self.controller.has_snapshots() {
            return Err(Error::invalid(FIELD, format!("{} has no snapshots", self.profile.name)));
        }
        match &source.r#type {
            Some(ContentType::Snapshot(snapshot)) => {
                if snapshot.snapshot_id.is_empty() {
                    return Err(Error::invalid(format!("{FIELD}.snapshot.snapshot_id"), "is missing"));
                }
                let id = SnapshotId::parse(self.profile.id_form, &snapshot.snapshot_id)
                    .ok_or_else(|| Error::SnapshotNotFound(printable(&snapshot.snapshot_id)))?;
                Ok(Source::Snapshot { id, region: snapshot_region.map(|region| region.to_ascii_lowercase()) })
            }
            Some(ContentType::Volume(volume)) => {
                if volume.volume_id.is_empty() {
                    return Err(Error::invalid(format!("{FIELD}.volume.volume_id"), "is missing"));
                }
                Ok(Source::Volume(validate::volume_id(self.profile, &volume.volume_id)?))
            }
            None => Err(Error::invalid(FIELD, "names neither a snapshot nor a volume")),
        }
    }

    pub(super) async fn delete(self, request: csi::DeleteVolumeRequest) -> Result<csi::DeleteVolumeResponse, Error> {
        if let Some(id) = validate::maybe_volume_id(self.profile, &request.volume_id)? {
            self.controller.delete(id).await?;
        }
        Ok(csi::DeleteVolumeResponse {})
    }

    pub(super) async fn publish(
        self,
        request: csi::ControllerPublishVolumeRequest,
    ) -> Result<csi::ControllerPublishVolumeResponse, Error> {
        let profile = self.profile;
        let id = validate::maybe_volume_id(profile, &request.volume_id)?;
        if request.node_id.is_empty() {
            return Err(Error::invalid("node_id", "is missing"));
        }
        let capability = request.volume_capability.as_ref();
        let capability = capability.ok_or_else(|| Error::invalid("volume_capability", "is missing"))?;
        share::either(capability)?;
        if request.readonly {
            let problem = "is set, but volumes cannot be attached for reading only (no PUBLISH_READONLY capability)";
            return Err(Error::invalid("readonly", problem));
        }
        let id = id.ok_or_else(|| Error::VolumeNotFound(printable(&request.volume_id)))?;
        self.fits(&id, capability).await?;
        let attachment = match validate::node_id(profile, &request.node_id) {
            Ok(node) => self.controller.attach(id, node).await?,
            // Of two that do not exist, the volume is told of first.
            Err(error) => return Err(self.controller.get(&id).await.err().unwrap_or(error)),
        };
        let publish_context = (profile.publish_context)(&attachment).into_iter().collect();
        Ok(csi::ControllerPublishVolumeResponse { publish_context })
    }

    /// Whether a volume can be used like this: what only a shared file system can is asked for of no disk.
    async fn fits(&self, id: &VolumeId, capability: &VolumeCapability) -> Result<(), Error> {
        if self.controller.is_shared(id).await? {
            return share::capability(capability);
        }
        validate::capability(capability).map(drop)
    }

    pub(super) async fn unpublish(
        self,
        request: csi::ControllerUnpublishVolumeRequest,
    ) -> Result<csi::ControllerUnpublishVolumeResponse, Error> {
        let done = csi::ControllerUnpublishVolumeResponse {};
        let Some(id) = validate::maybe_volume_id(self.profile, &request.volume_id)? else { return Ok(done) };
        let node = match request.node_id.as_str() {
            // CSI 1.13: without a node id, from every node.
            "" => None,
            node => match validate::node_id(self.profile, node) {
                Ok(node) => Some(node),
                // Nothing is attached to a node that cannot exist.
                Err(_) => return Ok(done),
            },
        };
        self.controller.detach(id, node).await?;
        Ok(done)
    }

    pub(super) async fn validate(
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
        let id = id.ok_or_else(|| Error::VolumeNotFound(printable(&request.volume_id)))?;
        let volume = self.controller.get_whole(&id).await?;
        let refusal = self.refusal(&volume, &request).err();
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

    /// Why a volume is not what is asked.
    fn refusal(&self, volume: &Shown, request: &csi::ValidateVolumeCapabilitiesRequest) -> Result<(), Error> {
        let shared = volume.volume_type.is_some_and(|kind| kind.shared);
        for capability in &request.volume_capabilities {
            if shared {
                share::capability(capability)?;
            } else {
                validate::capability(capability)?;
            }
        }
        if let Some(key) = request.mutable_parameters.keys().min() {
            return Err(Error::invalid("mutable_parameters", format!("'{key}' cannot be modified here")));
        }
        let mut parameters = request.parameters.clone();
        parameters.remove(SNAPSHOT_REGION);
        // Only a type that was asked for can be the wrong one.
        let names_a_type = {
            let mut of_cloud = parameters.clone();
            Content::keys(&mut of_cloud);
            of_cloud.retain(|key, _| !key.starts_with("csi.storage.k8s.io/"));
            !of_cloud.is_empty()
        };
        if !names_a_type && shared {
            return Ok(());
        }
        let (asked, _) = self.wanted(&mut parameters, &request.volume_capabilities)?;
        if names_a_type && volume.volume_type != Some(asked) {
            return Err(Error::invalid("parameters", format!("ask for {asked}, which the volume is not")));
        }
        Ok(())
    }

    pub(super) async fn list(self, request: csi::ListVolumesRequest) -> Result<csi::ListVolumesResponse, Error> {
        let list = self.controller.list(&request.starting_token, entries(request.max_entries)?).await?;
        let entries = list.volumes.iter().map(|volume| csi::list_volumes_response::Entry {
            volume: Some(self.listed(volume)),
            status: Some(csi::list_volumes_response::VolumeStatus {
                published_node_ids: nodes(volume),
                volume_condition: Some(condition(volume)),
            }),
        });
        Ok(csi::ListVolumesResponse { entries: entries.collect(), next_token: list.next_token.unwrap_or_default() })
    }

    pub(super) async fn expand(
        self,
        request: csi::ControllerExpandVolumeRequest,
    ) -> Result<csi::ControllerExpandVolumeResponse, Error> {
        let id = validate::maybe_volume_id(self.profile, &request.volume_id)?;
        if request.capacity_range.is_none() {
            return Err(Error::invalid("capacity_range", "is missing"));
        }
        let (required, limit) = validate::capacity(request.capacity_range.as_ref())?;
        let capability = request.volume_capability.as_ref();
        capability.map_or(Ok(()), share::either)?;
        let id = id.ok_or_else(|| Error::VolumeNotFound(printable(&request.volume_id)))?;
        if let Some(capability) = capability {
            self.fits(&id, capability).await?;
        }
        let volume = self.controller.expand(id, required, limit).await?;
        // Of raw block volumes too: the node proves that the kernel sees the new size. A share has it at once.
        let node_expansion_required = !volume.volume_type.is_some_and(|kind| kind.shared);
        Ok(csi::ControllerExpandVolumeResponse { capacity_bytes: bytes(&volume), node_expansion_required })
    }

    pub(super) async fn get(
        self,
        request: csi::ControllerGetVolumeRequest,
    ) -> Result<csi::ControllerGetVolumeResponse, Error> {
        let volume = self.controller.get(&validate::volume_id(self.profile, &request.volume_id)?).await?;
        Ok(csi::ControllerGetVolumeResponse {
            volume: Some(self.listed(&volume)),
            status: Some(csi::controller_get_volume_response::VolumeStatus {
                published_node_ids: nodes(&volume),
                volume_condition: Some(condition(&volume)),
            }),
        })
    }

    /// A volume as a listing shows it: where its content came from is known only to its `PersistentVolume`.
    fn listed(&self, volume: &Shown) -> csi::Volume {
        csi::Volume {
            capacity_bytes: bytes(volume),
            volume_id: volume.id.to_string(),
            volume_context: BTreeMap::new(),
            content_source: None,
            accessible_topology: vec![self.topology(&volume.region)],
        }
    }

    /// The one segment that there is.
    pub(super) fn topology(&self, region: &str) -> csi::Topology {
        let segment = (self.profile.topology_key.to_owned(), region.to_ascii_uppercase());
        csi::Topology { segments: [segment].into() }
    }
}

fn bytes(volume: &Shown) -> i64 {
    i64::try_from(volume.size.bytes()).unwrap_or(i64::MAX)
}

fn nodes(volume: &Shown) -> Vec<String> {
    volume.nodes.iter().map(ToString::to_string).collect()
}

/// The condition of CSI 1.12, which health of 1.13 replaces.
fn condition(volume: &Shown) -> csi::VolumeCondition {
    let ailments: Vec<String> = volume.ailments().iter().map(ToString::to_string).collect();
    if ailments.is_empty() {
        let message = format!("the cloud says that it is {}", volume.state);
        return csi::VolumeCondition { abnormal: false, message };
    }
    csi::VolumeCondition { abnormal: true, message: ailments.join("; ") }
}
