//! A CSI driver for cloud block storage.
//!
//! The map, in the order in which a request comes by; imports point one way only, down this list:
//!
//! - [`config`] flags and environment become a checked configuration; [`run`] builds everything from it
//! - [`orphans`] the report of what belongs to nobody, for operators
//! - [`server`] the gRPC socket and its drain; [`registration`] tells the kubelet of it; `socket` how sockets are taken
//!   and left; [`admin`] `/metrics`, `/healthz` and `/readyz`
//! - [`telemetry`] and [`metrics`] what operators see
//! - [`rpc`] protobuf in, protobuf out: the only place that knows [`csi`]
//! - [`operations`] what is in flight: started once, joined by repeats; [`progress`] what does not come about
//! - [`controller`] decides what to ask of the cloud
//! - [`cloud`] the clouds' APIs, with `cloud::vultr` the first
//! - [`node`] proves, formats, mounts and grows disks; `node::host` is the only code that touches the machine
//! - [`volume`] and [`error`] the words that all of them share

pub mod admin;
pub mod cloud;
pub mod config;
pub mod controller;
pub mod csi;
pub mod error;
pub mod metrics;
pub mod node;
pub mod operations;
pub mod orphans;
pub mod progress;
pub mod registration;
pub mod rpc;
pub mod server;
mod socket;
pub mod telemetry;
pub mod volume;

use std::{future::Future, sync::Arc, time::Duration};

use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::{
    cloud::{Account, fence::Fence, pace::Pace, token::TokenFile},
    config::Config,
    controller::{Controller, HomeRegion, Setting},
    metrics::Metrics,
    node::{Linux, Node, Paths},
    registration::Registration,
};

/// How long the start waits for the cloud at most.
const START: Duration = Duration::from_secs(20);

/// Why the driver did not start or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The operator has to change something; the exit code is 64 (`EX_USAGE`).
    #[error("{0}")]
    Configuration(String),
    /// The machine or the network did not let it.
    #[error("{0}")]
    Failed(String),
}

/// Serves what `config` asks for until `shutdown` comes, then ends what is in flight and returns.
///
/// # Errors
/// What keeps it from starting, or from ending in order.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    info!(%config, "starting");
    let metrics = Metrics::default();
    let tasks = TaskTracker::new();
    let mut services =
        server::Services { identity: rpc::Identity::new(config.driver_name.clone()), controller: None, node: None };
    if let Some(settings) = &config.controller {
        let token = TokenFile::open(&settings.token_file).map_err(RunError::Configuration)?;
        let pace = Pace::new(settings.requests_per_second, config.profile.requests_per_second);
        let (api_url, fence) = (settings.api_url.clone(), Fence::default());
        let account = Account { api_url, token, pace, metrics: metrics.clone(), fence };
        let cloud = (config.profile.connect)(account).map_err(RunError::Failed)?;
        let home = HomeRegion::new(config.region.clone(), config.profile, config.metadata_url.clone());
        let setting = Setting { home, cluster: settings.cluster.clone(), metrics: metrics.clone() };
        let controller = Controller::new(cloud, setting, tasks.clone());
        services.identity = services.identity.with_controller(controller.has_snapshots());
        let (starting, ready) = (controller.clone(), services.identity.clone());
        // The start is complete when the account has been asked for once; what the cloud answered is no matter of life.
        tokio::spawn(async move {
            // Nor does a silent cloud keep the start from ending: a liveness probe would only restart us into the same.
            if tokio::time::timeout(START, starting.start()).await.is_err() {
                warn!("the account is not listed yet; the first create does it");
            }
            ready.started();
        });
        let cleaning = controller.clone();
        tokio::spawn(async move { cleaning.keep_clean().await });
        services.controller = Some(rpc::ControllerService::new(controller, config.profile, metrics.clone()));
    } else {
        services.identity.started();
    }
    if let Some(settings) = &config.node {
        node::forbid_core_dumps()
            .map_err(|error| RunError::Failed(format!("core dumps cannot be forbidden: {error}")))?;
        let programs = node::check_programs().await.map_err(RunError::Configuration)?;
        info!(programs, "all programs are there");
        let paths = Paths {
            device_dir: settings.device_dir.clone(),
            sysfs_dir: settings.sysfs_dir.clone(),
            dev_dir: "/dev".into(),
            state_dir: settings.state_dir.clone(),
            kubelet_dir: settings.kubelet_dir.clone(),
        };
        let host = Linux::new(paths, metrics.clone()).map_err(|error| RunError::Failed(error.to_string()))?;
        let node = Arc::new(Node::new(Arc::new(host), config.profile, tasks.clone(), metrics.clone()));
        let trimming = Arc::clone(&node);
        tokio::spawn(async move { trimming.trim().await });
        services.node = Some(rpc::NodeService::new(node, &config, settings, metrics.clone()));
    }
    let folder = config.node.as_ref().and_then(|node| node.kubelet_registration_dir.as_deref());
    let registration = folder.map(|folder| Registration::new(folder, &config.driver_name, &config.endpoint));
    let admin = match config.metrics_addr {
        Some(address) => Some(admin::serve(address, metrics, services.identity.clone(), registration.clone()).await?),
        None => None,
    };
    let served = server::serve(&config.endpoint, services, registration.as_ref(), &tasks, shutdown).await;
    if let Some(admin) = admin {
        admin.abort();
    }
    served
}

#[cfg(test)]
mod simulation;
