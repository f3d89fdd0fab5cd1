//! A running simulation: its listeners, its folder, and its end.

use std::{fs, io, net::SocketAddr, path::Path, sync::Arc};

use hyper::{Request, body::Incoming};
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinHandle},
};

use crate::{
    clock,
    cloud::{Cloud, Instance},
    config::{Config, InstanceSpec},
    control::{self, Control},
    disk::{Disks, ignore_absent, permitted, sweep},
    door::Door,
    effect::SHARES,
    guest::{Guest, Qemu, Tree},
    metadata::{self, MetadataMode},
    region::Region,
    serve,
    view::InstanceView,
};

const DISKS: &str = "disks";
const SNAPSHOTS: &str = "snapshots";
const INSTANCES: &str = "instances";

/// A simulated cloud that runs in this process until it is shut down or dropped.
#[derive(Debug)]
pub struct Simulation {
    cloud: Arc<Cloud>,
    control: SocketAddr,
    control_listener: JoinHandle<()>,
    metadata: Option<(SocketAddr, AbortHandle)>,
    /// The folder was not there before.
    made_dir: bool,
    ended: bool,
}

impl Simulation {
    /// Starts a cloud; it answers when this returns. What an earlier, killed one left in the same folder is removed.
    ///
    /// # Errors
    /// A port that is taken, a folder that can't be made, an instance whose region is unknown.
    pub async fn start(mut config: Config) -> io::Result<Self> {
        let api_listener = TcpListener::bind((config.listen, config.api_port)).await?;
        let control_listener = TcpListener::bind((config.listen, config.control_port)).await?;
        let metadata_listener = match config.metadata_listen {
            Some(address) => Some(TcpListener::bind(address).await?),
            None => None,
        };
        let metadata = metadata_listener.as_ref().map(TcpListener::local_addr).transpose()?;
        let (api, control) = (api_listener.local_addr()?, control_listener.local_addr()?);
        let mut disks = None;
        let made_dir = !config.dir.exists();
        if config.disks {
            fs::create_dir_all(&config.dir)?;
            config.dir = fs::canonicalize(&config.dir)?;
            remove_all(&config.dir)?;
            let (files, snapshots) = (config.dir.join(DISKS), config.dir.join(SNAPSHOTS));
            fs::create_dir_all(&files)?;
            fs::create_dir_all(&snapshots)?;
            disks = Some(Disks::new(files, snapshots));
        }
        let cloud = Arc::new(Cloud::new(config, Door::new(api), disks));
        let hand = control::http::router(Control::new(Arc::clone(&cloud)));
        cloud.door.open(Arc::clone(&cloud), api_listener);
        let known = Arc::clone(&cloud);
        let by_source = move |peer: SocketAddr, request: Request<Incoming>| {
            metadata::answer_source(Arc::clone(&known), peer, request)
        };
        let simulation = Self {
            control,
            control_listener: tokio::spawn(async move {
                // It ends only when it is aborted.
                let _ = axum::serve(control_listener, hand).await;
            }),
            metadata: metadata.zip(metadata_listener.map(|listener| serve::listen(listener, by_source).abort_handle())),
            cloud,
            made_dir,
            ended: false,
        };
        for spec in &simulation.cloud.config.instances {
            add_instance(&simulation.cloud, spec).await?;
        }
        Ok(simulation)
    }

    /// Whether this process may make loop devices; where not, tests of real disks are skipped.
    #[must_use]
    pub fn may_have_disks() -> bool {
        permitted()
    }

    /// The API's base address, scheme and host only, as the clients want it.
    #[must_use]
    pub fn api_url(&self) -> String {
        format!("http://{}", self.cloud.door.address())
    }

    /// The base address of the control interface.
    #[must_use]
    pub fn control_url(&self) -> String {
        format!("http://{}", self.control)
    }

    /// The base address of the metadata service that all instances share, if there is one.
    #[must_use]
    pub fn metadata_url(&self) -> Option<String> {
        self.metadata.as_ref().map(|(address, _)| format!("http://{address}"))
    }

    /// The token that the API accepts at the start.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.cloud.config.token
    }

    /// The folder with disks and instance trees.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.cloud.config.dir
    }

    /// The machines, in the order in which they were added.
    #[must_use]
    pub fn instances(&self) -> Vec<InstanceView> {
        self.control().view().instances
    }

    /// The test's hand.
    #[must_use]
    pub fn control(&self) -> Control {
        Control::new(Arc::clone(&self.cloud))
    }

    /// Ends the simulation, takes back what qemu guests have, and removes every loop device, link and file that it made.
    ///
    /// # Errors
    /// A loop device or file that can't be removed, or a guest that keeps something.
    pub async fn shutdown(mut self) -> io::Result<()> {
        self.stop_listening();
        // No loop device is half made while this is held, and none is begun afterwards.
        let machine = self.cloud.machine.lock().await;
        self.cloud.abort();
        drop(machine);
        let taken = self.cloud.take_all().await;
        let removing = tokio::task::spawn_blocking(move || self.remove_files());
        removing.await.map_err(io::Error::other)?.and(taken)
    }

    fn stop_listening(&self) {
        self.cloud.door.abort();
        self.control_listener.abort();
        if let Some((_, listener)) = &self.metadata {
            listener.abort();
        }
        for instance in &self.cloud.state().instances {
            if let Some(listener) = &instance.metadata_listener {
                listener.abort();
            }
        }
    }

    fn remove_files(&mut self) -> io::Result<()> {
        self.ended = true;
        if self.cloud.disks.is_none() {
            return Ok(());
        }
        let removed = remove_all(&self.cloud.config.dir);
        if self.made_dir {
            // It stays if somebody else keeps something in it.
            let _ = fs::remove_dir(&self.cloud.config.dir);
        }
        removed
    }
}

impl Drop for Simulation {
    /// The best that can be done without waiting: a simulation should be shut down.
    fn drop(&mut self) {
        if !self.ended {
            self.stop_listening();
            self.cloud.abort();
            let _ = self.remove_files();
        }
    }
}

/// Removes what a simulation makes in its folder, and nothing else in it.
fn remove_all(dir: &Path) -> io::Result<()> {
    let swept = sweep(dir);
    for name in [DISKS, SNAPSHOTS, SHARES, INSTANCES] {
        ignore_absent(fs::remove_dir_all(dir.join(name)))?;
    }
    swept.map(drop)
}

/// Makes an instance with its tree and metadata service; it exists when this returns.
pub(crate) async fn add_instance(cloud: &Arc<Cloud>, spec: &InstanceSpec) -> io::Result<InstanceView> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    let label = spec.label.as_str();
    let region =
        Region::find(&spec.region).ok_or_else(|| invalid(format!("instance {label}: no region {}", spec.region)))?;
    let taken = cloud.state().instances.iter().any(|i| i.label == label);
    if let Some(address) = spec.address.filter(|a| cloud.state().instances.iter().any(|i| i.address == Some(*a))) {
        return Err(invalid(format!("instance {label}: the address {address} is taken")));
    }
    if taken || label.is_empty() || label.starts_with('.') || label.contains('/') {
        return Err(invalid(format!("instance {label:?}: the label is taken or no folder's name")));
    }
    let listener = TcpListener::bind((cloud.config.listen, spec.metadata_port)).await?;
    let metadata_url = format!("http://{}", listener.local_addr()?);
    let dir = cloud.config.dir.join(INSTANCES).join(label);
    let guest = match &spec.qmp {
        Some(monitor) => Guest::Qemu(Arc::new(Qemu::new(monitor.clone(), dir, cloud.config.virtiofsd.clone()))),
        None => Guest::Local(Tree::new(dir)),
    };
    if cloud.disks.is_some() {
        guest.make()?;
    }
    let id = cloud.state().random.uuid();
    let (shared, own_id) = (Arc::clone(cloud), id.clone());
    let metadata_listener = serve::listen(listener, move |_, request| {
        let path = request.uri().path().to_owned();
        let (shared, id) = (Arc::clone(&shared), own_id.clone());
        metadata::answer(shared, id, request.method().clone(), path)
    })
    .abort_handle();
    let mut state = cloud.state();
    let number = state.instances.len() + 2;
    state.instances.push(Instance {
        id,
        label: label.to_owned(),
        region: region.id,
        status: "active".to_owned(),
        power_status: "running".to_owned(),
        date_created: clock::now(),
        main_ip: spec.address.map_or_else(|| format!("203.0.113.{number}"), |address| address.to_string()),
        address: spec.address,
        busy: false,
        held: false,
        metadata: MetadataMode::On,
        metadata_url,
        metadata_listener: Some(metadata_listener),
        guest,
    });
    Ok(state.instances.last().map(InstanceView::of).expect("it was pushed"))
}
