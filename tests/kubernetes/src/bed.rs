//! The bed: a control plane, its nodes, and the simulated cloud that they are instances of.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tokio::process::Command;
use vultr_sim::{Behaviour, Config, Control, InstanceSpec, Simulation};

use crate::{
    eventually::eventually,
    kubectl::Kubectl,
    network::{self, HOST},
    node::{self, Node},
    plane,
    process::{Processes, output},
};

/// What the bed is made of.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    /// containerd, etcd, and what containers' networks are made with.
    pub(crate) host: PathBuf,
    /// Kubernetes and the sidecars.
    pub(crate) programs: PathBuf,
    /// The archives of the images that others wrote.
    pub(crate) images: PathBuf,
    /// The disk and the kernel of a virtual worker.
    pub(crate) worker: PathBuf,
    /// The archive of the driver's image.
    pub(crate) driver: PathBuf,
    /// The repository.
    pub(crate) repository: PathBuf,
}

/// A cluster without the driver.
#[derive(Debug)]
pub(crate) struct Bed {
    /// Its folder.
    pub(crate) dir: PathBuf,
    /// What it was made of.
    pub(crate) parts: Parts,
    /// The cluster, for its administrator.
    pub(crate) kubectl: Kubectl,
    /// The cloud, for the hand of a test.
    pub(crate) cloud: Control,
    /// The nodes that pods may be on: the virtual workers, or the host where there are none.
    pub(crate) nodes: Vec<Node>,
    /// The host.
    pub(crate) host: Node,
    /// What runs.
    pub(crate) processes: Processes,
    /// What there is of volumes that isn't the flow's at hand.
    pub(crate) others: Vec<String>,
    simulation: Simulation,
}

impl Bed {
    /// Starts it with `workers` virtual workers, or with the host as the only node. Its logs go to `logs`.
    pub(crate) async fn start(dir: &Path, parts: Parts, workers: usize, logs: PathBuf) -> Result<Self> {
        let began = Instant::now();
        let told = |what: &str| println!("[{:6.1} s] {what}", began.elapsed().as_secs_f64());
        let mut processes = Processes::new(logs);
        let simulation = Simulation::start(cloud(dir, workers)).await.context("the simulated cloud")?;
        let key = dir.join("key");
        output(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key)).await?;
        let instances = simulation.instances();
        let node = |number: usize| Node::new(number, instances[number].id.clone(), &key);
        let nodes: Vec<_> = (0..=workers).map(node).collect();
        make_keys(dir, &parts, &nodes).await?;
        let kubectl = Kubectl::new(parts.programs.join("kubectl"), dir.join("keys/admin.kubeconfig"));
        // They take their time, so they begin first, and try until there is an API server.
        for node in nodes.iter().filter(|node| node.is_virtual()) {
            // The last of them is as on clouds where udev makes no links.
            let without_links = node.number == workers && workers > 1;
            node::start_virtual(&mut processes, dir, &parts.worker, node, &parts.driver, without_links).await?;
        }
        plane::start(&mut processes, &parts.programs, dir, &kubectl).await?;
        told("the control plane is ready");
        let host = nodes[0].clone();
        let images = archives(&parts)?;
        node::start_host(&mut processes, dir, &parts, &host, &images).await?;
        let mut bed = Self {
            dir: dir.to_owned(),
            parts,
            kubectl,
            cloud: simulation.control(),
            nodes: if workers == 0 { nodes } else { nodes[1..].to_vec() },
            host,
            processes,
            others: Vec::new(),
            simulation,
        };
        let names: Vec<_> = std::iter::once(&bed.host).chain(&bed.nodes).map(|node| node.name.clone()).collect();
        for name in names {
            bed.is_ready(&name).await?;
            told(&format!("the node {name} is ready"));
        }
        if workers > 0 {
            // Pods of the flows belong on workers with real disks.
            let taint = "node-role.kubernetes.io/control-plane=:NoSchedule";
            bed.kubectl.run(&["taint", "--overwrite", "node", node::HOST_NODE, taint]).await?;
        }
        Ok(bed)
    }

    /// Waits until Kubernetes takes a node for ready.
    pub(crate) async fn is_ready(&mut self, name: &str) -> Result<()> {
        let (kubectl, processes) = (&self.kubectl, &mut self.processes);
        let process = if name == node::HOST_NODE { "kubelet" } else { name };
        // A worker that dies is told at once; one on an emulated processor beside other tests takes its time.
        let ready = eventually(&format!("the node {name} is ready"), Duration::from_secs(900), async || {
            processes.check(process)?;
            let ready = ".status.conditions[?(@.type==\"Ready\")].status";
            let ready = kubectl.field(&["node", name], ready).await?;
            ensure!(ready == "True", "it is not ({ready})");
            Ok(())
        })
        .await;
        let node = self.node(name)?;
        match ready {
            Err(error) if node.is_virtual() => Err(anyhow!("{error:#}\n{}", node.tells(&self.processes).await)),
            ready => ready,
        }
    }

    /// Where the driver finds the cloud.
    pub(crate) fn api_url(&self) -> String {
        self.simulation.api_url()
    }

    /// The token that the cloud takes.
    pub(crate) fn token(&self) -> &str {
        self.simulation.token()
    }

    /// The node of this name.
    pub(crate) fn node(&self, name: &str) -> Result<&Node> {
        let mut nodes = self.nodes.iter().chain([&self.host]);
        nodes.find(|node| node.name == name).with_context(|| format!("there is no node {name}"))
    }

    /// Types commands in a folder, as the cluster's administrator, who has `tools` beside kubectl.
    pub(crate) async fn type_in(&self, folder: &Path, commands: &str, tools: &[&Path]) -> Result<String> {
        let places = [self.parts.programs.as_path()].into_iter().chain(tools.iter().copied()).map(Path::to_owned);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(places.chain(std::env::split_paths(&path)))?;
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", commands]).current_dir(folder);
        output(shell.env("KUBECONFIG", self.dir.join("keys/admin.kubeconfig")).env("PATH", path)).await
    }

    /// Takes a virtual worker's power away.
    pub(crate) async fn power_off(&mut self, name: &str) -> Result<()> {
        self.processes.kill(name).await
    }

    /// Starts a virtual worker again.
    pub(crate) async fn power_on(&mut self, name: &str) -> Result<()> {
        let node = self.node(name)?.clone();
        let without_links = node.number == self.nodes.len() && self.nodes.len() > 1;
        let (dir, parts) = (self.dir.clone(), self.parts.clone());
        node::start_virtual(&mut self.processes, &dir, &parts.worker, &node, &parts.driver, without_links).await?;
        self.is_ready(name).await
    }

    /// Ends everything, in order.
    pub(crate) async fn down(mut self) -> Result<()> {
        self.processes.end("kubelet").await?;
        end_containers(&self.dir).await?;
        self.processes.end_all().await?;
        self.simulation.shutdown().await.context("the simulated cloud")
    }
}

/// The cloud with the host and the workers as instances, and with the times of a real one, more or less.
fn cloud(dir: &Path, workers: usize) -> Config {
    let instance = |number: usize| {
        let name = if number == 0 { node::HOST_NODE.to_owned() } else { format!("w{number}") };
        let mut spec = InstanceSpec::new(&name, "ewr");
        // The metadata service is the host's own address, so there the host calls from it.
        let address = if number == 0 { network::METADATA.to_owned() } else { network::worker(number) };
        spec.address = address.parse().ok();
        if number > 0 {
            spec.qmp = Some(node::monitor(dir, &name));
        }
        spec
    };
    Config {
        dir: crate::guard::disks(dir),
        listen: HOST.parse().expect("it is an address"),
        metadata_listen: format!("{}:80", network::METADATA).parse().ok(),
        instances: (0..=workers).map(instance).collect(),
        behaviour: Behaviour {
            growth_seen_online: true,
            // The flows grow a volume just after it was made.
            resize_every: Duration::ZERO,
            ..Behaviour::default()
        },
        ..Config::default()
    }
}

async fn make_keys(dir: &Path, parts: &Parts, nodes: &[Node]) -> Result<()> {
    let keys = dir.join("keys");
    tokio::fs::create_dir(&keys).await?;
    let mut command = Command::new(parts.repository.join("tests/kubernetes/pki.sh"));
    command.arg(&keys).arg(parts.programs.join("kubectl")).arg(HOST);
    command.args(nodes.iter().map(|node| format!("{}={}", node.name, node.address)));
    output(&mut command).await.map(drop)
}

/// The archives that the host's containerd is given.
fn archives(parts: &Parts) -> Result<Vec<PathBuf>> {
    let mut archives = vec![parts.driver.clone()];
    for entry in std::fs::read_dir(&parts.images)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            archives.push(path);
        }
    }
    Ok(archives)
}

/// Containers outlive their kubelet and containerd.
async fn end_containers(dir: &Path) -> Result<()> {
    let socket = dir.join(node::HOST_NODE).join("containerd.sock");
    let ctr = |arguments: &[&str]| {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&socket).args(["--namespace", "k8s.io"]).args(arguments);
        command
    };
    for task in output(&mut ctr(&["tasks", "list", "--quiet"])).await?.lines() {
        // It may end by itself meanwhile; what counts is that it is gone.
        let _ = output(&mut ctr(&["tasks", "delete", "--force", task])).await;
    }
    let left = output(&mut ctr(&["tasks", "list", "--quiet"])).await?;
    ensure!(left.is_empty(), "containers do not end: {left}");
    Ok(())
}

/// A field of an object as text; empty where it is none.
pub(crate) fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}
