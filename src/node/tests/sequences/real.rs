//! The world of real disks: loop devices, real programs and mounts.
//!
//! Both nodes are this machine, each with a sysfs-shaped tree and by-id links of its own. A volume is attached to a node
//! when its loop device shows in that node's tree. What one kernel cannot do for two machines is left out: a disk that
//! is torn away goes on working where it is mounted, and comes to no other node until it is mounted nowhere; a program
//! outlives every death of its driver, and no machine starts anew.

mod tree;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use nix::{
    sys::stat::{major, minor},
    unistd::syncfs,
};
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use super::{
    disk::Loop,
    plan::{Change, Kind, Meanwhile, NODES, Place, Plan},
    raw,
    world::{Contents, Format, Holds, Leads, Seen, Shown, World, is_lent},
};
use crate::{
    cloud::vultr::PROFILE,
    error::Error,
    metrics::Metrics,
    node::{
        Linux, Node, Paths, Patience,
        host::{DeviceNumber, Errno, Tool, errno},
        mountinfo::{self, Mount},
        tests::process::{Death, Life, Process},
    },
    volume::FsType,
};

const MIB: u64 = 1 << 20;

/// By how much a volume grows.
const GROWTH: u64 = 16 * MIB;

/// A running driver.
struct Running {
    node: Arc<Node>,
    life: Arc<Life>,
}

/// Where a disk shows, and as what.
#[derive(Debug, Clone, Copy)]
struct Attached {
    node: usize,
    sequence: u64,
}

#[derive(Default)]
struct State {
    /// The disks of the volumes, then those of their twins, as far as there are any.
    disks: Vec<Loop>,
    twins: BTreeMap<usize, Loop>,
    /// By the names of the disks.
    attached: BTreeMap<String, Attached>,
    sequence: u64,
    mute: Vec<bool>,
    stuck: [bool; NODES],
    formatted: Vec<Format>,
    running: Vec<Running>,
}

/// Two nodes on this machine.
#[derive(Clone)]
pub(crate) struct Real(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    kinds: Vec<Kind>,
    root: TempDir,
}

impl Real {
    pub(crate) fn new(plan: &Plan) -> Self {
        let shm = Path::new("/dev/shm");
        let mut directory = tempfile::Builder::new();
        directory.prefix("csi-sequence-");
        let root = if shm.is_dir() { directory.tempdir_in(shm) } else { directory.tempdir() }.unwrap();
        for node in 0..NODES {
            for directory in ["sys/class/block", "by-id", "state"] {
                fs::create_dir_all(root.path().join(format!("node-{node}")).join(directory)).unwrap();
            }
        }
        let world = Self(Arc::new(Inner { state: Mutex::default(), kinds: plan.volumes.clone(), root }));
        for (volume, kind) in plan.volumes.iter().enumerate() {
            let (disk, root) = (Loop::of(world.0.root.path(), volume, *kind), world.0.root.path());
            world.state().disks.push(disk.clone());
            world.state().mute.push(false);
            disk.fill(&root.join("mount"), volume, *kind);
        }
        for node in 0..NODES {
            let running = world.start(node);
            world.state().running.push(running);
        }
        world
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    fn start(&self, node: usize) -> Running {
        let root = self.root(node);
        let paths = Paths {
            device_dir: root.join("by-id"),
            sysfs_dir: root.join("sys"),
            dev_dir: "/dev".into(),
            state_dir: root.join("state"),
            kubelet_dir: None,
        };
        let (life, world) = (Life::new(), Arc::downgrade(&self.0));
        let of = world.clone();
        let process = Process {
            host: Arc::new(Linux::new(paths, Metrics::default()).unwrap()),
            life: Arc::clone(&life),
            pace: None,
            lie: None,
            witness: Some(Box::new(move |tool, arguments| {
                let makes = matches!(tool, Tool::MkfsExt4 | Tool::MkfsXfs | Tool::MkfsBtrfs);
                if let Some(world) = world.upgrade().filter(|_| makes && !arguments.contains(&"-N")) {
                    Self(world).mkfs_begins(node, arguments.last().expect("a device"));
                }
            })),
            elsewhere: Some(Box::new(move |number| {
                of.upgrade().is_some_and(|world| Self(world).is_elsewhere(node, number))
            })),
            hidden: Mutex::default(),
        };
        let patience =
            Patience { arrival: Duration::from_millis(30), growth: Duration::from_millis(30), ..Patience::default() };
        Running {
            node: Arc::new(Node::with_patience(
                Arc::new(process),
                &PROFILE,
                TaskTracker::new(),
                Metrics::default(),
                patience,
            )),
            life,
        }
    }

    fn mkfs_begins(&self, node: usize, device: &str) {
        let mut state = self.state();
        let volume = state.disks.iter().position(|disk| disk.device == Path::new(device));
        let format = Format {
            node,
            disk: volume.map(|volume| (volume, state.sequence_of(&state.disks[volume]))),
            over_a_whole: volume.is_some_and(|volume| state.disks[volume].holds() == Holds::All),
            encrypts: false,
        };
        state.formatted.push(format);
    }

    /// Whether a device is one of this world that does not show on this node.
    fn is_elsewhere(&self, node: usize, number: DeviceNumber) -> bool {
        let state = self.state();
        let is = |disk: &&Loop| (major(disk.number()), minor(disk.number())) == (number.major, number.minor);
        let disk = state.disks.iter().chain(state.twins.values()).find(is);
        disk.is_some_and(|disk| state.attached.get(&disk.name()).is_none_or(|attached| attached.node != node))
    }

    /// The lines of the mount table below this world's directory.
    fn table(&self, node: usize) -> Vec<Mount> {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut mounts = mountinfo::parse(&text).unwrap();
        mounts.retain(|mount| mount.target.starts_with(self.root(node)));
        mounts
    }

    fn is_mounted(&self, node: usize, disk: &Loop) -> bool {
        self.table(node).iter().any(|mount| disk.is_behind(mount))
    }
}

impl State {
    fn sequence_of(&self, disk: &Loop) -> u64 {
        self.attached.get(&disk.name()).map(|attached| attached.sequence).unwrap_or_default()
    }
}

impl World for Real {
    /// A process that is being started, for this sequence or another one, has all open files until it is another
    /// program; for that moment nothing can be unmounted, or had exclusively.
    fn is_passing(&self, error: &Error) -> bool {
        match error {
            Error::StillThere(cause) => self.is_passing(cause),
            Error::Io { cause, .. } => errno(cause) == Errno::EBUSY,
            // As mkfs.ext4 says it, and the others
            Error::Tool { output, .. } => {
                output.contains("in use by the system") || output.contains("Device or resource busy")
            }
            Error::DiskRefused { found, .. } => found.contains("cannot be had exclusively"),
            _ => false,
        }
    }

    fn node(&self, node: usize) -> Arc<Node> {
        Arc::clone(&self.state().running[node].node)
    }

    fn root(&self, node: usize) -> PathBuf {
        self.0.root.path().join(format!("node-{node}"))
    }

    fn change(&self, change: Change) {
        let state = &mut *self.state();
        match change {
            Change::Attach { node, volume } => {
                let disk = state.disks[volume].clone();
                let elsewhere = (0..NODES).any(|other| other != node && self.is_mounted(other, &disk));
                if !state.attached.contains_key(&disk.name()) && !elsewhere {
                    self.show(state, node, &disk, volume);
                }
            }
            Change::Detach { volume } => {
                self.twin(state, volume, false);
                let disk = state.disks[volume].clone();
                state.mute[volume] = false;
                self.hide(state, &disk, volume);
            }
            // Growth of a mounted ext4 needs CAP_SYS_RESOURCE, which root has not got everywhere.
            Change::Grow { volume } if self.0.kinds[volume].fs() == Some(FsType::Ext4) => {}
            Change::Grow { volume } => state.disks[volume].grow(GROWTH),
            Change::Link { node, volume, link } => self.relink(state, node, volume, link),
            Change::Twin { volume, there } => self.twin(state, volume, there),
            Change::Mute { volume, mute } => self.mute(state, volume, mute),
            Change::Shuffle { node } => {
                for (volume, disk) in state.disks.clone().iter().enumerate() {
                    let here = state.attached.get(&disk.name()).is_some_and(|attached| attached.node == node);
                    if here && !self.is_mounted(node, disk) {
                        state.mute[volume] = false;
                        self.hide(state, disk, volume);
                        self.show(state, node, disk, volume);
                    }
                }
            }
        }
    }

    fn arm(&self, node: usize, ticks: u32, meanwhile: Meanwhile) {
        let (world, life) = (self.clone(), Arc::clone(&self.state().running[node].life));
        let of = Arc::clone(&life);
        life.arm(
            ticks,
            Box::new(move || match meanwhile {
                Meanwhile::Change(change) => world.change(change),
                Meanwhile::Death(_) => of.end(Death::Driver),
            }),
        );
    }

    fn disarm(&self, node: usize) -> bool {
        self.state().running[node].life.disarm()
    }

    fn is_dead(&self, node: usize) -> bool {
        self.state().running[node].life.is_over()
    }

    fn restart(&self, node: usize, _: Death) {
        let running = self.start(node);
        let before = std::mem::replace(&mut self.state().running[node], running);
        before.life.end(Death::Driver);
    }

    fn shown(&self, volume: usize, node: usize) -> Shown {
        let state = self.state();
        let here = |disk: &Loop| state.attached.get(&disk.name()).filter(|attached| attached.node == node).copied();
        let own = &state.disks[volume];
        let mute = (0..state.disks.len()).any(|other| state.mute[other] && here(&state.disks[other]).is_some());
        Shown {
            attached: here(own).map(|attached| attached.sequence),
            link: match fs::metadata(self.link_of(node, volume)) {
                Err(_) => Leads::Nowhere,
                Ok(found) if found.rdev() == own.number() => Leads::Right,
                Ok(_) => Leads::Wrong,
            },
            twin: state.twins.get(&volume).is_some_and(|twin| here(twin).is_some()),
            mute,
            read_only: own.is_read_only(),
            unlocked: None,
        }
    }

    fn mounts(&self, node: usize) -> Vec<Seen> {
        let state = self.state();
        let seen = self.table(node).into_iter().map(|mount| {
            let volume = state.disks.iter().position(|disk| disk.is_behind(&mount));
            let attached = volume.and_then(|volume| state.attached.get(&state.disks[volume].name()));
            Seen {
                volume,
                alive: attached.is_some_and(|attached| attached.node == node),
                read_only: mount.is_read_only(),
                lent: volume.is_some_and(|volume| {
                    mount.target == self.path(node, volume, Place::Staging) && is_lent(&self.root(node), volume)
                }),
                is_node: mount.fs_type == "devtmpfs",
                frozen: mount.is_frozen() && mount.fs_type != "devtmpfs",
                path: mount.target,
            }
        });
        seen.collect()
    }

    fn holds(&self, volume: usize) -> Holds {
        self.state().disks[volume].holds()
    }

    fn formatted(&self) -> Vec<Format> {
        std::mem::take(&mut self.state().formatted)
    }

    fn size(&self, volume: usize) -> u64 {
        self.state().disks[volume].size()
    }

    fn growth_left(&self, _: usize) -> Option<u64> {
        None
    }

    fn write(&self, _: usize, path: &Path, name: &str, bytes: &[u8], sync: bool) -> io::Result<()> {
        if path.is_dir() {
            fs::write(path.join(name), bytes)?;
            return if sync { Ok(syncfs(&File::open(path)?)?) } else { Ok(()) };
        }
        let disk = OpenOptions::new().read(true).write(true).open(path)?;
        let free = raw::free(|at| read_at(&disk, at))?;
        disk.write_all_at(&raw::block(name, bytes), free)?;
        disk.sync_all()
    }

    fn read(&self, _: usize, path: &Path) -> io::Result<Contents> {
        if !path.is_dir() {
            let disk = File::open(path)?;
            return raw::contents(|at| read_at(&disk, at));
        }
        let mut contents = Contents::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                contents.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?);
            }
        }
        Ok(contents)
    }
}

fn read_at(disk: &File, at: u64) -> io::Result<Vec<u8>> {
    let mut block = vec![0; raw::BLOCK];
    disk.read_exact_at(&mut block, at)?;
    Ok(block)
}

impl Drop for Inner {
    fn drop(&mut self) {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for mount in mountinfo::parse(&text).unwrap_or_default().iter().rev() {
            if mount.target.starts_with(self.root.path()) {
                nix::mount::umount2(&mount.target, nix::mount::MntFlags::MNT_DETACH).ok();
            }
        }
        if let Ok(state) = self.state.get_mut() {
            state.disks.iter().chain(state.twins.values()).for_each(Loop::end);
        }
    }
}
