//! The flows. Each is its own proof, in a namespace of its own; their order is that of their weight.

mod access;
mod block;
mod disks;
mod encryption;
mod growth;
mod lease;
mod manifest;
mod migration;
mod nodes;
mod operations;
mod sets;
mod shares;
mod snapshots;
mod startup;
mod trouble;

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
    flow!(Any, false, block::a_claim_becomes_a_raw_device),
    flow!(Any, false, access::read_write_once_pod_is_for_one_pod),
    flow!(Any, false, access::what_is_read_only_is_read_and_not_written),
    flow!(Any, false, access::an_fs_group_gets_the_volume),
    flow!(Any, false, growth::xfs_grows_under_a_running_pod),
    flow!(Any, false, growth::btrfs_grows_under_a_running_pod),
    flow!(Virtual, true, growth::ext4_grows_under_a_running_pod),
    flow!(Any, true, snapshots::a_snapshot_is_restored_and_a_claim_cloned),
    flow!(Any, false, sets::an_ephemeral_volume_goes_with_its_pod),
    flow!(Any, false, sets::a_stateful_set_keeps_each_pods_data),
    flow!(Virtual, false, encryption::an_encrypted_disk_takes_its_key_alone_and_grows_and_moves),
    flow!(Virtual, false, shares::two_nodes_write_one_shared_volume_at_once),
    flow!(Any, true, trouble::ten_claims_survive_the_death_of_the_controller),
    flow!(Any, false, trouble::ten_claims_survive_the_death_of_the_node_driver),
    flow!(Any, false, trouble::a_rotated_token_is_followed_without_a_restart),
    flow!(Any, false, trouble::a_minute_without_the_cloud_is_made_up_for),
    flow!(Any, false, trouble::a_slow_cloud_gives_a_claim_its_volume_once),
    flow!(Virtual, true, nodes::a_pod_moves_to_the_other_worker_with_its_data),
    flow!(Virtual, true, nodes::a_dead_workers_pod_comes_back_on_the_other_with_its_data),
    flow!(Virtual, false, nodes::a_drained_workers_pod_moves_with_its_data),
    flow!(Any, false, nodes::a_drained_nodes_driver_waits_until_its_volumes_are_off),
    flow!(Any, false, nodes::a_driver_whose_node_goes_on_ends_at_once),
    flow!(Any, false, nodes::the_scheduler_knows_how_many_volumes_a_node_takes),
    flow!(Any, false, startup::a_startup_taint_goes_when_the_driver_is_there),
    flow!(Any, false, operations::an_upgrade_under_load_is_noticed_by_no_pod),
    flow!(Any, false, manifest::the_manifest_is_valid_for_the_server),
    flow!(Any, false, lease::two_controllers_and_one_is_active),
    flow!(Any, true, migration::a_cluster_of_vultrs_driver_comes_and_can_go_back),
    // The last, since it takes the driver away.
    flow!(Any, false, operations::taken_away_it_leaves_nothing),
];
