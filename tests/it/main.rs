//! The driver as its users have it: real processes, real sockets, real disks, on the simulated cloud.
//!
//! Needs root and loop devices; where there are none each test says so and counts as skipped by name.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bad_input;
mod clones;
mod cluster;
mod http;
mod interrupted;
mod killed;
mod killed_inside;
mod kubernetes;
mod lease;
mod many;
mod memory;
mod metrics;
mod node;
mod offers;
mod orphans;
mod programs;
mod registration;
mod restored;
mod rooms;
mod shared;
mod shown;
mod snapshots;
mod traces;
