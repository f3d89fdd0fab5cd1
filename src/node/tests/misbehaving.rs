//! Disks that hang, fail, or are taken away: told in time, and let go of.

use std::{
    fs,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use faulty_disk::FaultyDisk;

use super::machine::{Loop, MIB, Machine, OTHER_SERIAL, SERIAL, run, volume};
use crate::{
    cloud::Attachment,
    node::{Publish, Stage},
    volume::{Access, FsType, IdForm, VolumeId},
};

const DISK_MIB: u64 = 320;

/// A machine with a disk that misbehaves, or none where there can be none.
fn with_faulty(test: &str) -> Option<(Machine, FaultyDisk)> {
    let machine = Machine::new()?;
    if let Some(reason) = faulty_disk::unavailable() {
        println!("skipped: {test}: {reason}");
        return None;
    }
    let faulty = FaultyDisk::new(&std::env::temp_dir(), DISK_MIB * MIB).unwrap();
    machine.show(&disk_of(&faulty), SERIAL);
    Some((machine, faulty))
}

fn disk_of(faulty: &FaultyDisk) -> Loop {
    Loop { device: faulty.device().to_owned(), image: faulty.image().to_owned() }
}

#[tokio::test]
async fn after_an_unstage_nothing_more_is_written_and_everything_is_flushed() {
    let test = "after_an_unstage_nothing_more_is_written_and_everything_is_flushed";
    for fs in FsType::ALL {
        let Some((machine, faulty)) = with_faulty(test) else { return };
        machine.stage(fs).await.unwrap();
        machine.node.publish(machine.publish_of("target", false)).await.unwrap();
        fs::write(machine.path("target/file"), vec![1; 4 << 20]).unwrap();
        machine.unpublish("target").await.unwrap();
        machine.unstage().await.unwrap();
        assert!(faulty.is_flushed(), "{fs}");
        faulty.mark();
        nix::unistd::sync();
        run("blockdev", &["--flushbufs", faulty.device().to_str().unwrap()]);
        assert_eq!(faulty.written(), 0, "{fs}");
    }
    let Some((machine, faulty)) = with_faulty(test) else { return };
    // A raw block volume that was written to through the page cache, and by nobody synced.
    let block = |stage: Stage| Stage { access: Access::Block, ..stage };
    machine.stage_as(block(machine.stage_of(FsType::Ext4))).await.unwrap();
    let publish = Publish { access: Access::Block, ..machine.publish_of("device", false) };
    machine.node.publish(publish).await.unwrap();
    let node = fs::OpenOptions::new().write(true).open(machine.path("device")).unwrap();
    node.write_all_at(&vec![7; 1 << 20], 0).unwrap();
    // Whoever closes a disk last brings what was written to it; this is not closed.
    let kept = fs::File::open(faulty.device()).unwrap();
    drop(node);
    machine.unpublish("device").await.unwrap();
    machine.unstage().await.unwrap();
    assert!(faulty.is_flushed());
    faulty.mark();
    drop(kept);
    nix::unistd::sync();
    assert_eq!(faulty.written(), 0);
}

#[tokio::test]
async fn a_hung_disk_is_told_of_in_time_and_holds_up_no_other_volume() {
    let test = "a_hung_disk_is_told_of_in_time_and_holds_up_no_other_volume";
    let Some((machine, faulty)) = with_faulty(test) else { return };
    machine.stage(FsType::Ext4).await.unwrap();
    let well = machine.disk(DISK_MIB);
    machine.show(&well, OTHER_SERIAL);
    let other = VolumeId::parse(IdForm::Uuid, "cb676a46-66fd-4dfb-b839-443f2e6c0b61").unwrap();
    let mut request = machine.stage_of(FsType::Xfs);
    request.volume = other.clone();
    request.staging_path = machine.path("other");
    request.attachment = Attachment::Disk { serial: OTHER_SERIAL.to_owned(), size: None };
    machine.stage_as(request).await.unwrap();

    faulty.hang();
    let began = Instant::now();
    let hung = machine.node.stats(volume(), machine.path("staging")).await.unwrap();
    assert_eq!(hung.ailments.iter().map(|ailment| ailment.reason).collect::<Vec<_>>(), ["NotResponding"]);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(machine.node.health(volume(), Vec::new()).await.unwrap().len(), 1);
        let stats = machine.node.stats(other.clone(), machine.path("other")).await.unwrap();
        assert!(stats.ailments.is_empty() && stats.usage.is_some(), "{stats:?}");
        assert!(began.elapsed() < Duration::from_secs(1), "was waited for again: {:?}", began.elapsed());
    }
    assert_eq!(faulty.waiting(), 1, "threads pile up");
    machine.node.unstage(other, machine.path("other")).await.unwrap();
    faulty.release();
    while !machine.node.stats(volume(), machine.path("staging")).await.unwrap().ailments.is_empty() {
        tokio::task::yield_now().await;
    }
    machine.unstage().await.unwrap();
}

#[tokio::test]
async fn a_disk_that_fails_under_a_mount_is_told_of_and_let_go_of() {
    let test = "a_disk_that_fails_under_a_mount_is_told_of_and_let_go_of";
    for fs in FsType::ALL {
        let Some((machine, faulty)) = with_faulty(test) else { return };
        machine.stage(fs).await.unwrap();
        machine.node.publish(machine.publish_of("target", false)).await.unwrap();
        fs::write(machine.path("target/file"), vec![1; 4 << 20]).unwrap();
        faulty.fail_all();
        let stats = machine.node.stats(volume(), machine.path("target")).await.unwrap();
        assert!(!stats.ailments.is_empty(), "{fs}: {stats:?}");
        let began = Instant::now();
        machine.unpublish("target").await.unwrap_or_else(|error| panic!("{fs}: {}", error.chain()));
        machine.unstage().await.unwrap_or_else(|error| panic!("{fs}: {}", error.chain()));
        assert!(began.elapsed() < Duration::from_secs(20), "{fs}: {:?}", began.elapsed());
        assert!(machine.mounts().is_empty() && machine.state().is_empty(), "{fs}");
        // What a half-dead file system left is seen when the disk is well again, and never made anew.
        faulty.heal();
        let ran = machine.mkfs_runs();
        match machine.stage(fs).await {
            Ok(()) => machine.unstage().await.unwrap(),
            Err(error) => assert!(machine.mounts().is_empty(), "{fs}: {error}"),
        }
        assert_eq!(machine.mkfs_runs(), ran, "{fs}");
    }
}
