//! The life itself: the calls of the external sidecars and of two kubelets, in their order.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use cloud_block_csi::csi::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest,
    CreateVolumeRequest, DeleteVolumeRequest, GetPluginInfoRequest, ListVolumesRequest, NodeExpandVolumeRequest,
    NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, TopologyRequirement, Volume,
    VolumeCapability,
    controller_client::ControllerClient,
    identity_client::IdentityClient,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
    volume_usage::Unit,
};
use demo::{
    Outcome,
    bed::Bed,
    machine::{self, mount_at, sha256},
    narration::{Bytes, Narration, say, tell},
};
use tonic::transport::Channel;
use vultr_sim::{Control, Operation};

const GIB: u64 = 1 << 30;
/// What is asked for: the least that Vultr sells on fast disks.
const SIZE: u64 = 10 * GIB;
const GROWN: u64 = 15 * GIB;
const FILE_BYTES: u64 = 32 << 20;
const RAW_BYTES: u64 = 4 << 20;
/// Where in the raw volume is written.
const RAW_OFFSET: u64 = GIB;

type Named = BTreeMap<String, String>;

/// Tells the whole life and says in how many steps.
pub(crate) async fn live(bed: &mut Bed, fs_type: &str) -> Outcome<u32> {
    let control = bed.cloud().control();
    let mut story = Narration::new(control.clone());
    let mut stage = Stage::set(bed, control, &mut story).await?;
    stage.file_system(&mut story, fs_type).await?;
    stage.raw_block(&mut story).await?;
    stage.account(&mut story).await?;
    Ok(story.steps())
}

/// Everybody who has a part: the sidecars' client of the controller, and a kubelet on each of two instances.
struct Stage {
    control: Control,
    controller: ControllerClient<Channel>,
    kubelets: Vec<Kubelet>,
}

/// The part of a kubelet: where it wants volumes, and who its node is.
struct Kubelet {
    name: String,
    node: NodeClient<Channel>,
    info: NodeGetInfoResponse,
    dir: PathBuf,
}

/// A volume on its way.
struct Claim {
    volume: Volume,
    capability: VolumeCapability,
    published: Named,
}

impl Stage {
    async fn set(bed: &mut Bed, control: Control, story: &mut Narration) -> Outcome<Self> {
        say("A volume's whole life with cloud-block-csi, on a simulated Vultr cloud.");
        say(format_args!("  cloud     {} in region ewr, with the instances demo-1 and demo-2", bed.cloud().api_url()));
        say(format_args!("  disks     sparse files below {}, behind loop devices", bed.cloud().dir().display()));

        story.ask("Start the driver three times: one controller, and a node on each instance (Probe, GetPluginInfo)");
        let controller = bed.controller().await?;
        let mut channels = Vec::new();
        for instance in bed.cloud().instances() {
            channels.push((instance.label.clone(), bed.node(&instance).await?));
        }
        let info = IdentityClient::new(controller.clone()).get_plugin_info(GetPluginInfoRequest {}).await?.into_inner();
        tell(format_args!("{} {} is ready, on {}", info.name, info.vendor_version, bed.socket("controller").display()));
        story.took();

        story.ask("Ask both nodes who they are (NodeGetInfo)");
        let mut kubelets = Vec::new();
        for (name, channel) in channels {
            let mut node = NodeClient::new(channel);
            let info = node.node_get_info(NodeGetInfoRequest {}).await?.into_inner();
            let topology = info.accessible_topology.clone().unwrap_or_default();
            tell(format_args!(
                "{name}: instance {}, {:?}, room for {} volumes",
                info.node_id, topology.segments, info.max_volumes_per_node
            ));
            let dir = bed.dir().join(format!("kubelet-{name}"));
            fs::create_dir(&dir)?;
            kubelets.push(Kubelet { name, node, info, dir });
        }
        story.took();
        Ok(Self { control, controller: ControllerClient::new(controller), kubelets })
    }

    async fn file_system(&mut self, story: &mut Narration, fs_type: &str) -> Outcome<()> {
        let mount =
            MountVolume { fs_type: fs_type.to_owned(), mount_flags: vec!["noatime".to_owned()], ..Default::default() };
        let mut claim = self.create(story, "pvc-demo-files", AccessType::Mount(mount)).await?;

        self.attach(story, &mut claim, 0).await?;
        self.kubelets[0].stage(story, &claim).await?;
        let target = self.kubelets[0].publish(story, &claim).await?;
        let mount = mount_at(&target)?;
        let (total, free) = machine::fs_bytes(&target)?;
        tell(format_args!(
            "{} on {}: df says {} in all, {} free",
            mount.fs_type,
            mount.source,
            Bytes(total),
            Bytes(free)
        ));

        let file = target.join("data");
        story.ask(format_args!("The pod on demo-1 writes {} of random data", Bytes(FILE_BYTES)));
        write_random(&mut File::create(&file)?, FILE_BYTES)?;
        let checksum = sha256(&file, 0, FILE_BYTES)?;
        tell(format_args!("sha256 {checksum}"));
        story.took();

        self.grow(story, &claim, &target).await?;
        same(&checksum, &sha256(&file, 0, FILE_BYTES)?)?;
        tell(format_args!("{} read back while it is mounted: sha256 is the same", Bytes(FILE_BYTES)));

        self.kubelets[0].stats(story, &claim, &target).await?;
        self.kubelets[0].unpublish(story, &claim, &target).await?;
        self.detach(story, &claim, 0).await?;

        say("\n    The pod moves to the second instance.");
        self.attach(story, &mut claim, 1).await?;
        self.kubelets[1].stage(story, &claim).await?;
        let target = self.kubelets[1].publish(story, &claim).await?;
        same(&checksum, &sha256(&target.join("data"), 0, FILE_BYTES)?)?;
        let (total, _) = machine::fs_bytes(&target)?;
        tell(format_args!("{} verified on demo-2: sha256 is the same; df says {}", Bytes(FILE_BYTES), Bytes(total)));
        self.kubelets[1].unpublish(story, &claim, &target).await?;
        self.detach(story, &claim, 1).await?;
        self.delete(story, &claim).await
    }

    async fn raw_block(&mut self, story: &mut Narration) -> Outcome<()> {
        say("\n    And a volume without a file system.");
        let mut claim = self.create(story, "pvc-demo-raw", AccessType::Block(BlockVolume {})).await?;
        self.attach(story, &mut claim, 1).await?;
        self.kubelets[1].stage(story, &claim).await?;
        let target = self.kubelets[1].publish(story, &claim).await?;
        let loop_device = self.loop_device(&claim)?;
        let (shown, real) = (fs::metadata(&target)?, fs::metadata(&loop_device)?);
        if !shown.file_type().is_block_device() || shown.rdev() != real.rdev() {
            return Err(format!("{} is not {}", target.display(), loop_device.display()).into());
        }
        tell(format_args!("the pod sees a block device, and it is {}", loop_device.display()));

        story.ask(format_args!(
            "The pod writes {} of random data at {} into the device",
            Bytes(RAW_BYTES),
            Bytes(RAW_OFFSET)
        ));
        let mut device = OpenOptions::new().read(true).write(true).open(&target)?;
        let mut head = vec![0; 1 << 20];
        device.read_exact(&mut head)?;
        if head.iter().any(|byte| *byte != 0) {
            return Err("a raw volume was formatted".into());
        }
        device.seek(SeekFrom::Start(RAW_OFFSET))?;
        write_random(&mut device, RAW_BYTES)?;
        drop(device);
        let checksum = sha256(&target, RAW_OFFSET, RAW_BYTES)?;
        tell("its first MiB was all zero: nobody formatted it");
        tell(format_args!("sha256 {checksum}"));
        story.took();

        self.kubelets[1].unpublish(story, &claim, &target).await?;
        self.detach(story, &claim, 1).await?;
        let disk = self.control.volume(&claim.volume.volume_id)?.disk_file.ok_or("the volume has no disk")?;
        same(&checksum, &sha256(&disk, RAW_OFFSET, RAW_BYTES)?)?;
        tell(format_args!("{} verified in the cloud's own file of the disk: sha256 is the same", Bytes(RAW_BYTES)));
        self.delete(story, &claim).await
    }

    /// What is left and what it cost.
    async fn account(&mut self, story: &mut Narration) -> Outcome<()> {
        story.ask("Look what is left in the cloud, and what it all cost (ListVolumes; the cloud's own books)");
        let listed = self.controller.list_volumes(ListVolumesRequest::default()).await?.into_inner();
        let there = self.control.view().volumes.len();
        if !listed.entries.is_empty() || there != 0 {
            return Err(format!("the driver lists {}, and there are {there} volumes", listed.entries.len()).into());
        }
        let stats = self.control.stats();
        tell("the driver lists no volume, and the cloud has none");
        for (operation, statuses) in &stats.requests {
            let by_status: Vec<_> = statuses.iter().map(|(status, count)| format!("{count} x {status}")).collect();
            tell(format_args!("{:<14} {}", format!("{operation:?}"), by_status.join(", ")));
        }
        tell(format_args!(
            "{} requests for two volumes' lives; at most {} in one second (the limit is 30), {} refused by it",
            stats.count(Operation::Any),
            stats.peak_per_second,
            stats.rate_limited
        ));
        if stats.dirty_detaches != 0 || !stats.reboots.is_empty() || stats.rate_limited != 0 {
            return Err(format!(
                "{} disks were taken away while in use, {:?} instances were restarted, {} requests were over the limit",
                stats.dirty_detaches, stats.reboots, stats.rate_limited
            )
            .into());
        }
        tell("no disk was taken away while in use, no instance was restarted");
        story.took();
        Ok(())
    }

    /// external-provisioner: `CreateVolume` where the first node is.
    async fn create(&mut self, story: &mut Narration, name: &str, access_type: AccessType) -> Outcome<Claim> {
        let kind = match &access_type {
            AccessType::Mount(mount) => format!("for {}", mount.fs_type),
            AccessType::Block(_) => "as a raw block device".to_owned(),
        };
        story.ask(format_args!("CreateVolume '{name}': {} NVMe {kind}, in the region of demo-1", Bytes(SIZE)));
        let capability = VolumeCapability {
            access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
            access_type: Some(access_type),
        };
        let topology = self.kubelets[0].info.accessible_topology.clone().ok_or("the node has no topology")?;
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: signed(SIZE), limit_bytes: 0 }),
            volume_capabilities: vec![capability.clone()],
            parameters: BTreeMap::from([("disk_type".to_owned(), "nvme".to_owned())]),
            accessibility_requirements: Some(TopologyRequirement {
                requisite: vec![topology.clone()],
                preferred: vec![topology],
            }),
            ..Default::default()
        };
        let created = self.controller.create_volume(request).await?.into_inner();
        let volume = created.volume.ok_or("no volume in the answer")?;
        let seen = self.control.volume(&volume.volume_id)?;
        if seen.label != name || u64::from(seen.size_gb) * GIB != unsigned(volume.capacity_bytes) {
            return Err(format!("the cloud has {seen:?}, the driver says {volume:?}").into());
        }
        tell(format_args!(
            "volume {}: {} GiB in {}, {}, called '{}' in the cloud",
            seen.id, seen.size_gb, seen.region, seen.status, seen.label
        ));
        story.took();
        Ok(Claim { volume, capability, published: Named::new() })
    }

    /// external-attacher: `ControllerPublishVolume`.
    async fn attach(&mut self, story: &mut Narration, claim: &mut Claim, to: usize) -> Outcome<()> {
        let kubelet = &self.kubelets[to];
        story.ask(format_args!("ControllerPublishVolume to {}", kubelet.name));
        let request = ControllerPublishVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            node_id: kubelet.info.node_id.clone(),
            volume_capability: Some(claim.capability.clone()),
            volume_context: claim.volume.volume_context.clone(),
            ..Default::default()
        };
        claim.published = self.controller.controller_publish_volume(request).await?.into_inner().publish_context;
        let seen = self.control.volume(&claim.volume.volume_id)?;
        if seen.attached_to.as_deref() != Some(kubelet.info.node_id.as_str()) {
            return Err(format!("the cloud says it is attached to {:?}", seen.attached_to).into());
        }
        let device = self.loop_device(claim)?;
        tell(format_args!(
            "attached; the instance shows serial {} as {}, {}",
            seen.mount_id,
            device.display(),
            Bytes(machine::device_bytes(&device.to_string_lossy())?)
        ));
        story.took();
        Ok(())
    }

    /// external-resizer, then the kubelet: `ControllerExpandVolume`, `NodeExpandVolume`.
    async fn grow(&mut self, story: &mut Narration, claim: &Claim, target: &Path) -> Outcome<()> {
        story.ask(format_args!("ControllerExpandVolume to {}, while the pod runs", Bytes(GROWN)));
        let range = CapacityRange { required_bytes: signed(GROWN), limit_bytes: 0 };
        let request = ControllerExpandVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            capacity_range: Some(range),
            volume_capability: Some(claim.capability.clone()),
            ..Default::default()
        };
        let grown = self.controller.controller_expand_volume(request).await?.into_inner();
        let device = self.loop_device(claim)?;
        let bytes = machine::device_bytes(&device.to_string_lossy())?;
        tell(format_args!(
            "the cloud has {}, {} has {}",
            Bytes(unsigned(grown.capacity_bytes)),
            device.display(),
            Bytes(bytes)
        ));
        if bytes != GROWN || !grown.node_expansion_required {
            return Err("the device did not grow, or the node is not asked to grow its file system".into());
        }
        story.took();

        story.ask("NodeExpandVolume on demo-1");
        let (before, _) = machine::fs_bytes(target)?;
        let kubelet = &mut self.kubelets[0];
        let request = NodeExpandVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            volume_path: path(target),
            capacity_range: Some(range),
            staging_target_path: path(&kubelet.staging(claim)),
            volume_capability: Some(claim.capability.clone()),
            ..Default::default()
        };
        kubelet.node.node_expand_volume(request).await?;
        let (after, free) = machine::fs_bytes(target)?;
        tell(format_args!(
            "df says {} instead of {}, {} free; it was never unmounted",
            Bytes(after),
            Bytes(before),
            Bytes(free)
        ));
        // A file system keeps some room for itself, but not a twentieth of the disk.
        if after < GROWN / 20 * 19 || after <= before {
            return Err("the file system did not grow".into());
        }
        story.took();
        Ok(())
    }

    /// external-attacher: `ControllerUnpublishVolume`.
    async fn detach(&mut self, story: &mut Narration, claim: &Claim, from: usize) -> Outcome<()> {
        let kubelet = &self.kubelets[from];
        story.ask(format_args!("ControllerUnpublishVolume from {}", kubelet.name));
        let request = ControllerUnpublishVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            node_id: kubelet.info.node_id.clone(),
            ..Default::default()
        };
        self.controller.controller_unpublish_volume(request).await?;
        let seen = self.control.volume(&claim.volume.volume_id)?;
        if seen.attached_to.is_some() || seen.loop_device.is_some() {
            return Err(format!("the cloud says it is still attached: {seen:?}").into());
        }
        tell("detached; the device is gone from the instance");
        story.took();
        Ok(())
    }

    /// external-provisioner: `DeleteVolume`.
    async fn delete(&mut self, story: &mut Narration, claim: &Claim) -> Outcome<()> {
        story.ask(format_args!("DeleteVolume {}", claim.volume.volume_id));
        let request = DeleteVolumeRequest { volume_id: claim.volume.volume_id.clone(), ..Default::default() };
        self.controller.delete_volume(request).await?;
        if self.control.volume(&claim.volume.volume_id).is_ok() {
            return Err("the cloud still has it".into());
        }
        tell("the cloud does not know it any more");
        story.took();
        Ok(())
    }

    fn loop_device(&self, claim: &Claim) -> Outcome<PathBuf> {
        let seen = self.control.volume(&claim.volume.volume_id)?;
        seen.loop_device.ok_or_else(|| "no instance shows the volume's disk".into())
    }
}

impl Kubelet {
    fn staging(&self, claim: &Claim) -> PathBuf {
        self.dir.join("staging").join(&claim.volume.volume_id)
    }

    fn is_block(claim: &Claim) -> bool {
        matches!(claim.capability.access_type, Some(AccessType::Block(_)))
    }

    /// `NodeStageVolume`; the staging folder is the kubelet's to make.
    async fn stage(&mut self, story: &mut Narration, claim: &Claim) -> Outcome<()> {
        story.ask(format_args!("NodeStageVolume on {}", self.name));
        let staging = self.staging(claim);
        fs::create_dir_all(&staging)?;
        let request = NodeStageVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            publish_context: claim.published.clone(),
            staging_target_path: path(&staging),
            volume_capability: Some(claim.capability.clone()),
            volume_context: claim.volume.volume_context.clone(),
            ..Default::default()
        };
        self.node.node_stage_volume(request).await?;
        if Self::is_block(claim) {
            tell("the device was found and proven by its serial; nothing was written to it");
        } else {
            let mount = mount_at(&staging)?;
            tell(format_args!(
                "{} is {} and mounted for the node: {}",
                mount.source,
                mount.fs_type,
                Bytes(machine::device_bytes(&mount.source)?)
            ));
        }
        story.took();
        Ok(())
    }

    /// `NodePublishVolume`, and the path that the pod gets. Its parent folder is the kubelet's to make.
    async fn publish(&mut self, story: &mut Narration, claim: &Claim) -> Outcome<PathBuf> {
        story.ask(format_args!("NodePublishVolume on {}", self.name));
        let pod = self.dir.join("pod");
        fs::create_dir_all(&pod)?;
        let target = pod.join(&claim.volume.volume_id);
        let request = NodePublishVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            publish_context: claim.published.clone(),
            staging_target_path: path(&self.staging(claim)),
            target_path: path(&target),
            volume_capability: Some(claim.capability.clone()),
            volume_context: claim.volume.volume_context.clone(),
            ..Default::default()
        };
        self.node.node_publish_volume(request).await?;
        let mode = fs::metadata(&target)?.permissions().mode();
        tell(format_args!("the pod has it, mode {:o}", mode & 0o7777));
        story.took();
        Ok(target)
    }

    /// `NodeGetVolumeStats`.
    async fn stats(&mut self, story: &mut Narration, claim: &Claim, target: &Path) -> Outcome<()> {
        story.ask(format_args!("NodeGetVolumeStats on {}", self.name));
        let request = NodeGetVolumeStatsRequest {
            volume_id: claim.volume.volume_id.clone(),
            volume_path: path(target),
            staging_target_path: path(&self.staging(claim)),
        };
        let stats = self.node.node_get_volume_stats(request).await?.into_inner();
        for usage in &stats.usage {
            match usage.unit() {
                Unit::Bytes => tell(format_args!(
                    "{} in all, {} used, {} available",
                    Bytes(unsigned(usage.total)),
                    Bytes(unsigned(usage.used)),
                    Bytes(unsigned(usage.available))
                )),
                Unit::Inodes => tell(format_args!("{} inodes, {} used", usage.total, usage.used)),
                Unit::Unknown => return Err("a usage without a unit".into()),
            }
        }
        let (total, _) = machine::fs_bytes(target)?;
        if !stats.usage.iter().any(|usage| usage.unit() == Unit::Bytes && unsigned(usage.total) == total) {
            return Err(format!("df says {total} bytes, the driver {:?}", stats.usage).into());
        }
        story.took();
        Ok(())
    }

    /// `NodeUnpublishVolume` and `NodeUnstageVolume`.
    async fn unpublish(&mut self, story: &mut Narration, claim: &Claim, target: &Path) -> Outcome<()> {
        story.ask(format_args!("NodeUnpublishVolume and NodeUnstageVolume on {}", self.name));
        let volume_id = claim.volume.volume_id.clone();
        let request = NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path: path(target) };
        self.node.node_unpublish_volume(request).await?;
        let staging = self.staging(claim);
        let request = NodeUnstageVolumeRequest { volume_id, staging_target_path: path(&staging) };
        self.node.node_unstage_volume(request).await?;
        let mounts = machine::mounts_below(&self.dir)?;
        if !mounts.is_empty() || target.exists() {
            return Err(format!("still there: {mounts:?}, {}", target.display()).into());
        }
        tell("unmounted; the pod's path is gone");
        story.took();
        Ok(())
    }
}

fn write_random(to: &mut File, length: u64) -> Outcome<()> {
    let mut random = File::open("/dev/urandom")?.take(length);
    std::io::copy(&mut random, to)?;
    to.flush()?;
    to.sync_all()?;
    Ok(())
}

fn same(written: &str, read: &str) -> Outcome<()> {
    if written == read { Ok(()) } else { Err(format!("written with sha256 {written}, read with {read}").into()) }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn unsigned(bytes: i64) -> u64 {
    u64::try_from(bytes).unwrap_or(0)
}
