//! A driver process that can die: a host whose calls are counted, so that something can happen at any of them.
//!
//! Death is an unwinding from within a call: what the operation holds is let go of, as the kernel does it for a process,
//! and nothing of the operation comes after it. The calls can also be made to lie, which is for those who check the
//! checker.

mod lie;

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::watch;

pub(crate) use self::lie::Lie;
use crate::{
    error::Error,
    node::{
        Key,
        host::{
            Arrivals, Boot, Counts, DeviceNumber, Disk, Found, Host, MountCall, MountFlags, Open, OpenDisk, Output,
            Paths, Tool,
        },
        lock::Lock,
        mountinfo::Mount,
    },
    volume::FsType,
};

/// What ends when a driver does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Death {
    /// The driver alone: programs that it started go on.
    Driver,
    /// The whole group of processes: its programs are cut off where they are.
    Group,
    /// The machine: mounts, names and numbers are gone, and so is what was not brought to the disks.
    Machine,
}

/// Something that happens at one of the calls.
pub(crate) type Happening = Box<dyn FnOnce() + Send>;

/// The life of one process and of the programs that it started.
pub(crate) struct Life {
    armed: Mutex<Option<(u32, Happening)>>,
    death: watch::Sender<Option<Death>>,
}

impl Life {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { armed: Mutex::default(), death: watch::Sender::new(None) })
    }

    /// Lets something happen after `ticks` more of what is counted.
    pub(crate) fn arm(&self, ticks: u32, happening: Happening) {
        *self.armed.lock().unwrap() = Some((ticks, happening));
    }

    /// Takes back what has not happened yet, and says whether there was anything left.
    pub(crate) fn disarm(&self) -> bool {
        self.armed.lock().unwrap().take().is_some()
    }

    pub(crate) fn end(&self, death: Death) {
        self.death.send_if_modified(|before| {
            let worse = before.is_none_or(|before| before < death);
            if worse {
                *before = Some(death);
            }
            worse
        });
    }

    pub(crate) fn is_over(&self) -> bool {
        self.death.borrow().is_some()
    }

    /// Whether programs have ended with their driver.
    pub(crate) fn is_over_for_programs(&self) -> bool {
        self.death.borrow().is_some_and(|death| death > Death::Driver)
    }

    /// Counts a call, or a step of a program.
    pub(crate) fn tick(&self) {
        let due = {
            let mut armed = self.armed.lock().unwrap();
            if let Some((left, _)) = armed.as_mut() {
                *left = left.saturating_sub(1);
            }
            armed.take_if(|(left, _)| *left == 0)
        };
        if let Some((_, happen)) = due {
            happen();
        }
    }

    /// Goes on only with a live process. The hook for panics is not called: this is no mistake.
    fn go_on(&self) {
        if self.is_over() {
            std::panic::resume_unwind(Box::new("the driver died"));
        }
    }

    async fn over(&self) {
        self.death.subscribe().wait_for(Option::is_some).await.ok();
    }
}

/// How long calls take, drawn from a seed.
///
/// Only multiples of [`Pace::GRID`] are waited: operations that began at different milliseconds of it are never due at
/// the same moment, so what they do has the same order in every run.
pub(crate) struct Pace(Mutex<fastrand::Rng>);

impl Pace {
    /// All that the driver itself waits for is a multiple of this as well.
    pub(crate) const GRID: u64 = 4;

    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(fastrand::Rng::with_seed(seed))))
    }

    pub(crate) async fn wait(&self) {
        let waits = self.0.lock().unwrap().u64(1..=6);
        tokio::time::sleep(Duration::from_millis(waits * Self::GRID)).await;
    }
}

/// Whoever is told of programs.
pub(crate) type Witness = Box<dyn Fn(Tool, &[&str]) + Send + Sync>;

/// Whether a device is another machine's.
pub(crate) type Elsewhere = Box<dyn Fn(DeviceNumber) -> bool + Send + Sync>;

/// A process that runs on a host.
pub(crate) struct Process {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) life: Arc<Life>,
    pub(crate) pace: Option<Arc<Pace>>,
    pub(crate) lie: Option<Lie>,
    /// Told of each program right before it starts.
    pub(crate) witness: Option<Witness>,
    /// What the host has, but not the machine that it stands for.
    pub(crate) elsewhere: Option<Elsewhere>,
    /// Where the lying host has not unmounted.
    pub(crate) hidden: Mutex<Vec<PathBuf>>,
}

impl Process {
    async fn call<T>(&self, call: impl Future<Output = T>) -> T {
        self.life.go_on();
        if let Some(pace) = &self.pace {
            pace.wait().await;
        }
        self.life.go_on();
        self.life.tick();
        self.life.go_on();
        // A system call that has begun comes to its end, also if whoever made it does not.
        let result = call.await;
        self.life.go_on();
        self.life.tick();
        self.life.go_on();
        result
    }

    fn lies(&self, lie: Lie) -> bool {
        self.lie == Some(lie)
    }
}

#[async_trait::async_trait]
impl Host for Process {
    fn paths(&self) -> &Paths {
        self.host.paths()
    }

    fn boot(&self) -> &Boot {
        self.host.boot()
    }

    fn new_uuid(&self) -> io::Result<String> {
        self.host.new_uuid()
    }

    async fn has_device_mapper(&self) -> bool {
        self.call(self.host.has_device_mapper()).await
    }

    async fn disks(&self) -> Result<Vec<Disk>, Error> {
        Ok(lie::shown(self.lie, self.call(self.host.disks()).await?))
    }

    async fn disk(&self, number: DeviceNumber) -> Result<Option<Disk>, Error> {
        self.call(self.host.disk(number)).await
    }

    async fn exists(&self, number: DeviceNumber) -> io::Result<bool> {
        let exists = self.call(self.host.exists(number)).await?;
        Ok(exists && !self.elsewhere.as_ref().is_some_and(|is_elsewhere| is_elsewhere(number)))
    }

    fn arrivals(&self) -> Box<dyn Arrivals> {
        self.host.arrivals()
    }

    async fn open(&self, node: &Path, how: Open) -> io::Result<Arc<dyn OpenDisk>> {
        let disk = self.call(self.host.open(node, how)).await?;
        Ok(if self.lies(Lie::BlankDisks) { Arc::new(lie::Blank(disk)) } else { disk })
    }

    async fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        self.call(self.host.resolve(path)).await
    }

    async fn look(&self, path: &Path, follow: bool) -> io::Result<Found> {
        let found = self.call(self.host.look(path, follow)).await?;
        let blind = matches!(self.lie, Some(Lie::NoLinks | Lie::SwappedSerials | Lie::HiddenTwins));
        Ok(if blind && path.starts_with(&self.paths().device_dir) { Found::Nothing } else { found })
    }

    async fn mounts(&self) -> Result<Vec<Mount>, Error> {
        let mut mounts = self.call(self.host.mounts()).await?;
        let hidden = self.hidden.lock().unwrap();
        mounts.retain(|mount| !hidden.contains(&mount.target));
        Ok(mounts)
    }

    async fn mount(&self, call: MountCall) -> io::Result<()> {
        if self.lies(Lie::IdleRemounts) && call.flags.contains(MountFlags::MS_REMOUNT) {
            return Ok(());
        }
        self.hidden.lock().unwrap().retain(|hidden| *hidden != call.target);
        self.call(self.host.mount(call)).await
    }

    async fn unmount(&self, target: &Path, lazy: bool) -> io::Result<()> {
        if self.lies(Lie::IdleUnmounts) {
            self.hidden.lock().unwrap().push(target.to_owned());
            return Ok(());
        }
        self.call(self.host.unmount(target, lazy)).await
    }

    async fn usage(&self, path: &Path) -> io::Result<(Counts, Counts)> {
        self.call(self.host.usage(path)).await
    }

    async fn try_write(&self, path: &Path) -> io::Result<()> {
        self.call(self.host.try_write(path)).await
    }

    async fn fs_errors(&self, fs: FsType, disk: &str) -> Option<String> {
        self.call(self.host.fs_errors(fs, disk)).await
    }

    async fn run(&self, tool: Tool, arguments: &[&str], key: Option<&Key>, lock: &Lock) -> Result<Output, Error> {
        let run = async {
            if let Some(witness) = &self.witness {
                witness(tool, arguments);
            }
            tokio::select! {
                biased;
                output = self.host.run(tool, arguments, key, lock) => output,
                () = self.life.over() => {
                    self.life.go_on();
                    unreachable!("its life is over")
                }
            }
        };
        let mut output = self.call(run).await?;
        if self.lies(Lie::BlankDisks) && tool == Tool::Blkid {
            output = Output { code: Some(2), stdout: String::new(), ..output };
        }
        Ok(output)
    }
}
