//! Stage, publish and back: one mount each, of the right disk, in the right mode, and nothing left over.

use std::{fs, os::unix::fs::symlink};

use super::machine::{MIB, Machine, OTHER_SERIAL, run, volume};
use crate::{
    cloud::Attachment,
    error::Error,
    node::{Publish, Stage, Usage, host::Tool, mountinfo::Mount},
    volume::{Access, FsType},
};

const EXT4_MIB: u64 = 64;
const XFS_MIB: u64 = 320;

#[tokio::test]
async fn calls_that_are_repeated_make_one_mount_each_and_leave_nothing() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    for _ in 0..3 {
        machine.stage(FsType::Ext4).await.unwrap();
    }
    for _ in 0..3 {
        machine.node.publish(machine.publish_of("pod/target", false)).await.unwrap();
    }
    assert_eq!(machine.mounts().len(), 2);
    fs::write(machine.path("pod/target/file"), "text").unwrap();
    assert_eq!(fs::read_to_string(machine.path("staging/file")).unwrap(), "text");
    for _ in 0..3 {
        machine.unpublish("pod/target").await.unwrap();
    }
    for _ in 0..3 {
        machine.unstage().await.unwrap();
    }
    assert!(machine.mounts().is_empty() && machine.state().is_empty());
    assert!(!machine.path("pod/target").exists() && !machine.path("staging").exists());
}

#[tokio::test]
async fn twenty_calls_at_once_are_one_operation() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    let calls = (0..20).map(|_| machine.stage(FsType::Ext4));
    for result in futures_util::future::join_all(calls).await {
        result.unwrap();
    }
    assert_eq!((machine.mkfs_runs(), machine.mounts().len()), (1, 1));
}

#[tokio::test]
async fn another_disk_at_a_path_is_left_alone() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    let other = machine.disk(EXT4_MIB);
    machine.show(&other, OTHER_SERIAL);
    run("mkfs.ext4", &["-q", other.device.to_str().unwrap()]);
    let mount = |path: &str| {
        fs::create_dir_all(machine.path(path)).unwrap();
        run("mount", &[other.device.to_str().unwrap(), machine.path(path).to_str().unwrap()]);
    };
    mount("staging");
    let error = machine.stage(FsType::Ext4).await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)), "{error}");
    run("umount", &[machine.path("staging").to_str().unwrap()]);
    machine.stage(FsType::Ext4).await.unwrap();
    mount("target");
    let error = machine.node.publish(machine.publish_of("target", false)).await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)), "{error}");
    let error = machine.unpublish("target").await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)), "{error}");
    assert_eq!(machine.mounts().len(), 2);
}

#[tokio::test]
async fn a_mount_in_the_other_mode_already_exists() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    machine.stage(FsType::Ext4).await.unwrap();
    let error = machine.stage_as(Stage { read_only: true, ..machine.stage_of(FsType::Ext4) }).await.unwrap_err();
    assert!(matches!(error, Error::Differs { .. }), "{error}");
    machine.node.publish(machine.publish_of("ro", true)).await.unwrap();
    machine.node.publish(machine.publish_of("ro", true)).await.unwrap();
    let error = machine.node.publish(machine.publish_of("ro", false)).await.unwrap_err();
    assert!(matches!(error, Error::Differs { .. }), "{error}");
    assert_eq!(fs::write(machine.path("ro/file"), "").unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    machine.node.publish(machine.publish_of("rw", false)).await.unwrap();
    fs::write(machine.path("rw/file"), "").unwrap();
}

#[tokio::test]
async fn a_read_only_publish_keeps_the_other_flags() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    let flags = ["nosuid", "nodev", "noexec", "noatime", "data=journal"].map(str::to_owned).to_vec();
    let access = Access::Mount { fs_type: None, flags };
    machine.stage_as(Stage { access, ..machine.stage_of(FsType::Ext4) }).await.unwrap();
    machine.node.publish(machine.publish_of("ro", true)).await.unwrap();
    for mount in machine.mounts() {
        for option in ["nosuid", "nodev", "noexec", "noatime"] {
            assert!(mount.options.iter().any(|have| have == option), "{option}: {mount:?}");
        }
        assert!(mount.super_options.iter().any(|option| option == "data=journal"), "{mount:?}");
    }
}

#[tokio::test]
async fn a_driver_that_ended_while_it_published_read_only_is_made_up_for() {
    let Some(mut machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    machine.stage(FsType::Ext4).await.unwrap();
    let staging = machine.path("staging");
    let record = machine.path("state").join(format!("{}.staged.json", volume()));
    let text = fs::read_to_string(&record).unwrap();
    run("mount", &["-o", "remount,bind,ro", staging.to_str().unwrap()]);
    fs::write(&record, text.replace("\"lent\":null", &format!("\"lent\":{staging:?}"))).unwrap();
    machine.restart(None);
    machine.node.publish(machine.publish_of("reader", true)).await.unwrap();
    machine.node.publish(machine.publish_of("target", false)).await.unwrap();
    fs::write(machine.path("target/file"), "text").unwrap();
    fs::write(machine.path("reader/file"), "text").unwrap_err();
    assert_eq!(fs::read_to_string(&record).unwrap(), text);
    let read_only: Vec<_> = machine.mounts().iter().map(Mount::is_read_only).collect();
    assert_eq!(read_only, [false, true, false]);
}

#[tokio::test]
async fn an_option_that_the_kernel_refuses_is_an_invalid_argument_that_names_it() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    let access = Access::Mount { fs_type: None, flags: vec!["no_such_option".to_owned()] };
    let error = machine.stage_as(Stage { access, ..machine.stage_of(FsType::Ext4) }).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid { problem, .. } if problem.contains("no_such_option")), "{error}");
    assert!(machine.mounts().is_empty());
}

#[tokio::test]
async fn what_is_not_staged_cannot_be_published_and_what_is_published_not_unstaged() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    let error = machine.node.publish(machine.publish_of("target", false)).await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)), "{error}");
    machine.stage(FsType::Ext4).await.unwrap();
    machine.node.publish(machine.publish_of("target", false)).await.unwrap();
    let error = machine.unstage().await.unwrap_err();
    assert!(matches!(&error, Error::Precondition(text) if text.contains("target")), "{error}");
    assert_eq!(machine.mounts().len(), 2);
}

#[tokio::test]
async fn links_are_not_followed_and_data_in_a_directory_is_not_removed() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    fs::create_dir(machine.path("elsewhere")).unwrap();
    symlink(machine.path("elsewhere"), machine.path("staging")).unwrap();
    let error = machine.stage(FsType::Ext4).await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)), "{error}");
    let error = machine.unpublish("staging").await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)), "{error}");
    assert!(machine.path("elsewhere").exists() && machine.mounts().is_empty());
    fs::write(machine.path("elsewhere/data"), "").unwrap();
    let error = machine.unpublish("elsewhere").await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)), "{error}");
    assert!(machine.path("elsewhere/data").exists());
}

#[tokio::test]
async fn a_damaged_file_system_is_mended_or_refused_but_never_made_anew() {
    let Some(machine) = Machine::new() else { return };
    let disk = machine.attach(EXT4_MIB);
    machine.stage(FsType::Ext4).await.unwrap();
    fs::write(machine.path("staging/kept"), "text").unwrap();
    machine.unstage().await.unwrap();
    // The root directory's inode: the mount fails with EUCLEAN, and that is more than e2fsck mends by itself.
    let blocks = run("dumpe2fs", &[disk.device.to_str().unwrap()]);
    let table = blocks.split("Inode table at ").nth(1).unwrap().split('-').next().unwrap().parse::<u64>().unwrap();
    let block = run("blkid", &["-p", "-s", "BLOCK_SIZE", "-o", "value", disk.device.to_str().unwrap()]);
    let block = block.trim().parse::<u64>().unwrap();
    disk.write(table * block + 256, &[0xff; 128]);
    let error = machine.stage(FsType::Ext4).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition(text) if text.contains("e2fsck")), "{error}");
    assert_eq!(machine.mkfs_runs(), 1);
    assert!(machine.ran.lock().unwrap().contains(&Tool::E2fsck) && machine.mounts().is_empty());
}

#[tokio::test]
async fn growth_is_taken_over_online_and_at_stage() {
    let Some(machine) = Machine::new() else { return };
    for fs in [FsType::Xfs, FsType::Btrfs] {
        let disk = machine.attach(XFS_MIB);
        machine.stage(fs).await.unwrap();
        machine.node.publish(machine.publish_of("target", false)).await.unwrap();
        let total = async || match machine.node.stats(volume(), machine.path("target")).await.unwrap().usage {
            Some(Usage::FileSystem { bytes, .. }) => bytes.total,
            other => panic!("{other:?}"),
        };
        let before = total().await;
        let target = machine.path("target");
        let error = machine.expand(target.clone(), Some(512 * MIB)).await.unwrap_err();
        assert!(matches!(error, Error::NotYet(_)), "{error}");
        disk.grow(512 * MIB);
        for _ in 0..3 {
            assert_eq!(machine.expand(target.clone(), Some(512 * MIB)).await.unwrap(), 512 * MIB);
        }
        assert!(total().await >= before + 180 * MIB, "{fs}: {before} to {}", total().await);
        machine.unpublish("target").await.unwrap();
        machine.unstage().await.unwrap();
        disk.grow(640 * MIB);
        machine.stage(fs).await.unwrap();
        machine.node.publish(machine.publish_of("target", false)).await.unwrap();
        assert!(total().await >= before + 300 * MIB, "{fs}");
        machine.unpublish("target").await.unwrap();
        machine.unstage().await.unwrap();
        machine.hide(&disk);
    }
}

#[tokio::test]
async fn a_clone_with_its_sources_uuid_is_mounted_beside_it() {
    let Some(machine) = Machine::new() else { return };
    let source = machine.attach(XFS_MIB);
    machine.stage(FsType::Xfs).await.unwrap();
    let clone = machine.disk(XFS_MIB);
    machine.show(&clone, OTHER_SERIAL);
    machine.unstage().await.unwrap();
    run(
        "dd",
        &[&format!("if={}", source.image.display()), &format!("of={}", clone.device.display()), "bs=1M", "conv=fsync"],
    );
    machine.stage(FsType::Xfs).await.unwrap();
    let mut request = machine.stage_of(FsType::Xfs);
    request.volume =
        crate::volume::VolumeId::parse(crate::volume::IdForm::Uuid, "cb676a46-66fd-4dfb-b839-443f2e6c0b61").unwrap();
    request.staging_path = machine.path("other-staging");
    request.attachment = Attachment::Disk { serial: OTHER_SERIAL.to_owned(), size: None };
    machine.stage_as(request).await.unwrap();
    assert_eq!((machine.mounts().len(), machine.mkfs_runs()), (2, 1));
}

#[tokio::test]
async fn a_dead_disk_is_unpublished_and_unstaged() {
    let Some(machine) = Machine::new() else { return };
    for fs in FsType::ALL {
        let disk = machine.attach(XFS_MIB);
        machine.stage(fs).await.unwrap();
        machine.node.publish(machine.publish_of("target", false)).await.unwrap();
        fs::write(machine.path("target/file"), vec![1; 1 << 20]).unwrap();
        // From here on every read and most writes fail with EIO.
        fs::File::create(&disk.image).unwrap();
        machine.hide(&disk);
        assert!(!machine.node.stats(volume(), machine.path("target")).await.unwrap().ailments.is_empty());
        machine.unpublish("target").await.unwrap_or_else(|error| panic!("{fs}: {}", error.chain()));
        machine.unstage().await.unwrap_or_else(|error| panic!("{fs}: {}", error.chain()));
        assert!(machine.mounts().is_empty() && machine.state().is_empty(), "{fs}");
    }
}

#[tokio::test]
async fn a_volume_that_another_driver_staged_goes_on_working() {
    let Some(machine) = Machine::new() else { return };
    let disk = machine.attach(EXT4_MIB);
    run("mkfs.ext4", &["-q", disk.device.to_str().unwrap()]);
    fs::create_dir(machine.path("staging")).unwrap();
    run("mount", &[disk.device.to_str().unwrap(), machine.path("staging").to_str().unwrap()]);
    machine.node.publish(Publish { attachment: None, ..machine.publish_of("target", false) }).await.unwrap();
    assert_eq!(machine.node.stats(volume(), machine.path("target")).await.unwrap().ailments, []);
    machine.expand(machine.path("target"), None).await.unwrap();
    machine.unpublish("target").await.unwrap();
    machine.unstage().await.unwrap();
    assert!(machine.mounts().is_empty());
}

#[tokio::test]
async fn a_disk_is_the_systems_when_it_is_mounted_at_the_root_or_by_its_partitions() {
    let Some(machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    machine.stage(FsType::Ext4).await.unwrap();
    assert_eq!(machine.node.system_volumes().await.unwrap(), 0);
    let root = fs::metadata("/").unwrap();
    let root = crate::node::mountinfo::parse(&fs::read_to_string("/proc/self/mountinfo").unwrap())
        .unwrap()
        .into_iter()
        .find(|mount| mount.target == std::path::Path::new("/"))
        .filter(|_| root.is_dir())
        .unwrap();
    let system = machine.path("sys/class/block/vdx");
    fs::create_dir_all(system.join("vdx1")).unwrap();
    for (file, text) in [("serial", OTHER_SERIAL), ("dev", "252:240"), ("size", "8"), ("vdx1/partition", "1")] {
        fs::write(system.join(file), text).unwrap();
    }
    fs::write(system.join("vdx1/dev"), root.device.to_string()).unwrap();
    assert_eq!(machine.node.system_volumes().await.unwrap(), 1);
}
