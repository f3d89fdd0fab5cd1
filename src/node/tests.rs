//! The operations, on real disks: loop devices, with a sysfs-shaped tree that gives them serials.
//!
//! They need root and `losetup`; without them each says so and passes.

mod formatting;
mod health;
mod identity;
mod machine;
mod mounting;
mod raw_block;
