//! P2: a wrong disk is never touched.

use std::{fs, os::unix::fs::symlink, time::Duration};

use super::machine::{Loop, MIB, Machine, OTHER_SERIAL, SERIAL};
use crate::{error::Error, node::host::Tool, volume::FsType};

const MIB_SIZE: u64 = 64;

/// Nothing was made, mounted or changed.
fn untouched(machine: &Machine, disks: &[&Loop]) {
    assert!(machine.ran.lock().unwrap().is_empty());
    assert!(machine.mounts().is_empty());
    for disk in disks {
        let bytes = fs::read(&disk.image).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "{} was written to", disk.name());
    }
}

#[tokio::test]
async fn two_disks_of_one_serial_are_an_error_that_names_both() {
    let Some(machine) = Machine::new() else { return };
    let (one, other) = (machine.attach(MIB_SIZE), machine.attach(MIB_SIZE));
    let error = machine.stage(FsType::Ext4).await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)), "{error}");
    assert!(error.to_string().contains(one.name()) && error.to_string().contains(other.name()), "{error}");
    untouched(&machine, &[&one, &other]);
}

#[tokio::test]
async fn a_serial_that_cannot_be_read_is_an_error_that_names_the_disk() {
    let Some(machine) = Machine::new() else { return };
    let (good, bad) = (machine.attach(MIB_SIZE), machine.disk(MIB_SIZE));
    machine.show(&bad, OTHER_SERIAL);
    fs::remove_file(machine.sysfs(&bad).join("serial")).unwrap();
    // Reading a directory fails with EISDIR, for root too.
    fs::create_dir(machine.sysfs(&bad).join("serial")).unwrap();
    let error = machine.stage(FsType::Ext4).await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)) && error.to_string().contains(bad.name()), "{error}");
    untouched(&machine, &[&good, &bad]);
}

#[tokio::test]
async fn a_link_to_another_disk_is_an_error_that_says_where_it_points() {
    let Some(machine) = Machine::new() else { return };
    let (right, wrong) = (machine.attach(MIB_SIZE), machine.disk(MIB_SIZE));
    let link = machine.path("by-id").join(format!("virtio-{SERIAL}"));
    symlink(&wrong.device, &link).unwrap();
    let error = machine.stage(FsType::Ext4).await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)) && error.to_string().contains("points to device"), "{error}");
    untouched(&machine, &[&right, &wrong]);
    fs::remove_file(&link).unwrap();
    symlink(&right.device, &link).unwrap();
    machine.stage(FsType::Ext4).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_is_swapped_before_mkfs_is_an_error() {
    let Some(machine) = Machine::new() else { return };
    let (right, wrong) = (machine.attach(MIB_SIZE), machine.disk(MIB_SIZE));
    machine.show(&wrong, OTHER_SERIAL);
    let swapped = [(machine.sysfs(&right), OTHER_SERIAL), (machine.sysfs(&wrong), SERIAL)];
    let swap = move || swapped.iter().for_each(|(sysfs, serial)| fs::write(sysfs.join("serial"), serial).unwrap());
    *machine.mishap.lock().unwrap() = Some((Tool::Blkid, Box::new(swap)));
    let error = machine.stage(FsType::Ext4).await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)) && error.to_string().contains("swapped"), "{error}");
    untouched(&machine, &[&right, &wrong]);
}

#[tokio::test]
async fn a_disk_that_does_not_come_is_asked_for_again() {
    let Some(machine) = Machine::new() else { return };
    let other = machine.disk(MIB_SIZE);
    machine.show(&other, OTHER_SERIAL);
    let error = machine.stage(FsType::Ext4).await.unwrap_err();
    assert!(matches!(error, Error::NotYet(_)) && error.to_string().contains(other.name()), "{error}");
    untouched(&machine, &[&other]);
}

#[tokio::test]
async fn a_disk_that_comes_late_is_waited_for() {
    let Some(machine) = Machine::new() else { return };
    let disk = machine.disk(MIB_SIZE);
    let staging = machine.stage(FsType::Ext4);
    let arriving = async {
        tokio::time::timeout(Duration::from_millis(20), std::future::pending::<()>()).await.ok();
        machine.show(&disk, SERIAL);
    };
    tokio::join!(staging, arriving).0.unwrap();
    assert_eq!(machine.mounts().len(), 1);
}

#[tokio::test]
async fn the_right_disk_among_many_is_mounted_whatever_the_others_hold() {
    let Some(machine) = Machine::new() else { return };
    let others: Vec<Loop> = (0..3).map(|_| machine.disk(MIB_SIZE)).collect();
    for (number, other) in others.iter().enumerate() {
        machine.show(other, &format!("ewr-1123456789abc{number}"));
        other.write(MIB, b"somebody's");
    }
    let sums: Vec<String> = others.iter().map(Loop::sum).collect();
    let right = machine.attach(MIB_SIZE);
    machine.stage(FsType::Ext4).await.unwrap();
    assert_eq!(machine.mounts()[0].source, right.device.to_str().unwrap());
    assert_eq!(others.iter().map(Loop::sum).collect::<Vec<_>>(), sums);
}
