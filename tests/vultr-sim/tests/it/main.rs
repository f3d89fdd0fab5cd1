//! The simulated cloud held to its word, over its own HTTP interfaces.
//!
//! Tests of real disks need root and loop devices; without them they say so and pass.

#![expect(clippy::unwrap_used, reason = "all of this crate is tests, its helpers too")]

mod attach;
mod client;
mod control;
mod disk;
mod fault;
mod list;
mod metadata;
mod process;
mod qemu;
mod rate;
mod snapshot;
mod snapshot_content;
mod vfs;
mod vfs_attach;
mod volume;
