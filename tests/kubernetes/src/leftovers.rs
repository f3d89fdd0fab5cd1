//! What a flow must not leave: volumes, attachments, mounts, loop devices, processes.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::{
    bed::{Bed, text},
    driver::NAME,
    eventually::eventually,
};

/// What a node shows that has to do with volumes: mounts, disks, the tools that the driver runs; and on a worker, which has
/// /bed, loop devices and what unlocks disks: on the host these are the cloud's own, and other tests'.
const LOOK: &str = r#"
grep -E 'kubernetes.io(/|~)csi/' /proc/self/mountinfo | grep -v projected | sed 's/^/mount: /'
for process in /proc/[0-9]*; do
    name=$(cat $process/comm 2>/dev/null) || continue
    # By their whole names: the kernel's own threads are called after the file systems too.
    case $name in
        mkfs.*|mke2fs|fsck.*|e2fsck|xfs_growfs|resize2fs|cryptsetup|btrfs|blkid|blockdev|fstrim) echo "process: $name";;
    esac
done
if [ -e /bed ]; then
    loops=$(losetup --list --noheadings --output NAME,BACK-FILE) || exit 1
    [ -z "$loops" ] || echo "$loops" | sed 's/^/loop device: /'
    [ ! -d /dev/mapper ] || ls /dev/mapper | grep -v '^control$' | sed 's/^/mapping: /'
fi
ls -d /sys/block/vd[b-z] 2>/dev/null | sed 's/^/disk: /'
true
"#;

/// Waits until nothing is left of a flow in `namespace`, which is deleted first.
pub(crate) async fn none(bed: &Bed, namespace: &str) -> Result<()> {
    bed.kubectl.delete(&["namespace", namespace], Duration::from_secs(180)).await?;
    gone(bed).await
}

/// Waits until nothing is left: what was deleted goes in its own time.
pub(crate) async fn gone(bed: &Bed) -> Result<()> {
    eventually("nothing is left", Duration::from_secs(180), async || {
        let left = look(bed).await?;
        ensure!(left.is_empty(), "left: {left:?}");
        Ok(())
    })
    .await
}

/// What is there of volumes, in the cluster, in the cloud and on the nodes.
async fn look(bed: &Bed) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let ours = |object: &&Value| {
        text(object, "/spec/csi/driver") == NAME
            || text(object, "/spec/attacher") == NAME
            || text(object, "/spec/driver") == NAME
    };
    for kind in ["persistentvolumes", "volumeattachments", "volumesnapshotcontents"] {
        let objects = bed.kubectl.list(&[kind]).await?;
        let name = |object: &Value| format!("{kind}/{}", text(object, "/metadata/name"));
        left.extend(objects.iter().filter(ours).map(name));
    }
    let cloud = bed.cloud.leftovers()?;
    if !cloud.is_empty() {
        left.push(format!("in the cloud: {cloud:?}"));
    }
    left.extend(on_nodes(bed).await?);
    left.retain(|line| !bed.others.contains(line));
    Ok(left)
}

/// Takes what is left now for what others have, so that it is one flow that fails by it and not all after it as well.
pub(crate) async fn let_be(bed: &mut Bed) -> Result<()> {
    let left = look(bed).await?;
    bed.others.extend(left.into_iter().filter(|line| lasts(line)));
    Ok(())
}

/// What the nodes show already, before there is a driver: the machine that the host is may have disks of its own.
pub(crate) async fn of_others(bed: &Bed) -> Result<Vec<String>> {
    let found = on_nodes(bed).await?;
    Ok(found.into_iter().filter(|line| lasts(line)).collect())
}

/// Processes come and go, and are known by their names alone.
fn lasts(line: &str) -> bool {
    !line.contains(": process: ")
}

async fn on_nodes(bed: &Bed) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for node in &bed.nodes {
        let shown = node.run(LOOK).await?;
        found.extend(shown.lines().map(|line| format!("{}: {line}", node.name)));
    }
    Ok(found)
}
