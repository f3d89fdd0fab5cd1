//! A disk that misbehaves on demand: it cannot be read or written in places, it is slow, it hangs.
//!
//! ```text
//!  /dev/loopN ── file in a FUSE mount ── this process: [`Faults`] ── file on an ordinary disk
//! ```
//!
//! What the FUSE server answers with EIO is a real read or write error of the loop device, for programs and for kernel
//! file systems alike. The kernel keeps no pages of the served file (direct I/O both above and at FUSE), so serving a
//! request never waits for a page that only the same request could fill. The faults apply to whatever goes through the
//! mount; [`FaultyDisk::image`] is the file behind it, and says what the disk really holds.
//!
//! Everything goes when the value is dropped, also after a panic and in the middle of a hang.

mod disk;
mod faults;
mod folder;
mod serve;

use std::{fs::OpenOptions, path::Path};

pub use self::{disk::FaultyDisk, faults::Faults, folder::FaultyFolder};

/// Why this process can have no such disk, if it cannot.
#[must_use]
pub fn unavailable() -> Option<&'static str> {
    let opens = |path| OpenOptions::new().read(true).write(true).open(path).is_ok();
    if !nix::unistd::geteuid().is_root() {
        return Some("loop devices and mounts need root");
    }
    if !opens("/dev/loop-control") {
        return Some("there is no /dev/loop-control");
    }
    if !Path::new("/dev/fuse").exists() || !opens("/dev/fuse") {
        return Some("there is no /dev/fuse");
    }
    None
}
