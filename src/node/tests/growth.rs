//! The growth of a mounted ext4: the kernel grants it to `CAP_SYS_RESOURCE` alone, which the root of a container may
//! lack.

use std::fs;

use super::machine::{MIB, Machine, volume};
use crate::{node::Usage, volume::FsType};

/// `CAP_SYS_RESOURCE`'s bit in the capabilities that `/proc` shows.
const CAP_SYS_RESOURCE: u32 = 24;

#[tokio::test]
async fn a_mounted_ext4_grows_online() {
    let Some(machine) = Machine::new() else { return };
    if !may(CAP_SYS_RESOURCE) {
        println!("skipped: a_mounted_ext4_grows_online: no CAP_SYS_RESOURCE here");
        return;
    }
    let disk = machine.attach(64);
    machine.stage(FsType::Ext4).await.unwrap();
    machine.node.publish(machine.publish_of("target", false)).await.unwrap();
    let target = machine.path("target");
    let total = async || match machine.node.stats(volume(), target.clone()).await.unwrap().usage {
        Some(Usage::FileSystem { bytes, .. }) => bytes.total,
        other => panic!("{other:?}"),
    };
    fs::write(target.join("kept"), "text").unwrap();
    let before = total().await;
    disk.grow(128 * MIB);
    assert_eq!(total().await, before);
    for _ in 0..3 {
        assert_eq!(machine.expand(&target, Some(128 * MIB)).await.unwrap(), 128 * MIB);
    }
    assert!(total().await >= before + 56 * MIB, "{before} to {}", total().await);
    fs::write(target.join("more"), vec![1; 72 << 20]).unwrap();
    assert_eq!(fs::read_to_string(target.join("kept")).unwrap(), "text");
}

fn may(capability: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() >> capability & 1 == 1
}
