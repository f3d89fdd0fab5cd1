//! What whoever asks the cloud for something needs.

use std::path::PathBuf;

use super::{
    check::{Mistakes, base_url, given},
    flags::AccountFlags,
};
use crate::cloud::{Profile, label::Cluster};

/// The account, and how it is asked.
#[derive(Debug, Clone)]
pub struct ControllerConfig {
    /// The token file.
    pub token_file: PathBuf,
    /// The API.
    pub api_url: String,
    /// The rate of the token bucket.
    pub requests_per_second: u32,
    /// The cluster's name.
    pub cluster: Cluster,
}

impl AccountFlags {
    pub(super) fn resolve(self, profile: &Profile, mistakes: &mut Mistakes) -> ControllerConfig {
        if self.token_file.is_none() {
            mistakes.add("--token-file", "give the file that holds the cloud's API token");
        }
        let api_url = given(self.api_url).unwrap_or_else(|| profile.api_url.to_owned());
        mistakes.unless(base_url("--api-url", &api_url));
        let most = profile.requests_per_second - 1;
        if !(1..=most).contains(&self.requests_per_second) {
            mistakes
                .add("--requests-per-second", &format!("give a number from 1 to {most}, below the account's limit"));
        }
        let cluster_id = given(self.cluster_id).unwrap_or_default();
        let cluster = Cluster::parse(&cluster_id);
        if cluster.is_none() {
            let rule = "lower-case letters, digits, dots and dashes, 63 at most";
            mistakes.add("--cluster-id", &format!("'{cluster_id}' is not a name of a cluster ({rule})"));
        }
        ControllerConfig {
            cluster: cluster.unwrap_or_default(),
            token_file: self.token_file.unwrap_or_default(),
            api_url: api_url.trim_end_matches('/').to_owned(),
            requests_per_second: self.requests_per_second,
        }
    }
}
