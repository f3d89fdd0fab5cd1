//! What operators can count: durations of calls and of requests to the cloud, and the cloud's weather.
//!
//! All labels are closed sets; there is no volume or node among them.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{cloud::CloudError, progress::Progress};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcLabels {
    rpc: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CloudLabels {
    operation: &'static str,
    outcome: &'static str,
}

type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

/// The driver's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Whether the cloud answers.
    pub weather: Weather,
    /// What has been asked of the cloud and has not come about.
    pub progress: Progress,
    registry: Arc<Registry>,
    rpc: Durations<RpcLabels>,
    cloud: Durations<CloudLabels>,
}

impl Default for Metrics {
    fn default() -> Self {
        let rpc = Durations::new_with_constructor(histogram);
        let cloud = Durations::new_with_constructor(histogram);
        let weather = Weather::default();
        let progress = Progress::default();
        let mut registry = Registry::default();
        registry.register("csi_rpc_seconds", "Duration of gRPC calls, by call and code", rpc.clone());
        registry.register("csi_cloud_seconds", "Duration of requests to the cloud, by outcome", cloud.clone());
        registry.register(
            "csi_cloud_reachable",
            "Whether the last request to the cloud was answered (1) or not (0)",
            weather.reachable.clone(),
        );
        registry.register_collector(Box::new(progress.clone()));
        Self { weather, progress, registry: Arc::new(registry), rpc, cloud }
    }
}

impl Metrics {
    /// Counts a gRPC call.
    pub fn rpc(&self, rpc: &'static str, code: &'static str, took: Duration) {
        self.rpc.get_or_create(&RpcLabels { rpc, code }).observe(took.as_secs_f64());
    }

    /// Counts a request to the cloud.
    pub fn cloud(&self, operation: &'static str, outcome: &'static str, took: Duration) {
        self.cloud.get_or_create(&CloudLabels { operation, outcome }).observe(took.as_secs_f64());
    }

    /// All metrics in the text format of `OpenMetrics`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}

/// From 5 ms to 5 minutes.
fn histogram() -> Histogram {
    Histogram::new([0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0])
}

/// Whether the cloud answers, as the last request found it.
#[derive(Debug, Clone)]
pub struct Weather {
    reachable: Gauge,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Default for Weather {
    fn default() -> Self {
        let reachable = Gauge::default();
        reachable.set(1);
        Self { reachable, trouble: Arc::default() }
    }
}

impl Weather {
    /// Notes how a request ended. A refusal is an answer too; no answer, a refused token and an exceeded limit are not.
    pub fn tell(&self, error: Option<&CloudError>) {
        let trouble = match error {
            Some(error @ (CloudError::Unknown(_) | CloudError::Unauthorized(_) | CloudError::RateLimited)) => {
                Some(error.to_string())
            }
            _ => None,
        };
        self.reachable.set(i64::from(trouble.is_none()));
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// What is wrong with the cloud, if something is.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_weather_are_shown_without_ids() {
        let metrics = Metrics::default();
        metrics.rpc("CreateVolume", "OK", Duration::from_millis(30));
        metrics.cloud("create_block", "unknown", Duration::from_secs(1));
        metrics.weather.tell(Some(&CloudError::Unknown("connection reset".to_owned())));
        let text = metrics.text();
        for line in [
            r#"csi_rpc_seconds_count{rpc="CreateVolume",code="OK"} 1"#,
            r#"csi_cloud_seconds_count{operation="create_block",outcome="unknown"} 1"#,
            "csi_cloud_reachable 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.contains(r#"csi_changes_stuck{change="attach"} 0"#), "{text}");
        metrics.weather.tell(Some(&CloudError::NotFound(String::new())));
        assert_eq!(metrics.weather.trouble(), None);
    }
}
