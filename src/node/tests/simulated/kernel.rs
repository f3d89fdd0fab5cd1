//! A simulated kernel: its disks with names and numbers that it gives again, its links, and its mount table.

mod mapper;
mod mounts;
mod shares;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use self::shares::Shared;
use super::image::{Files, Image, Made};
use crate::node::host::{DeviceNumber, Disk, Errno, Mapping, MountCall, MountFlags, Serial};

/// What virtio-blk has for major number here, and how far apart its disks' minor numbers are.
const MAJOR: u64 = 252;
const MINORS: u64 = 16;

/// The same of device-mapper.
const MAPPER_MAJOR: u64 = 253;

/// A disk that is attached, or one that was and that something still has.
#[derive(Debug)]
pub(crate) struct Attached {
    /// Which of the images it is.
    pub(crate) image: usize,
    pub(crate) serial: Option<String>,
    /// Its number among all that were ever attached.
    pub(crate) sequence: u64,
    pub(crate) present: bool,
    /// Its serial cannot be read.
    pub(crate) mute: bool,
    /// It was made so (BLKROSET).
    pub(crate) read_only: bool,
    /// It is what unlocks another one.
    pub(crate) unlocks: Option<Unlocks>,
    minor: u64,
    opens: usize,
    /// How many have opened it for themselves alone.
    claims: usize,
}

/// What a mapping unlocks.
#[derive(Debug, Clone)]
pub(crate) struct Unlocks {
    pub(crate) name: String,
    /// The disk beneath.
    pub(crate) sequence: u64,
    /// It goes as soon as nothing uses it.
    going: bool,
}

impl Attached {
    pub(crate) fn name(&self) -> String {
        if self.unlocks.is_some() {
            return format!("dm-{}", self.minor);
        }
        let letter = char::from(b'a' + u8::try_from(self.minor / MINORS).expect("a few disks"));
        format!("vd{letter}")
    }

    /// Whether it is the disk itself of this image, and there.
    fn is_of(&self, image: usize) -> bool {
        self.image == image && self.present && self.unlocks.is_none()
    }

    pub(crate) fn number(&self) -> DeviceNumber {
        DeviceNumber { major: if self.unlocks.is_some() { MAPPER_MAJOR } else { MAJOR }, minor: self.minor }
    }
}

/// A mounted file system.
#[derive(Debug)]
struct Super {
    id: u64,
    /// The disk's.
    sequence: u64,
    made: Made,
    read_only: bool,
    files: Files,
}

/// What a mount shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// A file system, by its number among those that were ever mounted.
    FileSystem(u64),
    /// The node of a disk, by the disk's number among all that were ever attached.
    Node(u64),
    /// A share, by the number of its device among all that were ever attached.
    Share(u64),
    /// A part of the machine's own file system.
    Root,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) target: PathBuf,
    pub(crate) what: What,
    /// As the driver sees it.
    pub(crate) flags: MountFlags,
    /// As the node and its pods do.
    pub(crate) seen: MountFlags,
}

/// One machine's kernel, and its udev.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    dev_dir: PathBuf,
    pub(crate) disks: Vec<Attached>,
    /// By-id links: from serials to names. One to a name that is not there leads nowhere.
    pub(crate) links: BTreeMap<String, String>,
    /// udev has stopped: links stay as they are.
    pub(crate) links_stuck: bool,
    pub(crate) table: Vec<Entry>,
    pub(crate) shares: Vec<Shared>,
    /// It has no virtiofs.
    pub(crate) lacks_virtiofs: bool,
    /// The calls of mount(2) there were, in their order.
    pub(crate) calls: Vec<MountCall>,
    pub(crate) boot: u64,
    /// The driver is in a container: mounts reach its namespace and leave it, and remounts don't.
    pub(crate) in_container: bool,
    /// It loses what was not brought to a disk before the unmount; which no kernel does.
    pub(crate) forgets: bool,
    supers: Vec<Super>,
    mounted: u64,
}

impl Kernel {
    pub(crate) fn new(dev_dir: PathBuf) -> Self {
        Self { dev_dir, ..Self::default() }
    }

    /// Shows a disk under the lowest number that nothing has any more.
    pub(crate) fn attach(&mut self, image: usize, serial: Option<&str>, sequence: u64) {
        let (supers, table) = (&self.supers, &self.table);
        let is_bound = |disk: &Attached| table.iter().any(|entry| entry.what == What::Node(disk.sequence));
        let has_number = |disk: &Attached| {
            disk.present || disk.opens > 0 || supers.iter().any(|mounted| mounted.sequence == disk.sequence)
        };
        // A node that is bound somewhere keeps no number from being given again.
        self.disks.retain(|disk| has_number(disk) || is_bound(disk));
        let same = self.disks.iter().filter(|disk| disk.unlocks.is_none());
        let taken: Vec<u64> = same.filter(|disk| has_number(disk)).map(|disk| disk.minor).collect();
        let minor = (0..26).map(|at| at * MINORS).find(|minor| !taken.contains(minor));
        let disk = Attached {
            image,
            serial: serial.map(str::to_owned),
            sequence,
            present: true,
            mute: false,
            read_only: false,
            unlocks: None,
            minor: minor.expect("there are more numbers than disks"),
            opens: 0,
            claims: 0,
        };
        if let Some(serial) = serial.filter(|_| !self.links_stuck) {
            self.links.insert(serial.to_owned(), disk.name());
        }
        self.disks.push(disk);
    }

    /// The driver is started, with the mounts as the node has them.
    pub(crate) fn driver_starts(&mut self) {
        for entry in &mut self.table {
            entry.flags = entry.seen;
        }
    }

    /// Takes a disk away, whatever still has it.
    pub(crate) fn detach(&mut self, image: usize) {
        let Some(disk) = self.disks.iter_mut().find(|disk| disk.is_of(image)) else { return };
        disk.present = false;
        let serial = disk.serial.clone().unwrap_or_default();
        if !self.links_stuck && self.links.get(&serial) == Some(&disk.name()) {
            self.links.remove(&serial);
        }
    }

    /// Everything that was in memory is gone; the disks come back in another order.
    pub(crate) fn reboot(&mut self, order: &mut fastrand::Rng, sequence: &mut u64) {
        self.table.clear();
        self.supers.clear();
        self.links.clear();
        self.links_stuck = false;
        self.boot += 1;
        let mut disks: Vec<Attached> =
            self.disks.drain(..).filter(|disk| disk.present && disk.unlocks.is_none()).collect();
        order.shuffle(&mut disks);
        for disk in disks {
            *sequence += 1;
            self.attach(disk.image, disk.serial.as_deref(), *sequence);
        }
    }

    /// The disk of an image, if it is there.
    pub(crate) fn disk_of(&self, image: usize) -> Option<&Attached> {
        self.disks.iter().find(|disk| disk.is_of(image))
    }

    /// The disk behind a node, if it is there.
    pub(crate) fn disk_at(&self, node: &Path) -> Option<&Attached> {
        let name = node.strip_prefix(&self.dev_dir).ok()?;
        self.disks.iter().find(|disk| disk.present && name == Path::new(&disk.name()))
    }

    pub(crate) fn disk_of_sequence(&mut self, sequence: u64) -> Option<&mut Attached> {
        self.disks.iter_mut().find(|disk| disk.sequence == sequence)
    }

    /// Where the link of a serial leads.
    pub(crate) fn link(&self, serial: &str) -> Option<&Attached> {
        self.disk_at(&self.dev_dir.join(self.links.get(serial)?))
    }

    /// Opens a disk.
    pub(crate) fn open(&mut self, node: &Path, alone: bool) -> io::Result<u64> {
        let sequence = self.disk_at(node).ok_or(Errno::ENOENT)?.sequence;
        let mounted = self.supers.iter().any(|mounted| mounted.sequence == sequence);
        let disk = self.disk_of_sequence(sequence).expect("it is there");
        if alone && (mounted || disk.claims > 0) {
            return Err(Errno::EBUSY.into());
        }
        disk.opens += 1;
        disk.claims += usize::from(alone);
        Ok(sequence)
    }

    pub(crate) fn close(&mut self, sequence: u64, alone: bool) {
        if let Some(disk) = self.disk_of_sequence(sequence) {
            disk.opens -= 1;
            disk.claims -= usize::from(alone);
        }
        self.end_mappings();
    }

    /// The disks, as sysfs shows them.
    pub(crate) fn shown(&self, images: &[Image]) -> Vec<Disk> {
        let mut shown: Vec<Disk> = self
            .disks
            .iter()
            .filter(|disk| disk.present)
            .map(|disk| Disk {
                name: disk.name(),
                number: disk.number(),
                size: match (&disk.unlocks, &images[disk.image].payload) {
                    (Some(_), Some(payload)) => payload.image.size,
                    _ => images[disk.image].size,
                },
                diskseq: Some(disk.sequence),
                serial: match &disk.serial {
                    _ if disk.mute => Serial::Unreadable(Errno::EIO.desc().to_owned()),
                    Some(serial) => Serial::Text(serial.clone()),
                    None => Serial::Absent,
                },
                partitions: Vec::new(),
                mapping: disk.unlocks.as_ref().map(|unlocks| Mapping {
                    name: unlocks.name.clone(),
                    uuid: format!("CRYPT-LUKS2-{}", unlocks.name),
                    over: self.number_of(unlocks.sequence).into_iter().collect(),
                }),
            })
            .collect();
        shown.sort_by(|a, b| a.name.cmp(&b.name));
        shown
    }

    /// The number of a disk that is there.
    fn number_of(&self, sequence: u64) -> Option<DeviceNumber> {
        self.disks.iter().find(|disk| disk.sequence == sequence && disk.present).map(Attached::number)
    }
}
