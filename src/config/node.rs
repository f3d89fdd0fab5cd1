//! What only the node needs.

use std::path::{Path, PathBuf};

use super::{
    check::{Mistakes, given, is_taint_key, registration_socket},
    flags::NodeFlags,
    node_name,
};
use crate::{cloud::Profile, volume::NodeId};

/// A taint that the driver takes off its own Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaintConfig {
    /// The name of the Node.
    pub node_name: String,
    /// The key of the taint.
    pub key: String,
}

/// What only the node needs.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The instance's id, where it is given.
    pub node_id: Option<NodeId>,
    /// By-id links.
    pub device_dir: PathBuf,
    /// The kernel's tree of devices.
    pub sysfs_dir: PathBuf,
    /// The node's own records.
    pub state_dir: PathBuf,
    /// The kubelet's directory, if it is told.
    pub kubelet_dir: Option<PathBuf>,
    /// Where the kubelet looks for plugins, if the driver registers itself.
    pub kubelet_registration_dir: Option<PathBuf>,
    /// Slots that are not the driver's.
    pub reserved_volumes: u32,
    /// A ceiling on the volumes.
    pub max_volumes_per_node: Option<u32>,
    /// The taint to take off, if there is one.
    pub startup_taint: Option<TaintConfig>,
}

impl NodeFlags {
    pub(super) fn resolve(
        self,
        profile: &Profile,
        endpoint: &Path,
        driver_name: &str,
        mistakes: &mut Mistakes,
    ) -> NodeConfig {
        let node_id = given(self.node_id).and_then(|id| {
            let parsed = NodeId::parse(profile.id_form, &id);
            parsed.or_else(|| {
                mistakes.add("--node-id", &format!("'{id}' is not an instance id of {}", profile.name));
                None
            })
        });
        if self.max_volumes_per_node == Some(0) {
            mistakes.add("--max-volumes-per-node", "give 1 or more; to Kubernetes 0 means no limit");
        }
        let kubelet_dir = self.kubelet_dir.filter(|dir| !dir.as_os_str().is_empty());
        if kubelet_dir.as_ref().is_some_and(|dir| !dir.is_absolute()) {
            mistakes.add("--kubelet-dir", "give an absolute path, such as /var/lib/kubelet");
        }
        let registration_dir = self.kubelet_registration_dir.filter(|dir| !dir.as_os_str().is_empty());
        if let Some(dir) = &registration_dir {
            mistakes.unless(registration_socket(dir, driver_name));
        }
        let startup_taint = given(self.startup_taint).map(|key| {
            if !is_taint_key(&key) {
                let rule = "as in example.com/agent-not-ready";
                mistakes.add("--startup-taint", &format!("'{key}' is not a key of a taint, {rule}"));
            }
            TaintConfig { node_name: node_name(self.node_name, "--startup-taint", mistakes), key }
        });
        let beside = endpoint.parent().unwrap_or(Path::new("/")).join("state");
        NodeConfig {
            node_id,
            device_dir: self.device_dir,
            sysfs_dir: self.sysfs_dir,
            state_dir: self.state_dir.unwrap_or(beside),
            kubelet_dir,
            kubelet_registration_dir: registration_dir,
            reserved_volumes: self.reserved_volumes,
            max_volumes_per_node: self.max_volumes_per_node,
            startup_taint,
        }
    }
}
