//! The world in memory.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::{
    plan::{Change, Kind, Link, Meanwhile, NODES, Place, Plan},
    raw,
    world::{Contents, Format, Holds, Leads, Seen, Shown, World, id, is_lent, serial, text},
};
use crate::{
    cloud::vultr::PROFILE,
    metrics::Metrics,
    node::{
        Node, Patience,
        host::{Errno, MountFlags},
        tests::{
            process::{Death, Lie, Life, Pace, Process},
            simulated::{Attached, Files, Formatted, Image, Kernel, Made, Shared, SimulatedHost, State, What},
        },
    },
};

const MIB: u64 = 1 << 20;

/// So much of an encrypted disk is its header.
const HEADER: u64 = MIB;

/// Most disks are so small that all of them is read before they are formatted.
const SMALL: u64 = 4 * MIB;
const LARGE: u64 = 600 * MIB;

/// What a lying kernel or host does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Lie(Lie),
    /// Unmounts lose what was written.
    Forgets,
}

/// A running driver, and all that it and those before it started.
struct Running {
    node: Arc<Node>,
    life: Arc<Life>,
    before: Vec<Arc<Life>>,
}

/// Two machines in memory.
#[derive(Clone)]
pub(crate) struct InMemory(Arc<Inner>);

struct Inner {
    shared: Shared,
    root: TempDir,
    pace: Arc<Pace>,
    changes: watch::Sender<()>,
    running: Mutex<Vec<Running>>,
    random: Mutex<fastrand::Rng>,
    volumes: Vec<Kind>,
    lie: Option<Lie>,
}

/// The image of a volume's twin; those of the volumes come first.
fn twin(volumes: usize, volume: usize) -> usize {
    volumes + volume
}

impl InMemory {
    pub(crate) fn new(plan: &Plan, fault: Option<Fault>) -> Self {
        let shm = Path::new("/dev/shm");
        let mut directory = tempfile::Builder::new();
        directory.prefix("csi-sequence-");
        let root = if shm.is_dir() { directory.tempdir_in(shm) } else { directory.tempdir() }.unwrap();
        let mut state = State::default();
        let size = if plan.large { LARGE } else { SMALL };
        for (volume, kind) in plan.volumes.iter().enumerate() {
            state.images.push(first_image(volume, *kind, size));
        }
        for volume in 0..plan.volumes.len() {
            let mut image = Image::blank(size);
            image.write(3 * MIB, format!("somebody's, beside volume {volume}").as_bytes());
            state.images.push(image);
        }
        for node in 0..NODES {
            let mut kernel = Kernel::new(root.path().join(format!("node-{node}/dev")));
            kernel.forgets = fault == Some(Fault::Forgets);
            kernel.in_container = (plan.seed + node as u64).is_multiple_of(2);
            state.images.push(Image::blank(SMALL));
            state.attached += 1;
            // The machine's own disk.
            kernel.attach(state.images.len() - 1, None, state.attached);
            state.kernels.push(kernel);
            std::fs::create_dir_all(root.path().join(format!("node-{node}/state"))).unwrap();
        }
        let lie = match fault {
            Some(Fault::Lie(lie)) => Some(lie),
            _ => None,
        };
        let world = Self(Arc::new(Inner {
            shared: Arc::new(Mutex::new(state)),
            root,
            pace: Pace::new(plan.seed),
            changes: watch::Sender::new(()),
            running: Mutex::default(),
            random: Mutex::new(fastrand::Rng::with_seed(plan.seed)),
            volumes: plan.volumes.clone(),
            lie,
        }));
        for node in 0..NODES {
            let running = world.start(node, Vec::new());
            world.0.running.lock().unwrap().push(running);
        }
        world
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.shared.lock().unwrap()
    }

    fn start(&self, node: usize, before: Vec<Arc<Life>>) -> Running {
        let (life, inner) = (Life::new(), &self.0);
        self.state().kernels[node].driver_starts();
        let host = SimulatedHost::new(&inner.shared, node, &self.root(node), &life, &inner.pace, &inner.changes);
        let process = Process {
            host: Arc::new(host),
            life: Arc::clone(&life),
            pace: Some(Arc::clone(&inner.pace)),
            lie: inner.lie,
            witness: None,
            elsewhere: None,
            hidden: Mutex::default(),
        };
        let patience =
            Patience { arrival: Duration::from_millis(400), growth: Duration::from_millis(400), ..Patience::default() };
        let node = Arc::new(Node::with_patience(
            Arc::new(process),
            &PROFILE,
            TaskTracker::new(),
            Metrics::default(),
            patience,
        ));
        Running { node, life, before }
    }

    fn life(&self, node: usize) -> Arc<Life> {
        Arc::clone(&self.0.running.lock().unwrap()[node].life)
    }

    /// The volume that an image is of.
    fn volume(&self, image: usize) -> Option<usize> {
        (image < self.0.volumes.len()).then_some(image)
    }

    fn attach(&self, state: &mut State, node: usize, image: usize, volume: usize) {
        state.attached += 1;
        state.kernels[node].attach(image, Some(&serial(volume)), state.attached);
        self.0.changes.send_replace(());
    }

    fn link(&self, kernel: &mut Kernel, volume: usize, link: Link) {
        let serial = serial(volume);
        let own = kernel.disk_of(volume).map(Attached::name);
        match link {
            Link::Right => {
                kernel.links_stuck = false;
                match own {
                    Some(name) => drop(kernel.links.insert(serial, name)),
                    None => drop(kernel.links.remove(&serial)),
                }
            }
            Link::Missing => drop(kernel.links.remove(&serial)),
            Link::Dangling => drop(kernel.links.insert(serial, "none".to_owned())),
            Link::Wrong => {
                let mut others: Vec<String> = kernel
                    .disks
                    .iter()
                    .filter(|disk| disk.present && disk.unlocks.is_none())
                    .map(Attached::name)
                    .collect();
                others.retain(|name| Some(name) != own.as_ref());
                let other = others[self.0.random.lock().unwrap().usize(..others.len())].clone();
                kernel.links.insert(serial, other);
            }
            Link::Stuck => kernel.links_stuck = true,
        }
    }

    fn shuffle(&self, state: &mut State, node: usize) {
        let kernel = &mut state.kernels[node];
        let used: Vec<usize> = kernel.table.iter().filter_map(|entry| Some(kernel.behind(entry.what)?.image)).collect();
        let mut idle: Vec<usize> = kernel
            .disks
            .iter()
            .filter(|disk| disk.present && disk.unlocks.is_none() && !used.contains(&disk.image))
            .filter_map(|disk| self.volume(disk.image))
            .collect();
        for image in &idle {
            kernel.detach(*image);
        }
        self.0.random.lock().unwrap().shuffle(&mut idle);
        for image in idle {
            self.attach(state, node, image, image);
        }
    }
}

/// A disk as it comes to the first node.
fn first_image(volume: usize, kind: Kind, size: u64) -> Image {
    let mut image = Image::blank(size);
    if let Kind::Filled(fs) | Kind::Wiped(fs) = kind {
        let uuid = format!("10000000-0000-4000-8000-{volume:012x}");
        let made = Made { fs, uuid, bytes: size, complete: true };
        image.write_copies(&made);
        if matches!(kind, Kind::Filled(_)) {
            image.write_superblock(&made);
        }
        image.write_files(&made.uuid, &Files::from([("first".to_owned(), text(volume, "first"))]));
    }
    image
}

impl World for InMemory {
    fn node(&self, node: usize) -> Arc<Node> {
        Arc::clone(&self.0.running.lock().unwrap()[node].node)
    }

    fn root(&self, node: usize) -> PathBuf {
        self.0.root.path().join(format!("node-{node}"))
    }

    fn change(&self, change: Change) {
        let state = &mut *self.state();
        let volumes = self.0.volumes.len();
        match change {
            Change::Attach { node, volume } => {
                if state.kernels.iter().all(|kernel| kernel.disk_of(volume).is_none()) {
                    self.attach(state, node, volume, volume);
                }
            }
            Change::Detach { volume } => {
                for kernel in &mut state.kernels {
                    kernel.detach(twin(volumes, volume));
                    kernel.detach(volume);
                }
                self.0.changes.send_replace(());
            }
            Change::Grow { volume } => state.images[volume].size += MIB,
            Change::Link { node, volume, link } => self.link(&mut state.kernels[node], volume, link),
            Change::Twin { volume, there } => {
                let twin = twin(volumes, volume);
                let node = (0..NODES).find(|node| state.kernels[*node].disk_of(volume).is_some());
                match node.filter(|node| there && state.kernels[*node].disk_of(twin).is_none()) {
                    Some(node) => self.attach(state, node, twin, volume),
                    None if !there => state.kernels.iter_mut().for_each(|kernel| kernel.detach(twin)),
                    None => {}
                }
            }
            Change::Mute { volume, mute } => {
                let disks = state.kernels.iter_mut().flat_map(|kernel| &mut kernel.disks);
                disks.filter(|disk| disk.image == volume).for_each(|disk| disk.mute = mute);
            }
            Change::Shuffle { node } => self.shuffle(state, node),
        }
    }

    fn arm(&self, node: usize, ticks: u32, meanwhile: Meanwhile) {
        let (world, life) = (self.clone(), self.life(node));
        let of = Arc::clone(&life);
        life.arm(
            ticks,
            Box::new(move || match meanwhile {
                Meanwhile::Change(change) => world.change(change),
                Meanwhile::Death(death) => of.end(death),
            }),
        );
    }

    fn disarm(&self, node: usize) -> bool {
        self.life(node).disarm()
    }

    fn is_dead(&self, node: usize) -> bool {
        self.life(node).is_over()
    }

    fn restart(&self, node: usize, death: Death) {
        let (life, mut before) = {
            let mut running = self.0.running.lock().unwrap();
            (Arc::clone(&running[node].life), std::mem::take(&mut running[node].before))
        };
        before.push(life);
        for life in &before {
            life.end(death);
        }
        if death == Death::Machine {
            let state = &mut *self.state();
            state.kernels[node].reboot(&mut self.0.random.lock().unwrap(), &mut state.attached);
        }
        let running = self.start(node, before);
        self.0.running.lock().unwrap()[node] = running;
    }

    fn shown(&self, volume: usize, node: usize) -> Shown {
        let state = self.state();
        let kernel = &state.kernels[node];
        let own = kernel.disk_of(volume);
        let mapping = kernel.mapping(&format!("csi-{}", id(volume)));
        Shown {
            attached: own.map(|disk| disk.sequence),
            link: match kernel.link(&serial(volume)) {
                None => Leads::Nowhere,
                Some(disk) if Some(disk.sequence) == own.map(|own| own.sequence) => Leads::Right,
                Some(_) => Leads::Wrong,
            },
            twin: kernel.disk_of(twin(self.0.volumes.len(), volume)).is_some(),
            mute: kernel.disks.iter().any(|disk| disk.present && disk.mute),
            read_only: mapping.or(own).is_some_and(|disk| disk.read_only),
            unlocked: mapping.map(|mapping| kernel.is_alive(mapping)),
        }
    }

    fn mounts(&self, node: usize) -> Vec<Seen> {
        let state = self.state();
        let kernel = &state.kernels[node];
        let seen = kernel.table.iter().map(|entry| {
            let disk = kernel.behind(entry.what);
            let volume = disk.and_then(|disk| self.volume(disk.image));
            Seen {
                path: entry.target.clone(),
                volume,
                lent: volume.is_some_and(|volume| {
                    entry.target == self.path(node, volume, Place::Staging) && is_lent(&self.root(node), volume)
                }),
                alive: disk.is_some_and(|disk| kernel.is_alive(disk)),
                read_only: entry.seen.contains(MountFlags::MS_RDONLY),
                frozen: kernel.is_frozen(entry.what),
                is_node: matches!(entry.what, What::Node(_)),
            }
        });
        seen.collect()
    }

    fn holds(&self, volume: usize) -> Holds {
        let image = &self.state().images[volume];
        let is_whole = |image: &Image| image.file_systems().iter().any(|made| made.complete);
        let is_all = match (self.0.volumes[volume], &image.payload) {
            (Kind::EncryptedRaw, _) => image.encryption().is_some(),
            (Kind::Encrypted(_), payload) => {
                image.encryption().is_some() && payload.as_ref().is_some_and(|payload| is_whole(&payload.image))
            }
            _ => is_whole(image),
        };
        if is_all {
            Holds::All
        } else if image.is_blank() {
            Holds::Nothing
        } else {
            Holds::Something
        }
    }

    fn formatted(&self) -> Vec<Format> {
        let formatted = std::mem::take(&mut self.state().formatted);
        let formats = formatted.into_iter().map(|format| Format {
            node: format.machine,
            disk: self.volume(format.image).map(|volume| (volume, format.sequence)),
            over_a_whole: format.over_a_whole,
            encrypts: format.kind == Formatted::Encryption,
        });
        formats.collect()
    }

    fn size(&self, volume: usize) -> u64 {
        self.state().images[volume].size
    }

    fn growth_left(&self, volume: usize) -> Option<u64> {
        let image = &self.state().images[volume];
        let (inside, size) = match &image.payload {
            Some(payload) => (&payload.image, image.size - payload.image.size),
            None => (image, 0),
        };
        let made = inside.file_systems().into_iter().next()?;
        Some(inside.size - made.bytes + size.saturating_sub(HEADER))
    }

    fn write(&self, node: usize, path: &Path, name: &str, bytes: &[u8], sync: bool) -> io::Result<()> {
        let state = &mut *self.state();
        let kernel = &mut state.kernels[node];
        let entry = kernel.top(path).ok_or(Errno::ENOENT)?.clone();
        let disk = kernel.behind(entry.what).filter(|disk| kernel.is_alive(disk)).ok_or(Errno::EIO)?;
        if let What::Node(_) = entry.what {
            if disk.read_only {
                return Err(Errno::EPERM.into());
            }
            let image = kernel.content(&mut state.images, disk).ok_or(Errno::EIO)?;
            let free = raw::free(|at| Ok(image.read(at, raw::BLOCK)))?;
            image.write(free, &raw::block(name, bytes));
            return Ok(());
        }
        if entry.seen.contains(MountFlags::MS_RDONLY) || kernel.is_frozen(entry.what) {
            return Err(Errno::EROFS.into());
        }
        let (_, files) = kernel.mounted(entry.what).ok_or(Errno::EIO)?;
        files.insert(name.to_owned(), bytes.to_owned());
        if sync {
            kernel.sync(&mut state.images, entry.what);
        }
        Ok(())
    }

    fn read(&self, node: usize, path: &Path) -> io::Result<Contents> {
        let state = &mut *self.state();
        let kernel = &mut state.kernels[node];
        let what = kernel.top(path).ok_or(Errno::ENOENT)?.what;
        let disk = kernel.behind(what).ok_or(Errno::EIO)?;
        let image = kernel.content(&mut state.images, disk).ok_or(Errno::EIO)?;
        if let What::Node(_) = what {
            return raw::contents(|at| Ok(image.read(at, raw::BLOCK)));
        }
        Ok(kernel.mounted(what).ok_or(Errno::EIO)?.1.clone())
    }
}
