//! What a sequence is run in: two nodes that share a cloud of disks. One world is in memory, one is real.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::plan::{Change, Meanwhile, Place};
use crate::{
    error::Error,
    node::{Node, tests::process::Death},
    volume::{IdForm, VolumeId},
};

/// What is in a volume, by name.
pub(crate) type Contents = BTreeMap<String, Vec<u8>>;

/// Where the by-id link of a volume leads on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leads {
    Nowhere,
    Right,
    Wrong,
}

/// How a volume's disk shows on a node.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    /// The number that no other disk of the node ever had; none while it is not attached there.
    pub(crate) attached: Option<u64>,
    pub(crate) link: Leads,
    /// Another disk of the node shows the same serial.
    pub(crate) twin: bool,
    /// The serial of some disk of the node cannot be read.
    pub(crate) mute: bool,
    /// The disk, or what unlocks it, was made read-only.
    pub(crate) read_only: bool,
    /// It is unlocked: the disk that it is now, or (false) one that is gone.
    pub(crate) unlocked: Option<bool>,
}

/// A mount, seen from outside of the driver.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) path: PathBuf,
    /// Which volume's disk is behind it; none if it is something else.
    pub(crate) volume: Option<usize>,
    /// The disk is still attached.
    pub(crate) alive: bool,
    pub(crate) read_only: bool,
    /// It is so for the moment of a publish, in the middle of which the driver ended.
    pub(crate) lent: bool,
    /// The whole file system takes no writes.
    pub(crate) frozen: bool,
    pub(crate) is_node: bool,
}

/// What a disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    Nothing,
    /// Neither nothing nor all of what it is to hold.
    Something,
    /// Its file system, or its encryption if it is raw.
    All,
}

/// A mkfs or luksFormat that began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) node: usize,
    /// The volume, and the number of its disk on that node; none if it was another disk.
    pub(crate) disk: Option<(usize, u64)>,
    /// What it was made on held a whole one already.
    pub(crate) over_a_whole: bool,
    /// What was made is an encryption, not a file system.
    pub(crate) encrypts: bool,
}

/// Two nodes and their cloud.
pub(crate) trait World {
    /// The driver that runs on a node now.
    fn node(&self, node: usize) -> Arc<Node>;

    /// Below it is all that the node's driver makes.
    fn root(&self, node: usize) -> PathBuf;

    /// Carries out a change, as far as this world can.
    fn change(&self, change: Change);

    /// Lets something happen after so many ticks of a node's driver.
    fn arm(&self, node: usize, ticks: u32, meanwhile: Meanwhile);

    /// Takes that back. Gives whether it had not happened yet.
    fn disarm(&self, node: usize) -> bool;

    /// Whether a node's driver has died.
    fn is_dead(&self, node: usize) -> bool;

    /// Ends a node's driver if it lives, and starts another.
    fn restart(&self, node: usize, death: Death);

    /// How a volume's disk shows on a node.
    fn shown(&self, volume: usize, node: usize) -> Shown;

    /// What is mounted on a node.
    fn mounts(&self, node: usize) -> Vec<Seen>;

    /// What a volume's disk holds.
    fn holds(&self, volume: usize) -> Holds;

    /// Which mkfs and luksFormat began since this was last asked.
    fn formatted(&self) -> Vec<Format>;

    /// A volume's size in bytes, in the cloud.
    fn size(&self, volume: usize) -> u64;

    /// How many bytes of its disk a volume's file system could still take, if that can be seen from outside.
    fn growth_left(&self, volume: usize) -> Option<u64>;

    /// Writes something through a mount; if `sync`, it and all before is on the disk when this returns.
    fn write(&self, node: usize, path: &Path, name: &str, bytes: &[u8], sync: bool) -> io::Result<()>;

    /// Reads all that a mount shows.
    fn read(&self, node: usize, path: &Path) -> io::Result<Contents>;

    /// Whether an error is one of this world's own, that comes and goes without anybody's doing.
    fn is_passing(&self, _: &Error) -> bool {
        false
    }

    /// Whether a disk is recorded on a node as proven blank, and its mkfs as not known to have ended.
    fn is_recorded(&self, node: usize, volume: usize) -> bool {
        self.root(node).join(format!("state/{}.formatting.json", id(volume))).exists()
    }

    /// Whether a volume is recorded on a node as staged.
    fn is_staged(&self, node: usize, volume: usize) -> bool {
        self.root(node).join(format!("state/{}.staged.json", id(volume))).exists()
    }

    /// A volume's place on a node.
    fn path(&self, node: usize, volume: usize, place: Place) -> PathBuf {
        self.root(node).join(match place {
            Place::Staging => format!("volume-{volume}/staging"),
            Place::Target(target) => format!("pod-{target}/volume-{volume}"),
        })
    }
}

/// The id of a volume.
pub(crate) fn id(volume: usize) -> VolumeId {
    VolumeId::parse(IdForm::Uuid, &format!("cb676a46-66fd-4dfb-b839-{volume:012}")).expect("a UUID")
}

/// Whether the record of a volume says that its staging mount is read-only for a moment only.
pub(crate) fn is_lent(root: &Path, volume: usize) -> bool {
    let record = std::fs::read_to_string(root.join(format!("state/{}.staged.json", id(volume))));
    record.is_ok_and(|record| record.contains("\"lent\":\""))
}

/// The serial of a volume's disk.
pub(crate) fn serial(volume: usize) -> String {
    format!("ewr-{volume:014}")
}

/// What is written as `name` to a volume.
pub(crate) fn text(volume: usize, name: &str) -> Vec<u8> {
    format!("{name} of volume {volume}").into_bytes()
}

/// Whether a path is a volume's on this node.
pub(crate) fn belongs(path: &Path, volume: usize) -> bool {
    let name = format!("volume-{volume}");
    path.components().any(|part| part.as_os_str() == name.as_str())
}
