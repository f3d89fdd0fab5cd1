//! The driver as its users have it: real processes, real sockets, real disks, on the simulated cloud.
//!
//! Needs root and loop devices; where there are none each test says so and counts as skipped by name.

mod bad_input;
mod cluster;
mod http;
mod killed;
mod many;
mod memory;
mod rooms;
