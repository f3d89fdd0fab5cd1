//! A cluster as Vultr's own driver leaves it.
//!
//! The objects have its names and fields. What runs in its pods is a stand-in, this driver without its records (which it
//! keeps elsewhere) and with sidecars that hold no leases, so that real volumes are attached and mounted as another
//! driver left them. What it would write otherwise than that one, which is PersistentVolumes with node affinity and more in
//! the publish context, is written by hand here, or taken away again.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;
use vultr_sim::{SeedVfs, SeedVolume};

use crate::{
    bed::{Bed, text},
    driver::{self, NAME, NAMESPACE},
    process::output,
    stage::Stage,
};

/// Its controller's set, and what its pods are labelled with.
pub(super) const CONTROLLER: &str = "csi-vultr-controller";
/// Its nodes' set.
pub(super) const NODE: &str = "csi-vultr-node";
/// Its accounts.
const ACCOUNTS: [&str; 2] = ["csi-vultr-controller-sa", "csi-vultr-node-sa"];
/// Its roles with their bindings; the last is the nodes'.
const ROLES: [(&str, &str); 4] = [
    ("csi-vultr-attacher-role", "csi-controller-attacher-binding"),
    ("csi-vultr-provisioner-role", "csi-controller-provisioner-binding"),
    ("csi-vultr-resizer-role", "csi-vultr-resizer-binding"),
    ("csi-vultr-node-driver-registrar-role", "driver-registrar-binding"),
];
/// Where the stand-in keeps its records.
pub(super) const RECORDS: &str = "/var/lib/kubelet/plugins/csi-vultr";

/// Its manifest, made of the shipped one, whose objects must not be in the cluster.
pub(super) async fn manifest(bed: &Bed) -> Result<String> {
    let shipped = driver::documents(bed, &bed.parts.repository.join("deploy/kubernetes.yaml")).await?;
    let mut objects = Vec::new();
    for object in shipped {
        let name = text(&object, "/metadata/name").to_owned();
        match text(&object, "/kind") {
            "StorageClass" => objects.push(class(object)),
            "CSIDriver" => objects.push(json!({
                "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": NAME},
                "spec": {"attachRequired": true, "podInfoOnMount": true},
            })),
            "ClusterRole" if name == driver::CONTROLLER => {
                objects.extend(ROLES[..3].iter().map(|(role, _)| renamed(&object, role)));
            }
            "ClusterRole" => objects.push(renamed(&object, ROLES[3].0)),
            "StatefulSet" => objects.push(set(&object, CONTROLLER, ACCOUNTS[0])?),
            "DaemonSet" => objects.push(set(&object, NODE, ACCOUNTS[1])?),
            _ => {}
        }
    }
    ensure!(objects.len() == 13, "the shipped manifest has other objects: {}", json!(objects));
    objects.extend(ACCOUNTS.map(|name| {
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE}})
    }));
    for (role, binding) in ROLES {
        let account = if role == ROLES[3].0 { ACCOUNTS[1] } else { ACCOUNTS[0] };
        objects.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": binding},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}],
        }));
    }
    objects.extend(newer());
    let documents: Vec<_> = objects.iter().map(Value::to_string).collect();
    Ok(documents.join("\n---\n"))
}

/// What it has besides since v0.19: a snapshotter, and leases, which nobody could take over by their owner.
fn newer() -> Vec<Value> {
    let rbac = "rbac.authorization.k8s.io/v1";
    let subjects = json!([{"kind": "ServiceAccount", "name": ACCOUNTS[0], "namespace": NAMESPACE}]);
    let to = |kind: &str, name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    let (role, lead) = ("csi-vultr-snapshotter-role", "csi-vultr-snapshotter-leaderelection");
    let rules =
        json!([{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}]);
    let here = |name: &str| json!({"name": name, "namespace": NAMESPACE});
    vec![
        json!({"apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": role}, "rules": []}),
        json!({
            "apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": {"name": "csi-vultr-snapshotter-binding"},
            "roleRef": to("ClusterRole", role), "subjects": subjects,
        }),
        json!({"apiVersion": rbac, "kind": "Role", "metadata": here(lead), "rules": rules}),
        json!({
            "apiVersion": rbac, "kind": "RoleBinding", "metadata": here(lead), "roleRef": to("Role", lead),
            "subjects": subjects,
        }),
        json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": here(CONTROLLER),
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": CONTROLLER}}},
        }),
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": here("external-snapshotter-leader-block-csi-vultr-com"),
            "spec": {"holderIdentity": format!("{CONTROLLER}-0"), "leaseDurationSeconds": 15},
        }),
    ]
}

/// Looks that the guide has taken all of it away, but for what is the user's.
pub(super) async fn is_gone(bed: &Bed) -> Result<()> {
    let kinds =
        "clusterrole,clusterrolebinding,role,rolebinding,serviceaccount,poddisruptionbudget,statefulset,daemonset";
    let all = bed.kubectl.run(&["get", kinds, "-A", "-o", "name"]).await?;
    let own = ["/csi-vultr-", "/csi-controller-", "/driver-registrar-binding"];
    let left: Vec<_> = all.lines().filter(|name| own.iter().any(|part| name.contains(part))).collect();
    ensure!(left.is_empty(), "the old driver's are there still: {left:?}");
    // Those of its leases would keep Helm from making its own.
    for lease in bed.kubectl.list(&["leases", "-n", NAMESPACE]).await? {
        let holder = text(&lease, "/spec/holderIdentity");
        ensure!(!holder.starts_with(CONTROLLER), "a lease of the old driver's is there still: {lease}");
    }
    Ok(())
}

fn renamed(object: &Value, name: &str) -> Value {
    let mut object = object.clone();
    object["metadata"] = json!({"name": name});
    object
}

/// Its classes bind at once.
fn class(mut class: Value) -> Value {
    class["metadata"] = json!({"name": class["metadata"]["name"]});
    class["volumeBindingMode"] = json!("Immediate");
    class
}

/// A set of pods under its name.
fn set(shipped: &Value, name: &str, account: &str) -> Result<Value> {
    let mut set = shipped.clone();
    set["metadata"] = json!({"name": name, "namespace": NAMESPACE});
    set["spec"]["selector"] = json!({"matchLabels": {"app": name}});
    set["spec"]["template"]["metadata"] = json!({"labels": {"app": name}});
    let pod = &mut set["spec"]["template"]["spec"];
    pod["serviceAccountName"] = json!(account);
    let containers = pod["containers"].as_array_mut().context("a set without containers")?;
    containers.retain(|container| text(container, "/name") != "csi-snapshotter");
    for container in containers {
        let arguments = container["args"].as_array_mut().context("a container without arguments")?;
        arguments.retain(|argument| argument != "--leader-election");
        if name == NODE {
            arguments.push(json!(format!("--state-dir={RECORDS}")));
            container["lifecycle"] = Value::Null;
        }
    }
    Ok(set)
}

/// Waits until it works on every node.
pub(super) async fn is_ready(bed: &Bed) -> Result<()> {
    driver::rolled_out(bed, &format!("statefulset/{CONTROLLER}")).await?;
    driver::rolled_out(bed, &format!("daemonset/{NODE}")).await?;
    for node in &bed.nodes {
        driver::is_registered(bed, &node.name).await?;
    }
    Ok(())
}

/// A volume with a file system in the cloud, its PersistentVolume, and the claim `claim` that is bound to it. By
/// its provisioner, or by hand and with the node affinity that people write.
pub(super) async fn volume(stage: &Stage<'_>, claim: &str, fs_type: &str, by_hand: bool) -> Result<()> {
    let made = stage.bed.cloud.seed_volume(SeedVolume::new(&format!("pvc-of-{claim}"), "ewr", 10)).await?;
    let disk = made.disk_file.context("a volume without a disk")?;
    format(fs_type, &disk).await?;
    let mut volume = persistent(stage, claim, &made.id, fs_type);
    if by_hand {
        let region = json!({"key": "region", "operator": "In", "values": ["EWR"]});
        volume["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [region]}]}});
    } else {
        provisioned(&mut volume);
    }
    claimed(stage, claim, volume).await
}

/// The same with a shared file system, of its provisioner.
pub(super) async fn share(stage: &Stage<'_>, claim: &str) -> Result<()> {
    let made = stage.bed.cloud.seed_vfs(SeedVfs::new(&format!("pvc-of-{claim}"), "ewr", 10)).await?;
    let mut volume = persistent(stage, claim, &made.id, "ext4");
    volume["spec"]["accessModes"] = json!(["ReadWriteMany"]);
    volume["spec"]["storageClassName"] = json!("vultr-vfs-storage");
    provisioned(&mut volume);
    claimed(stage, claim, volume).await
}

/// Whether the nodes can mount one.
pub(super) fn has_shares(stage: &Stage<'_>) -> bool {
    stage.bed.nodes[0].is_virtual()
}

/// The PersistentVolume of 10 GiB of a claim.
fn persistent(stage: &Stage<'_>, claim: &str, handle: &str, fs_type: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": format!("pvc-of-{claim}")},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"}, "storageClassName": crate::stage::CLASS,
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": stage.namespace, "name": claim},
            "csi": {"driver": NAME, "volumeHandle": handle, "fsType": fs_type},
        },
    })
}

/// As its provisioner leaves it.
fn provisioned(volume: &mut Value) {
    volume["metadata"]["annotations"] = json!({"pv.kubernetes.io/provisioned-by": NAME});
    volume["spec"]["persistentVolumeReclaimPolicy"] = json!("Delete");
    let identity = format!("1730000000000-2480-{NAME}");
    volume["spec"]["csi"]["volumeAttributes"] = json!({"storage.kubernetes.io/csiProvisionerIdentity": identity});
}

/// Makes it and the claim that is bound to it.
async fn claimed(stage: &Stage<'_>, claim: &str, volume: Value) -> Result<()> {
    let mut claimed = crate::stage::claim(claim, text(&volume, "/spec/storageClassName"), 10);
    claimed["spec"]["accessModes"] = volume["spec"]["accessModes"].clone();
    claimed["spec"]["volumeName"] = volume["metadata"]["name"].clone();
    stage.make(&[volume, claimed]).await?;
    stage.is_bound(claim).await
}

async fn format(fs_type: &str, disk: &Path) -> Result<()> {
    output(Command::new(format!("mkfs.{fs_type}")).arg("-q").arg(disk)).await.map(drop)
}

/// Keeps the first node's kubelet from having a claim's volume staged, whatever the driver: a file is where its folder for
/// that has to be.
pub(super) async fn keep_from_staging(stage: &Stage<'_>, claim: &str) -> Result<()> {
    let folder = staging(stage, claim).await?;
    let script = format!("mkdir -p {} && : > {}", folder.parent().context("no parent")?.display(), folder.display());
    stage.bed.nodes[0].run(&script).await.map(drop)
}

/// Takes that back.
pub(super) async fn let_stage(stage: &Stage<'_>, claim: &str) -> Result<()> {
    let folder = staging(stage, claim).await?;
    // It is a file: had it become a folder, this would fail.
    stage.bed.nodes[0].run(&format!("rm {}", folder.display())).await.map(drop)
}

/// Where a kubelet wants a claim's volume staged.
async fn staging(stage: &Stage<'_>, claim: &str) -> Result<PathBuf> {
    let hash = format!("printf %s {} | sha256sum | cut -d ' ' -f 1", stage.volume(claim).await?);
    let hash = output(Command::new("sh").args(["-c", &hash])).await?;
    Ok(Path::new("/var/lib/kubelet/plugins/kubernetes.io/csi").join(NAME).join(hash.trim()))
}

/// Leaves of the attachments' publish context what it writes there.
pub(super) async fn forget_context(bed: &Bed) -> Result<()> {
    for attachment in bed.kubectl.list(&["volumeattachments"]).await? {
        let context =
            attachment["status"]["attachmentMetadata"].as_object().context("an attachment without context")?;
        ensure!(context.contains_key("mount_vol_name"), "an attachment tells no disk: {attachment}");
        // Before it had shares it wrote nothing else.
        let told: &[&str] =
            if context["storage_type"] == "vfs" { &["mount_vol_name", "storage_type"] } else { &["mount_vol_name"] };
        let others = context.keys().filter(|key| !told.contains(&key.as_str())).map(|key| (key.clone(), Value::Null));
        let patch = json!({"status": {"attachmentMetadata": Value::Object(others.collect())}}).to_string();
        let name = text(&attachment, "/metadata/name");
        let patched = ["patch", "volumeattachment", name, "--subresource=status", "--type=merge", "-o", "json", "-p"];
        let patched: Value = serde_json::from_str(&bed.kubectl.run(&[&patched[..], &[&patch]].concat()).await?)?;
        let left = patched["status"]["attachmentMetadata"].as_object().map_or(0, serde_json::Map::len);
        ensure!(left == told.len(), "it has still more in its context: {patched}");
    }
    Ok(())
}
