//! What goes wrong once goes right again, or is let go of: no volume is stuck, and none is taken for another's leavings.

use std::{fs, io::Write, os::unix::fs::FileExt, path::PathBuf, time::Duration};

use super::machine::{Loop, MIB, Machine, OTHER_SERIAL, SERIAL, run, volume};
use crate::{
    error::Error,
    node::{Publish, Stage},
    volume::{Access, FsType, MkfsOptions},
};

const EXT4_MIB: u64 = 64;
const XFS_MIB: u64 = 320;

fn block(stage: Stage) -> Stage {
    Stage { access: Access::Block, ..stage }
}

fn publish_block(machine: &Machine, read_only: bool) -> Publish {
    Publish { access: Access::Block, ..machine.publish_of("pod/device", read_only) }
}

/// Another disk of the machine whose serial cannot be read.
fn unreadable(machine: &Machine) -> Loop {
    let disk = machine.disk(EXT4_MIB);
    machine.show(&disk, OTHER_SERIAL);
    let serial = machine.sysfs(&disk).join("serial");
    fs::remove_file(&serial).unwrap();
    // Reading a directory fails with EISDIR, for root too.
    fs::create_dir(&serial).unwrap();
    disk
}

/// Leaves a record of a mkfs of ext4 that did not come to its end.
async fn cut_off(machine: &Machine) {
    let disk = machine.path("state").join(format!("{}.formatting.json", volume()));
    let copy = machine.path("record");
    let (from, to) = (disk.clone(), copy.clone());
    let before = Box::new(move || assert!(fs::copy(from, to).is_ok()));
    *machine.mishap.lock().unwrap() = Some((crate::node::host::Tool::MkfsExt4, before));
    machine.stage(FsType::Ext4).await.unwrap();
    machine.unstage().await.unwrap();
    fs::copy(copy, disk).unwrap();
}

#[tokio::test]
async fn what_a_raw_block_workload_wrote_is_never_taken_for_a_cut_off_mkfs() {
    let Some(machine) = Machine::new() else { return };
    let disk = machine.attach(EXT4_MIB);
    cut_off(&machine).await;
    disk.write(0, &vec![0; usize::try_from(EXT4_MIB * MIB).unwrap()]);
    machine.stage_as(block(machine.stage_of(FsType::Ext4))).await.unwrap();
    machine.node.publish(publish_block(&machine, false)).await.unwrap();
    let device = fs::OpenOptions::new().write(true).open(machine.path("pod/device")).unwrap();
    device.write_all_at(&[7; 4096], 20 * MIB).unwrap();
    device.sync_all().unwrap();
    drop(device);
    machine.unpublish("pod/device").await.unwrap();
    machine.unstage().await.unwrap();
    let (before, ran) = (disk.sum(), machine.mkfs_runs());
    let error = machine.stage(FsType::Ext4).await.unwrap_err();
    assert!(matches!(error, Error::DiskRefused { .. }), "{error}");
    assert_eq!((disk.sum(), machine.mkfs_runs()), (before, ran));
}

#[tokio::test]
async fn no_file_system_is_made_or_mounted_under_a_raw_block_publish() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    let staged = Stage { staging_path: machine.path("block"), ..block(machine.stage_of(FsType::Ext4)) };
    machine.stage_as(staged.clone()).await.unwrap();
    machine.node.publish(publish_block(&machine, false)).await.unwrap();
    let error = machine.stage(FsType::Ext4).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition(text) if text.contains("raw block")), "{error}");
    assert_eq!((machine.mkfs_runs(), machine.mounts().len()), (0, 1));
    machine.unpublish("pod/device").await.unwrap();
    machine.stage(FsType::Ext4).await.unwrap();
    let error = machine.stage_as(staged).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition(text) if text.contains("file system")), "{error}");
}

#[tokio::test]
async fn a_disk_that_tells_no_serial_any_more_is_let_go_of_also_after_a_restart() {
    let Some(mut machine) = Machine::new() else { return };
    for unreadable in [false, true] {
        let disk = machine.attach(EXT4_MIB);
        machine.stage(FsType::Ext4).await.unwrap();
        machine.node.publish(machine.publish_of("target", false)).await.unwrap();
        let serial = machine.sysfs(&disk).join("serial");
        // As virtio shows a disk that fails.
        fs::write(&serial, "").unwrap();
        if unreadable {
            fs::remove_file(&serial).unwrap();
            fs::create_dir(&serial).unwrap();
        }
        machine.restart(None);
        machine.unpublish("target").await.unwrap();
        machine.unstage().await.unwrap();
        assert!(machine.mounts().is_empty() && machine.state().is_empty());
        machine.hide(&disk);
    }
}

#[tokio::test]
async fn a_disk_that_told_no_serial_at_first_is_asked_again() {
    let Some(machine) = Machine::new() else { return };
    let disk = machine.attach(EXT4_MIB);
    let file = fs::OpenOptions::new().write(true).truncate(true).open(machine.sysfs(&disk).join("serial")).unwrap();
    let when = file.metadata().unwrap().modified().unwrap();
    file.set_modified(when).unwrap();
    assert!(matches!(machine.stage(FsType::Ext4).await, Err(Error::NotYet(_))));
    (&file).write_all(SERIAL.as_bytes()).unwrap();
    file.set_modified(when).unwrap();
    machine.stage(FsType::Ext4).await.unwrap();
}

#[tokio::test]
async fn another_disks_unreadable_serial_keeps_no_staged_volume_from_being_used_or_let_go_of() {
    let Some(mut machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    machine.stage(FsType::Ext4).await.unwrap();
    let other = unreadable(&machine);
    machine.restart(None);
    machine.stage(FsType::Ext4).await.unwrap();
    machine.node.publish(machine.publish_of("target", false)).await.unwrap();
    machine.expand(machine.path("target"), None).await.unwrap();
    machine.unpublish("target").await.unwrap();
    machine.unstage().await.unwrap();
    machine.hide(&other);
    machine.stage_as(block(machine.stage_of(FsType::Ext4))).await.unwrap();
    machine.node.publish(publish_block(&machine, true)).await.unwrap();
    let other = unreadable(&machine);
    machine.unpublish("pod/device").await.unwrap();
    machine.unstage().await.unwrap();
    // But what is new here is not proven.
    let error = machine.stage(FsType::Ext4).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition(text) if text.contains(other.name())), "{error}");
}

#[tokio::test]
async fn a_file_system_that_hangs_holds_one_thread_however_often_it_is_published() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    machine.stage(FsType::Ext4).await.unwrap();
    let staging = machine.path("staging");
    let staging = staging.to_str().unwrap();
    run("fsfreeze", &["-f", staging]);
    let began = std::time::Instant::now();
    for _ in 0..20 {
        let error = machine.node.publish(machine.publish_of("target", false)).await.unwrap_err();
        assert!(matches!(error, Error::Precondition(_)), "{error}");
    }
    assert!(began.elapsed() < Duration::from_secs(10), "was asked again: {:?}", began.elapsed());
    run("fsfreeze", &["-u", staging]);
    while machine.node.publish(machine.publish_of("target", false)).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_directory_with_something_in_it_is_not_mounted_over() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    fs::create_dir(machine.path("staging")).unwrap();
    fs::write(machine.path("staging/hidden"), "text").unwrap();
    let error = machine.stage(FsType::Ext4).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition(text) if text.contains("something in it")), "{error}");
    assert!(machine.mounts().is_empty() && machine.state().is_empty());
    fs::remove_file(machine.path("staging/hidden")).unwrap();
    machine.stage(FsType::Ext4).await.unwrap();
}

#[tokio::test]
async fn a_stage_that_fails_leaves_neither_mount_nor_record() {
    let Some(machine) = Machine::new() else { return };
    let disk = machine.attach(EXT4_MIB);
    let flags = vec!["nosuchoption".to_owned()];
    let access = Access::Mount { fs_type: Some(FsType::Ext4), flags };
    let error = machine.stage_as(Stage { access, ..machine.stage_of(FsType::Ext4) }).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    assert!(machine.mounts().is_empty() && machine.state().is_empty());
    // ext4 that says it has errors is mounted, unmounted and checked; somebody who looks at it in between keeps it busy.
    run("debugfs", &["-w", "-R", "ssv state 2", disk.device.to_str().unwrap()]);
    let inside: PathBuf = machine.path("staging/lost+found");
    let (tell, done) = std::sync::mpsc::channel::<()>();
    let holder = std::thread::spawn(move || {
        while done.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            if let Ok(file) = fs::File::open(&inside) {
                done.recv().ok();
                drop(file);
                return;
            }
        }
    });
    let staged = machine.stage(FsType::Ext4).await;
    drop(tell);
    holder.join().unwrap();
    // It may have been too late to keep it.
    if staged.is_err() {
        machine.stage(FsType::Ext4).await.unwrap();
    }
    machine.unstage().await.unwrap();
    assert!(machine.mounts().is_empty() && machine.state().is_empty());
}

#[tokio::test]
async fn a_mkfs_that_failed_makes_way_for_what_is_asked_next() {
    let Some(machine) = Machine::new() else { return };
    let disk = machine.attach(XFS_MIB);
    // The program takes them each by itself, and not together.
    let refused = MkfsOptions::parse(FsType::Ext4, "-b 1024 -I 8192").unwrap();
    let error = machine.stage_as(Stage { mkfs_options: refused, ..machine.stage_of(FsType::Ext4) }).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid { field, .. } if field.contains("mkfs_options")), "{error}");
    assert!(machine.state().is_empty());
    cut_off(&machine).await;
    disk.write(0, &[0; 4096]);
    machine.stage(FsType::Xfs).await.unwrap();
    assert_eq!(machine.mounts()[0].fs_type, "xfs");
    machine.unstage().await.unwrap();
    assert!(machine.state().is_empty());
}

#[tokio::test]
async fn a_volume_is_staged_at_one_path_at_a_time() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    machine.stage(FsType::Ext4).await.unwrap();
    let other = Stage { staging_path: machine.path("other"), ..machine.stage_of(FsType::Ext4) };
    let error = machine.stage_as(other.clone()).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition(text) if text.contains("is staged at")), "{error}");
    machine.unstage().await.unwrap();
    machine.stage_as(other).await.unwrap();
    machine.node.unstage(volume(), machine.path("other")).await.unwrap();
    assert!(machine.mounts().is_empty() && machine.state().is_empty());
}

#[tokio::test]
async fn damage_is_not_blamed_on_the_mount_options() {
    let Some(machine) = Machine::new() else { return };
    for flags in [vec![], vec!["discard".to_owned()]] {
        let disk = machine.attach(EXT4_MIB);
        run("mkfs.ext4", &["-q", "-b", "4096", "-O", "^metadata_csum", disk.device.to_str().unwrap()]);
        // The number of the journal's inode.
        disk.write(1024 + 0xe0, &[0xee; 4]);
        let access = Access::Mount { fs_type: Some(FsType::Ext4), flags };
        let staged = machine.stage_as(Stage { access, ..machine.stage_of(FsType::Ext4) }).await;
        match staged {
            Ok(()) => machine.unstage().await.unwrap(),
            Err(error) => assert!(matches!(&error, Error::Precondition(text) if text.contains("e2fsck")), "{error}"),
        }
        assert_eq!(machine.runs_of(crate::node::host::Tool::E2fsck), 1);
        machine.ran.lock().unwrap().clear();
        machine.hide(&disk);
    }
}
