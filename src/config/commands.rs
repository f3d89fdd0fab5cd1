//! What the commands need that do something and end.

use std::{path::PathBuf, time::Duration};

use super::{
    ControllerConfig,
    check::Mistakes,
    driver_name,
    flags::{AccountFlags, OrphansFlags, PreStopFlags},
    grace_period, node_name, profile_named,
};
use crate::cloud::Profile;

/// What the hook before the end of a node's pod needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreStopConfig {
    /// The name of the Node.
    pub node_name: String,
    /// The name of the driver.
    pub driver_name: String,
    /// The pod's grace period.
    pub grace: Duration,
}

/// What the report of orphans needs.
#[derive(Debug, Clone)]
pub struct OrphansConfig {
    /// The cloud.
    pub profile: &'static Profile,
    /// The account.
    pub account: ControllerConfig,
    /// What the names of the cluster's volumes begin with.
    pub volume_name_prefix: String,
    /// Where the ids are that the cluster knows; `-` is standard input. None if it knows none any more.
    pub in_use: Option<PathBuf>,
}

pub(super) fn resolve_pre_stop(flags: PreStopFlags) -> Result<PreStopConfig, String> {
    let mut mistakes = Mistakes(Vec::new());
    let profile = profile_named(&flags.cloud, &mut mistakes);
    let driver_name = driver_name(flags.driver_name, profile, &mut mistakes);
    let node_name = node_name(flags.node_name, "pre-stop", &mut mistakes);
    let grace = grace_period(flags.grace, &mut mistakes);
    if !mistakes.0.is_empty() {
        return Err(mistakes.0.join("\n"));
    }
    Ok(PreStopConfig { node_name, driver_name, grace })
}

pub(super) fn resolve_orphans(account: AccountFlags, flags: OrphansFlags) -> Result<OrphansConfig, String> {
    let mut mistakes = Mistakes(Vec::new());
    let profile = profile_named(&flags.cloud, &mut mistakes);
    let account = account.resolve(profile, &mut mistakes);
    if flags.volume_name_prefix.is_empty() {
        mistakes.add("--volume-name-prefix", "give what the provisioner puts before its names, such as pvc");
    }
    if !mistakes.0.is_empty() {
        return Err(mistakes.0.join("\n"));
    }
    let OrphansFlags { volume_name_prefix, in_use, .. } = flags;
    Ok(OrphansConfig { profile, account, volume_name_prefix, in_use })
}
