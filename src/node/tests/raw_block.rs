//! Raw block volumes: the disk itself, never formatted, never checked.

use std::{
    fs,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt},
};

use super::machine::{MIB, Machine, volume};
use crate::{
    error::Error,
    node::{Publish, Stage, Usage, host::Tool},
    volume::{Access, FsType},
};

const DISK_MIB: u64 = 32;

async fn stage(machine: &Machine) {
    machine.stage_as(Stage { access: Access::Block, ..machine.stage_of(FsType::Ext4) }).await.unwrap();
}

fn publish_of(machine: &Machine, target: &str, read_only: bool) -> Publish {
    Publish { access: Access::Block, ..machine.publish_of(target, read_only) }
}

/// What the kernel says to a write to the disk.
fn write(machine: &Machine, target: &str) -> std::io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(machine.path(target))?;
    file.write_all_at(&[7; 4096], 0)?;
    file.sync_all()
}

#[tokio::test]
async fn a_raw_block_volume_is_the_disk_itself() {
    let Some(machine) = Machine::new() else { return };
    let disk = machine.attach(DISK_MIB);
    disk.write(MIB, b"whatever");
    let before = disk.sum();
    for _ in 0..3 {
        stage(&machine).await;
    }
    for _ in 0..3 {
        machine.node.publish(publish_of(&machine, "pod/device", false)).await.unwrap();
    }
    assert_eq!(machine.mounts().len(), 1);
    let (shown, real) = (fs::metadata(machine.path("pod/device")).unwrap(), fs::metadata(&disk.device).unwrap());
    assert!(shown.file_type().is_block_device() && shown.rdev() == real.rdev());
    assert_eq!(disk.sum(), before);
    assert!(machine.ran.lock().unwrap().is_empty());
    let stats = machine.node.stats(volume(), machine.path("pod/device")).await.unwrap();
    assert_eq!(stats.usage, Some(Usage::Block { total: DISK_MIB * MIB }));
    write(&machine, "pod/device").unwrap();
    disk.grow(2 * DISK_MIB * MIB);
    let grown = machine.expand(machine.path("pod/device"), Some(2 * DISK_MIB * MIB)).await.unwrap();
    assert_eq!(grown, 2 * DISK_MIB * MIB);
    let error = machine.unstage().await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)), "{error}");
    for _ in 0..3 {
        machine.unpublish("pod/device").await.unwrap();
    }
    for _ in 0..3 {
        machine.unstage().await.unwrap();
    }
    assert!(machine.mounts().is_empty() && machine.state().is_empty() && !machine.path("pod/device").exists());
}

#[tokio::test]
async fn a_read_only_raw_block_publish_takes_no_writes_and_is_undone() {
    let Some(machine) = Machine::new() else { return };
    let disk = machine.attach(DISK_MIB);
    stage(&machine).await;
    machine.node.publish(publish_of(&machine, "one", true)).await.unwrap();
    machine.node.publish(publish_of(&machine, "two", true)).await.unwrap();
    machine.node.publish(publish_of(&machine, "two", true)).await.unwrap();
    for target in ["one", "two"] {
        let error = write(&machine, target).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EPERM), "{error}");
    }
    let error = machine.node.publish(publish_of(&machine, "three", false)).await.unwrap_err();
    assert!(matches!(error, Error::Differs { .. }), "{error}");
    machine.unpublish("one").await.unwrap();
    assert!(write(&machine, "two").is_err());
    machine.unpublish("two").await.unwrap();
    machine.node.publish(publish_of(&machine, "three", false)).await.unwrap();
    write(&machine, "three").unwrap();
    let error = machine.node.publish(publish_of(&machine, "one", true)).await.unwrap_err();
    assert!(matches!(error, Error::Differs { .. }), "{error}");
    machine.unpublish("three").await.unwrap();
    machine.unstage().await.unwrap();
    let tools = machine.ran.lock().unwrap().clone();
    assert!(tools.iter().all(|tool| *tool == Tool::Blockdev), "{tools:?}");
    assert_eq!(fs::read(&disk.image).unwrap()[0], 7);
}

#[tokio::test]
async fn a_file_with_data_at_the_target_is_left_alone() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(DISK_MIB);
    stage(&machine).await;
    fs::write(machine.path("target"), "data").unwrap();
    let error = machine.node.publish(publish_of(&machine, "target", false)).await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)), "{error}");
    let error = machine.unpublish("target").await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)), "{error}");
    assert_eq!(fs::read_to_string(machine.path("target")).unwrap(), "data");
}
