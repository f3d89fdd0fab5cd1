//! The control plane: etcd, API server, controller manager, scheduler, and the snapshots' controller.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use tokio::process::Command;

use crate::{
    eventually::eventually,
    kubectl::Kubectl,
    network::{HOST, SERVICE},
    process::Processes,
};

const ETCD: &str = "http://127.0.0.1:2379";

/// Starts it, and returns when pods can be made.
pub(crate) async fn start(processes: &mut Processes, programs: &Path, dir: &Path, kubectl: &Kubectl) -> Result<()> {
    let keys = dir.join("keys");
    let key = |name: &str| keys.join(name).display().to_string();
    let data = dir.join("etcd");
    tokio::fs::create_dir(&data).await?;
    let peer = "http://127.0.0.1:2380";
    processes.start(
        "etcd",
        Command::new("etcd")
            .arg("--data-dir")
            .arg(&data)
            .args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD])
            .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"]),
    )?;
    let mut command = Command::new(programs.join("kube-apiserver"));
    command.args([
        format!("--etcd-servers={ETCD}"),
        format!("--advertise-address={HOST}"),
        "--bind-address=0.0.0.0".to_owned(),
        // Nothing translates the service's port.
        "--secure-port=443".to_owned(),
        format!("--tls-cert-file={}", key("apiserver.crt")),
        format!("--tls-private-key-file={}", key("apiserver.key")),
        format!("--client-ca-file={}", key("ca.crt")),
        format!("--kubelet-client-certificate={}", key("admin.crt")),
        format!("--kubelet-client-key={}", key("admin.key")),
        format!("--service-account-key-file={}", key("accounts.pub")),
        format!("--service-account-signing-key-file={}", key("accounts.key")),
        format!("--service-cluster-ip-range={SERVICE}/16"),
    ]);
    command.args([
        "--service-account-issuer=https://kubernetes.default.svc",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--kubelet-preferred-address-types=InternalIP",
        "--endpoint-reconciler-type=none",
        "--allow-privileged=true",
        "--profiling=false",
        "--v=1",
    ]);
    processes.start("apiserver", &mut command)?;
    eventually("the API server is ready", Duration::from_secs(120), async || {
        processes.check("etcd")?;
        processes.check("apiserver")?;
        kubectl.run(&["get", "--raw", "/readyz"]).await
    })
    .await?;

    let account = |name: &str| {
        let config = key(&format!("{name}.kubeconfig"));
        [
            format!("--kubeconfig={config}"),
            format!("--authentication-kubeconfig={config}"),
            format!("--authorization-kubeconfig={config}"),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            "--v=1".to_owned(),
        ]
    };
    let mut command = Command::new(programs.join("kube-controller-manager"));
    command.args(account("controller-manager")).args([
        format!("--service-account-private-key-file={}", key("accounts.key")),
        format!("--root-ca-file={}", key("ca.crt")),
        "--use-service-account-credentials".to_owned(),
        // Not a minute and more, as in a cluster that has time
        "--attach-detach-reconcile-sync-period=10s".to_owned(),
        "--node-monitor-grace-period=25s".to_owned(),
    ]);
    processes.start("controller-manager", &mut command)?;
    processes.start("scheduler", Command::new(programs.join("kube-scheduler")).args(account("scheduler")))?;

    start_snapshots(processes, programs, dir, kubectl).await?;
    eventually("the default account is there", Duration::from_secs(120), async || {
        processes.check("controller-manager")?;
        kubectl.run(&["get", "serviceaccount", "default"]).await
    })
    .await?;
    Ok(())
}

/// The process that Kubernetes has for snapshots.
const SNAPSHOTS: &str = "snapshot-controller";

/// Where the manifests are of what it knows.
fn snapshot_resources(programs: &Path) -> String {
    programs.join("crds").display().to_string()
}

/// Brings Kubernetes its snapshots.
pub(crate) async fn start_snapshots(
    processes: &mut Processes,
    programs: &Path,
    dir: &Path,
    kubectl: &Kubectl,
) -> Result<()> {
    kubectl.run(&["apply", "-f", &snapshot_resources(programs)]).await?;
    eventually("the snapshots' resources are there", Duration::from_secs(60), async || {
        kubectl.run(&["get", "volumesnapshots,volumesnapshotclasses,volumesnapshotcontents", "-A"]).await
    })
    .await?;
    let mut command = Command::new(programs.join(SNAPSHOTS));
    command.arg(format!("--kubeconfig={}", dir.join("keys/admin.kubeconfig").display())).arg("--v=2");
    // With its own five requests a second it waits for seconds, and decides meanwhile by what it knew before: a content whose
    // policy becomes Delete just before its snapshot is deleted, as the storage suite does it, then stays for ever.
    command.args(["--kube-api-qps=50", "--kube-api-burst=100"]);
    processes.start(SNAPSHOTS, &mut command)
}

/// Takes them away again, with every object of theirs, and waits until kubectl knows it.
pub(crate) async fn end_snapshots(processes: &mut Processes, programs: &Path, kubectl: &Kubectl) -> Result<()> {
    processes.end(SNAPSHOTS).await?;
    let within = Duration::from_secs(120);
    kubectl.delete(&["-f", &snapshot_resources(programs)], within).await?;
    eventually("the snapshots' resources are gone", within, async || {
        // It asks the server, and what kubectl remembers is that from then on.
        let left = kubectl.run(&["api-resources", "--api-group=snapshot.storage.k8s.io", "-o", "name"]).await?;
        ensure!(left.trim().is_empty(), "there are {left}");
        Ok(())
    })
    .await
}
