//! The flows. Each is its own proof, in a namespace of its own; in an order in which they are best read.

mod access;
mod block;
mod disks;
mod encryption;
mod growth;
mod helm;
mod lease;
mod manifest;
mod metrics;
mod migration;
mod nodes;
mod operations;
mod sets;
mod shares;
mod snapshots;
mod startup;
mod trouble;

use crate::flow::{Flow, On, When};

/// A row of the table.
macro_rules! flow {
    ($on:ident, $when:ident, $room:ident::$name:ident) => {
        Flow { name: stringify!($name), on: On::$on, when: When::$when, run: |stage| Box::pin($room::$name(stage)) }
    };
}

/// All of them.
pub(crate) const ALL: &[Flow] = &[
    flow!(Any, OnHost, disks::a_claim_becomes_ext4_in_a_pod),
    flow!(Any, OnHost, disks::a_claim_becomes_xfs_in_a_pod),
    flow!(Any, OnHost, disks::a_claim_becomes_btrfs_in_a_pod),
    flow!(Any, OnHost, block::a_claim_becomes_a_raw_device),
    flow!(Any, OnHost, access::read_write_once_pod_is_for_one_pod),
    flow!(Any, OnHost, access::what_is_read_only_is_read_and_not_written),
    flow!(Any, OnHost, access::an_fs_group_gets_the_volume),
    flow!(Any, OnHost, growth::xfs_grows_under_a_running_pod),
    flow!(Any, OnHost, growth::btrfs_grows_under_a_running_pod),
    flow!(Virtual, OnWorkers, growth::ext4_grows_under_a_running_pod),
    flow!(Any, OnWorkers, snapshots::a_snapshot_is_restored_and_a_claim_cloned),
    flow!(Any, Rarely, snapshots::a_snapshot_deleted_as_it_gets_ready_goes_soon),
    flow!(Any, Rarely, snapshots::a_snapshot_that_was_retained_goes_with_its_content),
    flow!(Any, OnHost, sets::an_ephemeral_volume_goes_with_its_pod),
    flow!(Any, OnHost, sets::a_stateful_set_keeps_each_pods_data),
    flow!(Virtual, Rarely, encryption::an_encrypted_disk_takes_its_key_alone_and_grows_and_moves),
    flow!(Virtual, Rarely, shares::two_nodes_write_one_shared_volume_at_once),
    flow!(Any, OnWorkers, trouble::ten_claims_survive_the_death_of_the_controller),
    flow!(Any, OnHost, trouble::ten_claims_survive_the_death_of_the_node_driver),
    flow!(Any, OnHost, trouble::a_rotated_token_is_followed_without_a_restart),
    flow!(Any, Rarely, trouble::a_minute_without_the_cloud_is_made_up_for),
    flow!(Any, Rarely, trouble::a_slow_cloud_gives_a_claim_its_volume_once),
    flow!(Virtual, OnWorkers, nodes::a_pod_moves_to_the_other_worker_with_its_data),
    flow!(Virtual, OnWorkers, nodes::a_dead_workers_pod_comes_back_on_the_other_with_its_data),
    flow!(Virtual, Rarely, nodes::a_drained_workers_pod_moves_with_its_data),
    flow!(Any, OnHost, nodes::a_drained_nodes_driver_waits_until_its_volumes_are_off),
    flow!(Any, OnHost, nodes::a_driver_whose_node_goes_on_ends_at_once),
    flow!(Any, OnHost, nodes::the_scheduler_knows_how_many_volumes_a_node_takes),
    flow!(Any, OnHost, nodes::a_node_is_known_by_the_id_of_its_instance),
    flow!(Any, OnHost, metrics::metrics_of_the_shipped_pods_are_those_described),
    flow!(Any, OnHost, startup::a_startup_taint_goes_when_the_driver_is_there),
    flow!(Any, OnHost, operations::an_upgrade_under_load_is_noticed_by_no_pod),
    flow!(Any, OnHost, helm::helm_installs_upgrades_and_uninstalls),
    flow!(Any, OnHost, manifest::the_manifest_is_valid_for_the_server),
    flow!(Any, OnHost, manifest::without_snapshot_crds_it_is_installed_and_gives_volumes),
    flow!(Any, OnHost, lease::two_controllers_and_one_is_active),
    flow!(Any, OnWorkers, migration::a_cluster_of_vultrs_driver_comes_and_can_go_back),
    // The last, since it takes the driver away.
    flow!(Any, OnHost, operations::taken_away_it_leaves_nothing),
];
