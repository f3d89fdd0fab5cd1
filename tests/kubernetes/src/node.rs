//! The nodes: the host itself, and virtual workers.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::{fs, process::Command};
use vultr_sim::Cache;

use crate::{
    bed::Parts,
    network::{self, HOST},
    process::{Processes, last_lines, output, output_within},
};

/// The host's node.
pub(crate) const HOST_NODE: &str = "host";
/// How long a script may take on a node: all are short, and a machine that is stuck answers never.
const SCRIPT: Duration = Duration::from_secs(300);

/// Where a node is, and how one looks into it.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Its name in Kubernetes, and its instance's label.
    pub(crate) name: String,
    /// Its instance's id.
    pub(crate) instance: String,
    /// Its address.
    pub(crate) address: String,
    /// The number of a virtual worker; the host's is 0.
    pub(crate) number: usize,
    /// The key that opens a virtual worker.
    key: PathBuf,
}

impl Node {
    /// Node `number`; 0 is the host.
    pub(crate) fn new(number: usize, instance: String, key: &Path) -> Self {
        let (name, address) = match number {
            0 => (HOST_NODE.to_owned(), HOST.to_owned()),
            _ => (format!("w{number}"), network::worker(number)),
        };
        Self { name, instance, address, number, key: key.to_owned() }
    }

    /// Whether it is a virtual machine, with disks that come and go.
    pub(crate) fn is_virtual(&self) -> bool {
        self.number > 0
    }

    /// Runs a shell's script there, as root.
    pub(crate) async fn run(&self, script: &str) -> Result<String> {
        let mut command = if self.is_virtual() {
            let mut command = Command::new("ssh");
            command.args(["-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
            // A busy machine takes its time, and one that is gone says nothing.
            command.args(["-o", "LogLevel=ERROR", "-o", "ConnectTimeout=60", "-o", "ServerAliveInterval=15", "-i"]);
            command.arg(&self.key);
            command.arg(format!("root@{}", self.address)).arg(script);
            command
        } else {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        output_within(SCRIPT, &mut command).await.with_context(|| format!("on {}", self.name))
    }

    /// Why a virtual worker does not come: what its console shows, and its journal, if it can be asked.
    pub(crate) async fn tells(&self, processes: &Processes) -> String {
        let journal = self.run("systemctl --failed --no-legend; journalctl --no-pager --lines 40").await;
        let journal = journal.unwrap_or_else(|error| format!("{error:#}"));
        format!("its console:\n{}\nits journal:\n{journal}", last_lines(&console(processes, &self.name), 20))
    }
}

/// What a kubelet is told; `keys` is where it finds its certificates, `runtime` its containers.
fn kubelet_config(node: &Node, dir: &Path, keys: &str, runtime: &str) -> String {
    let mut config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": "systemd",
        "authentication": {
            "anonymous": {"enabled": false}, "webhook": {"enabled": false},
            "x509": {"clientCAFile": format!("{keys}/ca.crt")},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "tlsCertFile": format!("{keys}/{}.crt", node.name),
        "tlsPrivateKeyFile": format!("{keys}/{}.key", node.name),
        "containerRuntimeEndpoint": format!("unix://{runtime}"),
        "providerID": format!("vultr://{}", node.instance),
        "resolvConf": "",
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        // The host's disk is not the bed's to judge.
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageMinimumGCAge": "24h",
        "maxPods": 60,
        "nodeStatusUpdateFrequency": "5s",
        // A growth is seen by the next of these.
        "syncFrequency": "5s",
    });
    if !node.is_virtual() {
        config["cgroupDriver"] = json!("cgroupfs");
        config["cgroupRoot"] = json!(control_group(dir));
        config["failCgroupV1"] = json!(false);
    }
    config.to_string()
}

/// The host's pods are below this group of the bed's own, so that it can be seen that none is left.
pub(crate) fn control_group(dir: &Path) -> PathBuf {
    Path::new("/").join(dir.file_name().unwrap_or_default())
}

/// Where control groups have their trees: one for each controller in version 1, a single one in version 2.
pub(crate) fn cgroup_trees() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let Ok(entries) = std::fs::read_dir(root) else { return Vec::new() };
    let tree = |entry: std::io::Result<std::fs::DirEntry>| entry.ok().map(|entry| entry.path());
    entries.filter_map(tree).filter(|path| path.join("tasks").exists() || path.join("cgroup.procs").exists()).collect()
}

/// The bed's group in a tree.
pub(crate) fn below(tree: &Path, dir: &Path) -> PathBuf {
    tree.join(control_group(dir).strip_prefix("/").unwrap_or(dir))
}

/// Makes the host a node: containerd, kubelet, and the images in the archives `images`.
pub(crate) async fn start_host(
    processes: &mut Processes,
    dir: &Path,
    parts: &Parts,
    node: &Node,
    images: &[PathBuf],
) -> Result<()> {
    let home = dir.join(HOST_NODE);
    let show = |name: &str| home.join(name).display().to_string();
    fs::create_dir_all(home.join("cni")).await?;
    let socket = show("containerd.sock");
    let containerd = format!(
        r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"#,
        root = show("containerd"),
        state = show("containerd-state"),
        plugins = parts.host.join("usr/lib/cni").display(),
        cni = show("cni"),
    );
    fs::write(home.join("containerd.toml"), containerd).await?;
    fs::write(home.join("cni/10-bed.conflist"), network::container_network(0, &show("cni-state"))).await?;
    processes.start("containerd", Command::new("containerd").args(["--config", &show("containerd.toml")]))?;
    crate::eventually::eventually("containerd answers", Duration::from_secs(120), async || {
        processes.check("containerd")?;
        output(Command::new("ctr").args(["--address", &socket, "version"])).await
    })
    .await?;
    for image in images {
        import_image(dir, image).await?;
    }
    for tree in cgroup_trees() {
        let group = below(&tree, dir);
        fs::create_dir_all(&group).await?;
        if tree.ends_with("cpuset") {
            // An empty one takes no process.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                fs::write(group.join(file), fs::read(tree.join(file)).await?).await?;
            }
        }
    }
    let keys = dir.join("keys");
    fs::write(home.join("kubelet.yaml"), kubelet_config(node, dir, &keys.display().to_string(), &socket)).await?;
    processes.start(
        "kubelet",
        Command::new(parts.programs.join("kubelet"))
            .arg(format!("--config={}", home.join("kubelet.yaml").display()))
            .arg(format!("--kubeconfig={}", dir.join("keys/host.kubeconfig").display()))
            .args([format!("--hostname-override={}", node.name), format!("--node-ip={}", node.address)])
            .arg("--v=2"),
    )
}

/// Gives the host's containerd another image.
async fn import_image(dir: &Path, archive: &Path) -> Result<()> {
    let socket = dir.join(HOST_NODE).join("containerd.sock");
    let mut command = Command::new("ctr");
    command.arg("--address").arg(socket).args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
    output(&mut command).await.map(drop)
}

/// Starts virtual worker `node` with the disk and kernel in `worker`, and the driver's image `image`. Its links by id are
/// taken away if `without_links`.
pub(crate) async fn start_virtual(
    processes: &mut Processes,
    dir: &Path,
    worker: &Path,
    node: &Node,
    image: &Path,
    without_links: bool,
) -> Result<()> {
    let (name, number) = (&node.name, node.number);
    let home = dir.join(name);
    let told = home.join("told");
    if !told.exists() {
        fs::create_dir_all(told.join("images")).await?;
        let keys = dir.join("keys");
        for file in ["ca.crt", &format!("{name}.crt"), &format!("{name}.key")] {
            fs::copy(keys.join(file), told.join(file)).await?;
        }
        fs::copy(keys.join(format!("{name}.kubeconfig")), told.join("kubeconfig")).await?;
        fs::copy(dir.join("key.pub"), told.join("authorized_keys")).await?;
        fs::copy(image, told.join("images/driver.tar")).await.with_context(|| image.display().to_string())?;
        fs::write(told.join("cni.conflist"), network::container_network(number, "/var/lib/cni/networks")).await?;
        fs::write(told.join("kubelet.yaml"), kubelet_config(node, dir, "/bed", "/run/containerd/containerd.sock"))
            .await?;
        let links = if without_links { "yes" } else { "" };
        let environment = format!("NODE={name}\nADDRESS={}\nGATEWAY={HOST}\nWITHOUT_LINKS={links}\n", node.address);
        fs::write(told.join("environment"), environment).await?;
    }
    let (socket, monitor) = (home.join("told.sock"), home.join("monitor"));
    for old in [&socket, &monitor] {
        if old.exists() {
            fs::remove_file(old).await?;
        }
    }
    let serve = format!("virtiofsd-{name}");
    processes.end(&serve).await?;
    let virtiofsd = vultr_sim::virtiofsd(&told, &socket, Cache::AsItLikes).await;
    let mut virtiofsd = virtiofsd.context("Debian has virtiofsd in qemu-system-common")?;
    processes.start(&serve, &mut virtiofsd)?;
    crate::eventually::eventually("virtiofsd listens", Duration::from_secs(60), async || {
        processes.check(&serve)?;
        anyhow::ensure!(socket.exists(), "there is no socket");
        Ok(())
    })
    .await?;
    let show = |file: &str| worker.join(file).display().to_string();
    let mut command = Command::new("qemu-system-x86_64");
    // One processor: of two, one waits in a loop for a lock whose holder has lost its turn, where several machines share
    // the host's. And with one its own clock can be trusted, else each look at the time is a call of qemu.
    command
        .env("TMPDIR", dir)
        .args(["-name", name, "-nodefaults", "-display", "none", "-smp", "1", "-m", "2048"])
        .args(["-machine", "pc,memory-backend=memory", "-object", "memory-backend-memfd,id=memory,size=2048M,share=on"])
        .args(accelerator())
        .args(["-serial", &format!("file:{}", console(processes, name).display())])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())])
        .args(["-kernel", &show("vmlinuz"), "-initrd", &show("initrd")])
        .args([
            "-append",
            "root=/dev/vda rw console=ttyS0 quiet mitigations=off audit=0 systemd.unified_cgroup_hierarchy=1 \
             tsc=reliable clocksource=tsc systemd.journald.forward_to_console=1 systemd.journald.max_level_console=warning",
        ])
        // What is written is forgotten.
        .args(["-drive", &format!("file={},if=none,id=root,format=raw,snapshot=on,cache=unsafe", show("disk"))])
        .args(["-device", "virtio-blk-pci,drive=root"])
        .args(["-netdev", &format!("tap,id=net,ifname={},script=no,downscript=no", network::tap(number))])
        .args(["-device", &format!("virtio-net-pci,netdev=net,mac=52:54:00:00:00:0{number},romfile=")])
        .args(["-chardev", &format!("socket,id=bed,path={}", socket.display())])
        .args(["-device", "vhost-user-fs-pci,chardev=bed,tag=bed"])
        .args(["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"]);
    processes.start(name, &mut command)
}

/// Where a worker's console is written to.
fn console(processes: &Processes, name: &str) -> PathBuf {
    processes.log(&format!("{name}-console"))
}

/// The socket on which a worker's machine takes orders.
pub(crate) fn monitor(dir: &Path, name: &str) -> PathBuf {
    dir.join(name).join("monitor")
}

/// How the processor is had. Emulated unless asked otherwise: that there is /dev/kvm does not say that it runs any kernel.
fn accelerator() -> [&'static str; 4] {
    match std::env::var("BED_KVM") {
        Ok(_) => ["-accel", "kvm", "-cpu", "host"],
        Err(_) => ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16"],
    }
}
