//! What can be done in a sequence.

use std::fmt;

use crate::{node::tests::process::Death, volume::FsType};

pub(crate) const NODES: usize = 2;
pub(crate) const TARGETS: usize = 2;

/// What a volume's disk holds at first, and what may be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Blank, to be formatted.
    Blank(FsType),
    /// Blank, but nobody said that it may be formatted.
    Undeclared,
    /// Formatted and written to by somebody else.
    Filled(FsType),
    /// The same, and then its first superblock was lost.
    Wiped(FsType),
    /// Raw block.
    Raw,
    /// Blank, to be encrypted and formatted.
    Encrypted(FsType),
    /// Blank, to be encrypted and shown as raw block.
    EncryptedRaw,
}

impl Kind {
    /// The file system that workloads ask for.
    pub(crate) fn fs(self) -> Option<FsType> {
        match self {
            Self::Blank(fs) | Self::Filled(fs) | Self::Wiped(fs) | Self::Encrypted(fs) => Some(fs),
            Self::Undeclared => Some(FsType::Ext4),
            Self::Raw | Self::EncryptedRaw => None,
        }
    }

    pub(crate) fn is_raw(self) -> bool {
        self.fs().is_none()
    }

    pub(crate) fn is_encrypted(self) -> bool {
        matches!(self, Self::Encrypted(_) | Self::EncryptedRaw)
    }

    /// What it is where no disk can be encrypted.
    fn in_the_clear(self) -> Self {
        match self {
            Self::Encrypted(fs) => Self::Blank(fs),
            Self::EncryptedRaw => Self::Raw,
            other => other,
        }
    }

    /// Whether it can ever be used.
    pub(crate) fn is_usable(self) -> bool {
        !matches!(self, Self::Undeclared | Self::Wiped(_))
    }
}

/// Where a volume is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Staging,
    Target(usize),
}

/// What is asked of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Stage { read_only: bool, other_fs: bool, wrong_key: bool },
    Unstage,
    Publish { target: usize, read_only: bool, single_writer: bool },
    Unpublish { target: usize },
    Expand(Place),
    Stats(Place),
}

/// A call to the driver of one node for one volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) node: usize,
    pub(crate) volume: usize,
    pub(crate) call: Call,
}

/// What becomes of a volume's by-id link on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    Right,
    Missing,
    Dangling,
    /// It points to whatever other disk there is.
    Wrong,
    /// From now on it stays as it is, whatever comes and goes.
    Stuck,
}

/// What the cloud, the machine, or fate does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Has no effect while the volume is attached somewhere.
    Attach {
        node: usize,
        volume: usize,
    },
    /// Takes the disk away, whatever still uses it.
    Detach {
        volume: usize,
    },
    Grow {
        volume: usize,
    },
    Link {
        node: usize,
        volume: usize,
        link: Link,
    },
    /// A disk of somebody else's comes with the volume's serial, or goes; it goes with the volume, too.
    Twin {
        volume: usize,
        there: bool,
    },
    /// The volume's serial can or cannot be read.
    Mute {
        volume: usize,
        mute: bool,
    },
    /// All disks of the node that nothing uses go and come back in another order.
    Shuffle {
        node: usize,
    },
}

/// What happens while calls are under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meanwhile {
    Change(Change),
    Death(Death),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Change(Change),
    /// Calls at once, and what happens after so many steps of the first one's driver.
    Calls {
        asked: Vec<Asked>,
        meanwhile: Option<(u32, Meanwhile)>,
    },
    Write {
        node: usize,
        volume: usize,
        place: Place,
        sync: bool,
    },
    Restart {
        node: usize,
        death: Death,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Calls { asked, meanwhile } => {
                for (number, asked) in asked.iter().enumerate() {
                    let together = if number == 0 { "" } else { "; at once: " };
                    write!(f, "{together}node {} volume {}: {:?}", asked.node, asked.volume, asked.call)?;
                }
                match meanwhile {
                    Some((ticks, what)) => write!(f, "; after {ticks} ticks: {what:?}"),
                    None => Ok(()),
                }
            }
            other => write!(f, "{other:?}"),
        }
    }
}

/// A sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) volumes: Vec<Kind>,
    /// A disk is large enough that copies of superblocks are far apart.
    pub(crate) large: bool,
    pub(crate) steps: Vec<Step>,
}

impl Plan {
    /// The same with no volume encrypted.
    pub(crate) fn in_the_clear(mut self) -> Self {
        self.volumes = self.volumes.into_iter().map(Kind::in_the_clear).collect();
        self
    }
}
