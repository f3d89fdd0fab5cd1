//! The Node service.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{sync::OnceCell, time::Instant};
use tonic::{Request, Response, Status};

use super::{
    About, answer,
    content::Content,
    controller::{BLANK, SOURCE},
    deadline, share, validate,
};
use crate::{
    cloud::{InstanceIdentity, Profile},
    config::{Config, NodeConfig},
    csi::{self, node_server, node_service_capability::rpc::Type as Rpc},
    error::Error,
    metrics::Metrics,
    node::{Counts, Expand, Key, Node, PASSPHRASE, Publish, Severity, Stage, Stats, Usage, no_key},
    volume::NodeId,
};

/// What a Node can do here.
const CAPABILITIES: [Rpc; 7] = [
    Rpc::StageUnstageVolume,
    Rpc::GetVolumeStats,
    Rpc::VolumeCondition,
    Rpc::ExpandVolume,
    Rpc::SingleNodeMultiWriter,
    Rpc::GetVolumeHealth,
    Rpc::GetStorageHealth,
];

/// The key of the volume context by which a `PersistentVolume` that this driver did not make allows its disk to be
/// formatted, and the one value that there is.
const FORMAT: &str = "format";
const IF_BLANK: &str = "if-blank";

/// Where a `StorageClass` names the Secret that a stage gets.
const NODE_STAGE_SECRET: &str = "csi.storage.k8s.io/node-stage-secret-name";

/// The Node service.
#[derive(Clone)]
pub struct NodeService {
    node: Arc<Node>,
    profile: &'static Profile,
    metrics: Metrics,
    identity: Arc<Instance>,
    reserved_volumes: u32,
    max_volumes: Option<u32>,
}

impl std::fmt::Debug for NodeService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeService").field("cloud", &self.profile.name).finish_non_exhaustive()
    }
}

/// Who this machine is: as both flags say, else as the metadata service says when it is first asked.
#[derive(Debug)]
struct Instance {
    profile: &'static Profile,
    node_id: Option<NodeId>,
    region: Option<String>,
    metadata_url: String,
    told: OnceCell<InstanceIdentity>,
}

impl Instance {
    async fn get(&self) -> Result<InstanceIdentity, Error> {
        if let (Some(id), Some(region)) = (&self.node_id, &self.region) {
            return Ok(InstanceIdentity { id: id.clone(), region: region.clone() });
        }
        // Asked again until it is known: the service may be late, and the kubelet asks again as well.
        let told = self.told.get_or_try_init(|| (self.profile.identity)(&self.metadata_url)).await?;
        is_there(self.region.as_deref(), &told.region)?;
        let id = self.node_id.clone().unwrap_or_else(|| told.id.clone());
        Ok(InstanceIdentity { id, region: told.region.clone() })
    }
}

/// Refuses a region that is not the instance's: its volumes would be made where it can't have them, and the label that
/// the kubelet puts on the Node stays.
fn is_there(given: Option<&str>, told: &str) -> Result<(), Error> {
    match given {
        Some(given) if !given.eq_ignore_ascii_case(told) => Err(Error::Precondition(format!(
            "--region says that this instance is in {given}, and the metadata service that it is in {told}; leave the flag \
             out here (and CSI_REGION), or give --node-id as well if the service is wrong"
        ))),
        _ => Ok(()),
    }
}

impl NodeService {
    /// Serves this node's disks.
    pub fn new(node: Arc<Node>, config: &Config, settings: &NodeConfig, metrics: Metrics) -> Self {
        let identity = Instance {
            profile: config.profile,
            node_id: settings.node_id.clone(),
            region: config.region.clone(),
            metadata_url: config.metadata_url.clone(),
            told: OnceCell::new(),
        };
        Self {
            node,
            profile: config.profile,
            metrics,
            identity: Arc::new(identity),
            reserved_volumes: settings.reserved_volumes,
            max_volumes: settings.max_volumes_per_node,
        }
    }

    /// The instance's slots, less those that hold the running system and those that are somebody else's.
    async fn attach_limit(&self) -> Result<i64, Error> {
        let taken = self.node.system_volumes().await?.saturating_add(self.reserved_volumes);
        let free = self.profile.attachments_per_instance.saturating_sub(taken);
        // To Kubernetes 0 means no limit. Shares take no slot, but it counts all of a driver's volumes alike.
        Ok(i64::from(free.min(self.max_volumes.unwrap_or(u32::MAX)).max(1)))
    }

    async fn stage(
        self,
        request: csi::NodeStageVolumeRequest,
        deadline: Option<Instant>,
    ) -> Result<csi::NodeStageVolumeResponse, Error> {
        let id = validate::maybe_volume_id(self.profile, &request.volume_id)?;
        let staging_path = validate::path("staging_target_path", &request.staging_target_path)?;
        let capability = request.volume_capability.as_ref();
        capability.map_or_else(|| validate::needed(None).map(drop), share::either)?;
        let volume = id.ok_or_else(|| Error::VolumeNotFound(super::printable(&request.volume_id)))?;
        let blank = may_format(&request.volume_context)?;
        let attachment = (self.profile.attachment)(&validate::map("publish_context", request.publish_context)?)?;
        let (access, read_only) = share::needed(Some(&attachment), capability)?;
        let content = share::content(&attachment, &request.volume_context, &access)?;
        let key = if content.encrypted { Some(key(request.secrets, NODE_STAGE_SECRET)?) } else { None };
        let Content { mkfs_options, discard, .. } = content;
        let stage = Stage { volume, staging_path, access, attachment, blank, read_only, key, mkfs_options, discard };
        self.node.stage(stage, deadline).await?;
        Ok(csi::NodeStageVolumeResponse {})
    }

    async fn expand(
        self,
        mut request: csi::NodeExpandVolumeRequest,
        deadline: Option<Instant>,
    ) -> Result<csi::NodeExpandVolumeResponse, Error> {
        let id = validate::maybe_volume_id(self.profile, &request.volume_id)?;
        if request.volume_path.is_empty() {
            return Err(Error::invalid("volume_path", "is missing"));
        }
        let (required, _) = validate::capacity(request.capacity_range.as_ref())?;
        let capability = request.volume_capability.as_ref();
        capability.map_or(Ok(()), share::either)?;
        let volume = id.ok_or_else(|| Error::VolumeNotFound(super::printable(&request.volume_id)))?;
        let path = validate::place(&volume, &request.volume_path)?;
        if capability.is_some() && !self.node.has_share(&volume, &path).await? {
            validate::needed(capability)?;
        }
        // Whether it is needed is known to the node: this call has no volume context.
        let key = request.secrets.remove(PASSPHRASE).and_then(Key::new);
        let expand = Expand { volume, path, wanted: (required != 0).then_some(required), key };
        let bytes = self.node.expand(expand, deadline).await?;
        Ok(csi::NodeExpandVolumeResponse { capacity_bytes: i64::try_from(bytes).unwrap_or(i64::MAX) })
    }

    async fn health(self, request: csi::NodeGetVolumeHealthRequest) -> Result<csi::NodeGetVolumeHealthResponse, Error> {
        let id = validate::volume_id(self.profile, &request.volume_id)?;
        let paths = [&request.volume_publish_path, &request.staging_target_path];
        let paths = paths.into_iter().filter(|path| !path.is_empty()).map(|path| validate::place(&id, path));
        let ailments = self.node.health(id.clone(), paths.collect::<Result<_, _>>()?).await?;
        let health_statuses = ailments.into_iter().map(|ailment| csi::volume_health::VolumeHealthEntry {
            status: match ailment.severity {
                Severity::Degraded => csi::VolumeHealthErrorType::Degraded,
                Severity::Inaccessible => csi::VolumeHealthErrorType::Inaccessible,
            }
            .into(),
            reason: ailment.reason.to_owned(),
            message: ailment.message,
        });
        let health = csi::VolumeHealth { volume_id: id.to_string(), health_statuses: health_statuses.collect() };
        Ok(csi::NodeGetVolumeHealthResponse { volume_health: Some(health) })
    }

    async fn storage_health(self) -> Result<csi::NodeGetStorageHealthResponse, Error> {
        let backend_health = self.node.storage_health().await.into_iter().map(|ailment| {
            csi::node_get_storage_health_response::StorageBackendHealth {
                status: match ailment.severity {
                    Severity::Degraded => csi::StorageHealthErrorType::StorageDegraded,
                    Severity::Inaccessible => csi::StorageHealthErrorType::StorageUnreachable,
                }
                .into(),
                reason: ailment.reason.to_owned(),
                message: ailment.message,
                // It is all volumes that suffer.
                volume_capability: None,
            }
        });
        Ok(csi::NodeGetStorageHealthResponse { backend_health: backend_health.collect() })
    }

    async fn publish(self, request: csi::NodePublishVolumeRequest) -> Result<csi::NodePublishVolumeResponse, Error> {
        let id = validate::maybe_volume_id(self.profile, &request.volume_id)?;
        let target_path = validate::path("target_path", &request.target_path)?;
        let capability = request.volume_capability.as_ref();
        capability.map_or_else(|| validate::needed(None).map(drop), share::either)?;
        let staging_path = match request.staging_target_path.as_str() {
            // CSI 1.13: FAILED_PRECONDITION where the volume has to be staged and no path is given.
            "" => {
                return Err(Error::Precondition("staging_target_path: is missing; stage the volume first".to_owned()));
            }
            path => validate::path("staging_target_path", path)?,
        };
        let volume = id.ok_or_else(|| Error::VolumeNotFound(super::printable(&request.volume_id)))?;
        let attachment = if request.publish_context.is_empty() {
            None
        } else {
            Some((self.profile.attachment)(&validate::map("publish_context", request.publish_context)?)?)
        };
        let (access, reader) = share::needed(attachment.as_ref(), capability)?;
        let read_only = request.readonly || reader;
        let single_writer = validate::is_single_writer(capability);
        let publish = Publish { volume, staging_path, target_path, access, read_only, single_writer, attachment };
        self.node.publish(publish).await?;
        Ok(csi::NodePublishVolumeResponse {})
    }
}

/// Whether the volume may be formatted if it proves to be blank: this driver made it so, or its
/// `PersistentVolume` says so.
fn may_format(context: &BTreeMap<String, String>) -> Result<bool, Error> {
    match context.get(FORMAT).map(String::as_str) {
        None => Ok(context.get(SOURCE).is_some_and(|source| source == BLANK)),
        Some(IF_BLANK) => Ok(true),
        Some(other) => {
            let problem =
                format!("'{other}' is not known; '{IF_BLANK}' is, and without it the disk is never formatted");
            Err(Error::invalid(format!("volume_context[{FORMAT}]"), problem))
        }
    }
}

#[tonic::async_trait]
impl node_server::Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let (deadline, request) = (deadline(request.metadata()), request.into_inner());
        let about = About::volume(&request.volume_id);
        answer(&self.metrics, "NodeStageVolume", about, self.clone().stage(request, deadline)).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(&self.metrics, "NodeUnstageVolume", About::volume(&request.volume_id), async move {
            let id = validate::maybe_volume_id(service.profile, &request.volume_id)?;
            let path = validate::path("staging_target_path", &request.staging_target_path)?;
            let id = id.ok_or_else(|| Error::VolumeNotFound(super::printable(&request.volume_id)))?;
            service.node.unstage(id, path).await?;
            Ok(csi::NodeUnstageVolumeResponse {})
        })
        .await
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let about = About::volume(&request.volume_id);
        answer(&self.metrics, "NodePublishVolume", about, self.clone().publish(request)).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(&self.metrics, "NodeUnpublishVolume", About::volume(&request.volume_id), async move {
            let id = validate::maybe_volume_id(service.profile, &request.volume_id)?;
            let path = validate::path("target_path", &request.target_path)?;
            let id = id.ok_or_else(|| Error::VolumeNotFound(super::printable(&request.volume_id)))?;
            service.node.unpublish(id, path).await?;
            Ok(csi::NodeUnpublishVolumeResponse {})
        })
        .await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        answer(&self.metrics, "NodeGetVolumeStats", About::volume(&request.volume_id), async move {
            let id = validate::maybe_volume_id(service.profile, &request.volume_id)?;
            if request.volume_path.is_empty() {
                return Err(Error::invalid("volume_path", "is missing"));
            }
            let id = id.ok_or_else(|| Error::VolumeNotFound(super::printable(&request.volume_id)))?;
            let path = validate::place(&id, &request.volume_path)?;
            Ok(shown(&service.node.stats(id, path).await?))
        })
        .await
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        let (deadline, request) = (deadline(request.metadata()), request.into_inner());
        let about = About::volume(&request.volume_id);
        answer(&self.metrics, "NodeExpandVolume", about, self.clone().expand(request, deadline)).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        use csi::node_service_capability::{Rpc as RpcCapability, Type};
        let capabilities = CAPABILITIES
            .map(|kind| csi::NodeServiceCapability { r#type: Some(Type::Rpc(RpcCapability { r#type: kind.into() })) });
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        let service = self.clone();
        answer(&self.metrics, "NodeGetInfo", About::default(), async move {
            let identity = service.identity.get().await?;
            let region = (service.profile.topology_key.to_owned(), identity.region);
            Ok(csi::NodeGetInfoResponse {
                node_id: identity.id.to_string(),
                max_volumes_per_node: service.attach_limit().await?,
                accessible_topology: Some(csi::Topology { segments: [region].into() }),
            })
        })
        .await
    }

    async fn node_get_volume_health(
        &self,
        request: Request<csi::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<csi::NodeGetVolumeHealthResponse>, Status> {
        let request = request.into_inner();
        let about = About::volume(&request.volume_id);
        answer(&self.metrics, "NodeGetVolumeHealth", about, self.clone().health(request)).await
    }

    async fn node_get_storage_health(
        &self,
        _: Request<csi::NodeGetStorageHealthRequest>,
    ) -> Result<Response<csi::NodeGetStorageHealthResponse>, Status> {
        answer(&self.metrics, "NodeGetStorageHealth", About::default(), self.clone().storage_health()).await
    }
}

/// The key among a call's secrets.
fn key(mut secrets: BTreeMap<String, String>, parameter: &str) -> Result<Key, Error> {
    secrets.remove(PASSPHRASE).and_then(Key::new).ok_or_else(|| no_key(parameter))
}

fn shown(stats: &Stats) -> csi::NodeGetVolumeStatsResponse {
    use csi::{VolumeUsage, volume_usage::Unit};
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let counted = |unit: Unit, counts: &Counts| VolumeUsage {
        unit: unit.into(),
        total: number(counts.total),
        used: number(counts.used),
        available: number(counts.available),
    };
    let usage = match &stats.usage {
        None => Vec::new(),
        Some(Usage::FileSystem { bytes, inodes }) => {
            vec![counted(Unit::Bytes, bytes), counted(Unit::Inodes, inodes)]
        }
        // Of a raw device only the size is known.
        Some(Usage::Block { total }) => {
            vec![VolumeUsage { unit: Unit::Bytes.into(), total: number(*total), used: 0, available: 0 }]
        }
    };
    let ailments: Vec<&str> = stats.ailments.iter().map(|ailment| ailment.message.as_str()).collect();
    let condition = csi::VolumeCondition {
        abnormal: !ailments.is_empty(),
        message: if ailments.is_empty() { "the volume is in order".to_owned() } else { ailments.join("; ") },
    };
    csi::NodeGetVolumeStatsResponse { usage, volume_condition: Some(condition) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_that_is_not_the_instances_is_refused() {
        assert!(is_there(None, "AMS").is_ok());
        assert!(is_there(Some("AMS"), "AMS").is_ok());
        let refused = is_there(Some("EWR"), "AMS").unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
        assert!(refused.to_string().contains("EWR") && refused.to_string().contains("AMS"), "{refused}");
    }

    #[test]
    fn only_our_own_blank_volumes_and_an_explicit_word_allow_formatting() {
        for (context, allowed) in [
            (&[][..], Some(false)),
            (&[("source", "blank")], Some(true)),
            (&[("source", "snapshot")], Some(false)),
            (&[("format", "if-blank")], Some(true)),
            (&[("source", "snapshot"), ("format", "if-blank")], Some(true)),
            (&[("format", "always")], None),
        ] {
            let map = context.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            assert_eq!(may_format(&map).ok(), allowed, "{context:?}");
        }
    }
}
