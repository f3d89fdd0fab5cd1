//! File systems that many instances share, as clouds show them.

use super::{CloudError, Page, Region, VolumeState, VolumeType};
use crate::volume::{Gib, NodeId, VolumeId};

/// A shared file system as the cloud shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Its id, which no other volume has either.
    pub id: VolumeId,
    /// The CSI name it was created with.
    pub name: String,
    /// Its size.
    pub size: Gib,
    /// Its kind; `None` where the answer told one that we do not know.
    pub volume_type: Option<&'static VolumeType>,
    /// The region, in lower case.
    pub region: String,
    /// Whether it can be used.
    pub state: VolumeState,
    /// What was written on it when it was made.
    pub tags: Vec<String>,
    /// When it was made, in the cloud's ISO 8601, which sorts by time.
    pub created: String,
}

/// A shared file system to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewShare {
    /// The CSI name.
    pub name: String,
    /// The size.
    pub size: Gib,
    /// The kind.
    pub volume_type: &'static VolumeType,
    /// The region, in lower case.
    pub region: String,
    /// What is written on it.
    pub tags: Vec<String>,
}

/// A shared file system on one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareAttachment {
    /// The instance.
    pub node: NodeId,
    /// Whether the instance can mount it by now.
    pub ready: bool,
    /// What the instance mounts it by.
    pub tag: String,
}

/// The part of a cloud's API that deals in shared file systems.
#[async_trait::async_trait]
pub trait Shares: Send + Sync {
    /// One page of the account's shared file systems, from `cursor` on.
    async fn list_shares(&self, cursor: Option<&str>, size: u32) -> Result<Page<Share>, CloudError>;

    /// One shared file system.
    async fn share(&self, id: &VolumeId) -> Result<Share, CloudError>;

    /// Makes a shared file system. The one returned may still be pending.
    async fn create_share(&self, share: &NewShare) -> Result<Share, CloudError>;

    /// Makes a shared file system larger.
    async fn grow_share(&self, id: &VolumeId, size: Gib) -> Result<(), CloudError>;

    /// Deletes a shared file system for good.
    async fn delete_share(&self, id: &VolumeId) -> Result<(), CloudError>;

    /// The instances that have it.
    async fn share_attachments(&self, id: &VolumeId) -> Result<Vec<ShareAttachment>, CloudError>;

    /// How it stands on one instance; [`CloudError::NotFound`] if that does not have it.
    async fn share_attachment(&self, id: &VolumeId, node: &NodeId) -> Result<ShareAttachment, CloudError>;

    /// Starts to attach it to an instance.
    async fn attach_share(&self, id: &VolumeId, node: &NodeId) -> Result<ShareAttachment, CloudError>;

    /// Starts to detach it from an instance.
    async fn detach_share(&self, id: &VolumeId, node: &NodeId) -> Result<(), CloudError>;

    /// The regions that have shared file systems.
    async fn share_regions(&self) -> Result<Vec<Region>, CloudError>;
}
