//! The operations, on real disks (loop devices, with a sysfs-shaped tree that gives them serials) and on a machine in
//! memory.
//!
//! Real disks need root and `losetup`; without them each test of them says so and passes.

mod again;
mod device_mapper;
mod discard;
mod formatting;
mod growth;
mod health;
mod identity;
mod layout;
mod luks;
mod machine;
mod misbehaving;
mod mounting;
mod paths;
mod process;
mod raw_block;
mod readers;
mod refused;
mod sequences;
mod share;
mod simulated;
