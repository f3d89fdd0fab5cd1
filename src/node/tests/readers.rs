//! File systems that were not unmounted, for those who only read.

use std::fs;

use super::machine::{Loop, Machine, run};
use crate::{
    error::Error,
    node::{Stage, host::Tool},
    volume::{Access, FsType},
};

const DISK_MIB: u64 = 320;

/// A disk as it is after its machine lost power while it was mounted and had been written to.
async fn not_unmounted(machine: &Machine, fs: FsType) -> Loop {
    let disk = machine.attach(DISK_MIB);
    machine.stage(fs).await.unwrap();
    let path = machine.path("staging/kept");
    fs::write(&path, "text").unwrap();
    fs::File::open(&path).unwrap().sync_all().unwrap();
    let left = machine.disk(DISK_MIB);
    // The journal has it, and nothing else yet.
    let (from, to) = (format!("if={}", disk.image.display()), format!("of={}", left.device.display()));
    run("dd", &[&from, &to, "bs=1M", "conv=fsync,sparse", "status=none"]);
    machine.unstage().await.unwrap();
    machine.hide(&disk);
    machine.show(&left, super::machine::SERIAL);
    left
}

#[tokio::test]
async fn a_journal_is_replayed_for_readers_or_they_are_told_how_to_do_without() {
    let Some(machine) = Machine::new() else { return };
    for (fs, without) in [(FsType::Ext4, "noload"), (FsType::Xfs, "norecovery"), (FsType::Btrfs, "rescue=nologreplay")]
    {
        let disk = not_unmounted(&machine, fs).await;
        let read_only = || Stage { read_only: true, ..machine.stage_of(fs) };
        run("blockdev", &["--setro", disk.device.to_str().unwrap()]);
        let before = disk.sum();
        let error = machine.stage_as(read_only()).await.unwrap_err();
        assert!(matches!(&error, Error::Precondition(text) if text.contains(without)), "{fs}: {error}");
        assert!(machine.mounts().is_empty(), "{fs}");
        let flags = vec![without.to_owned()];
        machine.stage_as(Stage { access: Access::Mount { fs_type: Some(fs), flags }, ..read_only() }).await.unwrap();
        assert!(machine.mounts()[0].is_read_only(), "{fs}");
        machine.unstage().await.unwrap();
        assert_eq!(disk.sum(), before, "{fs}");

        run("blockdev", &["--setrw", disk.device.to_str().unwrap()]);
        machine.stage_as(read_only()).await.unwrap();
        assert_eq!(fs::read_to_string(machine.path("staging/kept")).unwrap(), "text", "{fs}");
        assert!(machine.mounts()[0].is_read_only(), "{fs}");
        machine.unstage().await.unwrap();
        machine.hide(&disk);
    }
    assert_eq!(machine.runs_of(Tool::E2fsck), 0);
}

#[tokio::test]
async fn a_damaged_file_system_is_not_mended_for_readers() {
    let Some(machine) = Machine::new() else { return };
    let disk = machine.attach(DISK_MIB);
    machine.stage(FsType::Ext4).await.unwrap();
    machine.unstage().await.unwrap();
    let layout = run("dumpe2fs", &[disk.device.to_str().unwrap()]);
    let table = layout.split("Inode table at ").nth(1).unwrap().split('-').next().unwrap().parse::<u64>().unwrap();
    let block = layout.split("Block size:").nth(1).unwrap().lines().next().unwrap().trim().parse::<u64>().unwrap();
    // The inode of the root directory.
    disk.write(table * block + 256, &[0xff; 128]);
    let error = machine.stage_as(Stage { read_only: true, ..machine.stage_of(FsType::Ext4) }).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition(text) if text.contains("not mended for readers")), "{error}");
    assert_eq!(machine.runs_of(Tool::E2fsck), 0);
    assert!(machine.mounts().is_empty());
}
