//! Disks of a Linux machine: their account in sysfs, and their nodes opened past the page cache.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    sys::stat::{major, minor},
};

use super::{DeviceNumber, Disk, Errno, Found, Mapping, Open, OpenDisk, Serial, errno};
use crate::error::Error;

/// sysfs counts sizes in sectors of 512 bytes, whatever the disk's own are.
const SECTOR: u64 = 512;

/// Where the kernel itself shows its block devices.
const KERNELS_OWN: &str = "/sys/class/block";

/// What O_DIRECT asks of buffers on every disk sold so far.
const ALIGNMENT: usize = 4096;

/// All whole disks under `<sysfs>/class/block`, each with the file that has its serial, if it has one, and all mappings,
/// which are the kernel's own wherever the disks are looked for. Nothing here asks a disk for anything.
pub(super) fn list(sysfs: &Path) -> Result<Vec<(Disk, Option<PathBuf>)>, Error> {
    let paths = |class: &Path| -> Result<Vec<PathBuf>, Error> {
        let listed = fs::read_dir(class).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
        listed.map_err(|cause| Error::io("list", class, cause))
    };
    let mut candidates = paths(&sysfs.join("class/block"))?;
    candidates.retain(|path| !is_mapping(path));
    candidates.extend(paths(Path::new(KERNELS_OWN))?.into_iter().filter(|path| is_mapping(path)));
    let mut disks = Vec::new();
    for path in candidates {
        match whole_disk(&path) {
            Ok(Some(disk)) => disks.push(disk),
            Ok(None) => {}
            // It went while it was looked at, which is as good as before.
            Err(_) if !path.exists() => {}
            Err(error) => return Err(error),
        }
    }
    disks.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    Ok(disks)
}

/// The kernel gives no other device such a name.
fn is_mapping(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("dm-"))
}

fn whole_disk(path: &Path) -> Result<Option<(Disk, Option<PathBuf>)>, Error> {
    if path.join("partition").exists() {
        return Ok(None);
    }
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(None) };
    let number = number_in(path)?;
    let size = path.join("size");
    let sectors = read_number(&size)?.ok_or_else(|| malformed(&size))?;
    let serial = path.join("serial");
    let disk = Disk {
        name: name.to_owned(),
        number,
        size: sectors.saturating_mul(SECTOR),
        diskseq: read_number(&path.join("diskseq"))?,
        serial: Serial::Absent,
        partitions: partitions_of(path)?,
        mapping: mapping_of(path)?,
    };
    Ok(Some((disk, serial.exists().then_some(serial))))
}

/// A disk's serial, as the kernel or the disk itself tells it. A disk that has stopped answering holds this up.
pub(super) fn serial(file: &Path) -> Serial {
    match fs::read(file) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Serial::Text(text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned()),
            // Not one of a cloud, whose serials are ASCII.
            Err(_) => Serial::Absent,
        },
        Err(cause) if cause.kind() == ErrorKind::NotFound => Serial::Absent,
        // It is just being taken away.
        Err(cause) if [Errno::ENODEV, Errno::ENXIO].contains(&errno(&cause)) => Serial::Absent,
        Err(cause) => Serial::Unreadable(cause.to_string()),
    }
}

fn mapping_of(path: &Path) -> Result<Option<Mapping>, Error> {
    let text = |name: &str| match fs::read_to_string(path.join("dm").join(name)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::io("read", path.join("dm").join(name), cause)),
    };
    let Some(name) = text("name")? else { return Ok(None) };
    let uuid = text("uuid")?.unwrap_or_default();
    let slaves = path.join("slaves");
    let entries = fs::read_dir(&slaves).map_err(|cause| Error::io("list", &slaves, cause))?;
    // A disk that was taken away from under its mapping has no entry any more, or one that leads nowhere.
    let over = entries.flatten().filter_map(|entry| number_in(&entry.path()).ok()).collect();
    Ok(Some(Mapping { name, uuid, over }))
}

fn number_in(path: &Path) -> Result<DeviceNumber, Error> {
    let file = path.join("dev");
    let text = fs::read_to_string(&file).map_err(|cause| Error::io("read", &file, cause))?;
    DeviceNumber::parse(&text).ok_or_else(|| malformed(&file))
}

fn read_number(file: &Path) -> Result<Option<u64>, Error> {
    match fs::read_to_string(file) {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| malformed(file)),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::io("read", file, cause)),
    }
}

fn malformed(file: &Path) -> Error {
    Error::io("read", file, io::Error::new(ErrorKind::InvalidData, "missing or not a number"))
}

fn partitions_of(path: &Path) -> Result<Vec<DeviceNumber>, Error> {
    let entries = fs::read_dir(path).map_err(|cause| Error::io("list", path, cause))?;
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| path.join("partition").exists()).map(|path| number_in(&path)).collect()
}

/// What is at `path`.
pub(super) fn look(path: &Path, follow: bool) -> io::Result<Found> {
    let found = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
    let found = match found {
        Ok(found) => found,
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(cause) => return Err(cause),
    };
    let kind = found.file_type();
    Ok(if kind.is_dir() {
        Found::Directory
    } else if kind.is_file() {
        Found::File(found.len())
    } else if kind.is_symlink() {
        Found::Symlink
    } else if kind.is_block_device() {
        Found::Block(device_number(found.rdev()))
    } else {
        Found::Other
    })
}

pub(super) fn device_number(raw: u64) -> DeviceNumber {
    DeviceNumber { major: major(raw), minor: minor(raw) }
}

/// A block device's node, held open.
pub(super) struct Node {
    file: File,
    number: DeviceNumber,
}

impl Node {
    pub(super) fn open(path: &Path, how: Open) -> io::Result<Self> {
        let mut flags = OFlag::O_DIRECT | OFlag::O_NOFOLLOW;
        if how != Open::Shared {
            // On a block device it means, also without O_CREAT: only if nothing else has claimed it (open(2)).
            flags |= OFlag::O_EXCL;
        }
        let file = OpenOptions::new().read(true).write(how == Open::Write).custom_flags(flags.bits()).open(path)?;
        let found = file.metadata()?;
        if !found.file_type().is_block_device() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "not a block device"));
        }
        Ok(Self { number: device_number(found.rdev()), file })
    }
}

impl OpenDisk for Node {
    fn number(&self) -> DeviceNumber {
        self.number
    }

    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; length + ALIGNMENT];
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        self.file.read_exact_at(&mut buffer[start..start + length], offset)?;
        buffer.copy_within(start..start + length, 0);
        buffer.truncate(length);
        Ok(buffer)
    }

    fn write_zeroes(&self, offset: u64, length: usize) -> io::Result<()> {
        let buffer = vec![0; length + ALIGNMENT];
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        self.file.write_all_at(&buffer[start..start + length], offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}
