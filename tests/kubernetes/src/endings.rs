//! What the driver must not do in a flow though all comes out right in it: panic, or end otherwise than by a signal.

use std::{collections::HashMap, time::Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::{
    bed::{Bed, text},
    driver::{NAMESPACE, OURS},
};

/// The exit code of a process that SIGKILL ended.
const KILLED: i64 = 137;

/// How often the driver's container of each pod had been started again, by the pod's UID.
pub(crate) struct Endings {
    since: Instant,
    restarts: HashMap<String, i64>,
}

impl Endings {
    /// Those so far.
    pub(crate) async fn so_far(bed: &Bed) -> Result<Self> {
        let since = Instant::now();
        let of_driver = containers(bed).await?;
        let restarts = of_driver.into_iter().map(|(uid, driver)| (uid, count(&driver))).collect();
        Ok(Self { since, restarts })
    }

    /// Looks that there was none since that nobody asked for, and no panic.
    pub(crate) async fn none_by_itself(&self, bed: &Bed) -> Result<()> {
        for (uid, driver) in containers(bed).await? {
            if count(&driver) <= self.restarts.get(&uid).copied().unwrap_or_default() {
                continue;
            }
            let ended = &driver["lastState"]["terminated"];
            let asked = match ended["exitCode"].as_i64() {
                Some(0) => true,
                Some(KILLED) => text(ended, "/reason") != "OOMKilled",
                _ => false,
            };
            ensure!(asked, "the driver ended by itself: {ended}");
        }
        let since = format!("--since={}s", self.since.elapsed().as_secs() + 1);
        let logs =
            ["logs", "-n", NAMESPACE, "-l", OURS, "-c", "driver", "--prefix", "--tail=-1", "--ignore-errors", &since];
        let told = bed.kubectl.run(&logs).await?;
        let panics: Vec<_> = told.lines().filter(|line| line.contains("panicked at")).collect();
        ensure!(panics.is_empty(), "the driver panicked:\n{}", panics.join("\n"));
        Ok(())
    }
}

/// The status of the driver's container in each of its pods, by the pod's UID.
async fn containers(bed: &Bed) -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for mut pod in bed.kubectl.list(&["pods", "-n", NAMESPACE, "-l", OURS]).await? {
        let Value::Array(statuses) = pod["status"]["containerStatuses"].take() else { continue };
        let driver = statuses.into_iter().find(|status| text(status, "/name") == "driver");
        found.extend(driver.map(|driver| (text(&pod, "/metadata/uid").to_owned(), driver)));
    }
    Ok(found)
}

fn count(container: &Value) -> i64 {
    container["restartCount"].as_i64().unwrap_or_default()
}
