//! A block volume as the cloud keeps it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::shelf::{Kept, Shelf};

/// The kind of a volume.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockType {
    /// `NVMe`.
    #[default]
    HighPerf,
    /// HDD.
    StorageOpt,
}

impl BlockType {
    /// The smallest and the largest size in GB.
    pub(crate) fn limits(self) -> (u32, u32) {
        match self {
            Self::HighPerf => (10, 10_000),
            Self::StorageOpt => (40, 40_000),
        }
    }

    /// The price of one GB for a month, in thousandths of a dollar.
    pub(crate) fn mills(self) -> u32 {
        match self {
            Self::HighPerf => 100,
            Self::StorageOpt => 25,
        }
    }
}

/// Whether a volume or a file system may be used yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Pending,
    Active,
    /// What the API's documents don't have, in a test's words.
    Other(&'static str),
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Other(word) => word,
        }
    }
}

/// A block volume.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    pub(crate) id: String,
    pub(crate) label: String,
    pub(crate) region: &'static str,
    pub(crate) size_gb: u32,
    pub(crate) block_type: BlockType,
    pub(crate) mount_id: String,
    pub(crate) date_created: String,
    pub(crate) bootable: bool,
    /// The snapshot that it was made from.
    pub(crate) snapshot: Option<String>,
    pub(crate) status: Status,
    /// The id of the instance that has it.
    pub(crate) attached: Option<String>,
    /// An attach or detach is on its way.
    pub(crate) moving: bool,
    /// When its size was last changed.
    pub(crate) resized: Option<Instant>,
    /// Made only to fill the account; no report counts it.
    pub(crate) filler: bool,
    pub(crate) loop_device: Option<PathBuf>,
}

impl Kept for Volume {
    fn id(&self) -> &str {
        &self.id
    }
}

/// All volumes of the account.
pub(crate) type Volumes = Shelf<Volume>;

impl Volumes {
    pub(crate) fn attached_to(&self, instance: &str) -> impl Iterator<Item = &Volume> {
        self.iter().filter(move |v| v.attached.as_deref() == Some(instance))
    }
}
