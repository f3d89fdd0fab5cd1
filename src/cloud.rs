//! What the driver needs of a cloud, in domain words.
//!
//! The trait is literal: one method is one API call, with no idempotency of its own; that lives once, in
//! `controller`. What a cloud can and cannot do is data ([`Profile`]), so that nothing above this module knows which
//! cloud it is.

pub mod http;
pub mod names;
pub mod pace;
pub mod queue;
pub mod token;
pub mod transport;
pub mod vultr;
pub mod watch;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tonic::Code;

use crate::{
    error::Error,
    metrics::Metrics,
    volume::{Gib, IdForm, NodeId, VolumeId},
};

/// The facts about a cloud that the driver needs before it has asked it anything.
#[derive(Debug)]
pub struct Profile {
    /// The word on the command line.
    pub name: &'static str,
    /// The driver name that this cloud's users know.
    pub driver_name: &'static str,
    /// The public address of the API.
    pub api_url: &'static str,
    /// What volume ids and instance ids look like.
    pub id_form: IdForm,
    /// The topology key; the value is the region in upper case.
    pub topology_key: &'static str,
    /// The kinds of volume on sale.
    pub volume_types: &'static [&'static VolumeType],
    /// How many volumes one instance can have.
    pub attachments_per_instance: u32,
    /// How many requests a second the account may make.
    pub requests_per_second: u32,
    /// How many rows a page of a listing has at most.
    pub page_size: u32,
    /// The least time between two changes of one volume's size.
    pub between_changes: Duration,
    /// What a by-id link puts before a volume's serial.
    pub link_prefix: &'static str,
    /// Whether a serial looks like that of a volume of this cloud, not of some other disk of the machine.
    pub is_volume_serial: fn(&str) -> bool,
    /// Whether a mount tag looks like that of a share of this cloud, not of something else that the machine mounts.
    pub is_share_tag: fn(&str) -> bool,
    /// Reads the parameters of a `StorageClass`.
    pub volume_type: fn(&BTreeMap<String, String>) -> Result<&'static VolumeType, Error>,
    /// What the node needs to know to find an attached volume (CSI `publish_context`).
    pub publish_context: fn(&Volume) -> BTreeMap<String, String>,
    /// Reads it on the node, also as earlier drivers of this cloud wrote it.
    pub attachment: fn(&BTreeMap<String, String>) -> Result<Attachment, Error>,
    /// Asks the metadata service at a URL who this instance is.
    pub identity: for<'a> fn(&'a str) -> BoxFuture<'a, Result<InstanceIdentity, Error>>,
    /// A client of the API.
    pub connect: fn(Account) -> Result<Arc<dyn Cloud>, String>,
}

/// The clouds there are.
pub static PROFILES: &[&Profile] = &[&vultr::PROFILE];

/// What it takes to speak for an account.
#[derive(Debug)]
pub struct Account {
    /// Scheme and host of the API.
    pub api_url: String,
    /// Its token.
    pub token: token::TokenFile,
    /// The token bucket for its requests.
    pub pace: pace::Pace,
    /// Where they are counted.
    pub metrics: Metrics,
}

/// A kind of volume, and the sizes it comes in.
#[derive(Debug, PartialEq, Eq)]
pub struct VolumeType {
    /// The cloud's name of it in its API.
    pub name: &'static str,
    /// The least size.
    pub min: Gib,
    /// The greatest size.
    pub max: Gib,
    /// Sizes are whole multiples of this.
    pub step: Gib,
}

impl fmt::Display for VolumeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A volume as the cloud shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// The CSI name it was created with.
    pub name: String,
    /// Its size.
    pub size: Gib,
    /// Its kind; `None` where the answer did not tell (rows of a listing), or told one we do not know.
    pub volume_type: Option<&'static VolumeType>,
    /// The region, in lower case.
    pub region: String,
    /// The instance that has it.
    pub attached_to: Option<NodeId>,
    /// The serial that the instance's kernel shows for it.
    pub serial: String,
    /// Whether it can be used.
    pub state: VolumeState,
    /// Whether it boots an instance: such a volume is never ours.
    pub bootable: bool,
    /// When it was made, in the cloud's ISO 8601, which sorts by time.
    pub created: String,
}

/// Whether a volume can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeState {
    /// It can.
    Active,
    /// It is being made.
    Pending,
    /// Something that the API's documents do not name.
    Other(String),
}

impl fmt::Display for VolumeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active => f.write_str("active"),
            Self::Pending => f.write_str("pending"),
            Self::Other(state) => f.write_str(state),
        }
    }
}

/// A volume to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// The CSI name.
    pub name: String,
    /// The size.
    pub size: Gib,
    /// The kind.
    pub volume_type: &'static VolumeType,
    /// The region, in lower case.
    pub region: String,
}

/// One page of the volumes of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePage {
    /// The volumes.
    pub volumes: Vec<Volume>,
    /// Where the next page starts.
    pub next: Option<String>,
    /// How many volumes the account has, if the cloud tells.
    pub total: Option<u64>,
}

/// A region of the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Its id, in lower case.
    pub id: String,
    /// The kinds of volume that it has.
    pub volume_types: Vec<&'static VolumeType>,
}

/// What a node is told of a volume attached to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// A disk of its own.
    Disk {
        /// The serial that the kernel shows.
        serial: String,
        /// The volume's size when it was attached; earlier drivers did not tell it.
        size: Option<Gib>,
    },
    /// A file system that the cloud serves to many machines (virtiofs).
    Share {
        /// The tag that the kernel knows it by on this machine.
        tag: String,
    },
}

/// Who an instance is, as its metadata service tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceIdentity {
    /// The id that the API knows it by.
    pub id: NodeId,
    /// The region, in upper case.
    pub region: String,
}

/// The API of a cloud: one method, one request (and what it takes to have that request answered: a turn in the token
/// bucket, and for reads a few tries).
#[async_trait::async_trait]
pub trait Cloud: Send + Sync + 'static {
    /// What is known of this cloud beforehand.
    fn profile(&self) -> &'static Profile;

    /// One page of the account's volumes, of `size` rows at most, from `cursor` on.
    async fn list_volumes(&self, cursor: Option<&str>, size: u32) -> Result<VolumePage, CloudError>;

    /// One volume.
    async fn volume(&self, id: &VolumeId) -> Result<Volume, CloudError>;

    /// Makes a volume. The volume returned may still be pending.
    async fn create_volume(&self, volume: &NewVolume) -> Result<Volume, CloudError>;

    /// Makes a volume larger.
    async fn grow_volume(&self, id: &VolumeId, size: Gib) -> Result<(), CloudError>;

    /// Deletes a volume for good.
    async fn delete_volume(&self, id: &VolumeId) -> Result<(), CloudError>;

    /// Starts to attach a volume to a running instance.
    async fn attach_volume(&self, id: &VolumeId, node: &NodeId) -> Result<(), CloudError>;

    /// Starts to detach a volume. Clouds whose API takes no instance detach it from whichever has it: the caller has
    /// to know that `node` does.
    async fn detach_volume(&self, id: &VolumeId, node: &NodeId) -> Result<(), CloudError>;

    /// Whether there is such an instance.
    async fn instance_exists(&self, id: &NodeId) -> Result<bool, CloudError>;

    /// All regions.
    async fn regions(&self) -> Result<Vec<Region>, CloudError>;
}

/// How a request to the cloud failed, by what is known of its effect.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum CloudError {
    /// The cloud says that there is no such thing. Only this means gone.
    #[error("the cloud says that it does not exist: {0}")]
    NotFound(String),
    /// The cloud refused; nothing happened.
    #[error("the cloud refused ({status}): {text}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The API's own words.
        text: String,
    },
    /// It exists, but is of a kind that this driver does not serve; nothing happened.
    #[error("{0}")]
    Unsupported(String),
    /// The instance or the volume is busy with something else; nothing happened, and it can be asked again.
    #[error("the cloud is busy with it: {0}")]
    Busy(String),
    /// Quota, balance or a tier that the region lacks; nothing happened.
    #[error("the cloud has no room: {0}")]
    Exhausted(String),
    /// The token was refused; nothing happened.
    #[error("the cloud refused the API token: {0}")]
    Unauthorized(String),
    /// The request limit stayed exceeded for as long as was waited; nothing happened.
    #[error("the cloud's request limit is exceeded")]
    RateLimited,
    /// No answer, a broken one, or a 5xx: the request may have had its effect.
    #[error("no certain answer from the cloud: {0}")]
    Unknown(String),
}

impl CloudError {
    /// Whether the request may have had its effect all the same.
    pub fn outcome_is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// The gRPC code for an error that nothing more is known of.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NotFound,
            Self::Refused { .. } => Code::Internal,
            Self::Unsupported(_) => Code::FailedPrecondition,
            Self::Exhausted(_) => Code::ResourceExhausted,
            // UNAUTHENTICATED is CSI's word for the secrets of a request; ours is the operator's token, and a
            // sidecar must go on asking until it is mended.
            Self::Busy(_) | Self::Unauthorized(_) | Self::RateLimited | Self::Unknown(_) => Code::Unavailable,
        }
    }
}
