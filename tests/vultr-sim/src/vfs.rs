//! A shared file system (VFS) as the cloud keeps it, with its attachments.

use crate::{
    clock,
    cloud::State,
    region::Region,
    shelf::{Kept, Shelf},
    volume::Status,
};

/// A file system, which many instances may have at once.
#[derive(Clone, Debug)]
pub(crate) struct Vfs {
    pub(crate) id: String,
    pub(crate) label: String,
    pub(crate) region: &'static str,
    pub(crate) size_gb: u32,
    pub(crate) tags: Vec<String>,
    pub(crate) date_created: String,
    pub(crate) status: Status,
    pub(crate) attachments: Vec<Attachment>,
}

/// One instance's share in a file system.
#[derive(Clone, Debug)]
pub(crate) struct Attachment {
    /// The instance's id.
    pub(crate) target: String,
    pub(crate) state: AttachmentState,
    /// What the guest mounts, in decimal digits.
    pub(crate) mount_tag: u32,
}

/// Where an attachment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttachmentState {
    Pending,
    Attached,
    Detaching,
}

impl AttachmentState {
    /// Only the second word was seen in an answer; the first is what Vultr's prose calls it, the third is made up.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Attached => "ATTACHED",
            Self::Detaching => "DETACHING",
        }
    }
}

/// What a file system is made from; the rest is given by the cloud.
#[derive(Clone, Debug)]
pub(crate) struct NewVfs {
    pub(crate) label: String,
    pub(crate) region: &'static Region,
    pub(crate) size_gb: u32,
    pub(crate) tags: Vec<String>,
    pub(crate) status: Status,
}

impl Kept for Vfs {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Vfs {
    pub(crate) fn attachment(&self, instance: &str) -> Option<&Attachment> {
        self.attachments.iter().find(|a| a.target == instance)
    }

    /// By its tag, which a later attachment of the same instance hasn't.
    pub(crate) fn tagged(&mut self, mount_tag: u32) -> Option<&mut Attachment> {
        self.attachments.iter_mut().find(|a| a.mount_tag == mount_tag)
    }
}

/// All file systems of the account.
pub(crate) type FileSystems = Shelf<Vfs>;

impl State {
    /// Makes a file system and says its id.
    pub(crate) fn make_vfs(&mut self, new: NewVfs) -> String {
        let id = self.random.uuid();
        self.file_systems.insert(Vfs {
            id: id.clone(),
            label: new.label,
            region: new.region.id,
            size_gb: new.size_gb,
            tags: new.tags,
            date_created: clock::now_without_zone(),
            status: new.status,
            attachments: Vec::new(),
        });
        id
    }

    /// Begins an attachment and says its tag, which no other has.
    pub(crate) fn make_attachment(&mut self, vfs: &str, instance: &str) -> u32 {
        let taken = |state: &Self, tag| {
            let mut attachments = state.file_systems.iter().flat_map(|vfs| &vfs.attachments);
            attachments.any(|a| a.mount_tag == tag)
        };
        let mount_tag = loop {
            let tag = 10_000 + u32::try_from(self.random.next() % 90_000).unwrap_or(0);
            if !taken(self, tag) {
                break tag;
            }
        };
        if let Some(vfs) = self.file_systems.get_mut(vfs) {
            let state = AttachmentState::Pending;
            vfs.attachments.push(Attachment { target: instance.to_owned(), state, mount_tag });
        }
        mount_tag
    }
}
