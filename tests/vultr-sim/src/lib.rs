//! A simulated Vultr cloud for tests: the HTTP API, the metadata service, and disks that are real.
//!
//! The driver is judged against this crate and links nothing of it; the crate itself is judged by Vultr's own
//! Go client (`tests/contract/govultr`). The way through:
//!
//! - a request: `serve` (connection) → `api` (rate limit, token, faults) → `api::{block, attach, snapshot, vfs, catalogue}` (rules)
//! - an effect: `effect` (state and machine together) → `disk` (files and loop devices) and `guest` (how they get to an instance)
//! - a test's hand: [`Simulation`] starts it, [`Control`] looks and interferes, in-process or over HTTP (`control::http`)
//!
//! An instance is either on this machine, where its disks are loop devices and a tree shows it what it has, or a qemu
//! guest ([`InstanceSpec::qmp`]), which has real virtio disks and virtiofs. The simulation doesn't start guests: give each
//! `-qmp unix:SOCKET,server=on,wait=off` for it alone, and for file systems shared memory:
//! `-machine memory-backend=mem -object memory-backend-memfd,id=mem,size=2048M,share=on`.
//! A guest that is off has let everything go; one that is started again gets it back by [`Control::replug`].

mod answer;
mod api;
mod clock;
mod cloud;
mod config;
mod control;
mod disk;
mod door;
mod effect;
mod fault;
mod guest;
mod metadata;
mod operation;
mod pace;
mod random;
mod record;
mod region;
mod serve;
mod shelf;
mod simulation;
mod snapshot;
mod vfs;
mod view;
mod volume;

pub use config::{Behaviour, Config, DeleteAttached, InstanceSpec, SnapshotAnswer};
pub use control::{Control, SeedVfs, SeedVolume};
pub use disk::sweep;
pub use fault::{Action, Fault, When};
pub use guest::{Cache, virtiofsd};
pub use metadata::MetadataMode;
pub use operation::Operation;
pub use record::{LogEntry, Stats};
pub use simulation::Simulation;
pub use snapshot::SnapshotState;
pub use view::{AttachmentView, InstanceChange, InstanceView, Leftovers, SnapshotView, VfsView, View, VolumeView};
pub use volume::BlockType;
