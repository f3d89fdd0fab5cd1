//! Encrypted volumes, on real disks: they need a kernel with device-mapper.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use super::machine::{Loop, MIB, Machine, OTHER_SERIAL, run, try_run, volume};
use crate::{
    error::Error,
    node::{Expand, Key, Publish, Stage, Usage, host::Tool, luks, record::Formatting},
    volume::{Access, FsType},
};

const DISK_MIB: u64 = 128;
/// mkfs.xfs makes nothing smaller, and the header takes 16 MiB.
const XFS_MIB: u64 = 340;
/// Nor does mkfs.btrfs.
const BTRFS_MIB: u64 = 140;
const KEY: &str = "canary-of-a-key\nwith a second line";
const TEXT: &str = "what nobody may read who has but the disk";

fn key(text: &str) -> Option<Key> {
    Key::new(text.to_owned())
}

fn stage_of(machine: &Machine, fs: FsType) -> Stage {
    Stage { key: key(KEY), ..machine.stage_of(fs) }
}

fn is_unlocked() -> bool {
    Path::new("/dev/mapper").join(luks::name(&volume())).exists()
}

fn holds(disk: &Loop, text: &str) -> bool {
    run("blockdev", &["--flushbufs", disk.device.to_str().unwrap()]);
    try_run("grep", &["-q", "-a", "-F", text, disk.image.to_str().unwrap()]).is_ok()
}

/// Staging is refused, and the disk is as it was, and locked.
async fn refused(machine: &Machine, disk: &Loop, request: Stage) -> Error {
    let (before, ran) = (disk.sum(), machine.mkfs_runs());
    let error = machine.stage_as(request).await.unwrap_err();
    assert_eq!((disk.sum(), machine.mkfs_runs()), (before, ran), "{error}");
    assert!(machine.mounts().is_empty() && !is_unlocked(), "{error}");
    error
}

#[tokio::test]
async fn an_encrypted_volume_keeps_its_data_and_its_disk_shows_nothing_of_it() {
    let claim = "an_encrypted_volume_keeps_its_data_and_its_disk_shows_nothing_of_it";
    let Some(mut machine) = Machine::with_device_mapper(claim) else { return };
    for (fs, mib) in [(FsType::Ext4, DISK_MIB), (FsType::Xfs, XFS_MIB), (FsType::Btrfs, BTRFS_MIB)] {
        let disk = machine.attach(mib);
        let ran = machine.mkfs_runs();
        for _ in 0..2 {
            machine.stage_as(stage_of(&machine, fs)).await.unwrap();
        }
        machine.node.publish(machine.publish_of("target", false)).await.unwrap();
        fs::write(machine.path("target/kept"), TEXT).unwrap();
        assert_eq!(machine.mounts().len(), 2, "{fs}");
        // Else it would not be found on a disk that is not encrypted either.
        assert!(try_run("grep", &["-q", "-a", "-F", TEXT, machine.path("target/kept").to_str().unwrap()]).is_ok());
        assert!(machine.node.stats(volume(), machine.path("target")).await.unwrap().ailments.is_empty());
        machine.restart(None);
        machine.stage_as(stage_of(&machine, fs)).await.unwrap();
        machine.node.publish(machine.publish_of("target", false)).await.unwrap();
        assert_eq!(machine.mounts().len(), 2, "{fs}");
        machine.unpublish("target").await.unwrap();
        machine.unstage().await.unwrap();
        machine.unstage().await.unwrap();
        assert!(!is_unlocked() && machine.mounts().is_empty() && machine.state().is_empty(), "{fs}");
        assert!(!holds(&disk, TEXT), "{fs}");
        let shown = run("blkid", &["-p", "-o", "export", disk.device.to_str().unwrap()]);
        assert!(shown.contains("TYPE=crypto_LUKS") && shown.contains("VERSION=2"), "{shown}");
        machine.stage_as(stage_of(&machine, fs)).await.unwrap();
        assert_eq!(fs::read_to_string(machine.path("staging/kept")).unwrap(), TEXT);
        machine.unstage().await.unwrap();
        assert_eq!(machine.mkfs_runs(), ran + 1, "{fs}");
        machine.hide(&disk);
    }
}

#[tokio::test]
async fn without_device_mapper_nothing_is_encrypted() {
    let Some(machine) = Machine::new() else { return };
    if Path::new("/sys/class/misc/device-mapper").exists() {
        println!("skipped: without_device_mapper_nothing_is_encrypted: this kernel has it");
        return;
    }
    let disk = machine.attach(DISK_MIB);
    let error = refused(&machine, &disk, stage_of(&machine, FsType::Ext4)).await;
    assert!(matches!(&error, Error::Precondition(text) if text.contains("dm_crypt")), "{error}");
    assert!(machine.ran.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_wrong_key_is_an_invalid_argument_and_writes_nothing() {
    let claim = "a_wrong_key_is_an_invalid_argument_and_writes_nothing";
    let Some(machine) = Machine::with_device_mapper(claim) else { return };
    let disk = machine.attach(DISK_MIB);
    machine.stage_as(stage_of(&machine, FsType::Ext4)).await.unwrap();
    machine.unstage().await.unwrap();
    for wrong in ["wrong", "canary-of-a-key", "canary-of-a-key\nwith a second line\n"] {
        let error = refused(&machine, &disk, Stage { key: key(wrong), ..stage_of(&machine, FsType::Ext4) }).await;
        assert!(matches!(&error, Error::Invalid { field, .. } if field == "secrets[passphrase]"), "{error}");
        assert!(!error.to_string().contains(wrong), "{error}");
    }
    machine.stage_as(stage_of(&machine, FsType::Ext4)).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_holds_something_is_never_encrypted_in_its_place() {
    let claim = "a_disk_that_holds_something_is_never_encrypted_in_its_place";
    let Some(machine) = Machine::with_device_mapper(claim) else { return };
    let disk = machine.attach(DISK_MIB);
    run("mkfs.ext4", &["-q", disk.device.to_str().unwrap()]);
    let error = refused(&machine, &disk, stage_of(&machine, FsType::Ext4)).await;
    assert!(matches!(&error, Error::DiskRefused { found, .. } if found.contains("ext4")), "{error}");
    machine.hide(&disk);
    let disk = machine.attach(DISK_MIB);
    disk.write(20 * MIB, &[1]);
    disk.write(8 * MIB - 1, &[1]);
    let error = refused(&machine, &disk, stage_of(&machine, FsType::Ext4)).await;
    assert!(matches!(error, Error::DiskRefused { .. }), "{error}");
    machine.hide(&disk);
    let disk = machine.attach(DISK_MIB);
    let error = refused(&machine, &disk, Stage { blank: false, ..stage_of(&machine, FsType::Ext4) }).await;
    assert!(matches!(error, Error::DiskRefused { .. }), "{error}");
    // Nor one that a workload has as a raw block volume, be it blank.
    machine.stage_as(Stage { access: Access::Block, ..machine.stage_of(FsType::Ext4) }).await.unwrap();
    let publish = Publish { access: Access::Block, ..machine.publish_of("device", false) };
    machine.node.publish(publish).await.unwrap();
    let before = disk.sum();
    let error = machine.stage_as(stage_of(&machine, FsType::Ext4)).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition(text) if text.contains("raw block")), "{error}");
    assert!(disk.sum() == before && !is_unlocked());
    machine.unpublish("device").await.unwrap();
    machine.unstage().await.unwrap();
    // And what is encrypted is no plain volume.
    machine.stage_as(stage_of(&machine, FsType::Ext4)).await.unwrap();
    machine.unstage().await.unwrap();
    let error = refused(&machine, &disk, machine.stage_of(FsType::Ext4)).await;
    assert!(matches!(&error, Error::DiskRefused { found, .. } if found.contains("LUKS2")), "{error}");
}

#[tokio::test]
async fn what_was_cut_off_is_done_again_on_its_record_and_never_after_a_reboot() {
    let claim = "what_was_cut_off_is_done_again_on_its_record_and_never_after_a_reboot";
    let Some(mut machine) = Machine::with_device_mapper(claim) else { return };
    let record = machine.path("state").join(format!("{}.formatting.json", volume()));
    let copy = machine.path("record");
    let disk = machine.attach(DISK_MIB);
    // As it is while mkfs runs.
    let (from, to) = (record.clone(), copy.clone());
    *machine.mishap.lock().unwrap() = Some((Tool::MkfsExt4, Box::new(move || assert!(fs::copy(from, to).is_ok()))));
    machine.stage_as(stage_of(&machine, FsType::Ext4)).await.unwrap();
    // What mkfs leaves that is cut off right before its end.
    let inside = Path::new("/dev/mapper").join(luks::name(&volume()));
    run("umount", &[machine.path("staging").to_str().unwrap()]);
    let node = fs::OpenOptions::new().write(true).open(&inside).unwrap();
    node.write_all_at(&[0; 4096], 0).unwrap();
    node.sync_all().unwrap();
    drop(node);
    machine.unstage().await.unwrap();
    let during_mkfs: Formatting = serde_json::from_slice(&fs::read(&copy).unwrap()).unwrap();
    assert!(during_mkfs.luks.as_ref().unwrap().complete);
    let mut during_luks_format = during_mkfs.clone();
    during_luks_format.luks.as_mut().unwrap().complete = false;

    for (is, formats, name) in [(&during_mkfs, 0, "in mkfs"), (&during_luks_format, 1, "in luksFormat")] {
        fs::write(&record, serde_json::to_vec(is).unwrap()).unwrap();
        machine.restart(None);
        let (mkfs, crypt) = (machine.mkfs_runs(), machine.runs_of(Tool::Cryptsetup));
        machine.stage_as(stage_of(&machine, FsType::Ext4)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(machine.mkfs_runs(), mkfs + 1, "{name}");
        // luksFormat, if it was that, and open.
        assert_eq!(machine.runs_of(Tool::Cryptsetup), crypt + formats + 1, "{name}");
        machine.unstage().await.unwrap();
        assert_eq!(machine.state(), Vec::<String>::new(), "{name}");
    }
    // The wrong key does not count as a reason to encrypt the disk anew.
    fs::write(&record, serde_json::to_vec(&during_mkfs).unwrap()).unwrap();
    let error = refused(&machine, &disk, Stage { key: key("wrong"), ..stage_of(&machine, FsType::Ext4) }).await;
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    machine.restart(Some("another boot"));
    fs::write(&record, serde_json::to_vec(&during_luks_format).unwrap()).unwrap();
    let error = refused(&machine, &disk, stage_of(&machine, FsType::Ext4)).await;
    assert!(matches!(error, Error::DiskRefused { .. }), "{error}");
}

#[tokio::test]
async fn a_stale_mapping_is_locked_unless_it_is_in_use() {
    let claim = "a_stale_mapping_is_locked_unless_it_is_in_use";
    let Some(machine) = Machine::with_device_mapper(claim) else { return };
    let disk = machine.attach(DISK_MIB);
    machine.stage_as(stage_of(&machine, FsType::Ext4)).await.unwrap();
    fs::write(machine.path("staging/kept"), TEXT).unwrap();
    machine.unstage().await.unwrap();
    // A mapping of the volume's name over another disk, which holds a file system of its own.
    let other = machine.disk(DISK_MIB);
    machine.show(&other, OTHER_SERIAL);
    let plain = machine.path("plain");
    fs::write(&plain, [7; 64]).unwrap();
    let name = luks::name(&volume());
    let open = ["open", "--type=plain", "--cipher=aes-xts-plain64", "--key-size=512", "--key-file"];
    let open = [&open[..], &[plain.to_str().unwrap(), other.device.to_str().unwrap(), &name]].concat();
    run("cryptsetup", &open);
    let mapping = format!("/dev/mapper/{name}");
    run("mkfs.ext4", &["-q", &mapping]);
    let elsewhere = machine.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    run("mount", &[&mapping, elsewhere.to_str().unwrap()]);
    let (before, ran) = (disk.sum(), machine.mkfs_runs());
    let error = machine.stage_as(stage_of(&machine, FsType::Ext4)).await.unwrap_err();
    // Its end can be asked for, which locks the mapping as soon as nobody uses it.
    let Error::StillThere(cause) = &error else { panic!("{error}") };
    assert!(matches!(&**cause, Error::Precondition(text) if text.contains("in use")), "{error}");
    assert_eq!((disk.sum(), machine.mkfs_runs()), (before, ran));
    run("umount", &[elsewhere.to_str().unwrap()]);
    let sum = other.sum();
    machine.stage_as(stage_of(&machine, FsType::Ext4)).await.unwrap();
    assert_eq!(fs::read_to_string(machine.path("staging/kept")).unwrap(), TEXT);
    assert_eq!((other.sum(), machine.mkfs_runs()), (sum, ran));
}

#[tokio::test]
async fn an_encrypted_volume_grows_online_with_its_key() {
    let claim = "an_encrypted_volume_grows_online_with_its_key";
    let Some(machine) = Machine::with_device_mapper(claim) else { return };
    for fs in [FsType::Ext4, FsType::Xfs] {
        let disk = machine.attach(XFS_MIB);
        machine.stage_as(stage_of(&machine, fs)).await.unwrap();
        machine.node.publish(machine.publish_of("target", false)).await.unwrap();
        fs::write(machine.path("target/kept"), TEXT).unwrap();
        let total = async || match machine.node.stats(volume(), machine.path("target")).await.unwrap().usage {
            Some(Usage::FileSystem { bytes, .. }) => bytes.total,
            other => panic!("{other:?}"),
        };
        let before = total().await;
        let size = 1024 * MIB;
        disk.grow(size);
        let expand = |key| Expand { volume: volume(), path: machine.path("target"), wanted: Some(size), key };
        let error = machine.node.expand(expand(None), None).await.unwrap_err();
        assert!(matches!(&error, Error::Invalid { problem, .. } if problem.contains("node-expand-secret")), "{error}");
        let error = machine.node.expand(expand(key("wrong")), None).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
        for _ in 0..3 {
            assert_eq!(machine.node.expand(expand(key(KEY)), None).await.unwrap(), size);
        }
        // What is as large as it can be needs no key.
        machine.node.expand(expand(None), None).await.unwrap();
        assert!(total().await > before + 600 * MIB, "{fs}: {before} to {}", total().await);
        assert_eq!(fs::read_to_string(machine.path("target/kept")).unwrap(), TEXT);
        machine.unpublish("target").await.unwrap();
        machine.unstage().await.unwrap();
        machine.hide(&disk);
    }
}

#[tokio::test]
async fn a_raw_block_volume_is_encrypted_too_and_its_disk_is_never_shown() {
    let claim = "a_raw_block_volume_is_encrypted_too_and_its_disk_is_never_shown";
    let Some(machine) = Machine::with_device_mapper(claim) else { return };
    let disk = machine.attach(DISK_MIB);
    let stage = || Stage { access: Access::Block, ..stage_of(&machine, FsType::Ext4) };
    let publish = |read_only| Publish { access: Access::Block, ..machine.publish_of("device", read_only) };
    machine.stage_as(stage()).await.unwrap();
    machine.stage_as(stage()).await.unwrap();
    machine.node.publish(publish(false)).await.unwrap();
    machine.node.publish(publish(false)).await.unwrap();
    let shown = fs::metadata(machine.path("device")).unwrap().rdev();
    assert_ne!(shown, fs::metadata(&disk.device).unwrap().rdev());
    let node = fs::OpenOptions::new().write(true).open(machine.path("device")).unwrap();
    node.write_all_at(TEXT.as_bytes(), 0).unwrap();
    node.sync_all().unwrap();
    drop(node);
    machine.unpublish("device").await.unwrap();
    // Without the mapping there is nothing to show.
    run("cryptsetup", &["close", &luks::name(&volume())]);
    let error = machine.node.publish(publish(false)).await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)), "{error}");
    machine.stage_as(stage()).await.unwrap();
    machine.node.publish(publish(true)).await.unwrap();
    let node = fs::OpenOptions::new().read(true).write(true).open(machine.path("device"));
    assert!(node.is_err() || node.unwrap().write_all_at(&[0; 512], 0).is_err());
    let mut text = vec![0; TEXT.len()];
    fs::File::open(machine.path("device")).unwrap().read_exact_at(&mut text, 0).unwrap();
    assert_eq!(text, TEXT.as_bytes());
    machine.unpublish("device").await.unwrap();
    machine.unstage().await.unwrap();
    assert!(!holds(&disk, TEXT) && !is_unlocked() && machine.state().is_empty());
    assert_eq!(machine.mkfs_runs(), 0);
    // Nor is the disk shown when nothing is known of the volume any more.
    let error = machine.node.publish(publish(false)).await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)), "{error}");
}

#[tokio::test]
async fn a_mapping_in_use_keeps_its_volume_from_being_unstaged() {
    let claim = "a_mapping_in_use_keeps_its_volume_from_being_unstaged";
    let Some(machine) = Machine::with_device_mapper(claim) else { return };
    machine.attach(DISK_MIB);
    machine.stage_as(Stage { access: Access::Block, ..stage_of(&machine, FsType::Ext4) }).await.unwrap();
    let held = fs::File::open(Path::new("/dev/mapper").join(luks::name(&volume()))).unwrap();
    let error = machine.unstage().await.unwrap_err();
    assert!(matches!(&error, Error::Precondition(text) if text.contains("in use")), "{error}");
    drop(held);
    machine.unstage().await.unwrap();
    assert!(!is_unlocked() && machine.state().is_empty());
    assert!(try_run("cryptsetup", &["status", &luks::name(&volume())]).is_err());
}
