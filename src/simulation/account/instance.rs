//! Instances and regions.

use std::time::Duration;

use super::{
    Account,
    answer::{Reply, meta},
};

/// An instance, which does one thing at a time.
#[derive(Debug, Clone)]
pub(in crate::simulation) struct Instance {
    pub(in crate::simulation) region: &'static str,
    /// Until when it is busy with an attach or a detach.
    pub(in crate::simulation) locked_until: Duration,
    /// How many volumes it has or is being given.
    pub(in crate::simulation) volumes: usize,
}

/// The regions and their tiers.
const REGIONS: [(&str, &[&str]); 3] =
    [("ewr", &["high_perf", "storage_opt"]), ("syd", &["high_perf"]), ("mia", &["storage_opt"])];

/// The id of the instance of this number.
pub(in crate::simulation) fn instance_id(number: usize) -> String {
    format!("{number:08x}-0000-4000-9000-000000000000")
}

/// Whether a region has a tier.
pub(super) fn offers(region: &str, kind: &str) -> bool {
    REGIONS.iter().any(|(id, kinds)| *id == region && kinds.contains(&kind))
}

impl Account {
    /// Instances with the numbers from 0 on.
    pub(in crate::simulation) fn add_instances(&mut self, count: usize) {
        for number in 0..count {
            let instance = Instance { region: "ewr", locked_until: Duration::ZERO, volumes: 0 };
            self.story.instances.insert(instance_id(number));
            self.instances.insert(instance_id(number), instance);
        }
    }

    pub(super) fn get_instance(&self, id: &str) -> Reply {
        let Some(instance) = self.instances.get(id) else { return Reply::refused(404, "instance not found") };
        let busy = if instance.locked_until > self.at { "locked" } else { "ok" };
        Reply::ok(format!(
            r#"{{"instance":{{"id":"{id}","region":"{}","status":"active","power_status":"running","server_status":"{busy}"}}}}"#,
            instance.region
        ))
    }

    pub(super) fn list_regions() -> Reply {
        let rows: Vec<String> = REGIONS
            .iter()
            .map(|(id, kinds)| {
                let options: Vec<String> = kinds.iter().map(|kind| format!(r#""block_storage_{kind}""#)).collect();
                format!(r#"{{"id":"{id}","city":"","options":["kubernetes",{}]}}"#, options.join(","))
            })
            .collect();
        Reply::ok(format!(r#"{{"regions":[{}],{}}}"#, rows.join(","), meta(rows.len(), "")))
    }
}
