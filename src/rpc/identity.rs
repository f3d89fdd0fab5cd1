//! The Identity service: who the driver is, what it can do, and whether it has started.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse, identity_server,
    plugin_capability::{
        self, Service, VolumeExpansion, service::Type as ServiceType, volume_expansion::Type as ExpansionType,
    },
};

/// How long Probe waits for the start before it says that it is not complete. The sidecars ask again a second later and log
/// each answer, and one that waits for a lease may wait for months. They wait 10 s and more for an answer.
const PATIENCE: Duration = Duration::from_secs(4);

/// The Identity service.
#[derive(Debug, Clone)]
pub struct Identity {
    name: String,
    controller: bool,
    snapshots: bool,
    /// Cancelled when it is.
    started: CancellationToken,
}

impl Identity {
    /// The identity of the driver `name`.
    pub fn new(name: String) -> Self {
        Self { name, controller: false, snapshots: false, started: CancellationToken::new() }
    }

    /// The same of one that serves the Controller service, and perhaps snapshots, which have a region as volumes do.
    #[must_use]
    pub fn with_controller(self, snapshots: bool) -> Self {
        Self { controller: true, snapshots, ..self }
    }

    /// Notes that the start is complete; from here on Probe is true, whatever the cloud's weather: a restart, which is
    /// what a liveness probe asks for, would end work in flight and mend nothing.
    pub fn started(&self) {
        self.started.cancel();
    }

    /// Whether the start is complete.
    pub fn has_started(&self) -> bool {
        self.started.is_cancelled()
    }
}

#[tonic::async_trait]
impl identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: self.name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: BTreeMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let service = |kind: ServiceType| plugin_capability::Type::Service(Service { r#type: kind.into() });
        let online = VolumeExpansion { r#type: ExpansionType::Online.into() };
        let mut kinds = vec![
            service(ServiceType::VolumeAccessibilityConstraints),
            plugin_capability::Type::VolumeExpansion(online),
        ];
        if self.controller {
            kinds.push(service(ServiceType::ControllerService));
        }
        if self.snapshots {
            kinds.push(service(ServiceType::SnapshotAccessibilityConstraints));
        }
        let capabilities = kinds.into_iter().map(|kind| PluginCapability { r#type: Some(kind) }).collect();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let ready = timeout(PATIENCE, self.started.cancelled()).await.is_ok();
        Ok(Response::new(ProbeResponse { ready: Some(ready) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::identity_server::Identity as _;

    #[tokio::test(start_paused = true)]
    async fn probe_is_false_only_until_the_start_is_complete() {
        let identity = Identity::new("test".to_owned()).with_controller(true);
        let ready = async || identity.probe(Request::new(ProbeRequest {})).await.unwrap().into_inner().ready;
        assert_eq!(ready().await, Some(false));
        let began = tokio::time::Instant::now();
        let started = async {
            tokio::time::sleep(PATIENCE / 2).await;
            identity.started();
        };
        assert_eq!(tokio::join!(ready(), started).0, Some(true));
        assert!(began.elapsed() < PATIENCE, "who asks is told at once");
        assert_eq!(ready().await, Some(true));
    }
}
