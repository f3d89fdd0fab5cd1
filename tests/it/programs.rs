//! A node whose image lacks programs.

use std::process::Stdio;

use tokio::process::Command;

use crate::cluster::skipped;

#[tokio::test]
async fn a_node_without_its_programs_does_not_start_and_names_them_all() {
    if skipped("a_node_without_its_programs_does_not_start_and_names_them_all") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("csi.sock");
    // In a mount namespace of its own, where the folder that holds most of them is empty.
    let output = Command::new("unshare")
        .args(["--mount", "--", "sh", "-c", "mount -t tmpfs none /usr/sbin && exec \"$@\"", "sh"])
        .args([env!("CARGO_BIN_EXE_cloud-block-csi"), "node", "--endpoint"])
        .arg(&socket)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{log}");
    for program in ["mkfs.ext4", "mkfs.xfs", "e2fsck", "resize2fs", "blockdev", "xfs_growfs", "cryptsetup"] {
        assert!(log.contains(&format!("{program} is not in /usr/sbin:/usr/bin:")), "{program} is not in {log}");
    }
    for package in ["cryptsetup-bin", "e2fsprogs", "util-linux", "xfsprogs"] {
        assert!(log.contains(package), "{package} is not in {log}");
    }
    assert!(!socket.exists(), "it served");
}
