//! The operations, on real disks: loop devices, with a sysfs-shaped tree that gives them serials.
//!
//! They need root and `losetup`; without them each says so and passes.

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
mod raw_block;
mod readers;
mod refused;
