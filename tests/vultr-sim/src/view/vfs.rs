//! What a test sees of a shared file system.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::vfs::Vfs;

/// A shared file system and what is behind it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct VfsView {
    /// Its id.
    pub id: String,
    /// Its label.
    pub label: String,
    /// Its region.
    pub region: String,
    /// Its size in GB; nothing holds its folder to that.
    pub size_gb: u32,
    /// `pending` or `active`.
    pub status: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// The folder with its content, where disks are real: what a guest would get by virtiofs.
    pub dir: Option<PathBuf>,
    /// The instances that have it.
    pub attachments: Vec<AttachmentView>,
}

/// One instance's share in a file system.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AttachmentView {
    /// The instance's id.
    pub instance: String,
    /// `PENDING`, `ATTACHED` or `DETACHING`.
    pub state: String,
    /// What the guest mounts, in decimal digits.
    pub mount_tag: u32,
}

impl VfsView {
    pub(crate) fn of(vfs: &Vfs, dir: Option<PathBuf>) -> Self {
        let attachment = |a: &crate::vfs::Attachment| AttachmentView {
            instance: a.target.clone(),
            state: a.state.as_str().to_owned(),
            mount_tag: a.mount_tag,
        };
        Self {
            id: vfs.id.clone(),
            label: vfs.label.clone(),
            region: vfs.region.to_owned(),
            size_gb: vfs.size_gb,
            status: vfs.status.as_str().to_owned(),
            tags: vfs.tags.clone(),
            dir: dir.filter(|dir| dir.exists()),
            attachments: vfs.attachments.iter().map(attachment).collect(),
        }
    }

    /// Its attachments in words.
    pub(crate) fn attached(&self) -> impl Iterator<Item = String> {
        self.attachments.iter().map(|a| format!("{} {}: {}", self.label, self.id, a.instance))
    }
}
