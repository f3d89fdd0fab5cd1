//! A machine in memory that shares are attached to.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::{
    cloud::{Attachment, vultr::PROFILE},
    error::Error,
    metrics::Metrics,
    node::{
        Node, Publish, Stage,
        host::{MountCall, MountFlags},
        mountinfo::{self, Mount, VIRTIOFS},
        tests::{
            process::{Life, Pace},
            simulated::{Kernel, Shared, SimulatedHost, State},
        },
    },
    volume::{Access, Discard, IdForm, MkfsOptions, VolumeId},
};

pub(super) const TAG: &str = "12345";
pub(super) const OTHER: &str = "54321";

pub(super) fn id(volume: u8) -> VolumeId {
    VolumeId::parse(IdForm::Uuid, &format!("cb676a46-66fd-4dfb-b839-443f2e6c0b{volume:02}")).unwrap()
}

/// The request to stage the first volume as the share of that tag, at `path`.
pub(super) fn stage_of(tag: &str, path: PathBuf) -> Stage {
    Stage {
        volume: id(1),
        staging_path: path,
        access: Access::Mount { fs_type: None, flags: Vec::new() },
        attachment: Attachment::Share { tag: tag.to_owned() },
        blank: true,
        read_only: false,
        key: None,
        mkfs_options: MkfsOptions::default(),
        discard: Discard::default(),
    }
}

/// The request to publish it.
pub(super) fn publish_of(tag: &str, staging: PathBuf, target: PathBuf, read_only: bool) -> Publish {
    Publish {
        volume: id(1),
        staging_path: staging,
        target_path: target,
        access: Access::Mount { fs_type: None, flags: Vec::new() },
        read_only,
        single_writer: false,
        attachment: Some(Attachment::Share { tag: tag.to_owned() }),
    }
}

pub(super) struct Bed {
    pub(super) node: Arc<Node>,
    shared: Shared,
    root: TempDir,
}

fn start(shared: &Shared, root: &Path) -> Arc<Node> {
    let (pace, changes) = (Pace::new(0), watch::Sender::new(()));
    let host = SimulatedHost::new(shared, 0, root, &Life::new(), &pace, &changes);
    Arc::new(Node::new(Arc::new(host), &PROFILE, TaskTracker::new(), Metrics::default()))
}

impl Bed {
    pub(super) fn new() -> Self {
        let root = tempfile::Builder::new().prefix("csi-share-").tempdir().unwrap();
        fs::create_dir(root.path().join("state")).unwrap();
        let mut state = State::default();
        state.kernels.push(Kernel::new(root.path().join("dev")));
        let shared = Arc::new(Mutex::new(state));
        Self { node: start(&shared, root.path()), shared, root }
    }

    /// The same with a share of [`TAG`].
    pub(super) fn with_share() -> Self {
        let bed = Self::new();
        bed.attach(TAG);
        bed
    }

    /// The driver is started anew.
    pub(super) fn restart(&mut self) {
        self.kernel(Kernel::driver_starts);
        self.node = start(&self.shared, self.root.path());
    }

    /// The machine is started anew, without what was attached to it.
    pub(super) fn reboot(&mut self) {
        self.kernel(|kernel| {
            kernel.reboot(&mut fastrand::Rng::with_seed(0), &mut 0);
            kernel.shares.clear();
        });
        self.restart();
    }

    pub(super) fn kernel<T>(&self, work: impl FnOnce(&mut Kernel) -> T) -> T {
        work(&mut self.shared.lock().unwrap().kernels[0])
    }

    pub(super) fn attach(&self, tag: &str) {
        self.kernel(|kernel| kernel.attach_share(tag));
    }

    pub(super) fn detach(&self, tag: &str) {
        self.kernel(|kernel| kernel.detach_share(tag));
    }

    pub(super) fn silence(&self, tag: &str, silent: bool) {
        self.kernel(|kernel| kernel.share_of(tag).unwrap().silent = silent);
    }

    pub(super) fn mount_by_hand(&self, tag: &str, path: &str) {
        let target = self.path(path);
        fs::create_dir_all(&target).unwrap();
        let (source, flags) = (Some(tag.into()), MountFlags::empty());
        let call = MountCall { source, target, fs_type: Some(VIRTIOFS), flags, data: String::new() };
        self.kernel(|kernel| kernel.mount(&mut [], &call)).unwrap();
    }

    pub(super) fn umount_by_hand(&self, path: &str) {
        self.kernel(|kernel| kernel.unmount(&mut [], &self.path(path))).unwrap();
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// The calls of mount(2) there were.
    pub(super) fn calls(&self) -> Vec<MountCall> {
        self.kernel(|kernel| kernel.calls.clone())
    }

    pub(super) fn mounts(&self) -> Vec<Mount> {
        self.kernel(|kernel| kernel.mounts())
    }

    pub(super) fn mount_at(&self, path: &str) -> Option<Mount> {
        mountinfo::at(&self.mounts(), &self.path(path)).cloned()
    }

    /// What the state directory holds.
    pub(super) fn state(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("state")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Whether nothing is left: no mount, no record, no directory.
    pub(super) fn is_clean(&self) -> bool {
        let left = fs::read_dir(self.root.path()).unwrap().count();
        self.mounts().is_empty() && self.state().is_empty() && left == 1
    }

    pub(super) fn stage_of(&self, tag: &str) -> Stage {
        stage_of(tag, self.path("staging"))
    }

    pub(super) fn publish_of(&self, target: &str, read_only: bool) -> Publish {
        publish_of(TAG, self.path("staging"), self.path(target), read_only)
    }

    pub(super) async fn unpublish(&self, volume: u8, target: &str) -> Result<(), Error> {
        self.node.unpublish(id(volume), self.path(target)).await
    }

    pub(super) async fn unstage(&self, volume: u8) -> Result<(), Error> {
        self.node.unstage(id(volume), self.path("staging")).await
    }
}
