//! The objects that the sidecars work on.

use crate::simulation::{plan::Content, request::From};

/// A claim and its volume.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) name: String,
    pub(super) content: Content,
    pub(super) wanted: bool,
    /// Whether a volume may exist of a create that has not ended for certain.
    pub(super) begun: bool,
    /// What that create is filled from.
    pub(super) source: Option<From>,
    pub(super) id: Option<String>,
    pub(super) created_gib: i64,
    pub(super) wanted_gib: i64,
    /// The size that was reported.
    pub(super) gib: i64,
}

impl Claim {
    pub(super) fn new(number: usize, content: Content) -> Self {
        // What is filled from another has room for what that may have grown to.
        let created_gib = if matches!(content, Content::Restored(_) | Content::Cloned(_)) { 60 } else { 10 };
        Self {
            name: format!("pvc-{number}"),
            content,
            wanted: false,
            begun: false,
            source: None,
            id: None,
            created_gib,
            wanted_gib: created_gib,
            gib: 0,
        }
    }
}

/// That a node has a claim, or will.
#[derive(Debug, Clone, Default)]
pub(super) struct Attachment {
    pub(super) wanted: bool,
    pub(super) tried: bool,
    pub(super) attached: bool,
}

/// A snapshot of a claim.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) name: String,
    /// The claim.
    pub(super) of: usize,
    pub(super) wanted: bool,
    /// Whether one may exist of a call that has not ended for certain.
    pub(super) begun: bool,
    /// The volume that it is taken of.
    pub(super) source: Option<String>,
    pub(super) id: Option<String>,
    pub(super) ready: bool,
}

impl Snapshot {
    pub(super) fn new(number: usize, of: usize) -> Self {
        let name = format!("snapshot-{number}");
        Self { name, of, wanted: false, begun: false, source: None, id: None, ready: false }
    }
}
