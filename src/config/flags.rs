//! The flags as they are typed, each with its environment variable.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::LogFormat;

const ORPHANS: &str = "What the cluster knows comes from kubectl:\n\n  \
    kubectl get pv -o jsonpath='{range .items[*]}{.spec.csi.volumeHandle}{\"\\n\"}{end}' > known &&\n  \
    kubectl get volumesnapshotcontent -o jsonpath='{range .items[*]}{.status.snapshotHandle}{\"\\n\"}{end}' >> known &&\n  \
    cloud-block-csi orphans --token-file token --in-use known\n\n\
    Where there is a --cluster-id, give the same here. \
    A volume that is being made this minute, or that another cluster with the same name prefix made, is told as well: \
    look twice before you delete anything.";

const PRE_STOP: &str = "For the DaemonSet, whose pod then has\n\n  \
    terminationGracePeriodSeconds: 120\n  \
    lifecycle: {preStop: {exec: {command: [/usr/local/bin/cloud-block-csi, pre-stop, --grace=120]}}}\n  \
    env: [{name: CSI_NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]\n\n\
    and whose service account may get nodes and list volumeattachments. Where it may not get nodes, or where no drain is \
    going on, the hook ends at once with 0; where it may not list volumeattachments, after half a minute. With 1 it ends \
    if volumes of this driver are still attached, or that cannot be found out, when the grace period is nearly over. \
    Kubernetes tells in an event of the pod that it failed, and not why; its words are in the log of the container, if \
    that runs this program too.";

/// A CSI driver that maps Kubernetes volumes onto cloud block storage.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Every flag has an environment variable: --api-url is CSI_API_URL.\n\
    Exit codes: 0 ended in order, 64 the configuration has to be changed, 1 anything else."
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) service: Service,
}

#[derive(Debug, Subcommand)]
pub(super) enum Service {
    /// Serve Identity and Controller: creates, attaches, grows and deletes volumes through the cloud's API
    Controller {
        #[command(flatten)]
        common: CommonFlags,
        #[command(flatten)]
        account: AccountFlags,
        #[command(flatten)]
        lease: LeaseFlags,
    },
    /// Serve Identity and Node on a worker: formats, mounts and grows the disks; needs no token
    Node {
        #[command(flatten)]
        common: CommonFlags,
        #[command(flatten)]
        node: NodeFlags,
    },
    /// Tell which volumes and snapshots of the account no longer belong to anyone; changes nothing
    #[command(after_help = ORPHANS)]
    Orphans {
        #[command(flatten)]
        account: AccountFlags,
        #[command(flatten)]
        orphans: OrphansFlags,
    },
    /// Wait until the volumes of a node that is being drained are off it: the preStop hook of the node's pod
    #[command(after_help = PRE_STOP)]
    PreStop(PreStopFlags),
    /// Serve everything in one process: for csi-sanity and for a single machine
    All {
        #[command(flatten)]
        common: CommonFlags,
        #[command(flatten)]
        account: AccountFlags,
        #[command(flatten)]
        node: NodeFlags,
    },
}

#[derive(Debug, Args)]
pub(super) struct CommonFlags {
    /// Where gRPC listens: unix:///path, or a path
    #[arg(long, env = "CSI_ENDPOINT", default_value = "unix:///csi/csi.sock")]
    pub(super) endpoint: String,
    /// Which cloud
    #[arg(long, env = "CSI_CLOUD", default_value = "vultr")]
    pub(super) cloud: String,
    /// The name told to Kubernetes [default: the cloud's official one, block.csi.vultr.com]
    #[arg(long, env = "CSI_DRIVER_NAME")]
    pub(super) driver_name: Option<String>,
    /// The instance's metadata service: scheme and host
    #[arg(long, env = "CSI_METADATA_URL", default_value = "http://169.254.169.254")]
    pub(super) metadata_url: String,
    /// The region, such as EWR: where the controller makes volumes for which the provisioner names none, which it does only
    /// with --immediate-topology=false and before a pod has asked for them; a node takes another one than the metadata
    /// service's only together with --node-id [default: what the metadata service says]
    #[arg(long, env = "CSI_REGION")]
    pub(super) region: Option<String>,
    /// Serve /metrics, /healthz and /readyz here, such as 0.0.0.0:9808; of several addresses, with commas between, one that
    /// the machine doesn't have is waited for, as long as it has another [default: off]
    #[arg(long, env = "CSI_METRICS_ADDR")]
    pub(super) metrics_addr: Option<String>,
    /// Where spans of calls, operations and requests to the cloud are sent: an OpenTelemetry collector that takes OTLP over
    /// HTTP, scheme, host and port, such as http://otel-collector.monitoring:4318; what else there is to say comes from the
    /// collector's own variables, such as OTEL_EXPORTER_OTLP_HEADERS. One that is away disturbs no call [default: off]
    #[arg(long, env = "CSI_OTLP_ENDPOINT")]
    pub(super) otlp_endpoint: Option<String>,
    /// The pod's terminationGracePeriodSeconds: on SIGTERM nothing new is taken on, and what is in flight, such as the
    /// check of a large file system, goes on for that time less 10 s. What a preStop hook has used up is not known here
    #[arg(long, env = "CSI_GRACE", default_value = "30")]
    pub(super) grace: u32,
    /// How log lines look [default: text on a terminal, else json]
    #[arg(long, env = "CSI_LOG_FORMAT")]
    pub(super) log_format: Option<LogFormat>,
    /// What is logged: error, warn, info, debug, trace, or directives such as info,cloud_block_csi=debug
    #[arg(long, env = "CSI_LOG_LEVEL", default_value = "info")]
    pub(super) log_level: String,
}

#[derive(Debug, Args)]
pub(super) struct AccountFlags {
    /// The file that holds the API token; it is followed when it rotates
    #[arg(long, env = "CSI_TOKEN_FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// The cloud's API: scheme and host, no path [default: the cloud's public one]
    #[arg(long, env = "CSI_API_URL")]
    pub(super) api_url: Option<String>,
    /// How many requests a second are made at most; the account's limit (30) is shared with its other clients
    #[arg(long, env = "CSI_REQUESTS_PER_SECOND", default_value = "20")]
    pub(super) requests_per_second: u32,
    /// A name for this cluster, written on snapshots and shared file systems, so that several clusters of one account
    /// tell theirs apart: lower-case letters, digits, dots and dashes [default: none]
    #[arg(long, env = "CSI_CLUSTER_ID")]
    pub(super) cluster_id: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct LeaseFlags {
    /// Be one of several controllers, of which the holder of this Lease (coordination.k8s.io) in the pod's own namespace
    /// is active; the others say to Probe that they are not ready, so that their pods' sidecars wait with them. The service
    /// account needs get, create and update of leases there [default: none, this is the only controller]
    #[arg(long, env = "CSI_LEASE")]
    pub(super) lease: Option<String>,
    /// The name of the controller's pod: metadata.name, by the downward API. Without --lease, one whose number in its
    /// StatefulSet isn't 0 refuses to start: two that don't know of each other would make things twice
    #[arg(long, env = "CSI_POD_NAME")]
    pub(super) pod_name: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct PreStopFlags {
    /// Which cloud
    #[arg(long, env = "CSI_CLOUD", default_value = "vultr")]
    pub(super) cloud: String,
    /// The driver's name, whose volumes are waited for [default: the cloud's official one, block.csi.vultr.com]
    #[arg(long, env = "CSI_DRIVER_NAME")]
    pub(super) driver_name: Option<String>,
    /// The name of this machine's Node object: spec.nodeName, by the downward API
    #[arg(long, env = "CSI_NODE_NAME")]
    pub(super) node_name: Option<String>,
    /// The pod's terminationGracePeriodSeconds; the hook ends 5 s before that time is over
    #[arg(long, env = "CSI_GRACE", default_value = "30")]
    pub(super) grace: u32,
}

#[derive(Debug, Args)]
pub(super) struct OrphansFlags {
    /// Which cloud
    #[arg(long, env = "CSI_CLOUD", default_value = "vultr")]
    pub(super) cloud: String,
    /// What the names of the cluster's volumes begin with: the provisioner's --volume-name-prefix
    #[arg(long, env = "CSI_VOLUME_NAME_PREFIX", default_value = "pvc")]
    pub(super) volume_name_prefix: String,
    /// A file with the ids of the volumes and snapshots that the cluster knows, one a line; - for standard input
    #[arg(long, env = "CSI_IN_USE", required_unless_present = "nothing_in_use")]
    pub(super) in_use: Option<PathBuf>,
    /// The cluster has no volume and no snapshot any more, so all that it made and that is on no instance is told
    #[arg(long, env = "CSI_NOTHING_IN_USE", conflicts_with = "in_use")]
    pub(super) nothing_in_use: bool,
}

#[derive(Debug, Args)]
pub(super) struct NodeFlags {
    /// The instance's id in the cloud's API [default: what the metadata service says]
    #[arg(long, env = "CSI_NODE_ID")]
    pub(super) node_id: Option<String>,
    /// Where by-id links are looked for; they are hints, never proof
    #[arg(long, env = "CSI_DEVICE_DIR", default_value = "/dev/disk/by-id")]
    pub(super) device_dir: PathBuf,
    /// Where class/block/*/{serial,dev,size} are read
    #[arg(long, env = "CSI_SYSFS_DIR", default_value = "/sys")]
    pub(super) sysfs_dir: PathBuf,
    /// The node's own small records; must survive a restart of the driver [default: a folder next to the socket]
    #[arg(long, env = "CSI_STATE_DIR")]
    pub(super) state_dir: Option<PathBuf>,
    /// The kubelet's directory, such as /var/lib/kubelet: then only what is below it is mounted on, and links in it are
    /// not followed [default: any path is taken]
    #[arg(long, env = "CSI_KUBELET_DIR")]
    pub(super) kubelet_dir: Option<PathBuf>,
    /// The kubelet's folder of plugins, such as /var/lib/kubelet/plugins_registry: the driver then registers itself, by a
    /// socket that it makes there, and needs no node-driver-registrar. The kubelet is told the path of --endpoint as it is,
    /// so the kubelet's directory has to be mounted at its own path [default: off]
    #[arg(long, env = "CSI_KUBELET_REGISTRATION_DIR")]
    pub(super) kubelet_registration_dir: Option<PathBuf>,
    /// The name of this machine's Node object: spec.nodeName, by the downward API; for --startup-taint
    #[arg(long, env = "CSI_NODE_NAME")]
    pub(super) node_name: Option<String>,
    /// The key of a taint that is taken off this machine's Node once Kubernetes knows the driver there and how many
    /// volumes it may have, such as block.csi.vultr.com/agent-not-ready; who makes the nodes puts it on them. The service
    /// account needs get and patch of nodes and get of csinodes [default: none, the API server is not spoken to]
    #[arg(long, env = "CSI_STARTUP_TAINT")]
    pub(super) startup_taint: Option<String>,
    /// Slots of an instance that are not the driver's
    #[arg(long, env = "CSI_RESERVED_VOLUMES", default_value = "0")]
    pub(super) reserved_volumes: u32,
    /// A ceiling on the number of volumes [default: computed]
    #[arg(long, env = "CSI_MAX_VOLUMES_PER_NODE")]
    pub(super) max_volumes_per_node: Option<u32>,
}
