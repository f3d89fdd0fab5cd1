//! What the driver needs of a cloud, in domain words.
//!
//! The trait is literal: one method is one API call, with no idempotency of its own; that lives once, in
//! `controller`. What a cloud can and cannot do is data ([`Profile`]), so that nothing above this module knows which
//! cloud it is.

mod failure;
pub mod fence;
pub mod http;
pub mod kind;
pub mod label;
pub mod names;
pub mod pace;
pub mod queue;
mod share;
mod snapshot;
pub mod token;
pub mod transport;
mod volume;
pub mod vultr;
pub mod watch;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

pub use failure::CloudError;
pub use share::{NewShare, Share, ShareAttachment, Shares};
pub use snapshot::{Snapshot, SnapshotState, Snapshots};
pub use volume::{Change, NewVolume, Origin, Region, Volume, VolumeState, VolumeType};

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
    pub publish_context: fn(&Attachment) -> BTreeMap<String, String>,
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
    /// Until when they may be made.
    pub fence: fence::Fence,
}

/// What a node is told of a volume attached to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// It is a disk.
    Disk {
        /// The serial that the kernel shows.
        serial: String,
        /// The volume's size when it was attached; earlier drivers did not tell it.
        size: Option<Gib>,
    },
    /// It is a file system that many instances share.
    Share {
        /// What it is mounted by.
        tag: String,
    },
}

/// Some of the things that an account has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The things.
    pub items: Vec<T>,
    /// Where the next page starts.
    pub next: Option<String>,
    /// How many things the account has, if the cloud tells.
    pub total: Option<u64>,
}

/// Who an instance is, as its metadata service tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceIdentity {
    /// The id that the API knows it by.
    pub id: NodeId,
    /// The region, in upper case.
    pub region: String,
}

/// How an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    /// There is no such instance.
    Gone,
    /// It can be changed.
    Idle,
    /// Something is being changed about it: a volume may be on its way to it, or off it.
    Locked,
}

/// The API of a cloud: one method, one request (and what it takes to have that request answered: a turn in the token
/// bucket, and for reads a few tries).
#[async_trait::async_trait]
pub trait Cloud: Send + Sync + 'static {
    /// What is known of this cloud beforehand.
    fn profile(&self) -> &'static Profile;

    /// One page of the account's volumes, of `size` rows at most, from `cursor` on.
    async fn list_volumes(&self, cursor: Option<&str>, size: u32) -> Result<Page<Volume>, CloudError>;

    /// One volume.
    async fn volume(&self, id: &VolumeId) -> Result<Volume, CloudError>;

    /// Makes a volume. The volume returned may still be pending.
    async fn create_volume(&self, volume: &NewVolume) -> Result<Volume, CloudError>;

    /// Changes a volume.
    async fn change_volume(&self, id: &VolumeId, change: &Change) -> Result<(), CloudError>;

    /// Deletes a volume for good.
    async fn delete_volume(&self, id: &VolumeId) -> Result<(), CloudError>;

    /// Starts to attach a volume to a running instance.
    async fn attach_volume(&self, id: &VolumeId, node: &NodeId) -> Result<(), CloudError>;

    /// Starts to detach a volume. Clouds whose API takes no instance detach it from whichever has it: the caller has
    /// to know that `node` does.
    async fn detach_volume(&self, id: &VolumeId, node: &NodeId) -> Result<(), CloudError>;

    /// Whether there is such an instance, and whether something is being changed about it.
    async fn instance(&self, id: &NodeId) -> Result<InstanceState, CloudError>;

    /// All regions.
    async fn regions(&self) -> Result<Vec<Region>, CloudError>;

    /// Snapshots, where the cloud has them.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }

    /// File systems that many instances share, where the cloud has them.
    fn shares(&self) -> Option<&dyn Shares> {
        None
    }
}
