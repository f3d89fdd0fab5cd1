//! What is told of a volume's use and health: true, at once, and of that volume alone.

use std::fs;

use super::machine::{MIB, Machine, OTHER_SERIAL, run, volume};
use crate::{
    error::Error,
    node::{Severity, Usage, host::Tool},
    volume::FsType,
};

const EXT4_MIB: u64 = 64;

/// The reasons for which the volume is unwell, by its statistics and by its health alike.
async fn ails(machine: &Machine) -> Vec<&'static str> {
    let stats = machine.node.stats(volume(), machine.path("staging")).await.unwrap();
    let health = machine.node.health(volume(), Vec::new()).await.unwrap();
    // The kernel counts errors a little later than they show.
    assert!(stats.ailments.iter().all(|ailment| health.contains(ailment)), "{stats:?} {health:?}");
    health.into_iter().map(|ailment| ailment.reason).collect()
}

#[tokio::test]
async fn statistics_are_of_the_volume_and_tell_when_it_is_unwell() {
    let Some(machine) = Machine::new() else { return };
    let disk = machine.attach(EXT4_MIB);
    machine.stage(FsType::Ext4).await.unwrap();
    for path in ["/", "/proc"] {
        let error = machine.node.unpublish(volume(), path.into()).await.unwrap_err();
        assert!(matches!(error, Error::Precondition(_)), "{path}: {error}");
    }
    for path in ["/", "relative", "/proc"] {
        let error = machine.node.stats(volume(), path.into()).await.unwrap_err();
        assert!(matches!(error, Error::NotMounted { .. }), "{path}: {error}");
        let error = machine.expand(path, None).await.unwrap_err();
        assert!(matches!(error, Error::NotMounted { .. }), "{path}: {error}");
    }
    let stats = machine.node.stats(volume(), machine.path("staging")).await.unwrap();
    let Some(Usage::FileSystem { bytes, inodes }) = stats.usage else { panic!("{stats:?}") };
    assert!(bytes.total > 32 * MIB && bytes.used + bytes.available <= bytes.total && inodes.total > 0);
    assert_eq!(stats.ailments, []);
    // As an error does that the file system found in itself.
    run("mount", &["-o", "remount,abort", machine.path("staging").to_str().unwrap()]);
    let ailments = ails(&machine).await;
    assert!(ailments.contains(&"FilesystemReadOnly"), "{ailments:?}");
    let error = machine.node.publish(machine.publish_of("target", false)).await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)), "{error}");
    machine.hide(&disk);
    assert_eq!(ails(&machine).await, ["DiskGone"]);
    machine.unstage().await.unwrap();
    assert!(machine.mounts().is_empty());
}

#[tokio::test]
async fn a_failure_where_the_volume_is_mounted_is_not_final_so_that_its_end_is_asked_for() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    machine.stage(FsType::Ext4).await.unwrap();
    machine.node.publish(machine.publish_of("target", false)).await.unwrap();
    // The disk fails while the kubelet gives what is on it to a group: it asks for the same publish again.
    run("mount", &["-o", "remount,abort", machine.path("staging").to_str().unwrap()]);
    for failed in [machine.node.publish(machine.publish_of("target", false)).await, machine.stage(FsType::Ext4).await] {
        let error = failed.unwrap_err();
        assert_eq!(error.code(), tonic::Code::Unavailable, "{error}");
        assert!(error.chain().contains("takes no writes"), "{error}");
    }
    machine.unpublish("target").await.unwrap();
    // There is nothing any more whose end anybody had to ask for.
    let error = machine.node.publish(machine.publish_of("target", false)).await.unwrap_err();
    assert!(error.is_final(), "{error}");
    machine.unstage().await.unwrap();
    assert!(machine.mounts().is_empty());
}

#[tokio::test]
async fn errors_that_the_kernel_counts_in_a_file_system_are_told() {
    let Some(machine) = Machine::new() else { return };
    let disk = machine.attach(EXT4_MIB);
    machine.stage(FsType::Ext4).await.unwrap();
    assert_eq!(ails(&machine).await, Vec::<&str>::new());
    fs::write(format!("/sys/fs/ext4/{}/trigger_fs_error", disk.name()), "on purpose").unwrap();
    // The kernel counts it a little later, when it writes the superblock.
    while ails(&machine).await.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(ails(&machine).await, ["FilesystemErrors"]);
    machine.unstage().await.unwrap();
    // It has noted that itself, so the next stage has it checked, once.
    let checks = || machine.runs_of(Tool::E2fsck);
    machine.stage(FsType::Ext4).await.unwrap();
    assert_eq!(checks(), 1);
    assert_eq!(ails(&machine).await, Vec::<&str>::new());
    machine.unstage().await.unwrap();
    machine.stage(FsType::Ext4).await.unwrap();
    assert_eq!(checks(), 1);
}

#[tokio::test]
async fn a_volume_that_could_not_be_staged_is_told_with_the_reason_until_it_could() {
    let Some(machine) = Machine::new() else { return };
    let error = machine.node.health(volume(), Vec::new()).await.unwrap_err();
    assert!(matches!(error, Error::NotHere(_)), "{error}");
    let disk = machine.attach(EXT4_MIB);
    disk.write(MIB, &[1]);
    let refused = machine.stage(FsType::Ext4).await.unwrap_err();
    let health = machine.node.health(volume(), vec![machine.path("staging")]).await.unwrap();
    assert_eq!((health.len(), health[0].reason, health[0].severity), (1, "StageFailed", Severity::Inaccessible));
    assert_eq!(health[0].message, refused.to_string());
    disk.write(MIB, &[0]);
    machine.stage(FsType::Ext4).await.unwrap();
    assert_eq!(ails(&machine).await, Vec::<&str>::new());
    machine.unstage().await.unwrap();
    assert!(matches!(machine.node.health(volume(), Vec::new()).await, Err(Error::NotHere(_))));
}

#[tokio::test]
async fn a_disk_whose_serial_cannot_be_read_is_the_storages_ailment_and_no_other_volumes() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    machine.stage(FsType::Ext4).await.unwrap();
    assert_eq!(machine.node.storage_health().await, []);
    let silent = machine.disk(EXT4_MIB);
    machine.show(&silent, OTHER_SERIAL);
    // Reading from a pipe that nobody writes to waits for ever, as a disk does that has stopped answering.
    let serial = machine.sysfs(&silent).join("serial");
    fs::remove_file(&serial).unwrap();
    nix::unistd::mkfifo(&serial, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let began = tokio::time::Instant::now();
    assert_eq!(ails(&machine).await, Vec::<&str>::new());
    assert!(began.elapsed() < std::time::Duration::from_secs(1), "another volume's disk was waited for");
    let health = machine.node.storage_health().await;
    assert_eq!((health.len(), health[0].reason), (1, "SerialUnreadable"));
    assert!(health[0].message.contains(silent.name()), "{}", health[0].message);
    // What is staged can be let go of all the same.
    machine.unstage().await.unwrap();
    let error = machine.stage(FsType::Ext4).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition(_)) && error.to_string().contains(silent.name()), "{error}");
    fs::write(serial, OTHER_SERIAL).unwrap();
}
