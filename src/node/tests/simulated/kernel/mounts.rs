//! The mount table of a simulated kernel, and the file systems that are mounted.

use std::{fs, io, path::Path};

use super::{Attached, Entry, Kernel, Super, What};
use crate::{
    node::{
        host::{DeviceNumber, Errno, MountCall, MountFlags},
        mountinfo::{Mount, VIRTIOFS},
        tests::simulated::image::{Files, Image, Made},
    },
    volume::FsType,
};

impl Kernel {
    /// What is topmost at a path.
    pub(crate) fn top(&self, path: &Path) -> Option<&Entry> {
        self.table.iter().rev().find(|entry| entry.target == path)
    }

    /// The disk behind a mount; also one that is gone, as long as the kernel still knows it.
    pub(crate) fn behind(&self, what: What) -> Option<&Attached> {
        let sequence = match what {
            What::FileSystem(id) => self.supers.iter().find(|mounted| mounted.id == id)?.sequence,
            What::Node(sequence) => sequence,
            What::Share(_) | What::Root => return None,
        };
        self.disks.iter().find(|disk| disk.sequence == sequence)
    }

    /// mount(2).
    pub(crate) fn mount(&mut self, images: &mut [Image], call: &MountCall) -> io::Result<()> {
        let MountCall { source, target, fs_type, flags, .. } = call;
        self.calls.push(call.clone());
        if flags.contains(MountFlags::MS_REMOUNT) {
            let entry = self.table.iter_mut().rev().find(|entry| entry.target == *target).ok_or(Errno::EINVAL)?;
            entry.flags = *flags & !(MountFlags::MS_REMOUNT | MountFlags::MS_BIND);
            if !self.in_container {
                entry.seen = entry.flags;
            }
            return Ok(());
        }
        let source = source.as_deref().ok_or(Errno::EINVAL)?;
        let is_directory = fs::symlink_metadata(target)?.is_dir();
        let (what, flags) = match fs_type {
            Some(_) if !is_directory => return Err(Errno::ENOTDIR.into()),
            Some(VIRTIOFS) => (self.mount_share(call)?, *flags),
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
        self.table.push(Entry { target: target.clone(), what, flags, seen: flags });
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
        self.share(what).is_some_and(|share| share.read_only)
            || self.supers.iter().any(|mounted| what == What::FileSystem(mounted.id) && mounted.read_only)
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
            What::Share(_) => {
                let share = self.share(entry.what).expect("a mounted share is known");
                mount.device = share.number();
                VIRTIOFS.clone_into(&mut mount.fs_type);
                share.tag.clone_into(&mut mount.source);
            }
            What::Root => {}
        }
        mount
    }
}
