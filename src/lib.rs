//! A CSI driver for cloud block storage.
//!
//! The map, in the order in which a request comes by; imports point one way only, down this list:
//!
//! - [`config`] flags and environment become a checked configuration; [`run`] builds everything from it
//! - [`orphans`] the report of what belongs to nobody, for operators
//! - [`server`] the gRPC socket and its drain; [`registration`] tells the kubelet of it; `socket` how sockets are taken
//!   and left; [`admin`] `/metrics`, `/healthz` and `/readyz`
//! - [`telemetry`] and [`metrics`] what operators see
//! - [`kubernetes`] the API server, where a flag asks for it: the lease of the active controller, the start-up taint, drains
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
pub mod kubernetes;
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

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    cloud::{Account, Cloud, Profile, fence::Fence, pace::Pace, token::TokenFile},
    config::{Config, ControllerConfig, NodeConfig, TaintConfig},
    controller::{Controller, HomeRegion, Setting},
    kubernetes::{
        lease::{Held, Lease},
        taint::StartupTaint,
    },
    metrics::Metrics,
    node::{Linux, Node, Paths},
    registration::Registration,
    server::End,
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
/// Where it needs a lease, it does nothing until it has it but say that it is not ready; when it loses it, it returns at
/// once, and nothing more goes out to the cloud.
///
/// # Errors
/// What keeps it from starting, or from ending in order.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    info!(%config, "starting");
    let mut shutdown = std::pin::pin!(shutdown);
    let metrics = Metrics::default();
    let tasks = TaskTracker::new();
    let mut services =
        server::Services { identity: rpc::Identity::new(config.driver_name.clone()), controller: None, node: None };
    // What the operator has to change is told before anything is waited for.
    let open = |settings: &ControllerConfig| TokenFile::open(&settings.token_file).map_err(RunError::Configuration);
    let token = config.controller.as_ref().map(open).transpose()?;
    let (standing, stands) = watch::channel("starting".to_owned());
    let folder = config.node.as_ref().and_then(|node| node.kubelet_registration_dir.as_deref());
    let registration = folder.map(|folder| Registration::new(folder, &config.driver_name, &config.endpoint));
    let router = admin::router(metrics.clone(), services.identity.clone(), stands, registration.clone());
    let _admin = admin::serve(&config.metrics_addrs, &router).await?;
    let fence = Fence::default();
    let wanted = match &config.lease {
        Some(name) => Some(wanted_lease(name.clone(), fence.clone()).await?),
        None => None,
    };
    let mut standby = None;
    if let (Some(settings), Some(token)) = (&config.controller, token) {
        let pace = Pace::new(settings.requests_per_second, config.profile.requests_per_second);
        let api_url = settings.api_url.clone();
        let account = Account { api_url, token, pace, metrics: metrics.clone(), fence };
        standby = Some(Standby::new(&mut services, &config, settings, account)?);
    }
    let begin = |identity| {
        if let Some(standby) = standby {
            standby.begin(identity, &tasks);
        }
    };
    if let Some(settings) = &config.node {
        tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            served = serve_node(&mut services, &config, settings, &metrics, &tasks, registration.clone()) => served?,
        }
    }
    // A controller has started when it has asked for the account once.
    if config.controller.is_none() {
        services.identity.started();
    }
    let grace = config.grace.saturating_sub(config::LAST_OF_GRACE);
    let identity = services.identity.clone();
    let ending = CancellationToken::new();
    let serving = server::serve(&config.endpoint, services, registration.as_ref(), &tasks, grace, shutdown, &ending);
    let mut serving = pin!(serving);
    let Some(wanted) = wanted else {
        begin(identity);
        return ended(serving.await?, &config);
    };
    let lease = tokio::select! {
        biased;
        served = &mut serving => return ended(served?, &config),
        // Who is about to end takes no lease.
        () = ending.cancelled() => return ended(serving.await?, &config),
        held = wanted.acquire(&standing) => held,
    };
    standing.send_replace("starting".to_owned());
    begin(identity);
    ended(serve_while(lease, serving).await?, &config)
}

fn ended(how: End, config: &Config) -> Result<(), RunError> {
    match how {
        End::Told => Ok(()),
        End::Robbed => Err(RunError::Failed(format!(
            "socket {}: somebody removed or replaced it, so nobody can call",
            config.endpoint.display()
        ))),
    }
}

/// The lease `name`, not yet held.
async fn wanted_lease(name: String, fence: Fence) -> Result<Lease, RunError> {
    let client = kubernetes::connect().await;
    let client = client.map_err(|error| RunError::Configuration(format!("--lease: {error}")))?;
    let me = kubernetes::lease::identity()
        .map_err(|error| RunError::Failed(format!("the name of this host cannot be read: {error}")))?;
    Ok(Lease::new(client, name, me, fence))
}

/// Serves for as long as the lease is held; gives it back if all has ended in order by then.
async fn serve_while(mut lease: Held, serving: impl Future<Output = Result<End, RunError>>) -> Result<End, RunError> {
    tokio::select! {
        biased;
        lost = lease.keep() => Err(RunError::Failed(format!("{lost}; ending at once"))),
        served = serving => {
            // Where operations are still in flight, whoever takes over has to wait until the lease runs out.
            if served.is_ok() {
                lease.release().await;
            }
            served
        }
    }
}

/// A controller that may not work yet.
struct Standby {
    cloud: Arc<dyn Cloud>,
    setting: Setting,
    profile: &'static Profile,
    service: server::Soon,
}

impl Standby {
    /// Is served from now on, and asks nothing of the cloud.
    fn new(
        services: &mut server::Services,
        config: &Config,
        settings: &ControllerConfig,
        account: Account,
    ) -> Result<Self, RunError> {
        let metrics = account.metrics.clone();
        let cloud = (config.profile.connect)(account).map_err(RunError::Failed)?;
        let home = HomeRegion::new(config.region.clone(), config.profile, config.metadata_url.clone());
        let setting = Setting { home, cluster: settings.cluster.clone(), metrics };
        let service = server::Soon::default();
        services.identity = services.identity.clone().with_controller(cloud.snapshots().is_some());
        services.controller = Some(service.clone());
        Ok(Self { cloud, setting, profile: config.profile, service })
    }

    /// Works from now on. What it has to know of those before it, it counts from here.
    fn begin(self, identity: rpc::Identity, tasks: &TaskTracker) {
        let Self { cloud, setting, profile, service } = self;
        let metrics = setting.metrics.clone();
        metrics.is_active();
        let controller = Controller::new(cloud, setting, tasks.clone());
        let starting = controller.clone();
        // The start is complete when the account has been asked for once; what the cloud answered is no matter of life.
        tokio::spawn(async move {
            // Nor does a silent cloud keep the start from ending: a liveness probe would only restart us into the same.
            if tokio::time::timeout(START, starting.start()).await.is_err() {
                warn!("the account is not listed yet; the first create does it");
            }
            identity.started();
        });
        let (cleaning, looking_back) = (controller.clone(), controller.clone());
        tokio::spawn(async move { cleaning.keep_clean().await });
        tokio::spawn(async move { looking_back.look_back().await });
        service.is(rpc::ControllerService::new(controller, profile, metrics));
    }
}

async fn serve_node(
    services: &mut server::Services,
    config: &Config,
    settings: &NodeConfig,
    metrics: &Metrics,
    tasks: &TaskTracker,
    registration: Option<Registration>,
) -> Result<(), RunError> {
    node::forbid_core_dumps().map_err(|error| RunError::Failed(format!("core dumps cannot be forbidden: {error}")))?;
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
    services.node = Some(rpc::NodeService::new(node, config, settings, metrics.clone()));
    if let Some(TaintConfig { node_name, key }) = settings.startup_taint.clone() {
        let driver = config.driver_name.clone();
        tokio::spawn(async move {
            match kubernetes::connect().await {
                Ok(client) => StartupTaint::new(&client, node_name, driver, registration, key).lift().await,
                // The driver serves all the same.
                Err(error) => warn!(%error, key, "the start-up taint is left where it is"),
            }
        });
    }
    Ok(())
}

#[cfg(test)]
mod simulation;
