//! How file systems are made: as the class says, and so that the running kernel can mount them.

use super::machine::{Machine, Said, run};
use crate::{
    node::Stage,
    volume::{FsType, MkfsOptions},
};

const DISK_MIB: u64 = 320;

#[tokio::test]
async fn options_of_the_class_lay_out_the_file_system() {
    let Some(machine) = Machine::new() else { return };
    for (fs, options, tool, arguments, shown) in [
        (
            FsType::Ext4,
            "-i 65536 -m 2 -O ^has_journal -E stride=4 -L named",
            "dumpe2fs",
            &["-h"][..],
            &["Inode count:              5120", "RAID stride:              4", "named"][..],
        ),
        (
            FsType::Xfs,
            "-m reflink=0,rmapbt=1 -i size=1024 -L named",
            "xfs_info",
            &[],
            &["reflink=0", "rmapbt=1", "isize=1024"],
        ),
        (FsType::Btrfs, "-n 32k --csum xxhash", "btrfs", &["inspect-internal", "dump-super"], &["32768", "xxhash64"]),
    ] {
        let disk = machine.attach(DISK_MIB);
        let mkfs_options = MkfsOptions::parse(fs, options).unwrap();
        machine.stage_as(Stage { mkfs_options, ..machine.stage_of(fs) }).await.unwrap();
        let text = run(tool, &[arguments, &[disk.device.to_str().unwrap()]].concat());
        for word in shown {
            assert!(text.contains(word), "{fs}: no {word} in\n{text}");
        }
        assert!(!text.contains("has_journal"), "{text}");
        machine.unstage().await.unwrap();
        machine.hide(&disk);
    }
}

#[tokio::test]
async fn xfs_has_nothing_that_an_older_kernel_does_not_know() {
    let Some(mut machine) = Machine::new() else { return };
    for (kernel, options, has, has_not) in [
        ((5, 4), "", &["reflink=1", "crc=1"][..], &["bigtime=1", "inobtcount=1", "nrext64=1"][..]),
        ((4, 19), "", &["crc=1"], &["bigtime=1", "inobtcount=1", "nrext64=1", "rmapbt=1"]),
        ((5, 4), "-m bigtime=0,rmapbt=1 -i nrext64=0", &["rmapbt=1"], &["bigtime=1", "inobtcount=1", "nrext64=1"]),
        ((6, 1), "", &["bigtime=1", "inobtcount=1"], &["nrext64=1"]),
    ] {
        machine.restart_as(Said { kernel: Some(kernel), ..Said::default() });
        let disk = machine.attach(DISK_MIB);
        let mkfs_options = MkfsOptions::parse(FsType::Xfs, options).unwrap();
        machine.stage_as(Stage { mkfs_options, ..machine.stage_of(FsType::Xfs) }).await.unwrap();
        let shown = run("xfs_info", &[disk.device.to_str().unwrap()]);
        assert!(has.iter().all(|word| shown.contains(word)), "{kernel:?} {options}\n{shown}");
        assert!(has_not.iter().all(|word| !shown.contains(word)), "{kernel:?} {options}\n{shown}");
        machine.unstage().await.unwrap();
        machine.hide(&disk);
    }
}
