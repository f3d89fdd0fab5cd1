//! What is deleted is told to the disk when the class says so.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    time::{Duration, SystemTime},
};

use super::machine::{Loop, MIB, Machine, run};
use crate::{
    node::{Stage, host::Tool},
    volume::{Discard, FsType},
};

const DISK_MIB: u64 = 320;
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// How much of the disk's image is not a hole.
fn allocated(disk: &Loop) -> u64 {
    run("blockdev", &["--flushbufs", disk.device.to_str().unwrap()]);
    fs::metadata(&disk.image).unwrap().blocks() * 512
}

fn write_and_delete(machine: &Machine) {
    let file = machine.path("staging/file");
    fs::write(&file, vec![1; usize::try_from(64 * MIB).unwrap()]).unwrap();
    fs::File::open(&file).unwrap().sync_all().unwrap();
    fs::remove_file(&file).unwrap();
    nix::unistd::syncfs(fs::File::open(machine.path("staging")).unwrap()).unwrap();
}

async fn trim(machine: &Machine, when: SystemTime) {
    for trimming in machine.node.trim_what_is_due(when).await {
        trimming.await.unwrap();
    }
}

#[tokio::test]
async fn a_file_system_is_trimmed_once_a_week_if_its_class_says_so() {
    let Some(mut machine) = Machine::new() else { return };
    let now = SystemTime::now();
    for fs in FsType::ALL {
        let disk = machine.attach(DISK_MIB);
        for discard in [Discard::Never, Discard::Weekly] {
            machine.stage_as(Stage { discard, ..machine.stage_of(fs) }).await.unwrap();
            write_and_delete(&machine);
            let (before, ran) = (allocated(&disk), machine.runs_of(Tool::Fstrim));
            trim(&machine, now).await;
            assert_eq!(machine.runs_of(Tool::Fstrim), ran, "{fs}: not due yet");
            machine.restart(None);
            let mut weeks = 0;
            loop {
                weeks += 1;
                for _ in 0..3 {
                    trim(&machine, now + WEEK * weeks).await;
                }
                let trims = if discard == Discard::Weekly { weeks as usize } else { 0 };
                assert_eq!(machine.runs_of(Tool::Fstrim), ran + trims, "{fs} {discard:?}");
                let freed = before.saturating_sub(allocated(&disk));
                // Xfs and btrfs give deleted blocks free when they come to it.
                match discard {
                    Discard::Weekly if freed < 32 * MIB => assert!(weeks < 500, "{fs}: {freed} bytes"),
                    Discard::Weekly => break,
                    _ => break assert!(freed < 32 * MIB, "{fs}: {freed} bytes"),
                }
            }
            let ran = machine.runs_of(Tool::Fstrim);
            machine.unstage().await.unwrap();
            trim(&machine, now + WEEK * 1000).await;
            assert_eq!(machine.runs_of(Tool::Fstrim), ran, "{fs}: is not staged");
        }
        machine.hide(&disk);
    }
}

#[tokio::test]
async fn discard_online_is_a_mount_option() {
    let Some(machine) = Machine::new() else { return };
    let disk = machine.attach(DISK_MIB);
    machine.stage_as(Stage { discard: Discard::Online, ..machine.stage_of(FsType::Ext4) }).await.unwrap();
    assert!(machine.mounts()[0].super_options.iter().any(|option| option == "discard"), "{:?}", machine.mounts());
    write_and_delete(&machine);
    // The kernel tells it when the journal has it.
    while allocated(&disk) >= 48 * MIB {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_trim_keeps_no_call_waiting_for_more_than_a_slice() {
    let Some(machine) = Machine::new() else { return };
    // Slices are of 64 GiB.
    machine.attach(512 * 1024);
    machine.stage_as(Stage { discard: Discard::Weekly, ..machine.stage_of(FsType::Ext4) }).await.unwrap();
    machine.node.publish(machine.publish_of("target", false)).await.unwrap();
    let trims = machine.node.trim_what_is_due(SystemTime::now() + WEEK).await;
    while machine.runs_of(Tool::Fstrim) == 0 {
        tokio::task::yield_now().await;
    }
    machine.unpublish("target").await.unwrap();
    machine.unstage().await.unwrap();
    for trimming in trims {
        trimming.await.unwrap();
    }
    assert!(machine.runs_of(Tool::Fstrim) < 8, "the whole trim was waited for");
    assert!(machine.mounts().is_empty());
}
