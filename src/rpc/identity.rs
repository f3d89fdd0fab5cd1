//! The Identity service: who the driver is, what it can do, and whether it has started.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tonic::{Request, Response, Status};

use crate::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse, identity_server,
    plugin_capability::{
        self, Service, VolumeExpansion, service::Type as ServiceType, volume_expansion::Type as ExpansionType,
    },
};

/// The Identity service.
#[derive(Debug, Clone)]
pub struct Identity {
    name: String,
    controller: bool,
    snapshots: bool,
    started: Arc<AtomicBool>,
}

impl Identity {
    /// The identity of the driver `name`.
    pub fn new(name: String) -> Self {
        Self { name, controller: false, snapshots: false, started: Arc::default() }
    }

    /// The same of one that serves the Controller service, and perhaps snapshots, which have a region as volumes do.
    #[must_use]
    pub fn with_controller(self, snapshots: bool) -> Self {
        Self { controller: true, snapshots, ..self }
    }

    /// Notes that the start is complete; from here on Probe is true, whatever the cloud's weather: a restart, which is
    /// what a liveness probe asks for, would end work in flight and mend nothing.
    pub fn started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// Whether the start is complete.
    pub fn has_started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
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
        Ok(Response::new(ProbeResponse { ready: Some(self.has_started()) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::identity_server::Identity as _;

    #[tokio::test]
    async fn probe_is_false_only_until_the_start_is_complete() {
        let identity = Identity::new("test".to_owned()).with_controller(true);
        let ready = async || identity.probe(Request::new(ProbeRequest {})).await.unwrap().into_inner().ready;
        assert_eq!(ready().await, Some(false));
        identity.started();
        assert_eq!(ready().await, Some(true));
    }
}
