//! Disks that hold something of others: made with its makers' own tools, or by hand where Debian packages none.

use super::super::machine::MIB;

/// Something that a packaged tool makes.
#[derive(Clone, Copy)]
pub(super) struct Made {
    pub(super) name: &'static str,
    /// The program without which there is no such disk.
    pub(super) tool: &'static str,
    /// For a shell; `$IMAGE` is the disk's file, `$DEVICE` the disk, `$SCRATCH` a directory with a small file in it.
    pub(super) command: &'static str,
    /// What the refusal has to say of it.
    pub(super) found: &'static str,
    /// What it needs at least.
    pub(super) mib: u64,
}

/// A whole disk that the driver could mount is no row: only what is left of it when its head is gone.
pub(super) const MOUNTABLE: &str = "(would be mounted)";

/// What blkid has no name for is refused for its first byte.
pub(super) const UNNAMED: &str = "it is not blank: a byte at offset";

const fn made(name: &'static str, tool: &'static str, command: &'static str, found: &'static str) -> Made {
    Made { name, tool, command, found, mib: 48 }
}

const fn large(made: Made, mib: u64) -> Made {
    Made { mib, ..made }
}

/// Everything that a tool in Debian makes and blkid may find.
pub(super) const MADE: &[Made] = &[
    made("ext2", "mkfs.ext2", "mkfs.ext2 -q -F $IMAGE", "ext2"),
    made("ext3", "mkfs.ext3", "mkfs.ext3 -q -F $IMAGE", "ext3"),
    made("an external journal of ext4", "mke2fs", "mke2fs -q -F -O journal_dev $IMAGE", "jbd"),
    large(made("ext4", "mkfs.ext4", "mkfs.ext4 -q -F $IMAGE", MOUNTABLE), 320),
    made("ext4 of 1 KiB blocks", "mkfs.ext4", "mkfs.ext4 -q -F -b 1024 $IMAGE", MOUNTABLE),
    large(
        made(
            "ext4 without copies of its superblock",
            "mkfs.ext4",
            "mkfs.ext4 -q -F -b 4096 -O sparse_super2 -E num_backup_sb=0 $IMAGE",
            MOUNTABLE,
        ),
        320,
    ),
    made(
        "ext4 with a copy in every group",
        "mkfs.ext4",
        "mkfs.ext4 -q -F -O ^sparse_super,^resize_inode $IMAGE",
        MOUNTABLE,
    ),
    large(made("xfs", "mkfs.xfs", "mkfs.xfs -q $IMAGE", MOUNTABLE), 320),
    large(made("btrfs", "mkfs.btrfs", "mkfs.btrfs -q $IMAGE", MOUNTABLE), 128),
    large(made("btrfs of mixed groups", "mkfs.btrfs", "mkfs.btrfs -q --mixed $IMAGE", MOUNTABLE), 128),
    made("swap", "mkswap", "mkswap $IMAGE", "swap"),
    made(
        "LUKS1",
        "cryptsetup",
        "printf pass | cryptsetup -q luksFormat --type luks1 --pbkdf-force-iterations 1000 $IMAGE -",
        "crypto_LUKS",
    ),
    made(
        "LUKS2",
        "cryptsetup",
        "printf pass | cryptsetup -q luksFormat --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 $IMAGE -",
        "LUKS2",
    ),
    made(
        "LVM2",
        "pvcreate",
        "pvcreate -q -y --config 'devices { scan=[\"/dev\"] obtain_device_list_from_udev=0 use_devicesfile=0 \
         external_device_info_source=\"none\" } activation { udev_sync=0 udev_rules=0 }' $DEVICE",
        "LVM2_member",
    ),
    made("bcache, backing", "make-bcache", "make-bcache -B $IMAGE", "bcache"),
    large(made("bcache, cache", "make-bcache", "make-bcache -C $IMAGE", "bcache"), 64),
    made("GPT", "sgdisk", "sgdisk -n 1:2048:0 $IMAGE", "a partition table (gpt)"),
    made(
        "GPT whose first header is damaged",
        "sgdisk",
        "sgdisk -n 1:2048:0 $IMAGE && printf xxxxxxxx | dd of=$IMAGE bs=1 seek=600 conv=notrunc",
        "a partition table (gpt)",
    ),
    made("DOS partitions", "sfdisk", "echo 2048,,83 | sfdisk -q $IMAGE", "a partition table (dos)"),
    made(
        "BSD slices in DOS partitions",
        "fdisk",
        "printf 'o\\nb\\ny\\nw\\nq\\n' | fdisk $IMAGE",
        "a partition table (dos)",
    ),
    made("a BSD label", "parted", "parted -s $IMAGE mklabel bsd mkpart ext2 1MiB 100%", UNNAMED),
    made("a Sun label", "sfdisk", "echo label: sun | sfdisk -q $IMAGE", "a partition table (sun)"),
    made("an SGI label", "sfdisk", "echo label: sgi | sfdisk -q $IMAGE", "a partition table (sgi)"),
    made("a Mac label", "parted", "parted -s $IMAGE mklabel mac mkpart a ext2 1MiB 50%", "a partition table (mac)"),
    made("an Atari label", "parted", "parted -s $IMAGE mklabel atari", UNNAMED),
    made("an Amiga label", "parted", "parted -s $IMAGE mklabel amiga mkpart ext2 1MiB 50%", UNNAMED),
    made("a PC-98 label", "parted", "parted -s $IMAGE mklabel pc98", "a partition table (dos)"),
    made("FAT16", "mkfs.vfat", "mkfs.vfat -F 16 $IMAGE", "vfat"),
    made("FAT32", "mkfs.vfat", "mkfs.vfat -F 32 $IMAGE", "vfat"),
    made("exFAT", "mkfs.exfat", "mkfs.exfat $IMAGE", "a partition table (dos)"),
    made("NTFS", "mkntfs", "mkntfs -F -Q -q $IMAGE", "ntfs"),
    made("UDF", "mkudffs", "mkudffs $IMAGE", "udf"),
    large(made("F2FS", "mkfs.f2fs", "mkfs.f2fs -q -f $IMAGE", "f2fs"), 64),
    made("JFS", "mkfs.jfs", "mkfs.jfs -q $IMAGE", "jfs"),
    large(made("ReiserFS", "mkreiserfs", "mkreiserfs -q -f -f $IMAGE", "reiserfs"), 160),
    large(made("NILFS2", "mkfs.nilfs2", "mkfs.nilfs2 -q -f $IMAGE", "nilfs2"), 160),
    made("OCFS2", "mkfs.ocfs2", "mkfs.ocfs2 -q -F -M local $IMAGE", "ocfs2"),
    made("GFS2", "mkfs.gfs2", "mkfs.gfs2 -q -O -p lock_nolock $IMAGE", "gfs2"),
    made("Minix", "mkfs.minix", "mkfs.minix $IMAGE", "minix"),
    made("Minix 3", "mkfs.minix", "mkfs.minix -3 $IMAGE", "minix"),
    made("BFS", "mkfs.bfs", "mkfs.bfs $IMAGE", "bfs"),
    made(
        "ISO 9660",
        "genisoimage",
        "genisoimage -quiet -o $SCRATCH.out $SCRATCH && dd if=$SCRATCH.out of=$IMAGE conv=notrunc",
        "iso9660",
    ),
    made(
        "squashfs",
        "mksquashfs",
        "mksquashfs $SCRATCH $SCRATCH.out -quiet -no-progress && dd if=$SCRATCH.out of=$IMAGE conv=notrunc",
        "squashfs",
    ),
    made(
        "EROFS",
        "mkfs.erofs",
        "mkfs.erofs $SCRATCH.out $SCRATCH && dd if=$SCRATCH.out of=$IMAGE conv=notrunc",
        "erofs",
    ),
    made(
        "cramfs",
        "mkfs.cramfs",
        "mkfs.cramfs $SCRATCH $SCRATCH.out && dd if=$SCRATCH.out of=$IMAGE conv=notrunc",
        "cramfs",
    ),
    made(
        "LVM2 with ext4 in it",
        "pvcreate",
        "pvcreate -q -y --config 'devices { scan=[\"/dev\"] obtain_device_list_from_udev=0 use_devicesfile=0 \
         external_device_info_source=\"none\" } activation { udev_sync=0 udev_rules=0 }' $DEVICE && \
         mkfs.ext4 -q -F -E offset=1048576 $DEVICE 40M",
        "LVM2_member",
    ),
    made(
        "a partition with ext4 in it",
        "sgdisk",
        "sgdisk -n 1:2048:0 $IMAGE && mkfs.ext4 -q -F -E offset=1048576 $IMAGE 40M",
        "a partition table (gpt)",
    ),
    made(
        "DOS partitions before an ext4 superblock",
        "sfdisk",
        "mkfs.ext4 -q -F $IMAGE && echo 2048,,83 | sfdisk -q --wipe never $IMAGE",
        "ext4 and a partition table (dos)",
    ),
    made(
        "ext4 under an Oracle ASM label",
        "mkfs.ext4",
        "mkfs.ext4 -q -F $IMAGE && printf ORCLDISKdata | dd of=$IMAGE bs=1 seek=32 conv=notrunc",
        "more than one file system",
    ),
    made(
        "ext4 under a boot sector of FAT",
        "mkfs.vfat",
        "mkfs.vfat $SCRATCH.fat -C 65536 && mkfs.ext4 -q -F $IMAGE && \
         dd if=$SCRATCH.fat of=$IMAGE bs=512 count=2 conv=notrunc",
        "more than one file system",
    ),
    large(
        made(
            "ext4 and btrfs",
            "mkfs.btrfs",
            "truncate -s 128M $SCRATCH.btrfs && mkfs.btrfs -q $SCRATCH.btrfs && mkfs.ext4 -q -F $IMAGE && \
             dd if=$SCRATCH.btrfs of=$IMAGE bs=64K skip=1 seek=1 count=1 conv=notrunc",
            "more than one file system",
        ),
        128,
    ),
    made(
        "ext4 with its first superblock zeroed",
        "mkfs.ext4",
        "mkfs.ext4 -q -F $IMAGE && dd if=/dev/zero of=$IMAGE bs=4096 count=1 conv=notrunc",
        UNNAMED,
    ),
    large(
        made(
            "xfs with its first superblock zeroed",
            "mkfs.xfs",
            "mkfs.xfs -q $IMAGE && dd if=/dev/zero of=$IMAGE bs=4096 count=1 conv=notrunc",
            UNNAMED,
        ),
        320,
    ),
    large(
        made(
            "xfs whose mkfs was cut off elsewhere",
            "mkfs.xfs",
            "mkfs.xfs -q $IMAGE && printf '\\001' | dd of=$IMAGE bs=1 seek=126 conv=notrunc",
            "xfs whose mkfs was cut off",
        ),
        320,
    ),
    large(
        made(
            "btrfs with its first superblock zeroed",
            "mkfs.btrfs",
            "mkfs.btrfs -q $IMAGE && dd if=/dev/zero of=$IMAGE bs=64K seek=1 count=1 conv=notrunc",
            UNNAMED,
        ),
        128,
    ),
    large(
        made(
            "btrfs whose mkfs was cut off elsewhere",
            "mkfs.btrfs",
            "mkfs.btrfs -q $IMAGE && printf '!' | dd of=$IMAGE bs=1 seek=65600 conv=notrunc",
            UNNAMED,
        ),
        128,
    ),
    made("ext4 after wipefs", "wipefs", "mkfs.ext4 -q -F $IMAGE && wipefs -q -a $IMAGE", UNNAMED),
];

/// Bytes at a place of the disk.
pub(super) type Piece = (u64, Vec<u8>);

/// Something that is made by hand: the bytes by which blkid knows it.
pub(super) struct Marked {
    pub(super) name: &'static str,
    /// What the refusal has to say of it.
    pub(super) found: &'static str,
    pub(super) pieces: fn() -> Vec<Piece>,
}

const fn marked(name: &'static str, found: &'static str, pieces: fn() -> Vec<Piece>) -> Marked {
    Marked { name, found, pieces }
}

/// The size of the disks of [`MARKED`].
pub(super) const MARKED_MIB: u64 = 64;
const SIZE: u64 = MARKED_MIB * MIB;
const SECTOR: u64 = 512;
const KIB: u64 = 1024;

/// A structure of so many bytes at `at`, with these fields set.
fn fields(at: u64, length: usize, set: &[(usize, &[u8])]) -> Vec<Piece> {
    let mut bytes = vec![0; length];
    for (offset, field) in set {
        bytes[*offset..offset + field.len()].copy_from_slice(field);
    }
    vec![(at, bytes)]
}

fn text(at: u64, text: &[u8]) -> Vec<Piece> {
    vec![(at, text.to_vec())]
}

const UUID: [u8; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

/// What no tool at hand makes: kernel modules or licences are missing, or its makers are gone.
pub(super) const MARKED: &[Marked] = &[
    marked("ZFS", "zfs_member", || {
        let labels = [0, 256 * KIB, SIZE - 512 * KIB, SIZE - 256 * KIB];
        let slots = labels.into_iter().flat_map(|label| (0..128).map(move |slot| (label, slot)));
        slots
            .map(|(label, slot): (u64, u64)| {
                let words = [0x00ba_b10c, 5000, slot + 1];
                let uberblock = words.into_iter().flat_map(u64::to_le_bytes).collect();
                (label + 128 * KIB + slot * KIB, uberblock)
            })
            .collect()
    }),
    marked("mdraid 0.90", "linux_raid_member", || {
        let words: [u32; 8] = [0xa92b_4efc, 0, 90, 0, 0, 0x1122_3344, 0, 1];
        vec![(SIZE - 64 * KIB, words.into_iter().flat_map(u32::to_le_bytes).collect())]
    }),
    marked("mdraid 1.0", "linux_raid_member", || mdraid_1(SIZE - 16 * SECTOR)),
    marked("mdraid 1.1", "linux_raid_member", || mdraid_1(0)),
    marked("mdraid 1.2", "linux_raid_member", || mdraid_1(4 * KIB)),
    marked("DRBD", "drbd", || {
        let size = (SIZE / SECTOR).to_be_bytes();
        fields(
            SIZE - 4 * KIB,
            4096,
            &[(0, &size), (8, &1u64.to_be_bytes()), (40, &UUID[..8]), (60, &0x8374_026bu32.to_be_bytes())],
        )
    }),
    marked("a DRBD proxy's log", UNNAMED, || text(16, b"DRBDdlh*")),
    marked("Intel RAID", "isw_raid_member", || text(SIZE - 2 * SECTOR, b"Intel Raid ISM Cfg Sig. 1.3.00")),
    marked("DDF RAID", "ddf_raid_member", || {
        let own = (SIZE / SECTOR - 1).to_be_bytes();
        fields(
            SIZE - SECTOR,
            512,
            &[(0, &0xde11_de11u32.to_be_bytes()), (8, b"Linux-MD"), (32, b"02.00.00"), (112, &own)],
        )
    }),
    marked("LSI MegaRAID", "lsi_mega_raid_member", || text(SIZE - SECTOR, b"$XIDE$")),
    marked("VIA RAID", "via_raid_member", || fields(SIZE - SECTOR, 51, &[(0, &[0x55, 0xaa]), (50, &[0xff])])),
    marked("NVIDIA RAID", "nvidia_raid_member", || {
        let mut words: [u32; 30] = [0; 30];
        words[0] = u32::from_le_bytes(*b"NVID");
        words[1] = u32::from_le_bytes(*b"IA  ");
        words[2] = 30;
        words[4] = 100;
        words[3] = words.iter().fold(0, |sum: u32, word| sum.wrapping_add(*word)).wrapping_neg();
        vec![(SIZE - 2 * SECTOR, words.into_iter().flat_map(u32::to_le_bytes).collect())]
    }),
    marked("JMicron RAID", "jmicron_raid_member", || {
        let sum = (u16::from_le_bytes(*b"JM") + 1).wrapping_neg().to_le_bytes();
        fields(SIZE - SECTOR, 128, &[(0, b"JM"), (2, &[1]), (4, &sum)])
    }),
    marked("Promise RAID", "promise_fasttrack_raid_member", || text(SIZE - 63 * SECTOR, b"Promise Technology, Inc.")),
    marked("HighPoint RAID", "hpt37x_raid_member", || text(9 * SECTOR + 32, &0x5a78_16f0u32.to_le_bytes())),
    marked("Adaptec RAID", UNNAMED, || text(SIZE - SECTOR, &[0x37, 0xfc, 0x4d, 0x1e])),
    marked("BitLocker", "BitLocker", || {
        let metadata = text(MIB, b"-FVE-FS-\x40\x00\x02\x00");
        let head = fields(0, 512, &[(0, b"\xeb\x58\x90-FVE-FS-"), (176, &MIB.to_le_bytes())]);
        [head, metadata].concat()
    }),
    marked("ReFS", "ReFS", || text(3, b"ReFS\0")),
    marked("HPFS", "hpfs", || {
        let boot = fields(0, 512, &[(38, &[0x28, 1, 2, 3, 4]), (54, b"HPFS    ")]);
        let superblock = text(8 * KIB, b"\x49\xe8\x95\xf9\xc5\xe9\x53\xfa\x02\x02");
        let spare = text(8 * KIB + SECTOR, b"\x49\x18\x91\xf9\xc5\x29\x52\xfa");
        [boot, superblock, spare].concat()
    }),
    marked("HFS+", "hfsplus", || {
        let blocks = u32::to_be_bytes(16 * 1024);
        fields(KIB, 512, &[(0, b"H+\0\x04"), (40, &4096u32.to_be_bytes()), (44, &blocks)])
    }),
    marked("HFS", "hfs", || fields(KIB, 512, &[(0, b"BD"), (20, &4096u32.to_be_bytes()), (28, &4u16.to_be_bytes())])),
    marked("APFS", "apfs", || {
        let kind = 0x8000_0001u32.to_le_bytes();
        let blocks = (SIZE / 4096).to_le_bytes();
        fields(
            0,
            4096,
            &[
                (8, &[1]),
                (16, &[1]),
                (24, &kind),
                (32, b"NXSB"),
                (36, &4096u32.to_le_bytes()),
                (40, &blocks),
                (72, &UUID),
            ],
        )
    }),
    marked("UFS1", "ufs", || {
        let magic = 0x0001_1954u32.to_le_bytes();
        fields(8 * KIB, 2048, &[(48, &4096u32.to_le_bytes()), (52, &512u32.to_le_bytes()), (56, &[8]), (1372, &magic)])
    }),
    marked("UFS2", "ufs", || {
        let magic = 0x1954_0119u32.to_le_bytes();
        fields(64 * KIB, 2048, &[(52, &4096u32.to_le_bytes()), (56, &[8]), (1372, &magic)])
    }),
    marked("Reiser4", "reiser4", || text(64 * KIB, b"ReIsEr4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10")),
    marked("GFS", "gfs", || {
        let of = |number: u32| number.to_be_bytes();
        fields(64 * KIB, 512, &[(0, &of(0x0116_1970)), (4, &of(1)), (24, &of(1309)), (28, &of(1401))])
    }),
    marked("OCFS", UNNAMED, || fields(0, 512, &[(4, &[2]), (8, b"OracleCFS")])),
    marked("Oracle ASM", "oracleasm", || text(32, b"ORCLDISKdata")),
    marked("VxFS", "vxfs", || {
        fields(KIB, 512, &[(0, &0xa501_fcf5u32.to_le_bytes()), (4, &[4]), (32, &4096u32.to_le_bytes())])
    }),
    marked("VMFS", "VMFS", || text(2 * MIB, &0x2fab_f15eu32.to_le_bytes())),
    marked("a VMFS extent", "VMFS_volume_member", || {
        fields(MIB, 1024, &[(0, &0xc001_d00du32.to_le_bytes()), (4, &[5]), (130, &UUID)])
    }),
    marked("a Ceph OSD", "ceph_bluestore", || {
        text(0, b"bluestore block device\n9d8f1a2e-0000-4000-8000-000000000001\n")
    }),
    marked("Stratis", UNNAMED, || text(SECTOR + 4, b"!Stra0tis\x86\xff\x02^\x41rh")),
    marked("VDO", "vdo", || fields(0, 4096, &[(0, b"dmvdo001")])),
    marked("LVM1", "LVM1_member", || fields(0, 1024, &[(0, b"HM\x01"), (44, b"abcdefghijklmnopqrst")])),
    marked("dm-verity", "DM_verity_hash", || fields(0, 512, &[(0, b"verity\0\0\x01")])),
    marked("dm-integrity", "DM_integrity", || text(0, b"integrt\0\x01")),
    marked("a snapshot's store of dm", "DM_snapshot_cow", || text(0, b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0")),
    marked("a suspended system", "swsuspend", || text(4086, b"S1SUSPEND\0")),
    marked("an old swap", "swap", || text(4086, b"SWAP-SPACE")),
    marked("an external log of xfs", "xfs_external_log", || {
        let of = |number: u32| number.to_be_bytes();
        fields(
            0,
            512,
            &[
                (0, &of(0xfeed_babe)),
                (4, &of(1)),
                (8, &of(2)),
                (12, &of(512)),
                (16, &of(1)),
                (24, &of(1)),
                (40, &of(1)),
                (300, &of(1)),
                (304, &UUID),
            ],
        )
    }),
    marked("UBI", "ubi", || text(0, b"UBI#\x01")),
    marked("UBIFS", "ubifs", || {
        fields(0, 4096, &[(0, &0x0610_1831u32.to_le_bytes()), (16, &4096u32.to_le_bytes()), (20, &[6])])
    }),
    marked("romfs", "romfs", || text(0, b"-rom1fs-\0\0\x02\0")),
    marked("squashfs 3", "squashfs3", || fields(0, 96, &[(0, b"hsqs"), (28, &[3, 0, 1, 0])])),
    marked("zonefs", "zonefs", || text(0, &0x5a4f_4653u32.to_le_bytes())),
    marked("NSS", "nss", || text(4 * KIB, b"SPB5")),
    marked("System V", "sysv", || fields(SECTOR, 512, &[(504, &0xfd18_7e20u32.to_le_bytes()), (508, &[2])])),
    marked("an Ultrix label", "a partition table (ultrix)", || {
        fields(8 * KIB, 8192, &[(8120, &0x0003_2957u32.to_le_bytes()), (8124, &[1])])
    }),
];

/// Version 1 of Linux' RAID superblock, which says where it is.
fn mdraid_1(at: u64) -> Vec<Piece> {
    let sector = (at / SECTOR).to_le_bytes();
    fields(at, 256, &[(0, &0xa92b_4efcu32.to_le_bytes()), (4, &[1]), (16, &UUID), (72, &[1]), (144, &sector)])
}
