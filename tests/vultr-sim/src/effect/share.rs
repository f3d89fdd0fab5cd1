//! Shared file systems: each is a plain folder, and a guest that has it sees it under the attachment's mount tag.
//!
//! That folder is what virtiofs would export; a test mounts it in virtiofs' place.

use std::{fs, path::PathBuf};

use crate::{
    cloud::Cloud,
    disk::ignore_absent,
    guest::Guest,
    vfs::{AttachmentState, Vfs},
};

/// The folder of the folders.
pub(crate) const SHARES: &str = "shares";

impl Cloud {
    /// The folder of a file system, where they are real.
    pub(crate) fn share_dir(&self, vfs: &str) -> Option<PathBuf> {
        self.disks.is_some().then(|| self.config.dir.join(SHARES).join(vfs))
    }

    /// Makes the folder of a new file system.
    pub(crate) async fn provide_share(&self, vfs: &str) {
        let _machine = self.machine.lock().await;
        let exists = self.state().file_systems.get(vfs).is_some();
        if let Some(dir) = self.share_dir(vfs).filter(|_| exists)
            && let Err(error) = fs::create_dir_all(dir)
        {
            self.problem("making a file system", &error);
        }
    }

    /// Lets an instance have a file system whose attachment to it is pending; anything else is left as it is.
    pub(crate) async fn share(&self, vfs: &str, mount_tag: u32) {
        let Some(guest) = self.sharer(vfs, mount_tag) else {
            return;
        };
        let _turn = guest.turn().await;
        let _machine = self.machine.lock().await;
        let pending = {
            let mut state = self.state();
            let attachment = state.file_systems.get_mut(vfs).and_then(|vfs| vfs.tagged(mount_tag));
            attachment.is_some_and(|a| a.state == AttachmentState::Pending)
        };
        if !pending {
            return;
        }
        if let Some(dir) = self.share_dir(vfs)
            && let Err(error) = guest.share(&dir, mount_tag).await
        {
            return self.problem("attaching a file system", &error);
        }
        let mut state = self.state();
        if let Some(attachment) = state.file_systems.get_mut(vfs).and_then(|vfs| vfs.tagged(mount_tag)) {
            attachment.state = AttachmentState::Attached;
        }
    }

    /// The guest of an attachment.
    fn sharer(&self, vfs: &str, mount_tag: u32) -> Option<Guest> {
        let mut state = self.state();
        let target = state.file_systems.get_mut(vfs)?.tagged(mount_tag)?.target.clone();
        state.instance(&target).map(|i| i.guest.clone())
    }

    /// Takes a file system from an instance, in use or not; only a virtual machine that does not let it go at all keeps
    /// it. Says whether it is detached.
    pub(crate) async fn unshare(&self, vfs: &str, mount_tag: u32) -> bool {
        let guest = self.sharer(vfs, mount_tag);
        let _turn = match &guest {
            Some(guest) => guest.turn().await,
            None => None,
        };
        let guest = guest.as_ref().filter(|_| self.disks.is_some());
        if let Some(guest) = guest {
            let patience = self.state().behaviour.guest_patience;
            if let Err(error) = guest.release_share(mount_tag, patience).await {
                self.kept("a file system", &error);
                let mut state = self.state();
                if let Some(attachment) = state.file_systems.get_mut(vfs).and_then(|vfs| vfs.tagged(mount_tag)) {
                    attachment.state = AttachmentState::Attached;
                }
                return false;
            }
        }
        let _machine = self.machine.lock().await;
        if let Some(Err(error)) = guest.map(|guest| guest.hide_share(mount_tag)) {
            self.problem("hiding a file system", &error);
        }
        if let Some(vfs) = self.state().file_systems.get_mut(vfs) {
            vfs.attachments.retain(|a| a.mount_tag != mount_tag);
        }
        true
    }

    /// Takes all file systems from an instance.
    pub(crate) async fn unshare_all(&self, instance: &str) {
        let attached: Vec<(String, u32)> = {
            let state = self.state();
            let has = |vfs: &Vfs| vfs.attachment(instance).map(|a| (vfs.id.clone(), a.mount_tag));
            state.file_systems.iter().filter_map(has).collect()
        };
        for (vfs, mount_tag) in attached {
            self.unshare(&vfs, mount_tag).await;
        }
    }

    /// Removes a file system with its folder, and says whether it did; whoever has it loses it first.
    pub(crate) async fn drop_vfs(&self, vfs: &str) -> bool {
        let tags: Vec<u32> = {
            let state = self.state();
            let attachments = state.file_systems.get(vfs).map(|vfs| vfs.attachments.as_slice()).unwrap_or_default();
            attachments.iter().map(|a| a.mount_tag).collect()
        };
        for mount_tag in tags {
            if !self.unshare(vfs, mount_tag).await {
                return false;
            }
        }
        let _machine = self.machine.lock().await;
        self.state().file_systems.remove(vfs);
        if let Some(dir) = self.share_dir(vfs)
            && let Err(error) = ignore_absent(fs::remove_dir_all(dir))
        {
            self.problem("removing a file system", &error);
        }
        true
    }
}
