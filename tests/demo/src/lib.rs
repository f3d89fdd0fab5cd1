//! What the demo and the csi-sanity runner share: a simulated cloud with real driver processes, and its tidy end.
//!
//! - [`bed`] starts the cloud and the drivers and takes everything down again, whatever happened in between
//! - [`machine`] looks at mounts, loop devices and file systems with the kernel's own eyes, not the driver's
//! - [`narration`] tells the steps and how long they took

pub mod bed;
pub mod machine;
pub mod narration;

/// What went wrong, in words for the person at the terminal.
pub type Problem = Box<dyn std::error::Error + Send + Sync>;

/// Either a value or a [`Problem`].
pub type Outcome<T> = Result<T, Problem>;
