//! The seam between the node domain and the machine: every effect on devices, mounts and programs goes through
//! [`Host`].
//!
//! [`Linux`] is the machine itself and, with the rooms below, the only code that knows `nix` and processes. What is
//! decided, and why, stands above the seam.

mod disk;
mod linux;
mod program;
mod resolve;
mod serial;
mod tool;
mod watch;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

pub use nix::{errno::Errno, mount::MsFlags as MountFlags};

#[cfg(test)]
pub(super) use self::tool::output_of;
pub use self::{
    linux::{Linux, forbid_core_dumps},
    program::{Tool, check_programs},
    tool::Output,
};
use super::{key::Key, lock::Lock, mountinfo::Mount};
use crate::{error::Error, volume::FsType};

/// Where the machine shows what the node needs.
#[derive(Debug, Clone)]
pub struct Paths {
    /// By-id links (`/dev/disk/by-id`): hints, never proof.
    pub device_dir: PathBuf,
    /// The kernel's own account of its disks (`/sys`).
    pub sysfs_dir: PathBuf,
    /// Device nodes (`/dev`).
    pub dev_dir: PathBuf,
    /// The node's own small records and locks.
    pub state_dir: PathBuf,
    /// The kubelet's directory, if it is known: then nothing outside of it is mounted on, and no link in it followed.
    pub kubelet_dir: Option<PathBuf>,
}

/// The number by which the kernel knows a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// Which driver.
    pub major: u64,
    /// Which of its devices.
    pub minor: u64,
}

impl DeviceNumber {
    /// What no device and no mount has.
    pub const NONE: Self = Self { major: 0, minor: 0 };

    /// The number in the kernel's `major:minor` form.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// What the kernel shows as a disk's serial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serial {
    /// The disk has none, so it is no candidate for anything.
    Absent,
    /// The serial, without white space around it.
    Text(String),
    /// It could not be read, for this reason: the disk may be any.
    Unreadable(String),
}

/// A whole disk, or a device that device-mapper made, as sysfs shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name of it, which is also that of its node.
    pub name: String,
    /// Its number.
    pub number: DeviceNumber,
    /// Its size in bytes.
    pub size: u64,
    /// A number that the kernel never gives twice while it runs; older kernels than 5.15 have none.
    pub diskseq: Option<u64>,
    /// Its serial.
    pub serial: Serial,
    /// The numbers of its partitions.
    pub partitions: Vec<DeviceNumber>,
    /// What it is made of, if device-mapper made it.
    pub mapping: Option<Mapping>,
}

/// What a device that device-mapper made is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The name that whoever made it gave it.
    pub name: String,
    /// What whoever made it says that it is: of cryptsetup `CRYPT-LUKS2-<uuid>-<name>`.
    pub uuid: String,
    /// The devices beneath it.
    pub over: Vec<DeviceNumber>,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A directory.
    Directory,
    /// A regular file of this many bytes.
    File(u64),
    /// A symbolic link.
    Symlink,
    /// A block device.
    Block(DeviceNumber),
    /// Something else.
    Other,
}

/// How a disk is opened; always past the page cache, so that what is read is what the disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// For reading, whoever else has it.
    Shared,
    /// For reading, and only if nothing else (a mount, a mapping, a mkfs) has it.
    Exclusive,
    /// For writing, and only if nothing else has it.
    Write,
}

/// A disk held open. Its calls block, so they belong in `spawn_blocking`.
///
/// While it is held the kernel cannot give its number to another disk.
pub trait OpenDisk: Send + Sync {
    /// The number of what was really opened.
    fn number(&self) -> DeviceNumber;
    /// Exactly `length` bytes from `offset` on; both are multiples of 512, and less is an error.
    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>>;
    /// Overwrites `length` bytes from `offset` on with zeroes; both are multiples of 512.
    fn write_zeroes(&self, offset: u64, length: usize) -> io::Result<()>;
    /// Brings everything written to the disk's own medium.
    fn sync(&self) -> io::Result<()>;
}

/// Works on an open disk, where it blocks nobody else.
pub(crate) async fn on_disk<T: Send + 'static>(
    disk: Arc<dyn OpenDisk>,
    doing: &'static str,
    node: &Path,
    work: impl FnOnce(&dyn OpenDisk) -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(move || work(disk.as_ref())).await;
    done.map_err(|panicked| Error::Panicked(panicked.to_string()))?.map_err(|cause| Error::io(doing, node, cause))
}

/// Something that tells when disks may have come or gone.
#[async_trait::async_trait]
pub trait Arrivals: Send {
    /// Returns when something has changed since the last look.
    async fn changed(&mut self);
}

/// A call of mount(2).
#[derive(Debug, Clone)]
pub struct MountCall {
    /// The device or the path to mount; none for a remount.
    pub source: Option<PathBuf>,
    /// Where.
    pub target: PathBuf,
    /// The file system; none for a bind mount or a remount.
    pub fs_type: Option<&'static str>,
    /// The kernel's flags.
    pub flags: MountFlags,
    /// Options for the file system itself.
    pub data: String,
}

/// How full a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// All there are.
    pub total: u64,
    /// In use.
    pub used: u64,
    /// Left for ordinary users.
    pub available: u64,
}

/// The running kernel.
#[derive(Debug, Clone)]
pub struct Boot {
    /// Another one after every start of the machine.
    pub id: String,
    /// Major and minor version.
    pub kernel: (u32, u32),
}

/// The kernel's own word for a failure.
pub(crate) fn errno(cause: &io::Error) -> Errno {
    Errno::from_raw(cause.raw_os_error().unwrap_or_default())
}

/// The machine.
#[async_trait::async_trait]
pub trait Host: Send + Sync + 'static {
    /// Where things are.
    fn paths(&self) -> &Paths;

    /// The running kernel.
    fn boot(&self) -> &Boot;

    /// A UUID that nothing else has.
    fn new_uuid(&self) -> io::Result<String>;

    /// Whether the kernel can unlock encrypted disks.
    async fn has_device_mapper(&self) -> bool;

    /// All whole disks and mappings. A disk that does not tell its serial in a moment is shown without; it is not
    /// waited for twice.
    async fn disks(&self) -> Result<Vec<Disk>, Error>;

    /// The disk or mapping of this number, if there is one; no other disk is waited for.
    async fn disk(&self, number: DeviceNumber) -> Result<Option<Disk>, Error>;

    /// Whether the kernel has any block device of this number, a disk of the above or not.
    async fn exists(&self, number: DeviceNumber) -> io::Result<bool>;

    /// Tells of disks that come and go from now on.
    fn arrivals(&self) -> Box<dyn Arrivals>;

    /// Opens a device node, not following a link at its last component.
    async fn open(&self, node: &Path, how: Open) -> io::Result<Arc<dyn OpenDisk>>;

    /// `path` as the mount table has it: links in what leads there are followed, one at its last component is not.
    /// Below the kubelet's directory, if that is known, none is followed, and a path outside of it is an error.
    async fn resolve(&self, path: &Path) -> io::Result<PathBuf>;

    /// What is at `path`, following a link at its last component only if `follow`.
    async fn look(&self, path: &Path, follow: bool) -> io::Result<Found>;

    /// The mount table, in the order of mounting.
    async fn mounts(&self) -> Result<Vec<Mount>, Error>;

    /// Mounts.
    async fn mount(&self, call: MountCall) -> io::Result<()>;

    /// Unmounts what is topmost at `target`; if `lazy`, takes it out of sight and lets the kernel end it later.
    async fn unmount(&self, target: &Path, lazy: bool) -> io::Result<()>;

    /// Bytes and inodes of the file system at `path`. It may hang on a dead disk.
    async fn usage(&self, path: &Path) -> io::Result<(Counts, Counts)>;

    /// Tries whether the file system at `path` takes writes, by a file that gets no name. It may hang on a dead disk.
    async fn try_write(&self, path: &Path) -> io::Result<()>;

    /// How many errors the kernel has counted in the file system on this disk, and of which kind, in words; nothing
    /// where it counts none.
    async fn fs_errors(&self, fs: FsType, disk: &str) -> Option<String>;

    /// Runs a program to its end, with the key as its standard input, if it needs one. The program has the lock open:
    /// should the driver die, the volume stays locked for as long as the program runs.
    async fn run(&self, tool: Tool, arguments: &[&str], key: Option<&Key>, lock: &Lock) -> Result<Output, Error>;
}
