//! What a simulated disk holds: blocks, and file systems with their superblocks at the places and in the form that the
//! real ones have, as far as the driver reads them.

use std::collections::BTreeMap;

use crate::volume::FsType;

const BLOCK: u64 = 4096;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Where a file system keeps its files; no superblock or copy lies there on any size of disk.
const FILES_AT: u64 = 512 * KIB;

/// The part of a superblock that is written.
const SUPERBLOCK_BYTES: usize = 1024;

/// The start of LUKS2's header, and where its UUID is.
const LUKS_MAGIC: &[u8] = b"LUKS\xba\xbe\x00\x02";
const LUKS_UUID: usize = 168;

/// Where what is encrypted begins; much earlier than in reality, since the disks are small.
const PAYLOAD_AT: u64 = MIB;

/// The files of a file system, by name.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// A file system, as its first superblock tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) fs: FsType,
    pub(crate) uuid: String,
    /// How much of the disk it takes.
    pub(crate) bytes: u64,
    /// Its mkfs came to its end.
    pub(crate) complete: bool,
}

/// A disk's content, wherever it is attached.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) size: u64,
    /// Blocks that are not all zero, by their number; of what is encrypted, those that were ever written.
    blocks: BTreeMap<u64, Box<[u8]>>,
    /// What was never written is noise, as it is behind an encryption.
    is_noise: bool,
    /// What is in it behind its encryption.
    pub(crate) payload: Option<Box<Payload>>,
}

/// What is behind an encryption.
#[derive(Debug, Clone)]
pub(crate) struct Payload {
    pub(crate) key: Vec<u8>,
    pub(crate) image: Image,
}

impl Image {
    pub(crate) fn blank(size: u64) -> Self {
        Self { size, blocks: BTreeMap::new(), is_noise: false, payload: None }
    }

    /// What is at first in a block.
    fn first_block(&self, number: u64) -> Box<[u8]> {
        let mut block = vec![0; at(BLOCK)];
        if self.is_noise {
            fastrand::Rng::with_seed(number).fill(&mut block);
        }
        block.into()
    }

    /// `length` bytes from `offset` on, all of them inside.
    pub(crate) fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let end = offset + length as u64;
        let numbers = offset / BLOCK..end.div_ceil(BLOCK);
        let mut copy = |number: u64, block: &[u8]| {
            let start = number * BLOCK;
            let (from, to) = (start.max(offset), (start + BLOCK).min(end));
            bytes[at(from - offset)..at(to - offset)].copy_from_slice(&block[at(from - start)..at(to - start)]);
        };
        if self.is_noise {
            for number in numbers.clone().filter(|number| !self.blocks.contains_key(number)) {
                copy(number, &self.first_block(number));
            }
        }
        for (&number, block) in self.blocks.range(numbers) {
            copy(number, block);
        }
        bytes
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut offset = offset;
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let (number, inside) = (offset / BLOCK, at(offset % BLOCK));
            let length = bytes.len().min(at(BLOCK) - inside);
            let mut block = self.blocks.remove(&number).unwrap_or_else(|| self.first_block(number));
            block[inside..inside + length].copy_from_slice(&bytes[..length]);
            if self.is_noise || block.iter().any(|byte| *byte != 0) {
                self.blocks.insert(number, block);
            }
            offset += length as u64;
            bytes = &bytes[length..];
        }
    }

    pub(crate) fn is_blank(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The UUID of the encryption whose header is there.
    pub(crate) fn encryption(&self) -> Option<String> {
        let header = self.read(0, 512);
        let text = header.starts_with(LUKS_MAGIC).then(|| String::from_utf8_lossy(&header[LUKS_UUID..LUKS_UUID + 36]));
        text.map(std::borrow::Cow::into_owned)
    }

    /// Writes the second header of an encryption, which comes first.
    pub(crate) fn write_second_header(&mut self, uuid: &str) {
        self.write(16 << 10, b"SKUL\xba\xbe\x00\x02");
        self.write((16 << 10) + LUKS_UUID as u64, uuid.as_bytes());
    }

    /// Writes the header of an encryption: what was there can be read no more, and what will be is noise.
    pub(crate) fn encrypt(&mut self, uuid: &str, key: &[u8]) {
        self.write(0, LUKS_MAGIC);
        self.write(LUKS_UUID as u64, uuid.as_bytes());
        let image = Self { is_noise: true, ..Self::blank(self.size - PAYLOAD_AT) };
        self.payload = Some(Box::new(Payload { key: key.to_owned(), image }));
    }

    /// What is behind the encryption, made as large as the disk is.
    pub(crate) fn unlock(&mut self) -> Option<&mut Payload> {
        let size = self.size - PAYLOAD_AT;
        let payload = self.payload.as_deref_mut()?;
        payload.image.size = size;
        Some(payload)
    }

    /// All file systems whose first superblock is there, as a prober finds them.
    pub(crate) fn file_systems(&self) -> Vec<Made> {
        FsType::ALL.into_iter().filter_map(|fs| self.file_system(fs)).collect()
    }

    fn file_system(&self, fs: FsType) -> Option<Made> {
        let sb = self.read(first(fs), SUPERBLOCK_BYTES);
        let little = |at: usize| u64::from(u32::from_le_bytes(sb[at..at + 4].try_into().expect("four bytes")));
        let (uuid_at, bytes, complete) = match fs {
            FsType::Ext4 => {
                (sb[56..58] == [0x53, 0xef]).then_some(())?;
                (104, little(4) * (KIB << little(24)), true)
            }
            FsType::Xfs => {
                sb.starts_with(b"XFSB").then_some(())?;
                let blocks = u64::from_be_bytes(sb[8..16].try_into().expect("eight bytes"));
                (32, blocks * BLOCK, sb[126] == 0)
            }
            FsType::Btrfs => {
                let magic = &sb[64..72];
                (magic == b"_BHRfS_M" || magic == b"!BHRfS_M").then_some(())?;
                (32, little(0xd1) | little(0xd5) << 32, magic[0] == b'_')
            }
        };
        let uuid = uuid_of(&sb[uuid_at..uuid_at + 16]);
        Some(Made { fs, uuid, bytes, complete })
    }

    /// Writes the first superblock, as it is when mkfs is done, or, for what has one then, shortly before.
    pub(crate) fn write_superblock(&mut self, made: &Made) {
        self.write(first(made.fs), &superblock(made));
    }

    /// Writes the copies of the superblock.
    pub(crate) fn write_copies(&mut self, made: &Made) {
        for copy in copies(made.fs, made.bytes) {
            self.write(copy, &superblock(made));
        }
    }

    /// The files of the file system of `uuid`.
    pub(crate) fn files(&self, uuid: &str) -> Files {
        let head = self.read(FILES_AT, 24);
        if head[..16] != bytes_of(uuid) {
            return Files::new();
        }
        let length = usize::try_from(u64::from_le_bytes(head[16..].try_into().expect("eight bytes"))).unwrap();
        serde_json::from_slice(&self.read(FILES_AT + 24, length)).unwrap()
    }

    /// Brings the files of the file system of `uuid` to the disk.
    pub(crate) fn write_files(&mut self, uuid: &str, files: &Files) {
        let text = serde_json::to_vec(files).unwrap();
        let mut bytes = bytes_of(uuid).to_vec();
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text);
        assert!(bytes.len() as u64 <= FILES_AT, "too much for the simulated file system");
        self.write(FILES_AT, &bytes);
    }
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).expect("a part of a small disk")
}

/// Where the first superblock is.
fn first(fs: FsType) -> u64 {
    match fs {
        FsType::Ext4 => KIB,
        FsType::Xfs => 0,
        FsType::Btrfs => 64 * KIB,
    }
}

/// Where mkfs puts copies of the superblock, with the layout that it chooses for a disk of this size.
fn copies(fs: FsType, size: u64) -> Vec<u64> {
    let mut places = match fs {
        FsType::Ext4 => {
            let block = ext4_block(size);
            let shift = if block == KIB { KIB } else { 0 };
            [1, 3, 5, 7, 9].map(|group| group * block * 8 * block + shift).to_vec()
        }
        FsType::Xfs => (1..4).map(|group| group * (size / BLOCK).div_ceil(4) * BLOCK).collect(),
        FsType::Btrfs => vec![64 * MIB],
    };
    places.retain(|place| place + SUPERBLOCK_BYTES as u64 <= size);
    places
}

/// The block size that mke2fs.conf(5) has for a disk of this size.
fn ext4_block(size: u64) -> u64 {
    if size < 512 * MIB { KIB } else { BLOCK }
}

fn superblock(made: &Made) -> Vec<u8> {
    let mut sb = vec![0; SUPERBLOCK_BYTES];
    let mut put = |at: usize, bytes: &[u8]| sb[at..at + bytes.len()].copy_from_slice(bytes);
    let uuid = bytes_of(&made.uuid);
    let low = |number: u64| u32::try_from(number & 0xffff_ffff).expect("cut to 32 bits").to_le_bytes();
    match made.fs {
        FsType::Ext4 => {
            let block = ext4_block(made.bytes);
            put(4, &low(made.bytes / block));
            put(24, &low(u64::from((block / KIB).trailing_zeros())));
            put(56, &[0x53, 0xef]);
            put(104, &uuid);
        }
        FsType::Xfs => {
            put(0, b"XFSB");
            put(4, &u32::try_from(BLOCK).expect("small").to_be_bytes());
            put(8, &(made.bytes / BLOCK).to_be_bytes());
            put(32, &uuid);
            put(126, &[u8::from(!made.complete)]);
        }
        FsType::Btrfs => {
            put(32, &uuid);
            put(64, if made.complete { b"_BHRfS_M" } else { b"!BHRfS_M" });
            put(0x90, &low(BLOCK));
            put(0xd1, &low(made.bytes));
            put(0xd5, &low(made.bytes >> 32));
        }
    }
    sb
}

fn bytes_of(uuid: &str) -> [u8; 16] {
    let digits: String = uuid.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).expect("a UUID").to_be_bytes()
}

fn uuid_of(bytes: &[u8]) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(bytes.try_into().expect("sixteen bytes")));
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}
