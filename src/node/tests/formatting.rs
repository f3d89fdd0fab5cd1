//! P1: a disk is formatted once, and only if it is proven blank.

use std::fs;

use super::machine::{Loop, MIB, Machine, SERIAL, run, volume};
use crate::{
    cloud::Attachment,
    error::Error,
    node::{
        host::Tool,
        record::{Formatting, Record, Records},
    },
    volume::{FsType, Gib},
};

const EXT4_MIB: u64 = 128;
/// mkfs.xfs makes nothing smaller.
const XFS_MIB: u64 = 320;

/// Staging is refused, and the disk is as it was.
async fn refused(machine: &Machine, disk: &Loop, fs: FsType) -> String {
    let before = disk.sum();
    let ran = machine.mkfs_runs();
    let error = machine.stage(fs).await.unwrap_err();
    assert!(matches!(error, Error::DiskRefused { .. }), "{error}");
    assert_eq!((disk.sum(), machine.mkfs_runs()), (before, ran), "{error}");
    assert!(machine.mounts().is_empty());
    error.to_string()
}

fn mkfs_ext4(disk: &Loop) {
    run("mkfs.ext4", &["-q", disk.device.to_str().unwrap()]);
}

#[tokio::test]
async fn a_blank_disk_is_formatted_exactly_once() {
    let Some(machine) = Machine::new() else { return };
    for (fs, mib) in [(FsType::Ext4, EXT4_MIB), (FsType::Xfs, XFS_MIB), (FsType::Btrfs, EXT4_MIB)] {
        let disk = machine.attach(mib);
        let ran = machine.mkfs_runs();
        machine.stage(fs).await.unwrap();
        fs::write(machine.path("staging/kept"), fs.as_str()).unwrap();
        machine.unstage().await.unwrap();
        machine.stage(fs).await.unwrap();
        assert_eq!(fs::read_to_string(machine.path("staging/kept")).unwrap(), fs.as_str());
        machine.unstage().await.unwrap();
        assert_eq!(machine.mkfs_runs(), ran + 1, "{fs}");
        assert_eq!(machine.state(), Vec::<String>::new());
        machine.hide(&disk);
    }
}

#[tokio::test]
async fn one_byte_anywhere_that_counts_keeps_a_disk_from_being_formatted() {
    let Some(machine) = Machine::new() else { return };
    for offset in [0, 1080, 64 * 1024, 3 * MIB, 8193 * 1024, 96 * MIB, EXT4_MIB * MIB - 1] {
        let disk = machine.attach(EXT4_MIB);
        disk.write(offset, &[1]);
        let error = refused(&machine, &disk, FsType::Ext4).await;
        assert!(error.contains(&format!("offset {offset} ")), "{error}");
        machine.hide(&disk);
    }
}

#[tokio::test]
async fn a_disk_that_cannot_be_read_is_not_blank() {
    let Some(machine) = Machine::new() else { return };
    let disk = machine.attach(EXT4_MIB);
    // What the file beneath lacks the loop device cannot read; blkid still finds "nothing".
    fs::OpenOptions::new().write(true).open(&disk.image).unwrap().set_len(96 * MIB).unwrap();
    let error = refused(&machine, &disk, FsType::Ext4).await;
    assert!(error.contains("cannot be read"), "{error}");
}

#[tokio::test]
async fn a_file_system_without_its_first_superblock_is_not_blank() {
    let Some(machine) = Machine::new() else { return };
    let head = vec![0; usize::try_from(8 * MIB).unwrap()];
    for fs in FsType::ALL {
        let disk = machine.attach(XFS_MIB);
        machine.stage(fs).await.unwrap();
        machine.unstage().await.unwrap();
        disk.write(0, &head);
        let error = refused(&machine, &disk, FsType::Ext4).await;
        assert!(error.contains("not blank"), "{fs}: {error}");
        machine.hide(&disk);
    }
}

#[tokio::test]
async fn foreign_content_is_named_and_left_alone() {
    let Some(machine) = Machine::new() else { return };
    let swap = |disk: &Loop| drop(run("mkswap", &[disk.device.to_str().unwrap()]));
    let ext3 = |disk: &Loop| drop(run("mkfs.ext3", &["-q", disk.device.to_str().unwrap()]));
    let luks = |disk: &Loop| disk.write(0, b"LUKS\xba\xbe\x00\x02");
    let dos = |disk: &Loop| {
        mkfs_ext4(disk);
        let mut sector = [0; 512];
        sector[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0]);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        disk.write(0, &sector);
    };
    for (make, named) in
        [(&swap as &dyn Fn(&Loop), "swap"), (&ext3, "ext3"), (&luks, "LUKS"), (&dos, "partition table")]
    {
        let disk = machine.attach(EXT4_MIB);
        make(&disk);
        let error = refused(&machine, &disk, FsType::Ext4).await;
        assert!(error.contains(named) || named == "LUKS", "{named}: {error}");
        machine.hide(&disk);
    }
}

#[tokio::test]
async fn another_file_system_than_asked_for_is_never_reformatted() {
    let Some(machine) = Machine::new() else { return };
    let disk = machine.attach(EXT4_MIB);
    mkfs_ext4(&disk);
    let before = disk.sum();
    let error = machine.stage(FsType::Xfs).await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)), "{error}");
    assert!(error.to_string().contains("ext4") && error.to_string().contains("xfs"), "{error}");
    assert_eq!(disk.sum(), before);
}

#[tokio::test]
async fn a_blank_disk_that_was_not_made_so_for_us_is_not_formatted() {
    let Some(machine) = Machine::new() else { return };
    let disk = machine.attach(EXT4_MIB);
    let before = disk.sum();
    let error =
        machine.stage_as(crate::node::Stage { blank: false, ..machine.stage_of(FsType::Ext4) }).await.unwrap_err();
    assert!(matches!(&error, Error::DiskRefused { remedy, .. } if remedy.contains("if-blank")), "{error}");
    assert_eq!((disk.sum(), machine.mkfs_runs()), (before, 0));
}

#[tokio::test]
async fn a_disk_that_is_shorter_than_the_cloud_says_is_not_formatted() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    let mut request = machine.stage_of(FsType::Ext4);
    request.attachment = Attachment::Disk { serial: SERIAL.to_owned(), size: Some(Gib(1)) };
    let error = machine.stage_as(request).await.unwrap_err();
    assert!(matches!(error, Error::DiskRefused { .. }), "{error}");
    assert_eq!(machine.mkfs_runs(), 0);
}

/// Leaves a disk as a mkfs that was cut off right before its end does, with its record.
async fn cut_off(machine: &Machine, disk: &Loop, fs: FsType) -> Formatting {
    let records = Records::new(machine.path("state"));
    let path = machine.path("state").join(format!("{}.{}.json", volume(), Formatting::KIND));
    // The record as it is while mkfs runs.
    let copy = machine.path("record");
    let (from, to) = (path.clone(), copy.clone());
    let mkfs = match fs {
        FsType::Ext4 => Tool::MkfsExt4,
        FsType::Xfs => Tool::MkfsXfs,
        FsType::Btrfs => Tool::MkfsBtrfs,
    };
    *machine.mishap.lock().unwrap() = Some((mkfs, Box::new(move || assert!(fs::copy(from, to).is_ok()))));
    machine.stage(fs).await.unwrap();
    machine.unstage().await.unwrap();
    match fs {
        FsType::Ext4 => disk.write(0, &[0; 4096]),
        // sb_inprogress
        FsType::Xfs => disk.write(126, &[1]),
        FsType::Btrfs => disk.write(65536 + 64, b"!BHRfS_M"),
    }
    fs::copy(copy, path).unwrap();
    records.load(&volume()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_mkfs_that_was_cut_off_is_done_again_on_its_record() {
    let Some(mut machine) = Machine::new() else { return };
    for fs in FsType::ALL {
        let disk = machine.attach(XFS_MIB);
        let record = cut_off(&machine, &disk, fs).await;
        machine.restart(None);
        let ran = machine.mkfs_runs();
        machine.stage(fs).await.unwrap_or_else(|error| panic!("{fs}: {error}"));
        assert_eq!(machine.mkfs_runs(), ran + 1, "{fs}");
        let uuid = run("blkid", &["-p", "-s", "UUID", "-o", "value", disk.device.to_str().unwrap()]);
        assert_eq!(uuid.trim(), record.uuid);
        machine.unstage().await.unwrap();
        assert_eq!(machine.state(), Vec::<String>::new());
        machine.hide(&disk);
    }
}

#[tokio::test]
async fn a_mkfs_that_was_cut_off_before_a_reboot_is_not_done_again_over_traces() {
    let Some(mut machine) = Machine::new() else { return };
    for fs in FsType::ALL {
        machine.restart(None);
        let disk = machine.attach(XFS_MIB);
        cut_off(&machine, &disk, fs).await;
        machine.restart(Some("another boot"));
        refused(&machine, &disk, fs).await;
        fs::remove_file(machine.path("state").join(format!("{}.formatting.json", volume()))).unwrap();
        machine.hide(&disk);
    }
}

#[tokio::test]
async fn a_mkfs_that_never_began_before_a_reboot_is_begun_on_a_disk_still_blank() {
    let Some(mut machine) = Machine::new() else { return };
    let disk = machine.attach(EXT4_MIB);
    cut_off(&machine, &disk, FsType::Ext4).await;
    fs::File::create(&disk.image).unwrap().set_len(EXT4_MIB * MIB).unwrap();
    run("blockdev", &["--flushbufs", disk.device.to_str().unwrap()]);
    machine.restart(Some("another boot"));
    machine.stage(FsType::Ext4).await.unwrap();
}

#[tokio::test]
async fn a_record_of_a_mkfs_that_ended_is_put_away() {
    let Some(mut machine) = Machine::new() else { return };
    let disk = machine.attach(EXT4_MIB);
    cut_off(&machine, &disk, FsType::Btrfs).await;
    disk.write(65536 + 64, b"_BHRfS_M");
    machine.restart(Some("another boot"));
    let ran = machine.mkfs_runs();
    machine.stage(FsType::Btrfs).await.unwrap();
    assert_eq!(machine.mkfs_runs(), ran);
    machine.unstage().await.unwrap();
    assert_eq!(machine.state(), Vec::<String>::new());
}

#[tokio::test]
async fn a_stale_record_harms_no_data() {
    let Some(mut machine) = Machine::new() else { return };
    let disk = machine.attach(EXT4_MIB);
    cut_off(&machine, &disk, FsType::Ext4).await;
    machine.restart(None);
    // In between another disk came under the same serial, and its file system lost its name.
    machine.hide(&disk);
    let other = machine.attach(EXT4_MIB);
    mkfs_ext4(&other);
    other.write(0, &[0; 4096]);
    refused(&machine, &other, FsType::Ext4).await;
}

#[tokio::test]
async fn a_disk_that_was_formatted_elsewhere_since_is_mounted_as_it_is() {
    let Some(mut machine) = Machine::new() else { return };
    let disk = machine.attach(EXT4_MIB);
    cut_off(&machine, &disk, FsType::Ext4).await;
    machine.restart(None);
    mkfs_ext4(&disk);
    let before = machine.mkfs_runs();
    machine.stage_as(machine.stage_of(FsType::Ext4)).await.unwrap();
    assert_eq!(machine.mkfs_runs(), before);
}

#[tokio::test]
async fn a_driver_that_starts_while_mkfs_still_runs_waits_for_it() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    // What a mkfs of an earlier run holds: the lock, as its standard input.
    let lock = fs::File::create(machine.path("state").join(format!("{}.lock", volume()))).unwrap();
    lock.lock().unwrap();
    let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).stdout(lock).spawn().unwrap();
    let staging = tokio::spawn({
        let (node, request) = (std::sync::Arc::clone(&machine.node), machine.stage_of(FsType::Ext4));
        async move { node.stage(request, None).await }
    });
    for _ in 0..3 {
        tokio::time::timeout(std::time::Duration::from_millis(60), std::future::pending::<()>()).await.ok();
        assert!(!staging.is_finished() && machine.mounts().is_empty() && machine.mkfs_runs() == 0);
    }
    drop(child.stdin.take());
    child.wait().unwrap();
    staging.await.unwrap().unwrap();
    assert_eq!(machine.mkfs_runs(), 1);
}
