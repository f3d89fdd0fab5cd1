//! What can be in flight.

use std::fmt;

use super::Create;
use crate::{
    operations::Description,
    volume::{NodeId, VolumeId},
};

/// What can be under way for a volume, or for a name.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operation {
    Create(Create),
    Delete,
    Attach(NodeId),
    Detach(Option<NodeId>),
    Expand { required_bytes: u64, limit_bytes: u64 },
    Snapshot { source: VolumeId, regions: Vec<String> },
    Sweep,
}

impl Description for Operation {
    fn kind(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Delete => "delete",
            Self::Attach(_) => "attach",
            Self::Detach(_) => "detach",
            Self::Expand { .. } => "expand",
            Self::Snapshot { .. } => "snapshot",
            Self::Sweep => "sweep",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(create) => {
                write!(f, "a create of {} bytes as {}", create.required_bytes, create.volume_type)
            }
            Self::Delete => f.write_str("a delete"),
            Self::Attach(node) => write!(f, "an attach to {node}"),
            Self::Detach(Some(node)) => write!(f, "a detach from {node}"),
            Self::Detach(None) => f.write_str("a detach from every node"),
            Self::Expand { required_bytes, .. } => write!(f, "an expansion to {required_bytes} bytes"),
            Self::Snapshot { source, .. } => write!(f, "a snapshot of volume {source}"),
            Self::Sweep => f.write_str("the end of a clone that was given up"),
        }
    }
}
