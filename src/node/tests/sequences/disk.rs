//! A volume's real disk: a loop device over a sparse file.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{errno::Errno, fcntl::OFlag};

use super::{
    plan::Kind,
    world::{Holds, text},
};
use crate::{
    node::{
        mountinfo::Mount,
        tests::machine::{run, try_run},
    },
    volume::FsType,
};

const MIB: u64 = 1 << 20;
const KIB: usize = 1 << 10;

/// What O_DIRECT asks of a buffer.
const ALIGNMENT: usize = 4096;

#[derive(Debug, Clone)]
pub(crate) struct Loop {
    pub(crate) device: PathBuf,
    image: PathBuf,
}

impl Loop {
    /// A blank disk.
    pub(crate) fn over(root: &Path, name: &str, size: u64) -> Self {
        let image = root.join(name);
        fs::File::create(&image).unwrap().set_len(size).unwrap();
        let path = image.to_str().unwrap();
        // Somebody else may take the device that losetup found; then it says so, and looks again.
        let device = (0..50).find_map(|_| try_run("losetup", &["-f", "--show", path]).ok()).unwrap();
        let disk = Self { device: device.trim().into(), image };
        // Whoever had the device before may have left it read-only.
        disk.make_writable();
        disk
    }

    /// As a disk is that has just been attached.
    pub(crate) fn make_writable(&self) {
        if self.is_read_only() {
            run("blockdev", &["--setrw", self.path()]);
        }
    }

    /// A volume's disk, still blank.
    pub(crate) fn of(root: &Path, volume: usize, kind: Kind) -> Self {
        let size = match kind.fs() {
            // Less is nothing to mkfs.xfs, and nothing that a btrfs can grow to.
            Some(FsType::Xfs | FsType::Btrfs) => 320 * MIB,
            Some(FsType::Ext4) | None => 64 * MIB,
        };
        Self::over(root, &format!("volume-{volume}"), size)
    }

    /// Puts on the disk what it holds at first.
    pub(crate) fn fill(&self, mount: &Path, volume: usize, kind: Kind) {
        if let Kind::Filled(fs) | Kind::Wiped(fs) = kind {
            self.fill_with(mount, volume, fs);
        }
        if matches!(kind, Kind::Wiped(_)) {
            let device = OpenOptions::new().write(true).open(&self.device).unwrap();
            device.write_all_at(&vec![0; 128 * KIB], 0).unwrap();
            device.sync_all().unwrap();
        }
    }

    fn fill_with(&self, mount: &Path, volume: usize, fs: FsType) {
        run(&format!("mkfs.{fs}"), &["-q", self.path()]);
        fs::create_dir_all(mount).unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some(&self.device), mount, Some(fs.as_str()), flags, None::<&str>).unwrap();
        fs::write(mount.join("first"), text(volume, "first")).unwrap();
        // A process that is being started for another sequence has all open files for a moment.
        while let Err(cause) = nix::mount::umount(mount) {
            assert_eq!(cause, Errno::EBUSY);
            std::thread::yield_now();
        }
    }

    fn path(&self) -> &str {
        self.device.to_str().expect("a short name")
    }

    pub(crate) fn name(&self) -> String {
        self.device.file_name().expect("a name").to_string_lossy().into_owned()
    }

    /// The kernel's account of it.
    pub(crate) fn sysfs(&self) -> PathBuf {
        Path::new("/sys/class/block").join(self.name())
    }

    pub(crate) fn number(&self) -> u64 {
        fs::metadata(&self.device).expect("the node is there").rdev()
    }

    pub(crate) fn is_read_only(&self) -> bool {
        fs::read_to_string(self.sysfs().join("ro")).is_ok_and(|text| text.trim() == "1")
    }

    pub(crate) fn size(&self) -> u64 {
        fs::metadata(&self.image).expect("the image is there").len()
    }

    pub(crate) fn grow(&self, by: u64) {
        OpenOptions::new().write(true).open(&self.image).unwrap().set_len(self.size() + by).unwrap();
        run("losetup", &["-c", self.path()]);
    }

    /// Whether it is what a line of the mount table is of: a file system on it, or its node.
    pub(crate) fn is_behind(&self, mount: &Mount) -> bool {
        match mount.fs_type.as_str() {
            "devtmpfs" | "tmpfs" => mount.root == Path::new("/").join(self.name()),
            _ => mount.source == self.path(),
        }
    }

    /// What it holds, read past the page cache.
    pub(crate) fn holds(&self) -> Holds {
        let start = self.read(0).expect("the disk can be read");
        let btrfs = self.read(64 * KIB as u64).expect("the disk can be read");
        let ext4 = start[1080..1082] == [0x53, 0xef];
        let xfs = start.starts_with(b"XFSB") && start[126] == 0;
        if ext4 || xfs || &btrfs[64..72] == b"_BHRfS_M" {
            return Holds::All;
        }
        let taken = fs::metadata(&self.image).expect("the image is there").blocks();
        if taken == 0 { Holds::Nothing } else { Holds::Something }
    }

    fn read(&self, offset: u64) -> io::Result<Vec<u8>> {
        let file = OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(&self.device)?;
        let mut buffer = vec![0; 2 * ALIGNMENT];
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        file.read_exact_at(&mut buffer[start..start + ALIGNMENT], offset)?;
        Ok(buffer[start..start + ALIGNMENT].to_vec())
    }

    /// Gives the device back.
    pub(crate) fn end(&self) {
        self.make_writable();
        try_run("losetup", &["-d", self.path()]).ok();
    }
}
