//! The driver as it is shipped: installed, upgraded and taken away as its README says.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::timeout,
};

use crate::{
    bed::{Bed, text},
    eventually::eventually,
    node::Node,
    process::output,
};

/// The driver's name.
pub(crate) const NAME: &str = "block.csi.vultr.com";
/// Where it runs.
pub(crate) const NAMESPACE: &str = "kube-system";
/// The controller's set, and what its pods are labelled with.
pub(crate) const CONTROLLER: &str = "cloud-block-csi-controller";
/// The nodes' set.
pub(crate) const NODE: &str = "cloud-block-csi-node";
/// All that is its own, pods and else, as `kubectl -l` takes it.
pub(crate) const OURS: &str = "app.kubernetes.io/name=cloud-block-csi";
/// How long a rollout may take on emulated processors.
const ROLLOUT: Duration = Duration::from_secs(240);

/// Installs the shipped manifest as it is, and waits until every node can have volumes. What is the bed's own is told by
/// the ConfigMap that the manifest names for that.
pub(crate) async fn install(bed: &Bed) -> Result<()> {
    put_token(bed, bed.token()).await?;
    settings(bed, &[]).await?;
    bed.kubectl.with_manifest(&["apply"], &shipped(bed)?).await?;
    is_ready(bed).await
}

/// The manifest as it is shipped.
pub(crate) fn shipped(bed: &Bed) -> Result<String> {
    let manifest = bed.parts.repository.join("deploy/kubernetes.yaml");
    std::fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())
}

/// A driver of a version that was not shipped yet: the image that was, by another name.
#[derive(Debug)]
pub(crate) struct Next {
    /// The version that is shipped.
    pub(crate) shipped: String,
    /// Its own.
    pub(crate) version: String,
    /// The image of the version that is shipped.
    pub(crate) shipped_image: String,
    /// Its own image.
    pub(crate) image: String,
}

impl Next {
    /// Gives it to the nodes.
    pub(crate) async fn offer(bed: &Bed) -> Result<Self> {
        let manifest = shipped(bed)?;
        let mut images = manifest.lines().filter_map(|line| line.trim().strip_prefix("image: "));
        let image = images.find(|image| image.contains("/cloud-block-csi:")).context("the manifest has no driver")?;
        let (repository, tag) = image.rsplit_once(':').context("the driver's image has no tag")?;
        let version = format!("{tag}-next");
        let next = Self {
            shipped: tag.to_owned(),
            image: format!("{repository}:{version}"),
            version,
            shipped_image: image.to_owned(),
        };
        for node in bed.nodes.iter().chain([&bed.host]) {
            let command = format!("{} images tag --force {image} {}", ctr(bed, node), next.image);
            node.run(&command).await?;
        }
        Ok(next)
    }

    /// Takes it away from the nodes.
    pub(crate) async fn withdraw(&self, bed: &Bed) -> Result<()> {
        for node in bed.nodes.iter().chain([&bed.host]) {
            node.run(&format!("{} images remove {}", ctr(bed, node), self.image)).await?;
        }
        Ok(())
    }

    /// The manifest that would be shipped with it.
    pub(crate) fn manifest(&self, bed: &Bed) -> Result<String> {
        let label = |version: &str| format!("app.kubernetes.io/version: \"{version}\"");
        let manifest = shipped(bed)?.replace(&label(&self.shipped), &label(&self.version));
        Ok(manifest.replace(&self.shipped_image, &self.image))
    }
}

/// Looks that controller and nodes run this image of the driver.
pub(crate) async fn runs_image(bed: &Bed, image: &str) -> Result<()> {
    let pods = bed.kubectl.list(&["pods", "-n", NAMESPACE, "-l", OURS]).await?;
    ensure!(pods.len() > bed.nodes.len(), "the driver has {} pods", pods.len());
    for pod in &pods {
        let containers = pod["spec"]["containers"].as_array().cloned().unwrap_or_default();
        let driver =
            containers.iter().find(|it| text(it, "/name") == "driver").context("no container is the driver")?;
        ensure!(text(driver, "/image") == image, "{} has {}", text(pod, "/metadata/name"), text(driver, "/image"));
    }
    Ok(())
}

/// How one speaks to a node's containers there.
fn ctr(bed: &Bed, node: &Node) -> String {
    let place = if node.is_virtual() {
        String::new()
    } else {
        format!(" --address {}", bed.dir.join(&node.name).join("containerd.sock").display())
    };
    format!("ctr{place} --namespace k8s.io")
}

/// Writes the Secret with the token.
pub(crate) async fn put_token(bed: &Bed, token: &str) -> Result<()> {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "vultr-csi", "namespace": NAMESPACE},
        "stringData": {"api-key": token},
    });
    bed.kubectl.apply(&[secret]).await
}

/// Writes the ConfigMap with the bed's settings, and `more`.
pub(crate) async fn settings(bed: &Bed, more: &[(&str, &str)]) -> Result<()> {
    let mut data = json!({"CSI_API_URL": bed.api_url(), "CSI_CLUSTER_ID": "bed"});
    if !bed.nodes[0].is_virtual() {
        // The host's disks are loop devices, and no kernel tells a serial of these.
        let host = bed.cloud.instance(&bed.host.name)?;
        data["CSI_DEVICE_DIR"] = json!(host.device_dir);
        data["CSI_SYSFS_DIR"] = json!(host.sysfs_dir);
    }
    for (name, value) in more {
        data[*name] = json!(value);
    }
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cloud-block-csi", "namespace": NAMESPACE},
        "data": data,
    });
    bed.kubectl.apply(&[map]).await
}

/// Waits until controller and nodes are ready, and every node tells its driver and its limit.
pub(crate) async fn is_ready(bed: &Bed) -> Result<()> {
    rolled_out(bed, &format!("statefulset/{CONTROLLER}")).await?;
    rolled_out(bed, &format!("daemonset/{NODE}")).await?;
    for node in &bed.nodes {
        is_registered(bed, &node.name).await?;
    }
    Ok(())
}

/// Waits until a set's pods are what it says.
pub(crate) async fn rolled_out(bed: &Bed, set: &str) -> Result<()> {
    let timeout = format!("--timeout={}s", ROLLOUT.as_secs());
    let done = bed.kubectl.run(&["rollout", "status", "-n", NAMESPACE, set, &timeout]).await;
    match done {
        Ok(_) => Ok(()),
        Err(error) => Err(error).context(last_words(bed, set).await),
    }
}

/// All pods, and what the driver's have said.
pub(crate) async fn told(bed: &Bed) -> Result<String> {
    let pods = bed.kubectl.run(&["get", "pods", "-A", "-o", "wide"]).await?;
    let ours = ["logs", "-n", NAMESPACE, "-l", OURS];
    let whole = ["--all-containers", "--prefix", "--tail=-1", "--ignore-errors"];
    let logs = bed.kubectl.run(&[&ours[..], &whole].concat()).await.unwrap_or_else(|error| format!("{error:#}"));
    Ok(format!("{pods}\n{logs}"))
}

/// What the driver's pods said last.
async fn last_words(bed: &Bed, set: &str) -> String {
    let describe = bed.kubectl.run(&["describe", "pods", "-n", NAMESPACE]).await.unwrap_or_default();
    let logs =
        bed.kubectl.run(&["logs", "-n", NAMESPACE, set, "--all-containers", "--tail=20"]).await.unwrap_or_default();
    let events: String = describe.split_inclusive('\n').rev().take(40).collect::<Vec<_>>().into_iter().rev().collect();
    format!("{set} does not come up:\n{events}\n{logs}")
}

/// Waits until a node's CSINode lists the driver.
pub(crate) async fn is_registered(bed: &Bed, node: &str) -> Result<()> {
    eventually(&format!("the driver is registered on {node}"), Duration::from_secs(120), async || {
        let drivers = bed.kubectl.get(&["csinode", node]).await?;
        let drivers = drivers["spec"]["drivers"].as_array().cloned().unwrap_or_default();
        ensure!(drivers.iter().any(|driver| text(driver, "/name") == NAME), "CSINode lists {drivers:?}");
        Ok(())
    })
    .await
}

/// The name of the driver's pod on a node.
pub(crate) async fn node_pod(bed: &Bed, node: &str) -> Result<String> {
    let on = format!("--field-selector=spec.nodeName={node}");
    let pods = bed.kubectl.list(&["pods", "-n", NAMESPACE, &on]).await?;
    let ours = pods.iter().find(|pod| pod["metadata"]["ownerReferences"][0]["name"] == json!(NODE));
    Ok(text(ours.with_context(|| format!("the driver has no pod on {node}"))?, "/metadata/name").to_owned())
}

/// Waits until another pod of the driver than `pod` is ready on a node, and known there. Their set is as it was, so its
/// rollout says nothing of that.
pub(crate) async fn is_followed(bed: &Bed, node: &str, pod: &str) -> Result<()> {
    eventually(&format!("another pod of the driver than {pod} is ready on {node}"), ROLLOUT, async || {
        let next = node_pod(bed, node).await?;
        ensure!(next != pod, "it is the one there");
        let ready = ".status.conditions[?(@.type==\"Ready\")].status";
        let ready = bed.kubectl.field(&["pod", "-n", NAMESPACE, &next], ready).await?;
        ensure!(ready == "True", "{next} is not ready ({ready})");
        // The CSINode may say so of the one before still.
        let told = bed.kubectl.run(&["logs", "-n", NAMESPACE, &next]).await?;
        ensure!(told.contains("registered with the kubelet"), "{next} is not registered:\n{told}");
        Ok(())
    })
    .await?;
    is_registered(bed, node).await
}

/// Kills the driver's process in a pod, as a crash would.
pub(crate) async fn kill(bed: &Bed, pod: &str) -> Result<()> {
    signal(bed, pod, "driver", "SIGKILL").await
}

/// Sends a signal to a container's process, by the node that its pod is on.
pub(crate) async fn signal(bed: &Bed, pod: &str, container: &str, signal: &str) -> Result<()> {
    let pod = bed.kubectl.get(&["pod", "-n", NAMESPACE, pod]).await?;
    let node = bed.node(text(&pod, "/spec/nodeName"))?;
    let statuses = pod["status"]["containerStatuses"].as_array().context("the pod has no containers")?;
    let status = statuses.iter().find(|status| text(status, "/name") == container);
    let status = status.with_context(|| format!("no container is called {container}"))?;
    let id = text(status, "/containerID").trim_start_matches("containerd://").to_owned();
    ensure!(!id.is_empty(), "{container} does not run");
    node.run(&format!("{} tasks kill --signal {signal} {id}", ctr(bed, node))).await.map(drop)
}

/// The controller's pod.
pub(crate) fn controller_pod() -> String {
    format!("{CONTROLLER}-0")
}

/// Starts a set's pods anew, as an upgrade does.
pub(crate) async fn restart(bed: &Bed, set: &str) -> Result<()> {
    bed.kubectl.run(&["rollout", "restart", "-n", NAMESPACE, set]).await.map(drop)
}

/// Where a pod of the driver answers, as it is shipped.
pub(crate) const PORT: u16 = 9808;

/// What a pod of the driver answers who asks whether it is ready: the status, and the reason why not.
pub(crate) async fn readiness(bed: &Bed, pod: &str) -> Result<(String, String)> {
    ask(bed, pod, PORT, "/readyz").await
}

/// What a pod of the driver answers at a path: the status, and the text.
pub(crate) async fn ask(bed: &Bed, pod: &str, port: u16, path: &str) -> Result<(String, String)> {
    let address = bed.kubectl.field(&["pod", "-n", NAMESPACE, pod], ".status.podIP").await?;
    ensure!(!address.is_empty(), "{pod} has no address");
    // Not through the API server: kubectl does not show what comes with a 503.
    let asked = async {
        let mut stream = TcpStream::connect((address.as_str(), port)).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = timeout(Duration::from_secs(10), asked).await.with_context(|| format!("{pod} does not answer"))??;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{pod} answers {answer}"))?;
    let status = head.split(' ').nth(1).with_context(|| format!("{pod} answers {answer}"))?;
    Ok((status.to_owned(), body.trim().to_owned()))
}

/// How often the driver's container of a pod was started again.
pub(crate) async fn restarts(bed: &Bed, pod: &str) -> Result<u64> {
    let path = ".status.containerStatuses[?(@.name==\"driver\")].restartCount";
    Ok(bed.kubectl.field(&["pod", "-n", NAMESPACE, pod], path).await?.parse()?)
}

/// What the driver's pod on a node is made of, for the record.
pub(crate) async fn figures(bed: &Bed) -> Result<String> {
    let node = &bed.nodes[0];
    let pod = node_pod(bed, &node.name).await?;
    let containers = bed.kubectl.field(&["pod", "-n", NAMESPACE, &pod], ".spec.containers[*].name").await?;
    let look = "for process in $(pgrep -x cloud-block-csi); do \
        tr '\\0' ' ' </proc/$process/cmdline | cut -c 1-60; grep -E 'VmRSS|RssAnon|Threads' /proc/$process/status; done";
    let processes = node.run(look).await?;
    Ok(format!("the node's pod has the containers: {containers}; on {}:\n{}", node.name, processes.trim()))
}

/// The Helm that the chart's own tests use.
pub(crate) async fn helm(bed: &Bed) -> Result<PathBuf> {
    let mut helm = Command::new("go");
    helm.args(["tool", "-n", "helm"]).current_dir(bed.parts.repository.join("tests/deploy")).env("CGO_ENABLED", "0");
    Ok(PathBuf::from(output(&mut helm).await?.trim()))
}

/// The chart, rendered for this cluster with these settings (`NAME=VALUE`), by the Helm that its own tests use.
pub(crate) async fn rendered(bed: &Bed, settings: &[&str]) -> Result<String> {
    let version = bed.kubectl.run(&["version", "-o", "json"]).await?;
    let version: Value = serde_json::from_str(&version)?;
    let mut template = Command::new(helm(bed).await?);
    template.arg("template").arg("cloud-block-csi").arg(bed.parts.repository.join("deploy/chart"));
    template.args(["--namespace", NAMESPACE, "--kube-version", text(&version, "/serverVersion/gitVersion")]);
    template.arg("--api-versions=snapshot.storage.k8s.io/v1/VolumeSnapshotClass");
    for setting in settings {
        template.args(["--set", setting]);
    }
    output(&mut template).await
}

/// Looks that the API server has refused the driver and its sidecars nothing, by what they logged.
pub(crate) async fn is_refused_nothing(bed: &Bed) -> Result<()> {
    let pods = bed.kubectl.list(&["pods", "-n", NAMESPACE, "-l", OURS]).await?;
    ensure!(!pods.is_empty(), "the driver has no pods");
    for pod in &pods {
        let name = text(pod, "/metadata/name");
        let logs = bed.kubectl.run(&["logs", "-n", NAMESPACE, name, "--all-containers", "--prefix"]).await?;
        let refused = |line: &&str| ["forbidden", "unauthorized"].iter().any(|word| line.to_lowercase().contains(word));
        let lines: Vec<_> = logs.lines().filter(refused).collect();
        ensure!(lines.is_empty(), "the API server refuses {name} something:\n{}", lines.join("\n"));
    }
    Ok(())
}

/// Takes the driver away as its README says, and waits until its pods have ended, too: sets that are gone leave them behind
/// for a while.
pub(crate) async fn uninstall(bed: &Bed) -> Result<()> {
    let manifest = bed.parts.repository.join("deploy/kubernetes.yaml");
    bed.kubectl.delete(&["-f", &manifest.display().to_string()], ROLLOUT).await?;
    have_ended(bed, [CONTROLLER, NODE]).await
}

/// Waits until the pods of these sets have ended.
pub(crate) async fn have_ended(bed: &Bed, sets: [&str; 2]) -> Result<()> {
    for set in sets {
        bed.kubectl.wait(&["-n", NAMESPACE, "--for=delete", "pod", "-l", &format!("app={set}")], ROLLOUT).await?;
    }
    Ok(())
}

/// The documents of a manifest, as Kubernetes reads them.
pub(crate) async fn documents(bed: &Bed, manifest: &Path) -> Result<Vec<Value>> {
    let text =
        bed.kubectl.run(&["apply", "--dry-run=client", "-o", "json", "-f", &manifest.display().to_string()]).await?;
    let list: Value = serde_json::from_str(&text)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}
