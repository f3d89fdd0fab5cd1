//! A machine in memory: disks, links, mounts and programs as [`Host`] shows them, on tokio's clock.
//!
//! Several machines share the images that their disks are of. What the driver makes itself (directories to mount on,
//! records, locks) is real and lies below the machine's own directory.

mod image;
mod kernel;
mod program;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use self::program::Program;
pub(super) use self::{
    image::{Files, Image, Made},
    kernel::{Attached, Kernel, What},
};
use super::process::{Life, Pace};
use crate::{
    error::Error,
    node::{
        Key,
        host::{
            Arrivals, Boot, Counts, DeviceNumber, Disk, Errno, Found, Host, MountCall, MountFlags, Open, OpenDisk,
            Output, Paths, Tool,
        },
        lock::Lock,
        mountinfo::Mount,
    },
    volume::FsType,
};

/// What all machines share.
pub(super) type Shared = Arc<Mutex<State>>;

/// All disks and machines there are.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) images: Vec<Image>,
    pub(super) kernels: Vec<Kernel>,
    /// How many disks were ever attached.
    pub(super) attached: u64,
    /// Each mkfs that began.
    pub(super) formatted: Vec<Format>,
    uuids: u128,
}

/// A mkfs or luksFormat that began: where, and on which disk and image.
#[derive(Debug)]
pub(super) struct Format {
    pub(super) machine: usize,
    pub(super) sequence: u64,
    pub(super) image: usize,
    pub(super) kind: Formatted,
    /// What it was made on held a whole one already.
    pub(super) over_a_whole: bool,
}

/// What is made on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Formatted {
    FileSystem,
    Encryption,
}

/// A machine, as one process of the driver has it.
pub(super) struct SimulatedHost {
    shared: Shared,
    machine: usize,
    paths: Paths,
    boot: Boot,
    life: Arc<Life>,
    pace: Arc<Pace>,
    changes: watch::Sender<()>,
}

impl SimulatedHost {
    /// The machine below `root`, for a process with this life; disks that come and go are told by `changes`.
    pub(super) fn new(
        shared: &Shared,
        machine: usize,
        root: &Path,
        life: &Arc<Life>,
        pace: &Arc<Pace>,
        changes: &watch::Sender<()>,
    ) -> Self {
        let boot = shared.lock().unwrap().kernels[machine].boot;
        Self {
            shared: Arc::clone(shared),
            machine,
            paths: Paths {
                device_dir: root.join("dev/disk/by-id"),
                sysfs_dir: root.join("sys"),
                dev_dir: root.join("dev"),
                state_dir: root.join("state"),
                kubelet_dir: None,
            },
            boot: Boot { id: format!("boot {boot} of machine {machine}"), kernel: (6, 12) },
            life: Arc::clone(life),
            pace: Arc::clone(pace),
            changes: changes.clone(),
        }
    }

    /// Waits until the share that is mounted at `path`, if one is, has answered: as every look into it does.
    async fn share_at(&self, path: &Path) -> io::Result<()> {
        let ask = || self.with(|kernel, _| kernel.top(path).map_or(Some(Ok(())), |top| kernel.share_answers(top.what)));
        loop {
            match ask() {
                Some(answer) => return answer,
                None => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Kernel, &mut Vec<Image>) -> T) -> T {
        let state = &mut *self.shared.lock().unwrap();
        look(&mut state.kernels[self.machine], &mut state.images)
    }
}

#[async_trait::async_trait]
impl Host for SimulatedHost {
    fn paths(&self) -> &Paths {
        &self.paths
    }

    fn boot(&self) -> &Boot {
        &self.boot
    }

    fn new_uuid(&self) -> io::Result<String> {
        let mut state = self.shared.lock().unwrap();
        state.uuids += 1;
        Ok(format!("00000000-0000-4000-8000-{:012x}", state.uuids))
    }

    async fn has_device_mapper(&self) -> bool {
        true
    }

    async fn disks(&self) -> Result<Vec<Disk>, Error> {
        Ok(self.with(|kernel, images| kernel.shown(images)))
    }

    async fn disk(&self, number: DeviceNumber) -> Result<Option<Disk>, Error> {
        Ok(self.disks().await?.into_iter().find(|disk| disk.number == number))
    }

    async fn exists(&self, number: DeviceNumber) -> io::Result<bool> {
        Ok(self.with(|kernel, _| kernel.disks.iter().any(|disk| disk.present && disk.number() == number)))
    }

    fn arrivals(&self) -> Box<dyn Arrivals> {
        Box::new(Changes { changes: self.changes.subscribe(), began: Instant::now() })
    }

    async fn open(&self, node: &Path, how: Open) -> io::Result<Arc<dyn OpenDisk>> {
        let sequence = self.with(|kernel, _| kernel.open(node, how != Open::Shared))?;
        let number = self.with(|kernel, _| kernel.disk_of_sequence(sequence).expect("it is open").number());
        let (shared, machine) = (Arc::clone(&self.shared), self.machine);
        Ok(Arc::new(OpenImage { shared, machine, sequence, number, how }))
    }

    async fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(path.to_owned())
    }

    async fn look(&self, path: &Path, follow: bool) -> io::Result<Found> {
        self.share_at(path).await?;
        let is_link = path.parent() == Some(&self.paths.device_dir);
        let shown = self.with(|kernel, _| {
            let node = |disk: Option<&Attached>| disk.map_or(Found::Nothing, |disk| Found::Block(disk.number()));
            if is_link {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let serial = name.strip_prefix("virtio-").unwrap_or_default();
                let is_shown = kernel.links.contains_key(serial) && !follow;
                return Some(if is_shown { Found::Symlink } else { node(kernel.link(serial)) });
            }
            if path.starts_with(&self.paths.dev_dir) {
                return Some(node(kernel.disk_at(path)));
            }
            match kernel.top(path)?.what {
                what @ What::Node(_) => Some(node(kernel.behind(what))),
                _ => Some(Found::Directory),
            }
        });
        if let Some(found) = shown {
            return Ok(found);
        }
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => Ok(Found::Directory),
            Ok(found) if found.is_file() => Ok(Found::File(found.len())),
            Ok(_) => Ok(Found::Other),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
            Err(cause) => Err(cause),
        }
    }

    async fn mounts(&self) -> Result<Vec<Mount>, Error> {
        Ok(self.with(|kernel, _| kernel.mounts()))
    }

    async fn mount(&self, call: MountCall) -> io::Result<()> {
        self.with(|kernel, images| kernel.mount(images, &call))
    }

    async fn unmount(&self, target: &Path, lazy: bool) -> io::Result<()> {
        if !lazy {
            // An error is no reason not to unmount.
            self.share_at(target).await.ok();
        }
        self.with(|kernel, images| kernel.unmount(images, target))
    }

    async fn usage(&self, path: &Path) -> io::Result<(Counts, Counts)> {
        self.share_at(path).await?;
        self.with(|kernel, _| {
            let what = kernel.top(path).ok_or(Errno::ENOENT)?.what;
            if matches!(what, What::Share(_)) {
                let counts = Counts { total: 1 << 40, used: 1 << 20, available: (1 << 40) - (1 << 20) };
                return Ok((counts, counts));
            }
            if !kernel.behind(what).is_some_and(|disk| kernel.is_alive(disk)) {
                return Err(Errno::EIO.into());
            }
            let total = kernel.mounted(what).ok_or(Errno::EINVAL)?.0.bytes;
            let counts = Counts { total, used: 0, available: total };
            Ok((counts, counts))
        })
    }

    async fn try_write(&self, path: &Path) -> io::Result<()> {
        self.with(|kernel, _| {
            let entry = kernel.top(path).ok_or(Errno::ENOENT)?;
            if matches!(entry.what, What::Share(_)) {
                // FUSE makes no files without a name, before Linux 6.2.
                return Err(Errno::EOPNOTSUPP.into());
            }
            match kernel.behind(entry.what).is_some_and(|disk| kernel.is_alive(disk)) {
                false => Err(Errno::EIO.into()),
                true if kernel.is_frozen(entry.what) || entry.flags.contains(MountFlags::MS_RDONLY) => {
                    Err(Errno::EROFS.into())
                }
                true => Ok(()),
            }
        })
    }

    async fn fs_errors(&self, _: FsType, _: &str) -> Option<String> {
        None
    }

    async fn run(&self, tool: Tool, arguments: &[&str], key: Option<&Key>, lock: &Lock) -> Result<Output, Error> {
        let held = lock.share().map_err(|cause| Error::io("run", tool.program(), cause))?;
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let program = Program {
            shared: Arc::clone(&self.shared),
            machine: self.machine,
            life: Arc::clone(&self.life),
            pace: Arc::clone(&self.pace),
            key: key.map(|key| key.bytes().to_owned()),
        };
        let (tell, output) = oneshot::channel();
        // Its own task: it goes on if whoever started it does not.
        tokio::spawn(async move {
            let output = program.run(tool, &arguments).await;
            drop(held);
            output.map(|output| tell.send(output))
        });
        match output.await {
            Ok(output) => Ok(output),
            // It was cut off, and so is whoever waits for it.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Tells of disks that come and go, at a moment of the waiting operation's own.
struct Changes {
    changes: watch::Receiver<()>,
    began: Instant,
}

#[async_trait::async_trait]
impl Arrivals for Changes {
    async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        let passed = u64::try_from(self.began.elapsed().as_millis()).expect("a short while");
        tokio::time::sleep(Duration::from_millis(Pace::GRID - passed % Pace::GRID)).await;
    }
}

/// A disk, held open.
struct OpenImage {
    shared: Shared,
    machine: usize,
    sequence: u64,
    number: DeviceNumber,
    how: Open,
}

impl OpenImage {
    fn with<T>(&self, look: impl FnOnce(&mut Image) -> T) -> io::Result<T> {
        let state = &mut *self.shared.lock().unwrap();
        let kernel = &state.kernels[self.machine];
        let disk = kernel.disks.iter().find(|disk| disk.sequence == self.sequence);
        let image = disk.and_then(|disk| kernel.content(&mut state.images, disk));
        image.map(look).ok_or_else(|| Errno::EIO.into())
    }
}

impl OpenDisk for OpenImage {
    fn number(&self) -> DeviceNumber {
        self.number
    }

    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.with(|image| {
            if offset + length as u64 > image.size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(image.read(offset, length))
        })?
    }

    fn write_zeroes(&self, offset: u64, length: usize) -> io::Result<()> {
        assert_eq!(self.how, Open::Write, "the disk is not open for writing");
        self.with(|image| image.write(offset, &vec![0; length]))
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|_| ())
    }
}

impl Drop for OpenImage {
    fn drop(&mut self) {
        self.shared.lock().unwrap().kernels[self.machine].close(self.sequence, self.how != Open::Shared);
    }
}
