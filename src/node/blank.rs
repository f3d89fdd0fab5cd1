//! Proof of blankness (P1): a disk is blank when it is as large as the cloud says, nothing else has it, and every place
//! that could tell of data was read without an error and is zero.
//!
//! A probe of the first sectors is no proof: a file system whose primary superblock was wiped has others further on.

use std::{collections::BTreeMap, io, sync::Arc};

use super::{
    device::Device,
    format::refused,
    host::{Host, Open, OpenDisk},
};
use crate::error::{Error, Refusal};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Read at the start: labels of LVM, mdraid, ZFS, LUKS2 (its second header lies within 4 MiB and 16 KiB), bcache, swap and
/// partition tables; and what is left of foreign file systems whose first MiBs were wiped. Of those the second table of
/// the largest FAT32 lies farthest out, behind a first one of 256 MiB.
const HEAD: u64 = 272 * MIB;

/// Read at the end: copies of partition tables, labels of RAID, bcachefs and others.
const TAIL: u64 = 8 * MIB;

/// Read at every single place.
const PROBE: u64 = 4 * KIB;

/// How many places are read at even distances over the whole disk.
const SAMPLES: u64 = 1024;

/// Allocation groups of xfs begin at multiples of this where a disk had a whole number of GiB when it was made, and a
/// default mkfs gave it four.
const GRID: u64 = 256 * MIB;

/// At most so many places of [`GRID`]; on larger disks the grid is coarser.
const GRID_PLACES: u64 = 4096;

/// A part of a disk, by offset and length.
type Region = (u64, u64);

/// Proves that the disk is blank.
///
/// # Errors
/// [`Error::DiskRefused`] with what was found, and where; also if something could not be read.
pub(crate) async fn prove(device: &Device, host: &dyn Host, least: Option<u64>) -> Result<(), Error> {
    let refused = |why: Refusal, found: String, remedy: &str| refused(device, why, found, remedy);
    let size = device.size();
    if size == 0 || least.is_some_and(|least| size < least) {
        let found = format!("it has {size} bytes, the cloud says {}", least.unwrap_or_default());
        return Err(refused(Refusal::Size, found, "detach the volume and attach it again"));
    }
    let disk = host.open(device.node(), Open::Exclusive).await.map_err(|cause| {
        let found = format!("it cannot be had exclusively: {cause}");
        refused(Refusal::Busy, found, "find out what else on this node uses it")
    })?;
    if disk.number() != device.number() {
        return Err(refused(Refusal::Swapped, format!("its node is device {} now", disk.number()), "repeat the call"));
    }
    let scanned = tokio::task::spawn_blocking(move || first_trace(&disk, &regions(size)))
        .await
        .map_err(|panicked| Error::Panicked(panicked.to_string()))?;
    match scanned {
        Ok(None) => Ok(()),
        Ok(Some(at)) => Err(refused(
            Refusal::NotBlank,
            format!("it is not blank: a byte at offset {at}{} is not zero", place(at, size)),
            "it holds data of something that is not known here, or what is left of a file system; look at it, and if \
             nothing of it is needed make a new volume",
        )),
        Err((at, cause)) => Err(refused(
            Refusal::Unreadable,
            format!("the {PROBE} bytes or more from offset {at} on cannot be read: {cause}"),
            "repeat the call; if it stays so, the disk is defective",
        )),
    }
}

/// The offset of the first byte that is not zero.
fn first_trace(disk: &Arc<dyn OpenDisk>, regions: &BTreeMap<u64, u64>) -> Result<Option<u64>, (u64, io::Error)> {
    for (&start, &end) in regions {
        let mut at = start;
        while at < end {
            let length = usize::try_from((end - at).min(MIB)).expect("at most 1 MiB");
            let bytes = disk.read(at, length).map_err(|cause| (at, cause))?;
            if let Some(index) = trace_in(&bytes) {
                return Ok(Some(at + index as u64));
            }
            at += length as u64;
        }
    }
    Ok(None)
}

fn trace_in(bytes: &[u8]) -> Option<usize> {
    const ZEROES: [u8; 4096] = [0; 4096];
    // Whole blocks at once: a comparison byte by byte is slow without optimisation.
    let block = bytes.chunks(ZEROES.len()).position(|block| block != &ZEROES[..block.len()])?;
    let start = block * ZEROES.len();
    Some(start + bytes[start..].iter().position(|byte| *byte != 0)?)
}

/// All regions that have to be zero, in order and without overlap: start to end.
fn regions(size: u64) -> BTreeMap<u64, u64> {
    let mut places: Vec<Region> = vec![(0, HEAD.min(size)), (size - TAIL.min(size), TAIL.min(size))];
    places.extend(superblocks(size).into_iter().chain(samples(size)).map(|at| (at, PROBE)));
    places.sort_unstable();
    let mut merged: BTreeMap<u64, u64> = BTreeMap::new();
    for (at, length) in places {
        let (start, end) = (at - at % PROBE, at.saturating_add(length).next_multiple_of(PROBE).min(size));
        if start >= end {
            continue;
        }
        match merged.last_entry() {
            Some(mut last) if *last.get() >= start => {
                let end = end.max(*last.get());
                last.insert(end);
            }
            _ => {
                merged.insert(start, end);
            }
        }
    }
    merged
}

/// Every place beyond the ends of the disk where a file system that the driver makes keeps a superblock.
pub(crate) fn superblocks(size: u64) -> Vec<u64> {
    // Btrfs: at 64 KiB and these.
    let mut places = vec![64 * MIB, 256 * GIB];
    for block in (0..7).map(|power| KIB << power) {
        // Ext4: a block group has as many blocks as a block has bits; groups 1 and powers of 3, 5 and 7 have a copy,
        // with sparse_super2 it is 1 and the last. With blocks of 1 KiB everything is one block further on.
        let group = block * 8 * block;
        let first = if block == KIB { KIB } else { 0 };
        let mut copies = vec![1, size.saturating_sub(1) / group];
        for base in [3, 5, 7] {
            copies.extend(
                std::iter::successors(Some(base), |power: &u64| power.checked_mul(base))
                    .take_while(|power| power * group < size),
            );
        }
        places.extend(copies.into_iter().map(|copy| copy.saturating_mul(group).saturating_add(first)));
    }
    // Xfs: the disk is cut evenly; which number of pieces is not known. Beside that, the grid.
    for pieces in 2..=64 {
        let piece = (size / PROBE).div_ceil(pieces) * PROBE;
        places.extend((1..pieces).map(|number| number * piece));
    }
    let step = GRID * (size / GRID).div_ceil(GRID_PLACES).max(1);
    places.extend((1..=size / step).map(|number| number * step));
    places.retain(|place| *place < size);
    places.sort_unstable();
    places.dedup();
    places
}

fn samples(size: u64) -> impl Iterator<Item = u64> {
    (0..SAMPLES).map(move |number| {
        u64::try_from(u128::from(size) * u128::from(number) / u128::from(SAMPLES)).expect("less than the size")
    })
}

/// What is known of an offset, for the person who reads of it.
fn place(at: u64, size: u64) -> &'static str {
    if at < 8 * MIB {
        " (the start of the disk, where superblocks and partition tables are)"
    } else if superblocks(size).binary_search(&(at - at % PROBE)).is_ok() {
        " (where a file system keeps a copy of its superblock)"
    } else if at >= size - TAIL.min(size) {
        " (the end of the disk, where copies of partition tables and RAID labels are)"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn covers(size: u64, at: u64) -> bool {
        regions(size).range(..=at).next_back().is_some_and(|(_, end)| at < *end)
    }

    #[test]
    fn every_known_place_is_probed() {
        let size = 300 * GIB;
        for (at, what) in [
            (0, "partition table, xfs, LUKS, swap"),
            (512, "GPT"),
            (KIB + 56, "ext4"),
            (4 * KIB, "mdraid 1.2, bcache"),
            (64 * KIB + 64, "btrfs"),
            (256 * KIB, "ZFS label 1"),
            (4 * MIB, "LUKS2 second header at its farthest"),
            (64 * MIB + 64, "btrfs mirror 1"),
            (256 * GIB + 64, "btrfs mirror 2"),
            (8193 * KIB + 56, "ext4 of 1 KiB blocks, group 1"),
            (32 * MIB + 56, "ext4 of 2 KiB blocks, group 1"),
            (128 * MIB + 56, "ext4 of 4 KiB blocks, group 1"),
            (25 * 128 * MIB + 56, "ext4 of 4 KiB blocks, group 25"),
            (343 * 128 * MIB + 56, "ext4 of 4 KiB blocks, group 343"),
            (2399 * 128 * MIB + 56, "ext4 of 4 KiB blocks, last group"),
            (75 * GIB, "xfs, second of four groups"),
            (10 * GIB / 4, "xfs that was made on 10 GiB"),
            (size - 512 * KIB, "ZFS label 2"),
            (size - 128 * KIB, "mdraid 0.90"),
            (size - 512, "GPT copy"),
        ] {
            assert!(covers(size, at), "{what} at {at}");
        }
    }

    #[test]
    fn the_largest_disk_takes_no_more_reads_than_can_be_waited_for() {
        for size in [GIB, 10 * GIB, 10_000 * GIB, 40_000 * GIB] {
            assert!(regions(size).len() < 10_000, "{size}: {}", regions(size).len());
        }
    }

    proptest! {
        #[test]
        fn regions_are_inside_in_order_and_apart(sectors in 1..1u64 << 38) {
            let size = sectors * 512;
            let mut last = None;
            for (start, end) in regions(size) {
                prop_assert!(start < end && end <= size && start % 512 == 0 && end % 512 == 0);
                prop_assert!(last.is_none_or(|last| last < start));
                last = Some(end);
            }
            prop_assert!(covers(size, 0) && covers(size, size - 1));
        }

        #[test]
        fn one_byte_is_found_wherever_it_is(length in 1..20_000usize, at in any::<proptest::sample::Index>()) {
            let mut bytes = vec![0; length];
            prop_assert_eq!(trace_in(&bytes), None);
            let at = at.index(length);
            bytes[at] = 1;
            prop_assert_eq!(trace_in(&bytes), Some(at));
        }
    }
}
