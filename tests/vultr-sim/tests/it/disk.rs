//! Real disks: loop devices, what a guest sees of them, and that nothing stays behind.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use serde_json::json;
use vultr_sim::{Config, Simulation};

use crate::client::{Client, id_of, quick, start};

const SECTORS_PER_GIB: u64 = (1 << 30) / 512;

/// A cloud with disks, or none where this process may not have them.
pub(crate) async fn with_disks() -> Option<(Simulation, Client)> {
    if !Simulation::may_have_disks() {
        println!("skipped: real disks need root and /dev/loop-control");
        return None;
    }
    Some(start(Config { disks: true, ..quick() }).await)
}

/// The loop device of an attached volume.
pub(crate) fn device(simulation: &Simulation, id: &str) -> PathBuf {
    simulation.control().volume(id).unwrap().loop_device.unwrap()
}

/// What an instance sees of a device.
fn attribute(simulation: &Simulation, instance: &str, device: &Path, name: &str) -> std::io::Result<String> {
    let sysfs = simulation.control().instance(instance).unwrap().sysfs_dir;
    fs::read_to_string(sysfs.join("class/block").join(device.file_name().unwrap()).join(name))
}

fn sectors(simulation: &Simulation, instance: &str, device: &Path) -> u64 {
    attribute(simulation, instance, device, "size").unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn a_disk_shows_its_size_and_serial_and_keeps_its_bytes() {
    let Some((simulation, client)) = with_disks().await else { return };
    let (one, two) = (id_of(&simulation, "one"), id_of(&simulation, "two"));
    let id = client.create_active("a", 10).await;
    client.attached(&id, &one).await;

    let (mount_id, first) = (client.block(&id).await["mount_id"].clone(), device(&simulation, &id));
    assert_eq!(attribute(&simulation, "one", &first, "serial").unwrap(), mount_id.as_str().unwrap());
    assert_eq!(sectors(&simulation, "one", &first), 10 * SECTORS_PER_GIB);
    assert!(attribute(&simulation, "one", &first, "dev").unwrap().starts_with("7:"));
    let link = |label: &str| {
        let dir = simulation.control().instance(label).unwrap().device_dir;
        fs::read_link(dir.join(format!("virtio-{}", mount_id.as_str().unwrap())))
    };
    assert_eq!(link("one").unwrap(), first);
    let mut file = OpenOptions::new().write(true).open(&first).unwrap();
    file.write_all(b"kept").unwrap();
    file.sync_all().unwrap();
    drop(file);

    client.detached(&id).await;
    assert!(attribute(&simulation, "one", &first, "serial").is_err());
    assert!(link("one").is_err());

    client.attached(&id, &two).await;
    let mut kept = [0; 4];
    File::open(device(&simulation, &id)).unwrap().read_exact(&mut kept).unwrap();
    assert_eq!(&kept, b"kept");
    assert_eq!(link("two").unwrap(), device(&simulation, &id));
    assert!(link("one").is_err());
    assert_eq!(simulation.control().stats().dirty_detaches, 0);

    client.detached(&id).await;
    client.delete(&id).await.is(204);
    simulation.control().assert_clean();
    simulation.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_attached_guest_sees_a_growth_only_by_switch_or_after_the_next_attach() {
    let Some((simulation, client)) = with_disks().await else { return };
    let (one, id) = (id_of(&simulation, "one"), client.create_active("a", 10).await);
    client.attached(&id, &one).await;
    let seen = || sectors(&simulation, "one", &device(&simulation, &id)) / SECTORS_PER_GIB;

    client.patch(&id, json!({"size_gb": 11})).await.is(204);
    assert_eq!(seen(), 10);
    client.detached(&id).await;
    client.attached(&id, &one).await;
    assert_eq!(seen(), 11);

    simulation.control().behave(|b| b.growth_seen_online = true);
    client.patch(&id, json!({"size_gb": 12})).await.is(204);
    assert_eq!(seen(), 12);
    simulation.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_boot_disk_has_no_serial_and_a_partition() {
    let Some((simulation, _client)) = with_disks().await else { return };
    let blocks = simulation.instances()[0].sysfs_dir.join("class/block");
    assert!(blocks.join("vda/dev").exists() && !blocks.join("vda/serial").exists());
    assert!(blocks.join("vda1/partition").exists());
    simulation.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_detach_of_a_held_disk_succeeds_and_is_counted() {
    let Some((simulation, client)) = with_disks().await else { return };
    let (one, id) = (id_of(&simulation, "one"), client.create_active("a", 10).await);
    client.attached(&id, &one).await;
    let held = File::open(device(&simulation, &id)).unwrap();
    client.detached(&id).await;
    assert_eq!(simulation.control().stats().dirty_detaches, 1);
    assert_eq!(simulation.control().leftovers().unwrap().loop_devices.len(), 1);
    held.read_at(&mut [0; 4], 0).unwrap();
    drop(held);
    simulation.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_shutdown_tells_of_a_disk_that_is_still_held() {
    let Some((simulation, client)) = with_disks().await else { return };
    let (one, id) = (id_of(&simulation, "one"), client.create_active("a", 10).await);
    client.attached(&id, &one).await;
    let (device, dir) = (device(&simulation, &id), simulation.dir().to_owned());
    let held = File::open(&device).unwrap();
    let error = simulation.shutdown().await.unwrap_err();
    assert!(error.to_string().contains(device.to_str().unwrap()), "{error}");
    assert!(!dir.exists());
    drop(held);
}

#[tokio::test]
async fn many_disks_come_and_go_at_once() {
    let Some((simulation, client)) = with_disks().await else { return };
    let mut tasks = tokio::task::JoinSet::new();
    for label in ["one", "two"] {
        let (client, instance) = (client.clone(), id_of(&simulation, label));
        tasks.spawn(async move {
            for number in 0..11 {
                let id = client.create_active(&format!("v{number}"), 10).await;
                client.attached(&id, &instance).await;
            }
        });
    }
    tasks.join_all().await;
    let left = simulation.control().leftovers().unwrap();
    assert_eq!((left.attachments.len(), left.loop_devices.len()), (22, 22));
    for volume in simulation.control().view().volumes {
        client.detached(&volume.id).await;
        client.delete(&volume.id).await.is(204);
    }
    simulation.control().assert_clean();
    simulation.shutdown().await.unwrap();
}

#[tokio::test]
async fn nothing_is_left_after_shutdown_or_drop() {
    for shut_down in [true, false] {
        let Some((simulation, client)) = with_disks().await else { return };
        let (one, id) = (id_of(&simulation, "one"), client.create_active("a", 10).await);
        client.attached(&id, &one).await;
        let (dir, device) = (simulation.dir().to_owned(), device(&simulation, &id));
        if shut_down {
            simulation.shutdown().await.unwrap();
        } else {
            drop(simulation);
        }
        assert!(!dir.exists());
        let backing = Path::new("/sys/block").join(device.file_name().unwrap()).join("loop/backing_file");
        // Another test may have the device by now, but not over this file.
        let file = fs::read_to_string(backing).unwrap_or_default();
        assert!(!file.starts_with(dir.to_str().unwrap()), "{file}");
    }
}
