//! The kinds of thing that an account has and that the driver names, lists and waits for.

use std::{fmt::Display, hash::Hash};

use super::{Cloud, CloudError, Page, Share, Snapshot, SnapshotState, Volume, VolumeState, label::Label};
use crate::volume::{SnapshotId, VolumeId};

/// A kind of thing: how it is asked for, and what matters of it to whoever keeps count.
#[async_trait::async_trait]
pub trait Kind: Clone + Send + Sync + 'static {
    /// What tells two of them apart.
    type Id: Clone + Ord + Hash + Display + Send + Sync + 'static;

    /// The word for it in messages.
    const WORD: &'static str;

    /// Its id.
    fn id(&self) -> &Self::Id;

    /// What it is found by again, if it may be ours.
    fn name(&self) -> Option<&str>;

    /// When it was made; sorts by time.
    fn created(&self) -> &str;

    /// Whether it can be used.
    fn is_ready(&self) -> bool;

    /// Whether it never will.
    fn has_failed(&self) -> bool {
        false
    }

    /// How it stands, for a message.
    fn standing(&self) -> String;

    /// One page of all that the account has.
    async fn page(cloud: &dyn Cloud, cursor: Option<&str>, size: u32) -> Result<Page<Self>, CloudError>;

    /// One of them.
    async fn one(cloud: &dyn Cloud, id: &Self::Id) -> Result<Self, CloudError>;
}

#[async_trait::async_trait]
impl Kind for Volume {
    type Id = VolumeId;

    const WORD: &'static str = "volume";

    fn id(&self) -> &VolumeId {
        &self.id
    }

    /// A volume that boots an instance is never ours, whatever its label.
    fn name(&self) -> Option<&str> {
        Some(self.name.as_str()).filter(|name| !name.is_empty() && !self.bootable)
    }

    fn created(&self) -> &str {
        &self.created
    }

    fn is_ready(&self) -> bool {
        self.state == VolumeState::Active
    }

    fn standing(&self) -> String {
        let place = self.attached_to.as_ref();
        let place = place.map_or_else(|| "unattached".to_owned(), |node| format!("attached to {node}"));
        format!("{}, {} and {place}", self.state, self.size)
    }

    async fn page(cloud: &dyn Cloud, cursor: Option<&str>, size: u32) -> Result<Page<Self>, CloudError> {
        cloud.list_volumes(cursor, size).await
    }

    async fn one(cloud: &dyn Cloud, id: &VolumeId) -> Result<Self, CloudError> {
        cloud.volume(id).await
    }
}

#[async_trait::async_trait]
impl Kind for Snapshot {
    type Id = SnapshotId;

    const WORD: &'static str = "snapshot";

    fn id(&self) -> &SnapshotId {
        &self.id
    }

    /// Its purpose and the CSI name, as the driver wrote them on it.
    fn name(&self) -> Option<&str> {
        Label::key(&self.description)
    }

    fn created(&self) -> &str {
        &self.created
    }

    fn is_ready(&self) -> bool {
        self.state == SnapshotState::Complete
    }

    fn has_failed(&self) -> bool {
        self.state == SnapshotState::Failed
    }

    fn standing(&self) -> String {
        self.state.to_string()
    }

    async fn page(cloud: &dyn Cloud, cursor: Option<&str>, size: u32) -> Result<Page<Self>, CloudError> {
        cloud.snapshots().ok_or_else(|| absent("snapshots"))?.list_snapshots(cursor, size).await
    }

    async fn one(cloud: &dyn Cloud, id: &SnapshotId) -> Result<Self, CloudError> {
        cloud.snapshots().ok_or_else(|| absent("snapshots"))?.snapshot(id).await
    }
}

#[async_trait::async_trait]
impl Kind for Share {
    type Id = VolumeId;

    const WORD: &'static str = "shared file system";

    fn id(&self) -> &VolumeId {
        &self.id
    }

    fn name(&self) -> Option<&str> {
        Some(self.name.as_str()).filter(|name| !name.is_empty())
    }

    fn created(&self) -> &str {
        &self.created
    }

    fn is_ready(&self) -> bool {
        self.state == VolumeState::Active
    }

    fn standing(&self) -> String {
        format!("{} and {}", self.state, self.size)
    }

    async fn page(cloud: &dyn Cloud, cursor: Option<&str>, size: u32) -> Result<Page<Self>, CloudError> {
        cloud.shares().ok_or_else(|| absent("shared file systems"))?.list_shares(cursor, size).await
    }

    async fn one(cloud: &dyn Cloud, id: &VolumeId) -> Result<Self, CloudError> {
        cloud.shares().ok_or_else(|| absent("shared file systems"))?.share(id).await
    }
}

fn absent(what: &str) -> CloudError {
    CloudError::Unsupported(format!("this cloud has no {what}"))
}
