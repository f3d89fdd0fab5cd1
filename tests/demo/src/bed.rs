//! A simulated cloud and driver processes on it, and their end: nothing that was started here outlives it.
//!
//! Children are ended by the handles of those that were started, never by name. They die with this process even if it
//! is killed (`setpriv --pdeathsig`); what a killed run left of mounts and loop devices is swept by the next run.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use cloud_block_csi::csi::{ProbeRequest, identity_client::IdentityClient};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    signal::unix::{Signal as Signals, SignalKind, signal},
    time::{Instant, sleep, timeout},
};
use tonic::transport::{Channel, Endpoint};
use vultr_sim::{Behaviour, Config, InstanceSpec, InstanceView, Simulation};

use crate::{Outcome, Problem, machine};

const FOLDER_PREFIX: &str = "cloud-block-csi-bed-";
/// How many beds this process made: tests have several.
static BEDS: AtomicU32 = AtomicU32::new(0);
const READY_WITHIN: Duration = Duration::from_secs(20);
const ENDED_WITHIN: Duration = Duration::from_secs(15);

/// A simulated cloud with the drivers that were started on it.
#[derive(Debug)]
pub struct Bed {
    /// There until the end.
    cloud: Option<Simulation>,
    dir: PathBuf,
    driver: PathBuf,
    processes: Vec<Process>,
}

/// A driver process.
#[derive(Debug)]
struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Bed {
    /// Starts a cloud with these instances in a new folder. `driver` is the binary that will run on it.
    ///
    /// # Errors
    /// In words for the person at the terminal: not root, no loop devices, no such binary.
    pub async fn start(driver: &Path, instances: &[&str], behaviour: Behaviour) -> Outcome<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Err("loop devices and mounts need root: run this through sudo, or by make".into());
        }
        if !Simulation::may_have_disks() {
            return Err("/dev/loop-control cannot be opened: load the module (modprobe loop), or in a container run it privileged".into());
        }
        let driver = fs::canonicalize(driver).map_err(|e| format!("the driver {}: {e}", driver.display()))?;
        let parent = fs::canonicalize(std::env::temp_dir())?;
        let number = BEDS.fetch_add(1, Ordering::Relaxed);
        if number == 0 {
            sweep_abandoned(&parent)?;
        }
        let dir = parent.join(format!("{FOLDER_PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&dir)?;
        fs::set_permissions(&dir, Permissions::from_mode(0o700))?;
        let config = Config {
            dir: dir.join("cloud"),
            instances: instances.iter().map(|label| InstanceSpec::new(label, "ewr")).collect(),
            behaviour,
            ..Config::default()
        };
        let cloud = Simulation::start(config).await?;
        let mut token = OpenOptions::new().write(true).create_new(true).open(dir.join("token"))?;
        token.set_permissions(Permissions::from_mode(0o600))?;
        token.write_all(cloud.token().as_bytes())?;
        Ok(Self { cloud: Some(cloud), dir, driver, processes: Vec::new() })
    }

    /// The cloud.
    ///
    /// # Panics
    /// Never: it is there until the end.
    #[must_use]
    pub fn cloud(&self) -> &Simulation {
        self.cloud.as_ref().expect("only down takes it")
    }

    /// The folder of everything; it goes at the end.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts a driver's controller and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub async fn controller(&mut self) -> Outcome<Channel> {
        self.controller_with(&[]).await
    }

    /// The same with more flags.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub async fn controller_with(&mut self, more: &[&str]) -> Outcome<Channel> {
        let mut arguments = self.controller_arguments();
        arguments.extend(more.iter().map(OsString::from));
        self.drive("controller", "controller", arguments).await
    }

    /// Starts a driver's node on an instance and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub async fn node(&mut self, instance: &InstanceView) -> Outcome<Channel> {
        let arguments = self.node_arguments(instance);
        self.drive(&instance.label, "node", arguments).await
    }

    /// Starts a driver that is both on an instance, and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub async fn all(&mut self, instance: &InstanceView, more: &[&str]) -> Outcome<Channel> {
        let mut arguments = self.controller_arguments();
        arguments.extend(self.node_arguments(instance));
        arguments.extend(more.iter().map(OsString::from));
        self.drive("all", "all", arguments).await
    }

    /// The socket of a driver.
    #[must_use]
    pub fn socket(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.sock"))
    }

    fn controller_arguments(&self) -> Vec<OsString> {
        vec!["--api-url".into(), self.cloud().api_url().into(), "--token-file".into(), self.dir.join("token").into()]
    }

    fn node_arguments(&self, instance: &InstanceView) -> Vec<OsString> {
        vec![
            "--metadata-url".into(),
            instance.metadata_url.clone().into(),
            "--device-dir".into(),
            instance.device_dir.clone().into(),
            "--sysfs-dir".into(),
            instance.sysfs_dir.clone().into(),
            "--state-dir".into(),
            self.dir.join(format!("{}-state", instance.label)).into(),
        ]
    }

    async fn drive(&mut self, name: &str, mode: &str, arguments: Vec<OsString>) -> Outcome<Channel> {
        let socket = self.socket(name);
        let mut endpoint = OsString::from("unix://");
        endpoint.push(&socket);
        let log = self.dir.join(format!("{name}.log"));
        // Appended to, as a driver that was killed may be started again.
        let output = OpenOptions::new().append(true).create(true).open(&log)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.driver).arg(mode);
        command.arg("--endpoint").arg(endpoint).args(arguments);
        command.arg("--log-format").arg("text");
        // What the person's shell says of a real driver has nothing to do here.
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("CSI_")) {
            command.env_remove(key);
        }
        command.env("CSI_METRICS_ADDR", "127.0.0.1:0");
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // A group of its own: Ctrl-C reaches this process, which then ends its children in order.
        command.process_group(0).kill_on_drop(true);
        let child = command.spawn().map_err(|e| format!("setpriv (of util-linux): {e}"))?;
        self.processes.push(Process { name: name.to_owned(), child, log });
        let channel = Endpoint::try_from(format!("unix://{}", socket.display()))?.connect_lazy();
        self.ready(channel.clone()).await?;
        Ok(channel)
    }

    /// Waits until the driver that was started last says that it is ready.
    async fn ready(&mut self, channel: Channel) -> Outcome<()> {
        let process = self.processes.last_mut().ok_or("no driver was started")?;
        let mut identity = IdentityClient::new(channel);
        let began = Instant::now();
        loop {
            if let Some(status) = process.child.try_wait()? {
                return Err(format!("the driver '{}' ended: {status}", process.name).into());
            }
            let answer = match identity.probe(ProbeRequest {}).await {
                Ok(answer) if answer.get_ref().ready.unwrap_or(true) => return Ok(()),
                Ok(_) => "it says that it is not ready".to_owned(),
                Err(status) => status.to_string(),
            };
            if began.elapsed() > READY_WITHIN {
                return Err(format!("the driver '{}' is not ready: {answer}", process.name).into());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills a driver with SIGKILL, alone or with all that it has started, as when a container dies. It can then be
    /// started again.
    ///
    /// # Errors
    /// No such driver.
    pub async fn kill(&mut self, name: &str, with_children: bool) -> Outcome<()> {
        let at = self.processes.iter().position(|process| process.name == name).ok_or("no such driver")?;
        let mut process = self.processes.swap_remove(at);
        let id = Pid::from_raw(i32::try_from(process.child.id().ok_or("it has ended already")?)?);
        // It leads a group of its own.
        if with_children {
            killpg(id, Signal::SIGKILL)?;
        } else {
            kill(id, Signal::SIGKILL)?;
        }
        process.child.wait().await?;
        Ok(())
    }

    /// The id of a driver's process.
    ///
    /// # Errors
    /// No such driver.
    pub fn process(&self, name: &str) -> Outcome<u32> {
        let process = self.processes.iter().find(|process| process.name == name).ok_or("no such driver")?;
        Ok(process.child.id().ok_or("it has ended already")?)
    }

    /// How many KiB of memory a driver has in use.
    ///
    /// # Errors
    /// No such driver.
    pub fn resident(&self, name: &str) -> Outcome<u64> {
        let id = self.process(name)?;
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// The last lines of every driver's log.
    #[must_use]
    pub fn last_words(&self, lines: usize) -> String {
        let mut text = String::new();
        for process in &self.processes {
            let log = fs::read_to_string(&process.log).unwrap_or_default();
            let from = log.lines().count().saturating_sub(lines);
            text.extend(["--- log of the driver '", &process.name, "', its last lines\n"]);
            for line in log.lines().skip(from) {
                text.extend([line, "\n"]);
            }
        }
        text
    }

    /// Takes everything down and looks whether anything is left.
    ///
    /// Returns what had to be taken down by force because it should have been gone already, and how many processes
    /// ended in order.
    ///
    /// # Errors
    /// What is left all the same.
    pub async fn down(mut self) -> Outcome<Down> {
        let mut down = Down::default();
        // Every step is taken, whatever became of the one before.
        let mut left = Vec::new();
        for process in &mut self.processes {
            match process.end().await {
                Ok(true) => down.ended += 1,
                Ok(false) => down.forced.push(format!("the driver '{}' (it did not end by itself)", process.name)),
                Err(error) => left.push(format!("the driver '{}': {error}", process.name)),
            }
        }
        match machine::unmount_below(&self.dir) {
            Ok(targets) => down.forced.extend(targets.into_iter().map(|at| format!("the mount at {}", at.display()))),
            Err(error) => left.push(format!("mounts: {error}")),
        }
        match machine::loop_devices_over(&self.dir) {
            Ok(loops) => down.forced.extend(loops.into_iter().map(|at| format!("the loop device {}", at.display()))),
            Err(error) => left.push(format!("loop devices: {error}")),
        }
        if let Some(cloud) = self.cloud.take()
            && let Err(error) = cloud.shutdown().await
        {
            left.push(format!("the cloud: {error}"));
        }
        for device in gone_soon(&self.dir).await? {
            left.push(format!("the loop device {}", device.display()));
        }
        for mount in machine::mounts_below(&self.dir)? {
            left.push(format!("a mount at {}", mount.target.display()));
        }
        if !left.is_empty() {
            return Err(format!("left on this machine: {}", left.join(", ")).into());
        }
        // Only now, when nothing is mounted in it any more.
        fs::remove_dir_all(&self.dir)?;
        Ok(down)
    }
}

impl Drop for Bed {
    /// The best that can be done without waiting, after a test that panicked: a bed should be taken down.
    fn drop(&mut self) {
        let Some(cloud) = self.cloud.take() else { return };
        for process in &mut self.processes {
            let _ = process.child.start_kill();
        }
        let _ = machine::unmount_below(&self.dir);
        drop(cloud);
        if machine::mounts_below(&self.dir).is_ok_and(|mounts| mounts.is_empty()) {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// How a bed went down.
#[derive(Debug, Default)]
pub struct Down {
    /// Driver processes that ended by themselves on SIGTERM.
    pub ended: u32,
    /// What had to be taken away by force.
    pub forced: Vec<String>,
}

impl Process {
    /// Ends it, and says whether it did so in order: on SIGTERM, with status 0, in time, and leaving no child.
    async fn end(&mut self) -> Outcome<bool> {
        let Some(id) = self.child.id() else { return Ok(false) };
        let id = Pid::from_raw(i32::try_from(id)?);
        let mut in_order = self.child.try_wait()?.is_none();
        if in_order {
            kill(id, Signal::SIGTERM)?;
            if let Ok(status) = timeout(ENDED_WITHIN, self.child.wait()).await {
                in_order = status?.success();
            } else {
                self.child.kill().await?;
                in_order = false;
            }
        }
        // What it started is in its group, which is empty now if all went well.
        Ok(killpg(id, Signal::SIGKILL).is_err() && in_order)
    }
}

/// The loop devices over files in `dir`, after those had a moment that are on their way out.
async fn gone_soon(dir: &Path) -> Outcome<Vec<PathBuf>> {
    for _ in 0..50 {
        if machine::loop_devices_over(dir)?.is_empty() {
            return Ok(Vec::new());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(machine::loop_devices_over(dir)?)
}

/// Takes away what earlier runs left that were killed.
fn sweep_abandoned(parent: &Path) -> Outcome<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let id =
            name.to_str().and_then(|name| name.strip_prefix(FOLDER_PREFIX)?.split('-').next()?.parse::<u32>().ok());
        let Some(id) = id.filter(|id| !Path::new(&format!("/proc/{id}")).exists()) else { continue };
        machine::unmount_below(&entry.path())?;
        vultr_sim::sweep(&entry.path())?;
        if machine::mounts_below(&entry.path())?.is_empty() {
            fs::remove_dir_all(entry.path())?;
        }
        eprintln!("(swept away what the killed run {id} had left)");
    }
    Ok(())
}

/// The reasons to stop early: Ctrl-C, SIGTERM, a terminal that went away. Once it exists none of them ends the process
/// by itself, so that everything is taken down first.
#[derive(Debug)]
pub struct Stop {
    interrupt: Signals,
    terminate: Signals,
    hangup: Signals,
}

impl Stop {
    /// Listens from now on.
    ///
    /// # Errors
    /// A signal that cannot be listened for.
    pub fn listen() -> Outcome<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one of them, which is then the error.
    ///
    /// # Errors
    /// Always, in the end.
    pub async fn wait<T>(&mut self) -> Outcome<T> {
        let reason: Problem = tokio::select! {
            _ = self.interrupt.recv() => "stopped by Ctrl-C".into(),
            _ = self.terminate.recv() => "stopped by SIGTERM".into(),
            _ = self.hangup.recv() => "the terminal went away".into(),
        };
        Err(reason)
    }
}
