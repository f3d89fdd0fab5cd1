//! A machine to test on: real loop devices, tools and mounts, in a directory that leaves nothing behind.

use std::{
    fs, io,
    os::unix::fs::{FileExt, MetadataExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use crate::{
    cloud::{Attachment, vultr::PROFILE},
    error::Error,
    metrics::Metrics,
    node::{
        Expand, Key, Node, Patience, Publish, Stage,
        host::{
            Arrivals, Boot, Counts, DeviceNumber, Disk, Found, Host, Linux, MountCall, Open, OpenDisk, Output, Paths,
            Tool, output_of,
        },
        lock::Lock,
        luks,
        mountinfo::{self, Mount},
    },
    volume::{Access, Discard, FsType, IdForm, MkfsOptions, VolumeId},
};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const SERIAL: &str = "ewr-0123456789abcd";
pub(super) const OTHER_SERIAL: &str = "ewr-0123456789abce";

/// Something that happens on the machine right before a program runs.
type Mishap = (Tool, Box<dyn FnOnce() + Send>);

/// The real machine, which keeps count of the programs that it ran.
struct Watched {
    linux: Linux,
    boot: Boot,
    ran: Arc<Mutex<Vec<Tool>>>,
    mishap: Arc<Mutex<Option<Mishap>>>,
}

#[async_trait::async_trait]
impl Host for Watched {
    fn paths(&self) -> &Paths {
        self.linux.paths()
    }
    fn boot(&self) -> &Boot {
        &self.boot
    }
    fn new_uuid(&self) -> io::Result<String> {
        self.linux.new_uuid()
    }
    async fn has_device_mapper(&self) -> bool {
        self.linux.has_device_mapper().await
    }
    async fn disks(&self) -> Result<Vec<Disk>, Error> {
        self.linux.disks().await
    }
    async fn disk(&self, number: DeviceNumber) -> Result<Option<Disk>, Error> {
        self.linux.disk(number).await
    }
    async fn exists(&self, number: DeviceNumber) -> io::Result<bool> {
        self.linux.exists(number).await
    }
    fn arrivals(&self) -> Box<dyn Arrivals> {
        self.linux.arrivals()
    }
    async fn open(&self, node: &Path, how: Open) -> io::Result<Arc<dyn OpenDisk>> {
        self.linux.open(node, how).await
    }
    async fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        self.linux.resolve(path).await
    }
    async fn look(&self, path: &Path, follow: bool) -> io::Result<Found> {
        self.linux.look(path, follow).await
    }
    async fn mounts(&self) -> Result<Vec<Mount>, Error> {
        self.linux.mounts().await
    }
    async fn mount(&self, call: MountCall) -> io::Result<()> {
        self.linux.mount(call).await
    }
    async fn unmount(&self, target: &Path, lazy: bool) -> io::Result<()> {
        self.linux.unmount(target, lazy).await
    }
    async fn usage(&self, path: &Path) -> io::Result<(Counts, Counts)> {
        self.linux.usage(path).await
    }
    async fn try_write(&self, path: &Path) -> io::Result<()> {
        self.linux.try_write(path).await
    }
    async fn fs_errors(&self, fs: FsType, disk: &str) -> Option<String> {
        self.linux.fs_errors(fs, disk).await
    }
    async fn run(&self, tool: Tool, arguments: &[&str], key: Option<&Key>, lock: &Lock) -> Result<Output, Error> {
        if let Some(key) = key {
            let key = std::str::from_utf8(key.bytes()).unwrap();
            assert!(arguments.iter().all(|argument| !argument.contains(key)), "the key is among the arguments");
        }
        // Programs that look or try on paper change nothing.
        let on_paper = arguments.contains(&"-N") || tool == Tool::MkfsExt4 && arguments.contains(&"-n");
        if tool != Tool::Blkid && !on_paper {
            self.ran.lock().unwrap().push(tool);
        }
        let mishap = self.mishap.lock().unwrap().take_if(|(before, _)| *before == tool);
        if let Some((_, happen)) = mishap {
            happen();
        }
        self.linux.run(tool, arguments, key, lock).await
    }
}

/// A disk of the machine.
#[derive(Debug, Clone)]
pub(super) struct Loop {
    pub(super) device: PathBuf,
    pub(super) image: PathBuf,
}

impl Loop {
    pub(super) fn name(&self) -> &str {
        self.device.file_name().unwrap().to_str().unwrap()
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        let file = fs::OpenOptions::new().write(true).open(&self.device).unwrap();
        file.write_all_at(bytes, offset).unwrap();
        file.sync_all().unwrap();
    }

    /// A sum over all that the disk holds.
    pub(super) fn sum(&self) -> String {
        run("blockdev", &["--flushbufs", self.device.to_str().unwrap()]);
        run("b2sum", &[self.image.to_str().unwrap()]).split_whitespace().next().unwrap().to_owned()
    }

    pub(super) fn grow(&self, to: u64) {
        fs::OpenOptions::new().write(true).open(&self.image).unwrap().set_len(to).unwrap();
        run("losetup", &["-c", self.device.to_str().unwrap()]);
    }
}

/// What a test says of the machine that is not as it is.
#[derive(Debug, Default, Clone)]
pub(super) struct Said {
    /// Another run of the kernel.
    pub(super) boot: Option<String>,
    /// Another kernel.
    pub(super) kernel: Option<(u32, u32)>,
    /// Where the kubelet has its directory.
    pub(super) kubelet_dir: Option<PathBuf>,
}

pub(super) struct Machine {
    pub(super) node: Arc<Node>,
    pub(super) ran: Arc<Mutex<Vec<Tool>>>,
    pub(super) mishap: Arc<Mutex<Option<Mishap>>>,
    root: TempDir,
}

impl Machine {
    /// A machine, or none where this process may not have one.
    pub(super) fn new() -> Option<Self> {
        if !may_have_disks() {
            return None;
        }
        let root = tempfile::Builder::new().prefix("csi-node-").tempdir().unwrap();
        for directory in ["sys/class/block", "by-id", "state", "images"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        let (ran, mishap) = (Arc::default(), Arc::default());
        let node = start(root.path(), &ran, &mishap, Said::default());
        Some(Self { node, ran, mishap, root })
    }

    /// The same, if its kernel can encrypt disks.
    pub(super) fn with_device_mapper(test: &str) -> Option<Self> {
        if !Path::new("/sys/class/misc/device-mapper").exists() {
            println!("skipped: {test}: this kernel has no device-mapper");
            return None;
        }
        Self::new()
    }

    /// The driver is started anew; with `boot`, so was the machine.
    pub(super) fn restart(&mut self, boot: Option<&str>) {
        self.restart_as(Said { boot: boot.map(str::to_owned), ..Said::default() });
    }

    pub(super) fn restart_as(&mut self, said: Said) {
        self.node = start(self.root.path(), &self.ran, &self.mishap, said);
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A disk that is there, but shows no serial.
    pub(super) fn disk(&self, mib: u64) -> Loop {
        self.disk_over(self.image(mib * MIB))
    }

    /// A file of zeroes that a disk can be made of.
    pub(super) fn image(&self, bytes: u64) -> PathBuf {
        let image = tempfile::Builder::new().tempfile_in(self.path("images")).unwrap().keep().unwrap();
        image.0.set_len(bytes).unwrap();
        image.1
    }

    /// A disk that holds what one of our files does, and shows no serial.
    pub(super) fn disk_over(&self, image: PathBuf) -> Loop {
        assert!(image.starts_with(self.path("images")), "the end of the machine lets go only of those");
        // Another test may take the device that losetup found; then it says so, and looks again.
        let device = (0..50).find_map(|_| try_run("losetup", &["-f", "--show", image.to_str().unwrap()]).ok()).unwrap();
        Loop { device: device.trim().into(), image }
    }

    /// Makes a disk show a serial.
    pub(super) fn show(&self, disk: &Loop, serial: &str) {
        let new = self.path("new");
        let real = Path::new("/sys/class/block").join(disk.name());
        fs::create_dir(&new).unwrap();
        for file in ["dev", "size", "diskseq"] {
            symlink(real.join(file), new.join(file)).unwrap();
        }
        fs::write(new.join("serial"), format!("{serial}\n")).unwrap();
        fs::rename(new, self.sysfs(disk)).unwrap();
    }

    pub(super) fn hide(&self, disk: &Loop) {
        fs::remove_dir_all(self.sysfs(disk)).unwrap();
    }

    pub(super) fn sysfs(&self, disk: &Loop) -> PathBuf {
        self.path("sys/class/block").join(disk.name())
    }

    pub(super) fn attach(&self, mib: u64) -> Loop {
        let disk = self.disk(mib);
        self.show(&disk, SERIAL);
        disk
    }

    pub(super) fn mounts(&self) -> Vec<Mount> {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mountinfo::parse(&text)
            .unwrap()
            .into_iter()
            .filter(|mount| mount.target.starts_with(self.root.path()))
            .collect()
    }

    pub(super) fn mkfs_runs(&self) -> usize {
        let mkfs = [Tool::MkfsExt4, Tool::MkfsXfs, Tool::MkfsBtrfs];
        mkfs.into_iter().map(|tool| self.runs_of(tool)).sum()
    }

    pub(super) fn runs_of(&self, tool: Tool) -> usize {
        self.ran.lock().unwrap().iter().filter(|ran| **ran == tool).count()
    }

    pub(super) fn stage_of(&self, fs: FsType) -> Stage {
        Stage {
            volume: volume(),
            staging_path: self.path("staging"),
            access: Access::Mount { fs_type: Some(fs), flags: Vec::new() },
            attachment: Attachment::Disk { serial: SERIAL.to_owned(), size: None },
            blank: true,
            read_only: false,
            key: None,
            mkfs_options: MkfsOptions::default(),
            discard: Discard::default(),
        }
    }

    pub(super) async fn stage(&self, fs: FsType) -> Result<(), Error> {
        self.stage_as(self.stage_of(fs)).await
    }

    pub(super) async fn stage_as(&self, request: Stage) -> Result<(), Error> {
        self.node.stage(request, None).await
    }

    pub(super) async fn unstage(&self) -> Result<(), Error> {
        self.node.unstage(volume(), self.path("staging")).await
    }

    pub(super) async fn expand(&self, path: impl Into<PathBuf>, wanted: Option<u64>) -> Result<u64, Error> {
        self.node.expand(Expand { volume: volume(), path: path.into(), wanted, key: None }, None).await
    }

    pub(super) fn publish_of(&self, target: &str, read_only: bool) -> Publish {
        Publish {
            volume: volume(),
            staging_path: self.path("staging"),
            target_path: self.path(target),
            access: Access::Mount { fs_type: None, flags: Vec::new() },
            read_only,
            single_writer: false,
            attachment: Some(Attachment::Disk { serial: SERIAL.to_owned(), size: None }),
        }
    }

    pub(super) async fn unpublish(&self, target: &str) -> Result<(), Error> {
        self.node.unpublish(volume(), self.path(target)).await
    }

    /// What the state directory holds.
    pub(super) fn state(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("state")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for mount in self.mounts().iter().rev() {
            nix::mount::umount2(&mount.target, nix::mount::MntFlags::MNT_DETACH).ok();
        }
        let mapping = luks::name(&volume());
        if Path::new("/dev/mapper").join(&mapping).exists() {
            try_run("cryptsetup", &["close", &mapping]).ok();
        }
        for image in fs::read_dir(self.path("images")).into_iter().flatten().flatten() {
            let listed = try_run("losetup", &["-n", "-O", "NAME", "-j", image.path().to_str().unwrap_or_default()]);
            for device in listed.unwrap_or_default().split_whitespace() {
                try_run("losetup", &["-d", device]).ok();
            }
        }
    }
}

fn start(root: &Path, ran: &Arc<Mutex<Vec<Tool>>>, mishap: &Arc<Mutex<Option<Mishap>>>, said: Said) -> Arc<Node> {
    let paths = Paths {
        device_dir: root.join("by-id"),
        sysfs_dir: root.join("sys"),
        dev_dir: "/dev".into(),
        state_dir: root.join("state"),
        kubelet_dir: said.kubelet_dir,
    };
    let linux = Linux::new(paths, Metrics::default()).unwrap();
    let mut boot = linux.boot().clone();
    boot.id = said.boot.unwrap_or(boot.id);
    boot.kernel = said.kernel.unwrap_or(boot.kernel);
    let host = Watched { linux, boot, ran: Arc::clone(ran), mishap: Arc::clone(mishap) };
    let patience =
        Patience { arrival: Duration::from_millis(100), growth: Duration::from_millis(100), ..Patience::default() };
    Arc::new(Node::with_patience(Arc::new(host), &PROFILE, TaskTracker::new(), Metrics::default(), patience))
}

/// Whether this process may have real disks; if not, it is said.
pub(super) fn may_have_disks() -> bool {
    let may = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) && Path::new("/dev/loop-control").exists();
    if !may {
        println!("skipped: needs root and loop devices");
    }
    may
}

pub(super) fn volume() -> VolumeId {
    VolumeId::parse(IdForm::Uuid, "cb676a46-66fd-4dfb-b839-443f2e6c0b60").unwrap()
}

pub(super) fn run(program: &str, arguments: &[&str]) -> String {
    try_run(program, arguments).unwrap()
}

pub(super) fn try_run(program: &str, arguments: &[&str]) -> Result<String, String> {
    // Else cryptsetup waits for udev where there is none.
    let mut command = Command::new(program);
    command.args(arguments).env("DM_DISABLE_UDEV", "1");
    let output = output_of(&mut command).map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))
}
