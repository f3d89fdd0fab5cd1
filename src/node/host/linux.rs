//! The machine that the driver runs on.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    mount::{MntFlags, mount, umount2},
    sys::{
        prctl::set_dumpable,
        resource::{Resource, setrlimit},
        statvfs::statvfs,
    },
    unistd::syncfs,
};
use tracing::warn;

use super::{
    Arrivals, Boot, Counts, DeviceNumber, Disk, Found, Host, MountCall, Open, OpenDisk, Output, Paths, Tool, disk,
    resolve::resolve,
    serial::Serials,
    tool::{Tools, all_started},
    watch::Watch,
};
use crate::{
    error::Error,
    metrics::Metrics,
    node::{
        key::Key,
        lock::Lock,
        mountinfo::{self, Mount},
    },
    volume::FsType,
};

const MOUNT_TABLE: &str = "/proc/self/mountinfo";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Also where the disks are looked for elsewhere, this is what the kernel itself has.
const BLOCK_DEVICES: &str = "/sys/dev/block";
const UUIDS: &str = "/proc/sys/kernel/random/uuid";
/// What ext4 tells of each of its mounted file systems, by the name of the disk.
const EXT4: &str = "/sys/fs/ext4";
/// What btrfs tells of each of its mounted file systems, by UUID.
const BTRFS: &str = "/sys/fs/btrfs";
const DEVICE_MAPPER: &str = "/sys/class/misc/device-mapper";
const DEVICE_MAPPER_NODE: &str = "/dev/mapper/control";
const KERNEL_RELEASE: &str = "/proc/sys/kernel/osrelease";

/// The machine that the driver runs on.
#[derive(Debug)]
pub struct Linux {
    paths: Paths,
    boot: Boot,
    tools: Tools,
    serials: Serials,
}

impl Linux {
    /// The machine, if it has all the programs that the node needs; makes the state directory.
    pub fn new(paths: Paths, metrics: Metrics) -> Result<Self, Error> {
        let tools = Tools::find(paths.state_dir.clone(), metrics)?;
        fs::create_dir_all(&paths.state_dir).map_err(|cause| Error::io("make", &paths.state_dir, cause))?;
        let id = fs::read_to_string(BOOT_ID).map_err(|cause| Error::io("read", BOOT_ID, cause))?;
        let release = fs::read_to_string(KERNEL_RELEASE).map_err(|cause| Error::io("read", KERNEL_RELEASE, cause))?;
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
        let kernel = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        Ok(Self { paths, boot: Boot { id: id.trim().to_owned(), kernel }, tools, serials: Serials::default() })
    }
}

/// Somebody waits for a call.
struct Waiting(Arc<AtomicBool>);

impl Default for Waiting {
    fn default() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Keeps what this process holds, and so the keys that come by, out of core files and from other processes. What it
/// starts leaves no core file either.
pub fn forbid_core_dumps() -> io::Result<()> {
    // A core file that goes through a pipe heeds no limit of 0, but this.
    set_dumpable(false)?;
    // Nor does one of a program that is started heed it; but at a limit of 1 the kernel starts no pipe, and writes no file
    // (core(5), do_coredump).
    Ok(setrlimit(Resource::RLIMIT_CORE, 1, 1)?)
}

/// Runs a system call that may block where it blocks nobody else.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(call).await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
}

#[async_trait::async_trait]
impl Host for Linux {
    fn paths(&self) -> &Paths {
        &self.paths
    }

    fn boot(&self) -> &Boot {
        &self.boot
    }

    fn new_uuid(&self) -> io::Result<String> {
        Ok(fs::read_to_string(UUIDS)?.trim().to_owned())
    }

    async fn has_device_mapper(&self) -> bool {
        // To open its node loads the module, where there is one and nobody did yet.
        let found = || Ok(Path::new(DEVICE_MAPPER).exists() || fs::File::open(DEVICE_MAPPER_NODE).is_ok());
        blocking(found).await.unwrap_or(false)
    }

    async fn disks(&self) -> Result<Vec<Disk>, Error> {
        let listed = self.list(|_| true).await?;
        Ok(self.serials.of(listed).await)
    }

    async fn disk(&self, number: DeviceNumber) -> Result<Option<Disk>, Error> {
        let found = self.list(move |disk| disk.number == number || disk.partitions.contains(&number)).await?;
        match found.into_iter().next() {
            Some((disk, serial)) => Ok(Some(self.serials.fill(disk, serial).await)),
            None => Ok(None),
        }
    }

    async fn exists(&self, number: DeviceNumber) -> io::Result<bool> {
        blocking(move || Path::new(BLOCK_DEVICES).join(number.to_string()).try_exists()).await
    }

    fn arrivals(&self) -> Box<dyn Arrivals> {
        let class = self.paths.sysfs_dir.join("class/block");
        Box::new(Watch::over(&[&class, &self.paths.device_dir, &self.paths.dev_dir]))
    }

    async fn open(&self, node: &Path, how: Open) -> io::Result<Arc<dyn OpenDisk>> {
        let node = node.to_owned();
        blocking(move || {
            if how != Open::Shared {
                all_started();
            }
            Ok(Arc::new(disk::Node::open(&node, how)?) as Arc<dyn OpenDisk>)
        })
        .await
    }

    async fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let (kubelet, path) = (self.paths.kubelet_dir.clone(), path.to_owned());
        blocking(move || resolve(kubelet.as_deref(), &path)).await
    }

    async fn look(&self, path: &Path, follow: bool) -> io::Result<Found> {
        let path = path.to_owned();
        blocking(move || disk::look(&path, follow)).await
    }

    async fn mounts(&self) -> Result<Vec<Mount>, Error> {
        blocking(mount_table).await.map_err(|cause| Error::io("read", MOUNT_TABLE, cause))
    }

    async fn mount(&self, call: MountCall) -> io::Result<()> {
        blocking(move || {
            let MountCall { source, target, fs_type, flags, data } = call;
            let data = (!data.is_empty()).then_some(data.as_str());
            Ok(mount(source.as_deref(), target.as_path(), fs_type, flags, data)?)
        })
        .await
    }

    async fn unmount(&self, target: &Path, lazy: bool) -> io::Result<()> {
        let target = target.to_owned();
        let how = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
        let waiting = Waiting::default();
        let is_wanted = Arc::clone(&waiting.0);
        blocking(move || {
            if !lazy {
                // An unmount writes nothing back while another mount namespace still has the file system, as a
                // container that was given the host's root does.
                let directory = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
                if let Ok(top) = fs::OpenOptions::new().read(true).custom_flags(directory).open(&target)
                    && let Err(error) = syncfs(&top)
                {
                    warn!(path = %target.display(), %error, "what was written could not be brought to the disk");
                }
            }
            all_started();
            if !is_wanted.load(Ordering::Acquire) {
                // Nobody waits any more, and by now something else may be mounted there.
                return Err(Errno::ECANCELED.into());
            }
            Ok(umount2(&target, how | MntFlags::UMOUNT_NOFOLLOW)?)
        })
        .await
    }

    async fn usage(&self, path: &Path) -> io::Result<(Counts, Counts)> {
        let path = path.to_owned();
        blocking(move || {
            // Some answer statfs(2) from memory after they have shut down, but not this (xfs).
            fs::metadata(&path)?;
            let found = statvfs(&path)?;
            let unit = found.fragment_size();
            let bytes = Counts {
                total: found.blocks().saturating_mul(unit),
                used: found.blocks().saturating_sub(found.blocks_free()).saturating_mul(unit),
                available: found.blocks_available().saturating_mul(unit),
            };
            let inodes = Counts {
                total: found.files(),
                used: found.files().saturating_sub(found.files_free()),
                available: found.files_available(),
            };
            Ok((bytes, inodes))
        })
        .await
    }

    async fn try_write(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        blocking(move || {
            let nameless = (OFlag::O_TMPFILE | OFlag::O_CLOEXEC).bits();
            fs::OpenOptions::new().write(true).mode(0o600).custom_flags(nameless).open(&path).map(drop)
        })
        .await
    }

    async fn fs_errors(&self, fs: FsType, disk: &str) -> Option<String> {
        let disk = disk.to_owned();
        blocking(move || Ok(fs_errors(fs, &disk))).await.ok().flatten()
    }

    async fn run(&self, tool: Tool, arguments: &[&str], key: Option<&Key>, lock: &Lock) -> Result<Output, Error> {
        self.tools.run(tool, arguments, key, lock).await
    }
}

impl Linux {
    async fn list(
        &self,
        wanted: impl Fn(&Disk) -> bool + Send + 'static,
    ) -> Result<Vec<(Disk, Option<PathBuf>)>, Error> {
        let sysfs = self.paths.sysfs_dir.clone();
        let listed = blocking(move || {
            Ok(disk::list(&sysfs).map(|found| found.into_iter().filter(|(disk, _)| wanted(disk)).collect()))
        });
        listed.await.unwrap_or_else(|cause| Err(Error::io("list", &self.paths.sysfs_dir, cause)))
    }
}

/// The kernel's own count of a file system's errors.
fn fs_errors(fs: FsType, disk: &str) -> Option<String> {
    match fs {
        FsType::Ext4 => {
            let count = fs::read_to_string(Path::new(EXT4).join(disk).join("errors_count")).ok()?;
            let count = count.trim().parse::<u64>().ok().filter(|count| *count > 0)?;
            Some(format!("the kernel counts {count} errors in the ext4 file system"))
        }
        FsType::Btrfs => {
            let entries = fs::read_dir(BTRFS).ok()?;
            let of_disk = entries.flatten().map(|entry| entry.path());
            let home = of_disk.into_iter().find(|path| path.join("devices").join(disk).exists())?;
            // There is one disk to a volume, and it is number 1.
            let stats = fs::read_to_string(home.join("devinfo/1/error_stats")).ok()?;
            let mut kinds = stats.lines().filter_map(|line| line.split_once(' '));
            kinds.any(|(_, count)| count.trim() != "0").then(|| {
                format!("the kernel counts errors in the btrfs file system: {}", stats.trim().replace('\n', ", "))
            })
        }
        // It counts none that can be read.
        FsType::Xfs => None,
    }
}

/// The mount table, with the two kinds of mount resolved whose own number is not that of the disk behind them.
fn mount_table() -> io::Result<Vec<Mount>> {
    // Not UTF-8 where a path is not; such a path is none of ours.
    let text = String::from_utf8_lossy(&fs::read(MOUNT_TABLE)?).into_owned();
    let mut mounts = mountinfo::parse(&text).map_err(|line| io::Error::new(ErrorKind::InvalidData, line))?;
    for mount in &mut mounts {
        let behind = match mount.fs_type.as_str() {
            // Btrfs has an anonymous number of its own (0:N); its disk is the one that the source field names.
            "btrfs" => PathBuf::from(&mount.source),
            // A device node that is bound somewhere: the number of the node, on a file system that is no disk's.
            "devtmpfs" | "tmpfs" if mount.root != Path::new("/") => mount.target.clone(),
            _ => continue,
        };
        // udev has btrfs name mappings by a link.
        if let Ok(Found::Block(number)) = disk::look(&behind, mount.fs_type == "btrfs") {
            mount.device = number;
            mount.is_node = mount.fs_type != "btrfs";
        }
    }
    Ok(mounts)
}
