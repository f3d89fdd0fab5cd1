//! The simulated programs: what they do to disks, step by step, so that they can be cut off in between.

mod cryptsetup;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Format, Formatted, Shared, State,
    image::{Files, Image, Made},
    kernel::Kernel,
};
use crate::{
    node::{
        host::{Output, Tool},
        tests::process::{Life, Pace},
    },
    volume::FsType,
};

/// A program at work. It holds its disk for itself alone as long as it lives, if it is one that does.
pub(super) struct Program {
    pub(super) shared: Shared,
    pub(super) machine: usize,
    pub(super) life: Arc<Life>,
    pub(super) pace: Arc<Pace>,
    /// Its standard input.
    pub(super) key: Option<Vec<u8>>,
}

/// A disk that a program has for itself.
struct Claim<'a> {
    program: &'a Program,
    sequence: u64,
}

impl Claim<'_> {
    fn content<'b>(&self, kernel: &Kernel, images: &'b mut [Image]) -> Option<&'b mut Image> {
        let disk = kernel.disks.iter().find(|disk| disk.sequence == self.sequence)?;
        kernel.content(images, disk)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.program.shared.lock().unwrap().kernels[self.program.machine].close(self.sequence, true);
    }
}

/// A program was cut off.
struct CutOff;

pub(super) fn ended(code: i32, stdout: String, stderr: &str) -> Output {
    Output { code: Some(code), outcome: format!("exit code {code}"), stdout, stderr: stderr.to_owned() }
}

fn well() -> Output {
    ended(0, String::new(), "")
}

impl Program {
    /// Runs to the end; gives nothing if it was cut off before.
    pub(super) async fn run(&self, tool: Tool, arguments: &[String]) -> Option<Output> {
        let last = PathBuf::from(arguments.last().expect("every program here has a device or path"));
        let ended = match tool {
            Tool::Blkid => self.blkid(last).await,
            Tool::Blockdev => self.blockdev(last, &arguments[0] == "--setro").await,
            Tool::MkfsExt4 => self.mkfs(last, FsType::Ext4, uuid_in(arguments)).await,
            Tool::MkfsXfs => self.mkfs(last, FsType::Xfs, uuid_in(arguments)).await,
            Tool::MkfsBtrfs => self.mkfs(last, FsType::Btrfs, uuid_in(arguments)).await,
            Tool::E2fsck => self.e2fsck(last).await,
            Tool::Resize2fs | Tool::XfsGrowfs | Tool::Btrfs => self.grow(tool, last).await,
            Tool::Fstrim => Ok(well()),
            Tool::Cryptsetup => self.cryptsetup(arguments).await,
        };
        ended.ok()
    }

    async fn step(&self) -> Result<(), CutOff> {
        self.pace.wait().await;
        self.go_on()?;
        self.life.tick();
        self.go_on()
    }

    fn go_on(&self) -> Result<(), CutOff> {
        if self.life.is_over_for_programs() { Err(CutOff) } else { Ok(()) }
    }

    /// Takes a disk that something is about to be made on.
    fn claim(&self, node: &Path, kind: Formatted) -> Option<Claim<'_>> {
        let state = &mut *self.shared.lock().unwrap();
        let kernel = &mut state.kernels[self.machine];
        let sequence = kernel.open(node, true).ok()?;
        let disk = kernel.disks.iter().find(|disk| disk.sequence == sequence).expect("it is open");
        let (image, beneath) = (disk.image, disk.unlocks.as_ref().map_or(sequence, |unlocks| unlocks.sequence));
        let content = kernel.content(&mut state.images, disk);
        let over_a_whole = content
            .is_some_and(|image| image.encryption().is_some() || image.file_systems().iter().any(|made| made.complete));
        state.formatted.push(Format { machine: self.machine, sequence: beneath, image, kind, over_a_whole });
        Some(Claim { program: self, sequence })
    }

    async fn blkid(&self, node: PathBuf) -> Result<Output, CutOff> {
        self.step().await?;
        let State { kernels, images, .. } = &mut *self.shared.lock().unwrap();
        let kernel = &kernels[self.machine];
        let Some(image) = kernel.disk_at(&node).and_then(|disk| kernel.content(images, disk)) else {
            return Ok(ended(2, String::new(), ""));
        };
        if let Some(uuid) = image.encryption() {
            let text = format!("DEVNAME={}\nUUID={uuid}\nVERSION=2\nTYPE=crypto_LUKS\n", node.display());
            return Ok(ended(0, text, ""));
        }
        // It knows the magic of a mkfs.btrfs that is not done for none.
        let mut found = image.file_systems();
        found.retain(|made| made.fs != FsType::Btrfs || made.complete);
        Ok(match &found[..] {
            [] => ended(2, String::new(), ""),
            [made] => {
                let text = format!("DEVNAME={}\nUUID={}\nTYPE={}\n", node.display(), made.uuid, made.fs);
                ended(0, text, "")
            }
            _ => ended(8, String::new(), ""),
        })
    }

    async fn blockdev(&self, node: PathBuf, read_only: bool) -> Result<Output, CutOff> {
        self.step().await?;
        let mut shared = self.shared.lock().unwrap();
        let kernel = &mut shared.kernels[self.machine];
        let Some(sequence) = kernel.disk_at(&node).map(|disk| disk.sequence) else {
            return Ok(ended(1, String::new(), "no such device"));
        };
        kernel.disk_of_sequence(sequence).expect("it is there").read_only = read_only;
        Ok(well())
    }

    async fn mkfs(&self, node: PathBuf, fs: FsType, uuid: Option<String>) -> Result<Output, CutOff> {
        let Some(uuid) = uuid else {
            // On paper only.
            return Ok(well());
        };
        self.step().await?;
        let Some(claim) = self.claim(&node, Formatted::FileSystem) else {
            return Ok(ended(1, String::new(), "is in use"));
        };
        let mut made = Made { fs, uuid, bytes: 0, complete: false };
        for stage in 0..6 {
            self.step().await?;
            let State { kernels, images, .. } = &mut *self.shared.lock().unwrap();
            let Some(image) = claim.content(&kernels[self.machine], images) else {
                return Ok(ended(1, String::new(), "input/output error"));
            };
            match stage {
                // These two look for themselves.
                0 if fs != FsType::Ext4 && image.file_systems().iter().any(|made| made.complete) => {
                    return Ok(ended(1, String::new(), "appears to contain an existing file system"));
                }
                0 => made.bytes = image.size,
                // Tables and trees, and an empty root directory.
                1 => image.write(16 << 10, &[0xa5; 4096]),
                2 => image.write_files(&made.uuid, &Files::new()),
                // What ext4 has of a first superblock before it is done is none.
                3 if fs != FsType::Ext4 => image.write_superblock(&made),
                4 => image.write_copies(&made),
                5 => image.write_superblock(&Made { complete: true, ..made.clone() }),
                _ => {}
            }
        }
        Ok(well())
    }

    async fn e2fsck(&self, node: PathBuf) -> Result<Output, CutOff> {
        self.step().await?;
        let State { kernels, images, .. } = &mut *self.shared.lock().unwrap();
        let kernel = &kernels[self.machine];
        let found =
            kernel.disk_at(&node).and_then(|disk| kernel.content(images, disk)).map(|image| image.file_systems());
        let whole = found.is_some_and(|found| found.iter().any(|made| made.fs == FsType::Ext4));
        Ok(if whole { well() } else { ended(8, String::new(), "bad magic number in super-block") })
    }

    /// Grows a mounted file system: ext4's program gets the node, the others a path.
    async fn grow(&self, tool: Tool, last: PathBuf) -> Result<Output, CutOff> {
        self.step().await?;
        self.step().await?;
        let mut shared = self.shared.lock().unwrap();
        let shared = &mut *shared;
        let kernel = &mut shared.kernels[self.machine];
        let failed = |why: &str| Ok(ended(1, String::new(), why));
        let sequence = kernel.disk_at(&last).map(|disk| disk.sequence);
        let entry = match tool {
            Tool::Resize2fs => kernel
                .table
                .iter()
                .find(|entry| kernel.behind(entry.what).is_some_and(|disk| Some(disk.sequence) == sequence)),
            _ => kernel.top(&last),
        };
        let Some(entry) = entry.cloned() else { return failed("not a mounted file system") };
        if kernel.is_frozen(entry.what) {
            return failed("read-only file system");
        }
        let made = kernel.mounted(entry.what).map(|(made, _)| made.clone());
        let disk = kernel.behind(entry.what);
        let (Some(image), Some(made)) = (disk.and_then(|disk| kernel.content(&mut shared.images, disk)), made) else {
            return failed("input/output error");
        };
        let grown = Made { bytes: image.size, ..made };
        image.write_superblock(&grown);
        Ok(well())
    }
}

/// The UUID that mkfs is told to give, if it is to do anything.
fn uuid_in(arguments: &[String]) -> Option<String> {
    if arguments.iter().any(|argument| argument == "-N") {
        return None;
    }
    let mut uuids = arguments.windows(2).filter_map(|pair| match pair[0].as_str() {
        "-U" => Some(pair[1].clone()),
        "-m" => pair[1].split(',').find_map(|option| option.strip_prefix("uuid=")).map(str::to_owned),
        _ => None,
    });
    Some(uuids.next().expect("the driver chooses the UUID"))
}
