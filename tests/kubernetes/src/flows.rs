//! The flows. Each is its own proof, in a namespace of its own; their order is that of their weight.

mod disks;

use crate::flow::{Flow, On};

/// A row of the table.
macro_rules! flow {
    ($on:ident, $always:literal, $room:ident::$name:ident) => {
        Flow { name: stringify!($name), on: On::$on, always: $always, run: |stage| Box::pin($room::$name(stage)) }
    };
}

/// All of them.
pub const ALL: &[Flow] = &[
    flow!(Any, false, disks::a_claim_becomes_ext4_in_a_pod),
    flow!(Any, true, disks::a_claim_becomes_xfs_in_a_pod),
    flow!(Any, false, disks::a_claim_becomes_btrfs_in_a_pod),
];
