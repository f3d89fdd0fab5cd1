//! One life of the controller: the whole of it above the transport, on a clock that moves only when nothing else does.

use std::{
    fmt,
    future::Future,
    path::Path,
    sync::{Arc, Mutex},
};

use tokio::runtime::Builder;
use tokio_util::task::TaskTracker;

use super::{
    faults::Faults,
    lie::Lie,
    network::{Mortal, Network, Shared},
};
use crate::{
    cloud::{
        self,
        pace::Pace,
        token::TokenFile,
        vultr::{PROFILE, Vultr},
    },
    controller::{Cluster, Controller, HomeRegion, Setting},
    metrics::Metrics,
    rpc::ControllerService,
};

/// What a controller is started with.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) account: Shared,
    pub(super) faults: Arc<Mutex<Faults>>,
    /// `--requests-per-second`.
    pub(super) rate: u32,
    pub(super) lie: Option<Lie>,
    pub(super) token: Arc<tempfile::NamedTempFile>,
}

impl Settings {
    pub(super) fn new(account: Shared, faults: Faults, rate: u32) -> Self {
        let token = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(token.path(), "token").expect("a temporary file can be written");
        Self { account, faults: Arc::new(Mutex::new(faults)), rate, lie: None, token: Arc::new(token) }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("rate", &self.rate).finish_non_exhaustive()
    }
}

/// Builds a controller as `run` does, but for the sockets.
fn service(settings: &Settings, life: &Arc<Mortal>) -> (Controller, ControllerService) {
    let network = Network {
        account: settings.account.clone(),
        faults: Arc::clone(&settings.faults),
        life: Arc::clone(life),
        lie: settings.lie,
    };
    let metrics = Metrics::default();
    let path: &Path = settings.token.path();
    let account = cloud::Account {
        api_url: String::new(),
        token: TokenFile::open(path).expect("the token file is there"),
        pace: Pace::new(settings.rate, PROFILE.requests_per_second),
        metrics: metrics.clone(),
        fence: cloud::fence::Fence::default(),
    };
    let cloud = Arc::new(Vultr::over(Arc::new(network), account));
    let home = HomeRegion::new(Some("EWR".to_owned()), &PROFILE, String::new());
    let cluster = Cluster::parse("sim").expect("a name");
    let setting = Setting { home, cluster, metrics: metrics.clone() };
    let controller = Controller::new(cloud, setting, TaskTracker::new());
    (controller.clone(), ControllerService::new(controller, &PROFILE, metrics))
}

/// Lets a controller live until `work` is done, or until it dies; `None` if it died.
pub(super) fn live<T, W: Future<Output = T>>(
    settings: &Settings,
    life: &Arc<Mortal>,
    work: impl FnOnce(ControllerService) -> W,
) -> Option<T> {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let ended = runtime.block_on(async {
        settings.account.look().life_begins();
        let (controller, service) = service(settings, life);
        // As in `run`: the calls do not wait for it.
        let cleaning = controller.clone();
        tokio::spawn(async move { controller.start().await });
        tokio::spawn(async move { cleaning.keep_clean().await });
        let ended = tokio::select! {
            biased;
            () = life.died.notified() => None,
            done = work(service) => Some(done),
        };
        settings.account.look().life_ends();
        ended
    });
    drop(runtime);
    ended
}
