//! Read errors that device-mapper makes beneath the disk, where the kernel has it.

use super::machine::{Loop, Machine, SERIAL, run, try_run};
use crate::{error::Error, volume::FsType};

const DISK_MIB: u64 = 320;
const SECTORS_PER_MIB: u64 = 2048;

/// A mapping; it goes when this is dropped.
struct Mapping(&'static str);

impl Drop for Mapping {
    fn drop(&mut self) {
        try_run("dmsetup", &["remove", "--retry", self.0]).ok();
    }
}

#[tokio::test]
async fn a_blank_disk_with_read_errors_in_any_probed_place_is_not_formatted() {
    let test = "a_blank_disk_with_read_errors_in_any_probed_place_is_not_formatted";
    let Some(machine) = Machine::with_device_mapper(test) else { return };
    let beneath = machine.disk(DISK_MIB);
    // The head, a copy of ext4's superblock, an allocation group of xfs, the tail.
    for at in [0, 128, 240, DISK_MIB - 1] {
        let mapping = Mapping("csi-test-of-read-errors");
        let device = beneath.device.display();
        let (start, after) = (at * SECTORS_PER_MIB, (at + 1) * SECTORS_PER_MIB);
        let end = DISK_MIB * SECTORS_PER_MIB;
        let mut table = Vec::new();
        if start > 0 {
            table.push(format!("0 {start} linear {device} 0"));
        }
        table.push(format!("{start} {SECTORS_PER_MIB} error"));
        if after < end {
            table.push(format!("{after} {} linear {device} {after}", end - after));
        }
        let concise = format!("{},,,rw,{}", mapping.0, table.join(","));
        run("dmsetup", &["create", "--concise", &concise]);
        let before = beneath.sum();
        let node = format!("/dev/mapper/{}", mapping.0);
        let disk = Loop { device: run("losetup", &["-f", "--show", &node]).trim().into(), image: node.clone().into() };
        machine.show(&disk, SERIAL);
        let error = machine.stage(FsType::Ext4).await.unwrap_err();
        machine.hide(&disk);
        run("losetup", &["-d", disk.device.to_str().unwrap()]);
        assert!(
            matches!(&error, Error::DiskRefused { found, .. } if found.contains("cannot be read")),
            "{at}: {error}"
        );
        assert_eq!((beneath.sum(), machine.mkfs_runs()), (before, 0), "{at}");
        assert!(machine.mounts().is_empty() && machine.state().is_empty(), "{at}");
    }
}
