//! The bed's outside: it makes a world of its own for it (network, mounts, processes), and takes away what that leaves.
//!
//! Inside, every process is a child of the world's first, and ends with it; so do mounts and the network. What outlives it
//! are loop devices, control groups and files, and these are the outside's to look for. Those of a bed whose outside was
//! killed are taken away by the next one.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::sys::{
    stat::{major, minor},
    statfs::{OVERLAYFS_SUPER_MAGIC, statfs},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{network, node, process::output};

/// Set inside to the bed's folder.
pub(crate) const INSIDE: &str = "KUBERNETES_BED";

/// Runs this program again with the same arguments, inside, and gives its exit code. What it leaves is an error. Programs
/// are looked for in `host` first.
pub(crate) async fn run(host: &Path) -> Result<u8> {
    // From before there is anything that could be left
    let mut told = Told::listen()?;
    let temporary = std::env::temp_dir();
    // An earlier one may have begun in another of these.
    let places = BTreeSet::from([temporary.as_path(), Path::new("/tmp"), Path::new("/dev/shm")]);
    for place in places.into_iter().filter(|place| place.is_dir()) {
        sweep(place)?;
    }
    let dir = temporary.join(format!("bed-{}", std::process::id()));
    fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
    let ended = run_inside(&dir, host, &mut told).await;
    let left = clean(&dir);
    let code = ended?;
    let left = left?;
    ensure!(left.is_empty(), "left behind, and taken away now: {}", left.join(", "));
    Ok(code)
}

/// The signals by which the bed is told to end.
struct Told {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Told {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for any of them, of which none is lost that came before.
    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

async fn run_inside(dir: &Path, host: &Path, told: &mut Told) -> Result<u8> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = ["usr/bin", "usr/sbin"].map(|place| host.join(place)).into_iter().chain(std::env::split_paths(&path));
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        // The first process of the world has to bury those that lost their parents, as a shell does while it waits.
        .args(["bash", "-c", "\"$@\"; exit $?", "bed"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, dir)
        // kubectl keeps what it knows of a server by the server's address, and every bed's has the same.
        .env("KUBECACHEDIR", dir.join("kubectl"))
        .env("PATH", std::env::join_paths(places)?)
        // It is told to end by the end of its input: a signal would have to find it there.
        .stdin(Stdio::piped())
        // An interrupt by keyboard is for the outside alone.
        .process_group(0);
    let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn().context("unshare")?;
    let input = child.stdin.take();
    tokio::select! {
        () = told.any() => {}
        ended = child.wait() => return code(ended?),
    }
    drop(input);
    tokio::select! {
        ended = child.wait() => return code(ended?),
        _ = told.interrupt.recv() => {}
        () = tokio::time::sleep(std::time::Duration::from_secs(60)) => {}
    }
    child.kill().await?;
    Ok(1)
}

fn code(status: std::process::ExitStatus) -> Result<u8> {
    let code = status.code().with_context(|| format!("the bed's inside was ended: {status}"))?;
    Ok(u8::try_from(code)?)
}

/// Where the cloud keeps the disks: where the driver's container sees it, as those of the host are told by folders in there.
/// It is the bed's own, also by its name: loop devices are everybody's, and are known by the paths of their files.
pub(crate) fn disks(dir: &Path) -> PathBuf {
    Path::new("/var/lib/kubelet").join(dir.file_name().unwrap_or_default())
}

/// Takes away what is left, and tells what should not have been.
fn clean(dir: &Path) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for device in loop_devices(dir)? {
        let given_back = Command::new("losetup").arg("--detach").arg(&device).output()?;
        let complaint = String::from_utf8_lossy(&given_back.stderr).trim().to_owned();
        left.push(if complaint.is_empty() { device } else { complaint });
    }
    for tree in node::cgroup_trees() {
        let group = node::below(&tree, dir);
        if group.exists() {
            remove_groups(&group, &mut left)?;
        }
    }
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("{} cannot be removed", dir.display()))?;
    }
    Ok(left)
}

/// Takes away what is left, in a temporary folder and in the trees of control groups, of beds that have no process.
fn sweep(temporary: &Path) -> Result<()> {
    // Two that begin at once would take the same away.
    let turn = fs::File::open(temporary).with_context(|| temporary.display().to_string())?;
    turn.lock().context("the turn to sweep")?;
    let user = fs::metadata("/proc/self")?.uid();
    let mut beds = BTreeSet::new();
    for place in node::cgroup_trees().into_iter().chain([temporary.to_owned()]) {
        for entry in fs::read_dir(&place).with_context(|| place.display().to_string())? {
            let entry = entry?;
            if number(&entry.file_name()).is_none() {
                continue;
            }
            match entry.metadata() {
                Ok(found) if found.is_dir() && found.uid() == user => drop(beds.insert(entry.file_name())),
                Err(error) if !is_gone(&error) => return Err(error).context(entry.path().display().to_string()),
                // Somebody else's, or gone with a bed that ends just now
                Ok(_) | Err(_) => {}
            }
        }
    }
    for bed in beds {
        if !lives(&bed)? {
            let left = clean(&temporary.join(&bed))?;
            let left = if left.is_empty() { String::new() } else { format!(": {}", left.join(", ")) };
            println!("{} was killed, and what it left is taken away now{left}", bed.display());
        }
    }
    Ok(())
}

/// The number of the process whose bed has this name, if it is a bed's name.
fn number(name: &OsStr) -> Option<u32> {
    let number = name.to_str()?.strip_prefix("bed-")?.parse().ok()?;
    // No other way to write the number is the name.
    (name == format!("bed-{number}").as_str()).then_some(number)
}

/// Whether anything runs of a bed: its outside, or what is inside, which ends by itself, and later, when the outside is
/// killed.
fn lives(bed: &OsStr) -> Result<bool> {
    let number = number(bed).context("it is no bed's name")?;
    let is_bed = match fs::read_to_string(format!("/proc/{number}/comm")) {
        Ok(name) => name.trim_end() == env!("CARGO_PKG_NAME"),
        Err(error) if is_gone(&error) => false,
        Err(error) => return Err(error).context(format!("/proc/{number}/comm")),
    };
    // This process' own bed is not made yet.
    if is_bed && number != std::process::id() {
        return Ok(true);
    }
    for process in fs::read_dir("/proc")? {
        let environment = process?.path().join("environ");
        match fs::read(&environment) {
            Ok(environment) if environment.split(|byte| *byte == 0).any(|entry| is_inside(entry, bed)) => {
                return Ok(true);
            }
            // One that even root may not look into is none that a bed has started.
            Err(error) if !is_gone(&error) && error.kind() != io::ErrorKind::PermissionDenied => {
                return Err(error).context(environment.display().to_string());
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(false)
}

/// Whether an entry of a process' environment says that it is inside of a bed.
fn is_inside(entry: &[u8], bed: &OsStr) -> bool {
    let dir = entry.strip_prefix(INSIDE.as_bytes()).and_then(|entry| entry.strip_prefix(b"="));
    dir.is_some_and(|dir| Path::new(OsStr::from_bytes(dir)).file_name() == Some(bed))
}

/// Whether a file is not there, or not any more, or never was a process'.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || error.raw_os_error() == Some(nix::libc::ESRCH)
}

/// The loop devices over the bed's files, after those that a kubelet put over these: it does so with every raw block volume.
/// Their paths are told as somebody sees them whose mounts are no more, but the bed's name is in them.
fn loop_devices(dir: &Path) -> Result<Vec<String>> {
    let columns = "NAME,BACK-INO,BACK-MAJ:MIN,BACK-FILE";
    let listed = Command::new("losetup").args(["--list", "--noheadings", "--raw", "--output", columns]).output()?;
    ensure!(listed.status.success(), "losetup: {}", String::from_utf8_lossy(&listed.stderr).trim());
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.splitn(4, ' ').collect()).collect();
    let name = format!("/{}/", dir.file_name().unwrap_or_default().to_string_lossy());
    let (mut ours, mut over) = (Vec::new(), Vec::new());
    for row in rows.iter().filter(|row| row.last().is_some_and(|file| file.contains(&name))) {
        let node = fs::metadata(row[0])?;
        let (inode, device) = (node.ino().to_string(), format!("{}:{}", major(node.dev()), minor(node.dev())));
        let is_over = |row: &&Vec<&str>| row.get(1) == Some(&&*inode) && row.get(2) == Some(&&*device);
        over.extend(rows.iter().filter(is_over).map(|row| row[0].to_owned()));
        ours.push(row[0].to_owned());
    }
    over.extend(ours);
    Ok(over)
}

/// Removes a control group and those below it. One with a process in it cannot be.
fn remove_groups(group: &Path, left: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(group)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_groups(&path, left)?;
        }
    }
    if let Err(error) = fs::remove_dir(group) {
        left.push(format!("{} ({error})", group.display()));
    }
    Ok(())
}

/// What a world needs before anything runs in it: mounts that are its own, empty places, and the network.
pub(crate) async fn furnish(dir: &Path, workers: usize) -> Result<()> {
    let mount =
        |arguments: Vec<String>| async move { output(tokio::process::Command::new("mount").args(arguments)).await };
    let text = |text: &str| text.to_owned();
    if statfs(dir)?.filesystem_type() == OVERLAYFS_SUPER_MAGIC {
        // What is written over /var/lib, and over images, can't be kept on an overlay. This takes memory instead.
        mount(vec![text("-t"), text("tmpfs"), text("bed"), dir.display().to_string()]).await?;
    }
    let folders = ["kubelet", "lib-upper", "lib-work", "logs"].map(|name| dir.join(name));
    for folder in &folders {
        fs::create_dir_all(folder)?;
    }
    // The kubelet's place is where it is on any node, and on this machine nothing of it stays.
    let layers = format!("lowerdir=/var/lib,upperdir={},workdir={}", folders[1].display(), folders[2].display());
    mount(vec![text("-t"), text("overlay"), text("overlay"), text("-o"), layers, text("/var/lib")]).await?;
    fs::create_dir_all("/var/lib/kubelet")?;
    mount(vec![text("--bind"), folders[0].display().to_string(), text("/var/lib/kubelet")]).await?;
    for place in ["/run", "/var/log"] {
        mount(vec![text("-t"), text("tmpfs"), text("bed"), text(place)]).await?;
    }
    // Mounts that pods make have to reach the node.
    mount(vec![text("--make-rshared"), text("/")]).await?;
    network::make(workers).await
}

/// The bed's folder, if this is inside.
pub(crate) fn inside() -> Option<PathBuf> {
    std::env::var_os(INSIDE).map(PathBuf::from)
}
