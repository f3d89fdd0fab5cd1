//! The virtiofs devices of a simulated kernel, and what is mounted of them.

use std::io;

use super::{Kernel, What};
use crate::node::host::{DeviceNumber, Errno, MountCall, MountFlags};

/// A device that is attached, or one that was and that something still has.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) tag: String,
    /// Its number among all that were ever attached.
    pub(crate) sequence: u64,
    pub(crate) present: bool,
    /// It answers nothing.
    pub(crate) silent: bool,
    /// It was first mounted so.
    pub(crate) read_only: bool,
}

impl Shared {
    /// The number of its mounts.
    pub(crate) fn number(&self) -> DeviceNumber {
        DeviceNumber { major: 0, minor: 60 + self.sequence }
    }
}

impl Kernel {
    pub(crate) fn attach_share(&mut self, tag: &str) {
        let sequence = self.shares.len() as u64;
        let tag = tag.to_owned();
        self.shares.push(Shared { tag, sequence, present: true, silent: false, read_only: false });
    }

    /// Takes a device away, whatever is mounted of it.
    pub(crate) fn detach_share(&mut self, tag: &str) {
        self.share_of(tag).expect("it is attached").present = false;
    }

    /// The device of that tag: a kernel has one at a time.
    pub(crate) fn share_of(&mut self, tag: &str) -> Option<&mut Shared> {
        self.shares.iter_mut().find(|share| share.present && share.tag == tag)
    }

    pub(crate) fn share(&self, what: What) -> Option<&Shared> {
        self.shares.iter().find(|share| what == What::Share(share.sequence))
    }

    /// What virtio_fs_get_tree() answers.
    pub(super) fn mount_share(&mut self, call: &MountCall) -> io::Result<What> {
        if self.lacks_virtiofs {
            return Err(Errno::ENODEV.into());
        }
        let tag = call.source.as_deref().and_then(|source| source.to_str()).unwrap_or_default().to_owned();
        let mounted: Vec<What> = self.table.iter().map(|entry| entry.what).collect();
        let knows = call.data.is_empty() || call.data == "dax=never";
        let share = self.share_of(&tag).filter(|_| knows).ok_or(Errno::EINVAL)?;
        let what = What::Share(share.sequence);
        if !mounted.contains(&what) {
            share.read_only = call.flags.contains(MountFlags::MS_RDONLY);
        }
        Ok(what)
    }

    /// Whether what is mounted of a device answers: `None` for as long as it does not.
    pub(crate) fn share_answers(&self, what: What) -> Option<io::Result<()>> {
        match self.share(what) {
            Some(share) if !share.present => Some(Err(Errno::ENOTCONN.into())),
            Some(share) if share.silent => None,
            _ => Some(Ok(())),
        }
    }
}
