//! A test's hand on shared file systems.

use std::io;

use serde::{Deserialize, Serialize};

use super::{Control, absent, kept, known, only};
use crate::{vfs::NewVfs, view::VfsView, volume::Status};

/// A shared file system that exists without the driver having made it. No size limit is checked.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SeedVfs {
    /// Its label.
    pub label: String,
    /// Its region.
    pub region: String,
    /// Its size.
    pub size_gb: u32,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// The instances that have it, by id or label.
    #[serde(default)]
    pub attached_to: Vec<String>,
}

impl SeedVfs {
    /// Names a file system that no instance has.
    #[must_use]
    pub fn new(label: &str, region: &str, size_gb: u32) -> Self {
        let (label, region) = (label.to_owned(), region.to_owned());
        Self { label, region, size_gb, tags: Vec::new(), attached_to: Vec::new() }
    }
}

impl Control {
    /// One shared file system, by its id or, if only one bears it, its label.
    ///
    /// # Errors
    /// No such file system, or several.
    pub fn file_system(&self, name: &str) -> io::Result<VfsView> {
        let state = self.cloud.state();
        let named = state.file_systems.iter().filter(|f| f.id == name || f.label == name);
        let vfs = only("file system", name, named)?;
        Ok(VfsView::of(vfs, self.cloud.share_dir(&vfs.id)))
    }

    /// Adds a file system as somebody else left it behind, and attached if asked.
    ///
    /// # Errors
    /// An unknown region or instance.
    pub async fn seed_vfs(&self, seed: SeedVfs) -> io::Result<VfsView> {
        let region = known(&seed.region)?;
        for instance in &seed.attached_to {
            self.instance(instance)?;
        }
        let SeedVfs { label, size_gb, tags, attached_to, .. } = seed;
        let id = self.cloud.state().make_vfs(NewVfs { label, region, size_gb, tags, status: Status::Active });
        self.cloud.provide_share(&id).await;
        for instance in attached_to {
            self.attach_vfs(&id, &instance).await?;
        }
        self.file_system(&id)
    }

    /// Attaches a file system at once, by no rule but that the instance doesn't have it yet.
    ///
    /// # Errors
    /// An unknown file system or instance.
    pub async fn attach_vfs(&self, name: &str, instance: &str) -> io::Result<()> {
        let (vfs, instance) = (self.file_system(name)?.id, self.instance(instance)?.id);
        let mount_tag = {
            let mut state = self.cloud.state();
            let has = state.file_systems.get(&vfs).and_then(|vfs| vfs.attachment(&instance)).map(|a| a.mount_tag);
            has.unwrap_or_else(|| state.make_attachment(&vfs, &instance))
        };
        self.cloud.share(&vfs, mount_tag).await;
        Ok(())
    }

    /// Detaches a file system at once, in use or not.
    ///
    /// # Errors
    /// An unknown file system or instance, or one without the other.
    pub async fn detach_vfs(&self, name: &str, instance: &str) -> io::Result<()> {
        let (vfs, instance) = (self.file_system(name)?, self.instance(instance)?.id);
        let attachment = vfs.attachments.iter().find(|a| a.instance == instance);
        let attachment = attachment.ok_or_else(|| absent("attachment to", &instance))?;
        let gone = self.cloud.unshare(&vfs.id, attachment.mount_tag).await;
        gone.then_some(()).ok_or_else(|| kept("file system", name))
    }

    /// Deletes a file system at once, attached or not.
    ///
    /// # Errors
    /// No such file system, or several.
    pub async fn delete_vfs(&self, name: &str) -> io::Result<()> {
        let gone = self.cloud.drop_vfs(&self.file_system(name)?.id).await;
        gone.then_some(()).ok_or_else(|| kept("file system", name))
    }
}
