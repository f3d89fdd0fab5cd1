//! A simulated kernel: its disks with names and numbers that it gives again, its links, and its mount table.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::image::{Files, Image, Made};
use crate::{
    node::{
        host::{DeviceNumber, Disk, Errno, Mapping, MountCall, MountFlags, Serial},
        mountinfo::Mount,
    },
    volume::FsType,
};

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
    /// A part of the machine's own file system.
    Root,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) target: PathBuf,
    pub(crate) what: What,
    pub(crate) flags: MountFlags,
}

/// One machine's kernel, and its udev.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    dev_dir: PathBuf,
    pub(crate) disks: Vec<Attached>,
    /// By-id links: from serials to names. One to a name that is not there leads nowhere.
    pub(crate) links: BTreeMap<String, String>,
    /// udev has stopped: links stay as they are.
    pub(crate) links_stuck: bool,
    pub(crate) table: Vec<Entry>,
    pub(crate) boot: u64,
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

    /// Whether a disk takes reads and writes: a mapping does as long as its disk is there.
    pub(crate) fn is_alive(&self, disk: &Attached) -> bool {
        let beneath = |unlocks: &Unlocks| self.disks.iter().find(|disk| disk.sequence == unlocks.sequence);
        disk.present && disk.unlocks.as_ref().is_none_or(|unlocks| beneath(unlocks).is_some_and(|disk| disk.present))
    }

    /// What a disk holds, if it takes reads and writes.
    pub(crate) fn content<'a>(&self, images: &'a mut [Image], disk: &Attached) -> Option<&'a mut Image> {
        let image = self.is_alive(disk).then(|| &mut images[disk.image])?;
        match disk.unlocks {
            None => Some(image),
            Some(_) => image.payload.as_mut().map(|payload| &mut payload.image),
        }
    }

    /// The mapping of a name.
    pub(crate) fn mapping(&self, name: &str) -> Option<&Attached> {
        let is = |disk: &&Attached| disk.unlocks.as_ref().is_some_and(|unlocks| unlocks.name == name);
        self.disks.iter().find(|disk| disk.present && is(disk))
    }

    /// Unlocks a disk.
    pub(crate) fn map(&mut self, name: &str, node: &Path, sequence: u64) -> io::Result<()> {
        let beneath = self.open(node, true)?;
        let image = self.disk_of_sequence(beneath).expect("it is open").image;
        let taken: Vec<u64> =
            self.disks.iter().filter(|disk| disk.unlocks.is_some() && disk.present).map(|disk| disk.minor).collect();
        let unlocks = Unlocks { name: name.to_owned(), sequence: beneath, going: false };
        self.disks.push(Attached {
            image,
            serial: None,
            sequence,
            present: true,
            mute: false,
            read_only: false,
            unlocks: Some(unlocks),
            minor: (0..26).find(|minor| !taken.contains(minor)).expect("there are more numbers than mappings"),
            opens: 0,
            claims: 0,
        });
        Ok(())
    }

    /// Locks a disk again, at once or as soon as nothing uses it.
    pub(crate) fn unmap(&mut self, name: &str, later: bool) -> io::Result<()> {
        let sequence = self.mapping(name).ok_or(Errno::ENXIO)?.sequence;
        if !later && self.is_used(sequence) {
            return Err(Errno::EBUSY.into());
        }
        let mapping = self.disk_of_sequence(sequence).expect("it is there");
        mapping.unlocks.as_mut().expect("it is a mapping").going = true;
        self.end_mappings();
        Ok(())
    }

    fn is_used(&self, sequence: u64) -> bool {
        self.disks.iter().any(|disk| disk.sequence == sequence && disk.opens > 0)
            || self.supers.iter().any(|mounted| mounted.sequence == sequence)
    }

    fn end_mappings(&mut self) {
        let is_over = |disk: &Attached| {
            let unlocks = disk.unlocks.as_ref().filter(|unlocks| disk.present && unlocks.going)?;
            (!self.is_used(disk.sequence)).then_some((disk.sequence, unlocks.sequence))
        };
        let over: Vec<(u64, u64)> = self.disks.iter().filter_map(is_over).collect();
        for (mapping, beneath) in over {
            self.disk_of_sequence(mapping).expect("it is there").present = false;
            self.close(beneath, true);
        }
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

    /// What is topmost at a path.
    pub(crate) fn top(&self, path: &Path) -> Option<&Entry> {
        self.table.iter().rev().find(|entry| entry.target == path)
    }

    /// The disk behind a mount; also one that is gone, as long as the kernel still knows it.
    pub(crate) fn behind(&self, what: What) -> Option<&Attached> {
        let sequence = match what {
            What::FileSystem(id) => self.supers.iter().find(|mounted| mounted.id == id)?.sequence,
            What::Node(sequence) => sequence,
            What::Root => return None,
        };
        self.disks.iter().find(|disk| disk.sequence == sequence)
    }

    /// mount(2).
    pub(crate) fn mount(&mut self, images: &mut [Image], call: &MountCall) -> io::Result<()> {
        let MountCall { source, target, fs_type, flags, .. } = call;
        if flags.contains(MountFlags::MS_REMOUNT) {
            let entry = self.table.iter_mut().rev().find(|entry| entry.target == *target);
            entry.ok_or(Errno::EINVAL)?.flags = *flags & !(MountFlags::MS_REMOUNT | MountFlags::MS_BIND);
            return Ok(());
        }
        let source = source.as_deref().ok_or(Errno::EINVAL)?;
        let is_directory = fs::symlink_metadata(target)?.is_dir();
        let (what, flags) = match fs_type {
            Some(_) if !is_directory => return Err(Errno::ENOTDIR.into()),
            Some(fs) => (self.file_system(images, source, fs, *flags)?, *flags),
            None => match (self.disk_at(source), self.top(source)) {
                (Some(_), _) if is_directory => return Err(Errno::ENOTDIR.into()),
                (Some(disk), _) => (What::Node(disk.sequence), MountFlags::empty()),
                // A clone of a mount has its flags.
                (None, Some(entry)) => (entry.what, entry.flags),
                (None, None) if source.exists() => (What::Root, MountFlags::empty()),
                (None, None) => return Err(Errno::ENOENT.into()),
            },
        };
        self.table.push(Entry { target: target.clone(), what, flags });
        Ok(())
    }

    fn file_system(&mut self, images: &mut [Image], node: &Path, fs: &str, flags: MountFlags) -> io::Result<What> {
        let disk = self.disk_at(node).ok_or(Errno::ENOENT)?;
        let read_only = flags.contains(MountFlags::MS_RDONLY);
        if let Some(mounted) = self.supers.iter().find(|mounted| mounted.sequence == disk.sequence) {
            let same = mounted.made.fs.as_str() == fs && mounted.read_only == read_only;
            return if same { Ok(What::FileSystem(mounted.id)) } else { Err(Errno::EBUSY.into()) };
        }
        if disk.claims > 0 {
            return Err(Errno::EBUSY.into());
        }
        if disk.read_only && !read_only {
            return Err(Errno::EACCES.into());
        }
        let image = self.content(images, disk).ok_or(Errno::EIO)?;
        let found = image.file_systems().into_iter().find(|made| made.fs.as_str() == fs);
        let made = found.filter(|made| made.complete && made.bytes <= image.size).ok_or(Errno::EINVAL)?;
        let (sequence, files) = (disk.sequence, image.files(&made.uuid));
        self.mounted += 1;
        let id = self.mounted;
        self.supers.push(Super { id, sequence, made, read_only, files });
        Ok(What::FileSystem(id))
    }

    /// umount2(2), after syncfs(2) as the driver does it.
    pub(crate) fn unmount(&mut self, images: &mut [Image], target: &Path) -> io::Result<()> {
        let at = self.table.iter().rposition(|entry| entry.target == target).ok_or(Errno::EINVAL)?;
        let what = self.table[at].what;
        if !self.forgets {
            self.sync(images, what);
        }
        self.table.remove(at);
        if !self.table.iter().any(|entry| entry.what == what) {
            self.supers.retain(|mounted| what != What::FileSystem(mounted.id));
            self.end_mappings();
        }
        Ok(())
    }

    /// Brings what a file system holds to its disk, if that is still there.
    pub(crate) fn sync(&self, images: &mut [Image], what: What) {
        let Some(mounted) = self.supers.iter().find(|mounted| what == What::FileSystem(mounted.id)) else { return };
        let disk = self.disks.iter().find(|disk| disk.sequence == mounted.sequence);
        if let Some(image) = disk.and_then(|disk| self.content(images, disk)).filter(|_| !mounted.read_only) {
            image.write_files(&mounted.made.uuid, &mounted.files);
        }
    }

    /// The file system that is mounted, and its files.
    pub(crate) fn mounted(&mut self, what: What) -> Option<(&Made, &mut Files)> {
        let mounted = self.supers.iter_mut().find(|mounted| what == What::FileSystem(mounted.id))?;
        Some((&mounted.made, &mut mounted.files))
    }

    /// Whether the file system was mounted read-only, through whichever mount.
    pub(crate) fn is_frozen(&self, what: What) -> bool {
        self.supers.iter().any(|mounted| what == What::FileSystem(mounted.id) && mounted.read_only)
    }

    /// The mount table, as the driver's host has it.
    pub(crate) fn mounts(&self) -> Vec<Mount> {
        self.table.iter().map(|entry| self.line(entry)).collect()
    }

    fn line(&self, entry: &Entry) -> Mount {
        let mode = |read_only| if read_only { "ro" } else { "rw" }.to_owned();
        let disk = self.behind(entry.what);
        let mut mount = Mount {
            device: disk.map_or(DeviceNumber { major: 0, minor: 1 }, Attached::number),
            root: "/".into(),
            target: entry.target.clone(),
            options: vec![mode(entry.flags.contains(MountFlags::MS_RDONLY)), "relatime".to_owned()],
            fs_type: "overlay".to_owned(),
            source: "overlay".to_owned(),
            super_options: vec![mode(self.is_frozen(entry.what))],
            is_node: false,
        };
        match entry.what {
            What::FileSystem(id) => {
                let mounted = self.supers.iter().find(|mounted| mounted.id == id).expect("it is mounted");
                let disk = disk.expect("a mounted disk is known");
                mounted.made.fs.as_str().clone_into(&mut mount.fs_type);
                mount.source = self.dev_dir.join(disk.name()).display().to_string();
                if mounted.made.fs == FsType::Btrfs && !disk.present {
                    // Its own number is none of a disk, and the node that its source names is not there any more.
                    mount.device = DeviceNumber { major: 0, minor: 40 + id };
                }
            }
            What::Node(_) => {
                "devtmpfs".clone_into(&mut mount.fs_type);
                "devtmpfs".clone_into(&mut mount.source);
                let disk = disk.expect("a bound disk is known");
                let deleted = if disk.present { "" } else { "//deleted" };
                mount.root = format!("/{}{deleted}", disk.name()).into();
                mount.is_node = true;
            }
            What::Root => {}
        }
        mount
    }
}
