//! What a snapshot holds, on real disks.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
};

use serde_json::json;
use tokio::process::Command;

use crate::{
    client::{SNAPSHOTS, id_of},
    disk::{device, with_disks},
};

const GIB: u64 = 1 << 30;

fn write(device: &Path, text: &[u8], at: u64) {
    let file = OpenOptions::new().write(true).open(device).unwrap();
    file.write_all_at(text, at).unwrap();
}

fn read(device: &Path, at: u64) -> [u8; 4] {
    let mut bytes = [0; 4];
    File::open(device).unwrap().read_exact_at(&mut bytes, at).unwrap();
    bytes
}

/// Runs a tool of the machine's, which must succeed.
async fn run(tool: &str, args: &[&Path]) {
    let ran = Command::new(tool).args(args).output().await.unwrap();
    assert!(ran.status.success(), "{tool}: {}", String::from_utf8_lossy(&ran.stderr));
}

#[tokio::test]
async fn a_restored_volume_holds_what_the_attached_disk_held_then() {
    let Some((simulation, client)) = with_disks().await else { return };
    let (one, id) = (id_of(&simulation, "one"), client.create_active("a", 10).await);
    client.attached(&id, &one).await;
    let disk = device(&simulation, &id);
    // Not synced: what the kernel took for the disk counts.
    write(&disk, b"then", 0);
    write(&disk, b"last", 10 * GIB - 4);
    let snapshot = client.snapshot_complete(&id, "s").await;
    write(&disk, b"late", 0);
    client.detached(&id).await;
    client.delete(&id).await.is(204);

    let restored = client.restore(&snapshot, "b", 12).await;
    client.attached(&restored, &one).await;

    let disk = device(&simulation, &restored);
    assert_eq!((&read(&disk, 0), &read(&disk, 10 * GIB - 4)), (b"then", b"last"));
    assert_eq!(read(&disk, 12 * GIB - 4), [0; 4]);
    assert_ne!(client.block(&restored).await["mount_id"], json!(""));

    // What is written to the one is not in another one of the same snapshot.
    write(&disk, b"mine", 0);
    client.detached(&restored).await;
    let other = client.restore(&snapshot, "c", 10).await;
    client.attached(&other, &one).await;
    assert_eq!(&read(&device(&simulation, &other), 0), b"then");
    client.detached(&other).await;
    simulation.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_mounted_file_system_s_synced_files_are_in_its_snapshot() {
    let Some((simulation, client)) = with_disks().await else { return };
    let (one, id) = (id_of(&simulation, "one"), client.create_active("a", 10).await);
    client.attached(&id, &one).await;
    let place = simulation.dir().join("place");
    fs::create_dir_all(&place).unwrap();
    let disk = device(&simulation, &id);
    run("mkfs.ext4", &[Path::new("-q"), &disk]).await;
    run("mount", &[&disk, &place]).await;
    fs::write(place.join("file"), "synced").unwrap();
    File::open(place.join("file")).unwrap().sync_all().unwrap();
    let snapshot = client.snapshot_complete(&id, "s").await;
    run("umount", &[&place]).await;
    client.detached(&id).await;

    let restored = client.restore(&snapshot, "b", 10).await;
    client.attached(&restored, &one).await;
    run("mount", &[&device(&simulation, &restored), &place]).await;
    let kept = fs::read_to_string(place.join("file"));
    run("umount", &[&place]).await;

    assert_eq!(kept.unwrap(), "synced");
    client.detached(&restored).await;
    fs::remove_dir(&place).unwrap();
    simulation.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_snapshot_s_file_is_sparse_and_goes_with_it() {
    let Some((simulation, client)) = with_disks().await else { return };
    let id = client.create_active("a", 1000).await;
    let snapshot = client.snapshot_complete(&id, "s").await;
    let file = simulation.control().snapshot("s").unwrap().file.unwrap();
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!(metadata.len(), 1000 * GIB);
    assert!(metadata.blocks() * 512 < GIB, "{} blocks", metadata.blocks());
    client.delete_at(&format!("{SNAPSHOTS}/{snapshot}")).await.is(204);
    assert!(!file.exists());

    client.snapshot_complete(&id, "s").await;
    let (file, dir) = (simulation.control().snapshot("s").unwrap().file.unwrap(), simulation.dir().to_owned());
    assert!(file.exists());
    simulation.shutdown().await.unwrap();
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_snapshot_whose_disk_can_t_be_read_fails() {
    let Some((simulation, client)) = with_disks().await else { return };
    let id = client.create_active("a", 10).await;
    let file = simulation.control().volume("a").unwrap().disk_file.unwrap();
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let made = client.snapshot(&id, "s").await;
    client.poll(&format!("{SNAPSHOTS}/{made}"), |snapshot| snapshot["state"] == "FAILED").await;
    assert_eq!(simulation.control().view().problems.len(), 1);
    simulation.shutdown().await.unwrap();
}
