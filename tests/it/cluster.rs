//! A simulated cloud with a controller and a node driver an instance, and the calls that Kubernetes makes to them.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use cloud_block_csi::csi::{
    self, CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, NodeExpandVolumeRequest,
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
    VolumeCapability,
    controller_client::ControllerClient,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
};
use demo::bed::Bed;
use tokio::time::Instant;
use tonic::{Code, Response, Status, transport::Channel};
use vultr_sim::{Behaviour, InstanceView, Simulation};

/// Goes with every stage, and must never be seen again.
const SECRET: &str = "canary-of-a-secret";
pub(crate) const GIB: u64 = 1 << 30;
/// How long a call may be repeated until it has to succeed.
const PATIENCE: Duration = Duration::from_secs(90);

/// Held by tests that load the machine, or count what would be asked twice on a loaded one: they take turns.
pub(crate) static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Why this machine cannot run the tests, printed once for each, or nothing.
pub(crate) fn skipped(test: &str) -> bool {
    let able = nix::unistd::geteuid().is_root() && Simulation::may_have_disks();
    if !able {
        println!("skipped: {test}: loop devices and mounts need root");
    }
    !able
}

/// The cloud, its drivers, and clients of them.
pub(crate) struct Cluster {
    pub(crate) bed: Bed,
    pub(crate) instances: Vec<InstanceView>,
    pub(crate) controller: ControllerClient<Channel>,
    pub(crate) nodes: Vec<NodeClient<Channel>>,
}

/// A volume as the calls need it.
#[derive(Clone, Debug)]
pub(crate) struct Pvc {
    pub(crate) id: String,
    pub(crate) volume_context: BTreeMap<String, String>,
    pub(crate) capability: VolumeCapability,
}

impl Cluster {
    pub(crate) async fn start(labels: &[&str], behaviour: Behaviour) -> Self {
        Self::start_with(labels, behaviour, &[]).await
    }

    /// The same with more flags of the controller.
    pub(crate) async fn start_with(labels: &[&str], behaviour: Behaviour, flags: &[&str]) -> Self {
        let driver = Path::new(env!("CARGO_BIN_EXE_cloud-block-csi"));
        let mut bed = Bed::start(driver, labels, behaviour).await.unwrap();
        let instances = bed.cloud().instances();
        let controller = ControllerClient::new(bed.controller_with(flags).await.unwrap());
        let mut nodes = Vec::new();
        for instance in &instances {
            nodes.push(NodeClient::new(bed.node(instance).await.unwrap()));
        }
        Self { bed, instances, controller, nodes }
    }

    /// Ends everything; nothing may be left in the cloud or on the machine.
    pub(crate) async fn end(self) {
        let names = self.instances.iter().map(|instance| instance.label.as_str()).chain(["controller"]);
        for name in names {
            let log = fs::read_to_string(self.bed.dir().join(format!("{name}.log"))).unwrap();
            let secrets = [self.bed.cloud().token(), SECRET];
            assert!(secrets.iter().all(|secret| !log.contains(secret)), "a secret is in the log of {name}");
        }
        let left = self.bed.cloud().control().leftovers().unwrap();
        assert!(left.is_empty(), "{left:?}\n{}", self.bed.last_words(60));
        let down = self.bed.down().await.unwrap();
        assert!(down.forced.is_empty(), "left behind: {:?}", down.forced);
    }

    pub(crate) fn staging(&self, node: usize, pvc: &Pvc) -> String {
        self.bed.dir().join(format!("{node}/staging/{}", pvc.id)).display().to_string()
    }

    pub(crate) fn target(&self, node: usize, pvc: &Pvc) -> PathBuf {
        self.bed.dir().join(format!("{node}/pods/{}", pvc.id))
    }

    pub(crate) async fn create(&self, name: &str, capability: &VolumeCapability) -> Result<Pvc, Status> {
        let pvc = self.make(asked(name, capability)).await?;
        assert_eq!(self.bed.cloud().control().volume(&pvc.id).unwrap().size_gb, 10);
        Ok(pvc)
    }

    /// Makes a volume as `request` has it.
    pub(crate) async fn make(&self, request: CreateVolumeRequest) -> Result<Pvc, Status> {
        let (size, capability) = (request.capacity_range.unwrap(), request.volume_capabilities[0].clone());
        let volume = self.controller.clone().create_volume(request).await?.into_inner().volume.unwrap();
        assert_eq!(volume.capacity_bytes, size.required_bytes);
        Ok(Pvc { id: volume.volume_id, volume_context: volume.volume_context, capability })
    }

    pub(crate) async fn attach(&self, node: usize, pvc: &Pvc) -> Result<BTreeMap<String, String>, Status> {
        let request = ControllerPublishVolumeRequest {
            volume_id: pvc.id.clone(),
            node_id: self.instances[node].id.clone(),
            volume_capability: Some(pvc.capability.clone()),
            volume_context: pvc.volume_context.clone(),
            ..Default::default()
        };
        let answer = self.controller.clone().controller_publish_volume(request).await?;
        Ok(answer.into_inner().publish_context)
    }

    pub(crate) async fn detach(&self, node: usize, pvc: &Pvc) -> Result<(), Status> {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: pvc.id.clone(),
            node_id: self.instances[node].id.clone(),
            ..Default::default()
        };
        self.controller.clone().controller_unpublish_volume(request).await.map(drop)
    }

    pub(crate) async fn delete(&self, pvc: &Pvc) -> Result<(), Status> {
        let request = DeleteVolumeRequest { volume_id: pvc.id.clone(), ..Default::default() };
        self.controller.clone().delete_volume(request).await.map(drop)
    }

    pub(crate) async fn grow(&self, pvc: &Pvc, size: u64) -> Result<(), Status> {
        let request = ControllerExpandVolumeRequest {
            volume_id: pvc.id.clone(),
            capacity_range: Some(CapacityRange { required_bytes: gib(size), limit_bytes: 0 }),
            ..Default::default()
        };
        self.controller.clone().controller_expand_volume(request).await.map(drop)
    }

    pub(crate) async fn stage(
        &self,
        node: usize,
        pvc: &Pvc,
        context: &BTreeMap<String, String>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let request = NodeStageVolumeRequest {
            volume_id: pvc.id.clone(),
            publish_context: context.clone(),
            staging_target_path: self.staging(node, pvc),
            volume_capability: Some(pvc.capability.clone()),
            volume_context: pvc.volume_context.clone(),
            secrets: [("passphrase".to_owned(), SECRET.to_owned())].into(),
        };
        self.nodes[node].clone().node_stage_volume(request).await
    }

    pub(crate) async fn publish(
        &self,
        node: usize,
        pvc: &Pvc,
        context: &BTreeMap<String, String>,
    ) -> Result<(), Status> {
        let target = self.target(node, pvc);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let request = NodePublishVolumeRequest {
            volume_id: pvc.id.clone(),
            publish_context: context.clone(),
            staging_target_path: self.staging(node, pvc),
            target_path: target.display().to_string(),
            volume_capability: Some(pvc.capability.clone()),
            volume_context: pvc.volume_context.clone(),
            ..Default::default()
        };
        self.nodes[node].clone().node_publish_volume(request).await.map(drop)
    }

    pub(crate) async fn grow_on_node(&self, node: usize, pvc: &Pvc, size: u64) -> Result<(), Status> {
        let request = NodeExpandVolumeRequest {
            volume_id: pvc.id.clone(),
            volume_path: self.target(node, pvc).display().to_string(),
            staging_target_path: self.staging(node, pvc),
            capacity_range: Some(CapacityRange { required_bytes: gib(size), limit_bytes: 0 }),
            volume_capability: Some(pvc.capability.clone()),
            ..Default::default()
        };
        self.nodes[node].clone().node_expand_volume(request).await.map(drop)
    }

    /// Takes the volume off the node, as a kubelet does when the pod has ended.
    pub(crate) async fn leave(&self, node: usize, pvc: &Pvc) -> Result<(), Status> {
        let unpublish = NodeUnpublishVolumeRequest {
            volume_id: pvc.id.clone(),
            target_path: self.target(node, pvc).display().to_string(),
        };
        self.nodes[node].clone().node_unpublish_volume(unpublish).await?;
        let unstage =
            NodeUnstageVolumeRequest { volume_id: pvc.id.clone(), staging_target_path: self.staging(node, pvc) };
        self.nodes[node].clone().node_unstage_volume(unstage).await.map(drop)
    }

    /// Writes data that cannot be mistaken for another volume's.
    pub(crate) fn write(&self, node: usize, pvc: &Pvc) {
        let mut file = fs::File::create(self.target(node, pvc).join("data")).unwrap();
        file.write_all(&data(pvc)).unwrap();
        file.sync_all().unwrap();
    }

    pub(crate) fn assert_data(&self, node: usize, pvc: &Pvc) {
        let found = fs::read(self.target(node, pvc).join("data")).unwrap();
        assert!(found == data(pvc), "the data of {} is not what was written", pvc.id);
    }
}

fn data(pvc: &Pvc) -> Vec<u8> {
    pvc.id.as_bytes().iter().copied().cycle().take(1 << 20).collect()
}

pub(crate) fn gib(size: u64) -> i64 {
    i64::try_from(size * GIB).unwrap()
}

/// A volume of 10 GiB in the instances' region.
pub(crate) fn asked(name: &str, capability: &VolumeCapability) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(CapacityRange { required_bytes: gib(10), limit_bytes: 0 }),
        volume_capabilities: vec![capability.clone()],
        accessibility_requirements: Some(csi::TopologyRequirement { requisite: vec![region()], preferred: vec![] }),
        ..Default::default()
    }
}

pub(crate) fn region() -> csi::Topology {
    csi::Topology { segments: BTreeMap::from([("region".to_owned(), "EWR".to_owned())]) }
}

pub(crate) fn mounted(fs_type: &str) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume { fs_type: fs_type.to_owned(), ..Default::default() })),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    }
}

/// Repeats a call as the sidecars and the kubelet do: for as long as the answer allows it.
pub(crate) async fn repeated<T, C: Future<Output = Result<T, Status>>>(mut call: impl FnMut() -> C) -> T {
    let began = Instant::now();
    loop {
        match call().await {
            Ok(value) => return value,
            Err(status) => {
                let passing = matches!(status.code(), Code::Unavailable | Code::Aborted | Code::DeadlineExceeded | Code::Unknown)
                        // The connection to a process that was killed, as tonic tells of it.
                        || status.code() == Code::Cancelled
                        || (status.code() == Code::Internal && status.message().contains("h2 protocol error"));
                assert!(passing, "an answer that ends the matter: {status:?}");
                assert!(began.elapsed() < PATIENCE, "still no success after {PATIENCE:?}: {status:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Looks again until there is what is awaited.
pub(crate) async fn eventually<T, L: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> L) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
