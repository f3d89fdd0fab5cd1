//! Volumes, as clouds sell and show them.

use std::fmt;

use crate::volume::{Gib, NodeId, SnapshotId, VolumeId};

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
    /// Whether it is a file system that many instances share, not a disk of one.
    pub shared: bool,
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
    /// The snapshot that it was made from.
    pub origin: Origin,
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

/// What a volume was made from, as far as the cloud tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nothing: it came blank.
    Blank,
    /// A snapshot, which may be gone by now.
    Snapshot(SnapshotId),
    /// The cloud does not tell.
    Untold,
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
    /// The snapshot that it is to have the content of.
    pub snapshot: Option<SnapshotId>,
}

/// What is to be changed of a volume, in one request.
///
/// A cloud where more than the size can be changed (IOPS, say) gets more fields here, so that a growth and a
/// modification of the same moment are one change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The size to grow to.
    pub size: Gib,
}

/// A region of the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Its id, in lower case.
    pub id: String,
    /// The kinds of volume that it has.
    pub volume_types: Vec<&'static VolumeType>,
}
