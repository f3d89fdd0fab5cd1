//! The account: everything that exists in the simulated cloud, behind one lock.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use crate::{
    clock,
    config::{Behaviour, Config},
    disk::Disks,
    door::Door,
    fault::Faults,
    guest::Guest,
    metadata::MetadataMode,
    pace::Pace,
    random::Random,
    record::Record,
    region::Region,
    snapshot::Snapshots,
    vfs::FileSystems,
    volume::{BlockType, Status, Volume, Volumes},
};

/// The cloud, shared by all its listeners.
#[derive(Debug)]
pub(crate) struct Cloud {
    pub(crate) config: Config,
    /// The way to the API.
    pub(crate) door: Door,
    /// None when volumes have no real disks.
    pub(crate) disks: Option<Disks>,
    /// Held through every change of the machine's loop devices and trees; taken before the state, never after it.
    pub(crate) machine: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    tasks: Mutex<JoinSet<()>>,
}

/// All that changes.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) behaviour: Behaviour,
    /// The API token that is accepted.
    pub(crate) token: String,
    pub(crate) volumes: Volumes,
    pub(crate) snapshots: Snapshots,
    pub(crate) file_systems: FileSystems,
    pub(crate) instances: Vec<Instance>,
    pub(crate) faults: Faults,
    pub(crate) record: Record,
    pub(crate) pace: Pace,
    pub(crate) random: Random,
    /// What the simulation itself could not do, a failed `losetup` for example.
    pub(crate) problems: Vec<String>,
}

/// A machine of the account.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) label: String,
    pub(crate) region: &'static str,
    pub(crate) status: String,
    pub(crate) power_status: String,
    pub(crate) date_created: String,
    pub(crate) main_ip: String,
    /// Its source address where the instances share a metadata service.
    pub(crate) address: Option<IpAddr>,
    /// An attach or detach is on its way.
    pub(crate) busy: bool,
    /// Locked by a test's hand.
    pub(crate) held: bool,
    pub(crate) metadata: MetadataMode,
    pub(crate) metadata_url: String,
    pub(crate) metadata_listener: Option<AbortHandle>,
    pub(crate) guest: Guest,
}

impl Instance {
    pub(crate) fn locked(&self) -> bool {
        self.busy || self.held
    }

    pub(crate) fn server_status(&self) -> &'static str {
        if self.locked() { "locked" } else { "ok" }
    }
}

/// What a volume is made from; the rest is given by the cloud.
#[derive(Clone, Debug)]
pub(crate) struct NewVolume {
    pub(crate) label: String,
    pub(crate) region: &'static Region,
    pub(crate) size_gb: u32,
    pub(crate) block_type: BlockType,
    pub(crate) status: Status,
    /// The snapshot whose content it gets.
    pub(crate) snapshot: Option<String>,
    pub(crate) filler: bool,
}

impl Cloud {
    pub(crate) fn new(config: Config, door: Door, disks: Option<Disks>) -> Self {
        let state = State {
            behaviour: config.behaviour.clone(),
            token: config.token.clone(),
            volumes: Volumes::default(),
            snapshots: Snapshots::default(),
            file_systems: FileSystems::default(),
            instances: Vec::new(),
            faults: Faults::default(),
            record: Record::new(Instant::now()),
            pace: Pace::default(),
            random: Random::new(config.seed),
            problems: Vec::new(),
        };
        Self {
            config,
            door,
            disks,
            machine: tokio::sync::Mutex::default(),
            state: Mutex::new(state),
            tasks: Mutex::default(),
        }
    }

    /// Takes the state; never held over an await.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts work that goes on when the request that began it is dropped; it ends with the simulation.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    /// Ends all work that was started.
    pub(crate) fn abort(&self) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.abort_all();
    }

    pub(crate) fn problem(&self, what: &str, error: &std::io::Error) {
        eprintln!("vultr-sim: {what}: {error}");
        self.state().problems.push(format!("{what}: {error}"));
    }

    /// Notes that a guest did not let something go: the cloud's detach fails then, which is no problem of the simulation.
    pub(crate) fn kept(&self, what: &str, error: &std::io::Error) {
        eprintln!("vultr-sim: detaching {what}: {error}");
        self.state().record.stats.refused_detaches += 1;
    }
}

impl State {
    pub(crate) fn instance(&self, id: &str) -> Option<&Instance> {
        self.instances.iter().find(|i| i.id == id)
    }

    pub(crate) fn instance_mut(&mut self, id: &str) -> Option<&mut Instance> {
        self.instances.iter_mut().find(|i| i.id == id)
    }

    /// Makes a volume and says its id.
    pub(crate) fn make_volume(&mut self, new: NewVolume) -> String {
        let id = self.random.uuid();
        let mount_id = format!("{}-{}", new.region.id, self.random.hex(14));
        self.volumes.insert(Volume {
            id: id.clone(),
            label: new.label,
            region: new.region.id,
            size_gb: new.size_gb,
            block_type: new.block_type,
            mount_id,
            date_created: clock::now(),
            bootable: false,
            snapshot: new.snapshot,
            status: new.status,
            attached: None,
            moving: false,
            resized: None,
            filler: new.filler,
            loop_device: None,
        });
        id
    }

    /// The file behind a volume, if it may have one.
    pub(crate) fn disk_file(&self, disks: Option<&Disks>, id: &str) -> Option<PathBuf> {
        let volume = self.volumes.get(id)?;
        let file = disks?.file(&volume.id);
        file.exists().then_some(file)
    }
}
