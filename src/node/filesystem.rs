//! What a disk holds, and the programs that check and grow file systems on it.
//!
//! Nothing here decides whether a disk may be formatted: that is `format`'s, on `blank`'s proof.

use std::{fmt, path::Path};

use tracing::info;

use super::{
    blank,
    device::Device,
    host::{Host, Output, Tool, on_disk},
    lock::Lock,
};
use crate::{error::Error, volume::FsType};

const EXT4_MAGIC: [u8; 2] = [0x53, 0xef];
/// In ext4's `s_state`: errors were detected.
const EXT4_ERRORS: u16 = 2;
const XFS_MAGIC: &[u8] = b"XFSB";
const BTRFS_MAGIC: &[u8] = b"_BHRfS_M";
/// What mkfs.btrfs writes until it is done.
const BTRFS_UNFINISHED_MAGIC: &[u8] = b"!BHRfS_M";
const BTRFS_SUPERBLOCK: u64 = 64 << 10;

/// The block in which superblocks are read.
const BLOCK: usize = 4096;

/// What a disk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Nothing that has a name: a blank disk, or one that could not be read, or one with data of its own form.
    Nothing,
    /// A file system that the driver mounts.
    FileSystem {
        /// Its type.
        fs: FsType,
        /// Its UUID.
        uuid: String,
        /// Its mkfs came to its end.
        complete: bool,
    },
    /// An encrypted disk of the kind that the driver makes.
    Luks {
        /// Its UUID.
        uuid: String,
    },
    /// Something that the driver never touches.
    Other(String),
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing that has a name"),
            Self::FileSystem { fs, uuid, complete } => {
                write!(f, "{fs} ({}UUID {uuid})", if *complete { "" } else { "whose mkfs was cut off, " })
            }
            Self::Luks { uuid } => write!(f, "an encrypted disk (LUKS2, UUID {uuid})"),
            Self::Other(found) => f.write_str(found),
        }
    }
}

/// Finds out what the disk holds.
pub(crate) async fn probe(host: &dyn Host, device: &Device, lock: &Lock) -> Result<Content, Error> {
    // Low-level, so past blkid's cache, and with its check for ambivalent results (blkid(8)).
    let output = host.run(Tool::Blkid, &["-p", "-o", "export", device.node_str()], None, lock).await?;
    let content = match output.code {
        Some(0) => content_of(&output.stdout),
        // Nothing found, and just as well: nothing could be read.
        Some(2) => Content::Nothing,
        Some(8) => {
            Content::Other("traces of more than one file system or table (blkid calls it ambivalent)".to_owned())
        }
        _ => return Err(output.error(Tool::Blkid, device.node())),
    };
    let Content::FileSystem { fs: FsType::Xfs, uuid, .. } = content else { return Ok(content) };
    // blkid takes no notice of sb_inprogress, which mkfs.xfs clears last of all.
    let superblock = read(device, 0).await?;
    Ok(Content::FileSystem { fs: FsType::Xfs, uuid, complete: superblock[126] == 0 })
}

fn content_of(export: &str) -> Content {
    let value = |name: &str| export.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let fs = value("TYPE").and_then(|name| FsType::ALL.into_iter().find(|fs| fs.as_str() == name));
    match (fs, value("PTTYPE")) {
        (Some(fs), None) => {
            Content::FileSystem { fs, uuid: value("UUID").unwrap_or_default().to_ascii_lowercase(), complete: true }
        }
        // One of the two is stale, and nobody knows which: to mount the wrong one would harm the other.
        (Some(fs), Some(table)) => Content::Other(format!("{fs} and a partition table ({table})")),
        (None, Some(table)) => Content::Other(format!("a partition table ({table})")),
        (None, None) if value("TYPE") == Some("crypto_LUKS") && value("VERSION") == Some("2") => {
            Content::Luks { uuid: value("UUID").unwrap_or_default().to_ascii_lowercase() }
        }
        (None, None) => Content::Other(match value("TYPE") {
            Some(other) => other.to_owned(),
            None => export.lines().filter(|line| !line.starts_with("DEVNAME")).collect::<Vec<_>>().join(" "),
        }),
    }
}

/// Whether the file system has noted in its superblock that it found itself damaged. Only ext4 does, and goes on being
/// mounted with it.
pub(crate) async fn says_it_has_errors(device: &Device, fs: FsType) -> Result<bool, Error> {
    if fs != FsType::Ext4 {
        return Ok(false);
    }
    let superblock = read(device, 0).await?;
    let ext4 = &superblock[1024..];
    let state = u16::from_le_bytes([ext4[58], ext4[59]]);
    Ok(ext4[56..58] == EXT4_MAGIC && state & EXT4_ERRORS != 0)
}

/// Mends what can be mended without a decision. The disk is not mounted.
///
/// # Errors
/// [`Error::Precondition`] with what the operator can do, if it cannot.
pub(crate) async fn check(host: &dyn Host, device: &Device, fs: FsType, lock: &Lock) -> Result<(), Error> {
    let node = device.node_str();
    let damaged = |remedy: String| {
        let volume = device.volume();
        Error::Precondition(format!(
            "volume {volume}: the {fs} file system on {node} is damaged and was not mounted; {remedy}"
        ))
    };
    match fs {
        FsType::Ext4 => {
            device.verify().await?;
            let output: Output = host.run(Tool::E2fsck, &["-p", node], None, lock).await?;
            match output.code {
                // 1: mended; 2: mended, and a system that runs on it has to be restarted, which none does (e2fsck(8)).
                Some(code @ 0..=3) => {
                    info!(volume = %device.volume(), device = %node, code, "checked");
                    Ok(())
                }
                // 4: it has to be asked; 8: it could not even begin, for want of a superblock.
                Some(code) if code & (4 | 8) != 0 => {
                    let found = format!("{}{}", output.stdout, output.stderr);
                    let found = found.trim();
                    Err(damaged(format!(
                        "run e2fsck {node} on this node and answer its questions, with -b 32768 if it finds no superblock \
                         ({found})"
                    )))
                }
                _ => Err(output.error(Tool::E2fsck, device.node())),
            }
        }
        FsType::Xfs => Err(damaged(format!("unless it is for a newer kernel, run xfs_repair {node} on this node"))),
        FsType::Btrfs => Err(damaged(format!("run btrfs check {node} on this node, and see btrfs-rescue(8)"))),
    }
}

/// Grows the file system, mounted at `mounted_at`, to the disk's size. Gives whether it had to.
pub(crate) async fn grow(
    host: &dyn Host,
    device: &Device,
    fs: FsType,
    mounted_at: &Path,
    lock: &Lock,
) -> Result<bool, Error> {
    let size = device.verify().await?;
    let had = match extent(&read(device, superblock_of(fs)).await?, fs) {
        Some((bytes, block)) if bytes.saturating_add(block) > size => return Ok(false),
        found => found.map(|(bytes, _)| bytes),
    };
    let path = mounted_at.to_str().ok_or_else(|| Error::invalid("volume_path", "is not UTF-8"))?;
    let (tool, arguments) = match fs {
        FsType::Ext4 => (Tool::Resize2fs, vec![device.node_str()]),
        FsType::Xfs => (Tool::XfsGrowfs, vec![path]),
        FsType::Btrfs => (Tool::Btrfs, vec!["filesystem", "resize", "max", path]),
    };
    host.run(tool, &arguments, None, lock).await?.ok(tool, device.node())?;
    info!(volume = %device.volume(), device = %device.node_str(), %fs, from = had, to = size, "grew the file system");
    Ok(true)
}

/// How many bytes of the disk the file system takes, and its block size.
fn extent(superblock: &[u8], fs: FsType) -> Option<(u64, u64)> {
    let little = |at: usize| superblock.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes).map(u64::from);
    let big = |at: usize| superblock.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
    match fs {
        FsType::Ext4 => {
            let ext4 = superblock.get(1024..)?;
            let field = |at: usize| little(1024 + at);
            if ext4.get(56..58)? != EXT4_MAGIC {
                return None;
            }
            let block = 1024u64.checked_shl(u32::try_from(field(24)?).ok()?)?;
            // The upper half counts only where the file system has 64-bit block numbers (INCOMPAT_64BIT).
            let upper = if field(96)? & 0x80 == 0 { 0 } else { field(0x150)? };
            Some(((field(4)? | upper << 32).checked_mul(block)?, block))
        }
        FsType::Xfs => {
            let block = u64::from(u32::from_be_bytes(superblock.get(4..8)?.try_into().ok()?));
            superblock.starts_with(XFS_MAGIC).then_some(())?;
            Some((big(8)?.checked_mul(block)?, block))
        }
        FsType::Btrfs => {
            if superblock.get(64..72)? != BTRFS_MAGIC {
                return None;
            }
            // dev_item.total_bytes; `resize max` rounds down to what it calls a sector.
            Some((little(0xd1)? | little(0xd5)? << 32, little(0x90)?))
        }
    }
}

fn superblock_of(fs: FsType) -> u64 {
    if fs == FsType::Btrfs { BTRFS_SUPERBLOCK } else { 0 }
}

/// Whether any superblock of `fs`, first or copy, is on the disk.
pub(crate) async fn has_traces(device: &Device, fs: FsType) -> Result<bool, Error> {
    let mut places = vec![0, 1024, BTRFS_SUPERBLOCK];
    places.extend(blank::superblocks(device.size()));
    let size = device.size();
    on_disk(device.held(), "read", device.node(), move |disk| {
        for place in places {
            let start = place - place % BLOCK as u64;
            let length = usize::try_from((size - start).min(2 * BLOCK as u64)).expect("at most two blocks");
            let bytes = disk.read(start, length)?;
            let offset = usize::try_from(place - start).expect("less than a block");
            let is = |at: usize, magic: &[u8]| bytes.get(offset + at..).is_some_and(|rest| rest.starts_with(magic));
            if match fs {
                FsType::Ext4 => is(56, &EXT4_MAGIC),
                FsType::Xfs => is(0, XFS_MAGIC),
                FsType::Btrfs => is(64, BTRFS_MAGIC) || is(64, BTRFS_UNFINISHED_MAGIC),
            } {
                return Ok(true);
            }
        }
        Ok(false)
    })
    .await
}

async fn read(device: &Device, offset: u64) -> Result<Vec<u8>, Error> {
    on_disk(device.held(), "read", device.node(), move |disk| disk.read(offset, BLOCK)).await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blkid_says_what_a_disk_holds() {
        let ours = |fs| Content::FileSystem { fs, uuid: "a-b".to_owned(), complete: true };
        for (export, content) in [
            ("DEVNAME=/dev/x\nUUID=A-b\nTYPE=ext4\nUSAGE=filesystem\n", ours(FsType::Ext4)),
            ("DEVNAME=/dev/x\nUUID=a-b\nTYPE=xfs\n", ours(FsType::Xfs)),
            ("UUID=a-b\nUUID_SUB=c\nTYPE=btrfs\n", ours(FsType::Btrfs)),
            ("VERSION=1\nUUID=a-b\nTYPE=crypto_LUKS\n", Content::Other("crypto_LUKS".to_owned())),
            ("VERSION=2\nUUID=A-b\nTYPE=crypto_LUKS\n", Content::Luks { uuid: "a-b".to_owned() }),
            ("TYPE=ext3\n", Content::Other("ext3".to_owned())),
            ("PTUUID=1\nPTTYPE=gpt\n", Content::Other("a partition table (gpt)".to_owned())),
            ("TYPE=ext4\nPTTYPE=dos\n", Content::Other("ext4 and a partition table (dos)".to_owned())),
            ("DEVNAME=/dev/x\nLABEL=what\n", Content::Other("LABEL=what".to_owned())),
        ] {
            assert_eq!(content_of(export), content, "{export}");
        }
    }

    #[test]
    fn what_is_no_superblock_has_no_extent() {
        for fs in FsType::ALL {
            assert_eq!(extent(&[0; BLOCK], fs), None, "{fs}");
            assert_eq!(extent(&[], fs), None, "{fs}");
        }
    }

    proptest! {
        #[test]
        fn no_superblock_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..BLOCK)) {
            let mut bytes = bytes;
            for (at, magic) in [(1024 + 56, &EXT4_MAGIC[..]), (0, XFS_MAGIC), (64, BTRFS_MAGIC)] {
                if let Some(place) = bytes.get_mut(at..at + magic.len()) {
                    place.copy_from_slice(magic);
                }
            }
            for fs in FsType::ALL {
                extent(&bytes, fs);
            }
        }
    }
}
