//! The operations, on real disks.
