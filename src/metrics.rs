//! What operators can count: durations of calls and of requests to the cloud, and the cloud's weather.
//!
//! All labels are closed sets; there is no volume or node among them.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{
    cloud::{CloudError, Share, Snapshot, Volume, kind::Kind as _, pace::Priority},
    error::Refusal,
    progress::Progress,
    volume::FsType,
};

macro_rules! labels {
    ($name:ident { $($label:ident),+ }) => {
        #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $name { $($label: &'static str),+ }
    };
}

labels!(BuildLabels { version });
labels!(RpcLabels { rpc, code });
labels!(CallLabels { rpc });
labels!(OperationLabels { operation });
labels!(CloudLabels { operation, outcome, status });
labels!(WaitLabels { priority });
labels!(RetryLabels { operation, reason });
labels!(ToolLabels { tool, outcome });
labels!(RefusalLabels { reason });
labels!(FormatLabels { fs });
labels!(TwinLabels { kind });

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
    calls: Family<CallLabels, Gauge>,
    operations: Family<OperationLabels, Gauge>,
    cloud: Durations<CloudLabels>,
    wait: Durations<WaitLabels>,
    retries: Family<RetryLabels, Counter>,
    tools: Durations<ToolLabels>,
    refused: Family<RefusalLabels, Counter>,
    formatted: Family<FormatLabels, Counter>,
    active: Gauge,
    twins: Family<TwinLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            weather: Weather::default(),
            progress: Progress::default(),
            registry: Arc::default(),
            rpc: Durations::new_with_constructor(histogram),
            calls: Family::default(),
            operations: Family::default(),
            cloud: Durations::new_with_constructor(histogram),
            wait: Durations::new_with_constructor(histogram),
            retries: Family::default(),
            tools: Durations::new_with_constructor(histogram),
            refused: Family::default(),
            formatted: Family::default(),
            active: Gauge::default(),
            twins: Family::default(),
        };
        // What alerts count from is there from the start: an increase from nothing is none to Prometheus.
        for priority in Priority::ALL {
            drop(metrics.wait.get_or_create(&WaitLabels { priority: priority.word() }));
        }
        for reason in Refusal::ALL {
            drop(metrics.refused.get_or_create(&RefusalLabels { reason: reason.word() }));
        }
        for kind in [Volume::WORD, Snapshot::WORD, Share::WORD] {
            drop(metrics.twins.get_or_create(&TwinLabels { kind }));
        }
        for fs in FsType::ALL {
            drop(metrics.formatted.get_or_create(&FormatLabels { fs: fs.as_str() }));
        }
        Self { registry: Arc::new(metrics.registered()), ..metrics }
    }
}

impl Metrics {
    /// The names, which `deploy/metrics.md` has as well.
    fn registered(&self) -> Registry {
        let mut registry = Registry::default();
        let build = Family::<BuildLabels, Gauge>::default();
        build.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("csi_build_info", "The driver's version; always 1", build);
        registry.register("csi_rpc_seconds", "Duration of gRPC calls, by call and code", self.rpc.clone());
        registry.register("csi_rpcs_in_flight", "gRPC calls that have not been answered", self.calls.clone());
        registry.register(
            "csi_operations_in_flight",
            "Operations under way, which outlive the calls that started or joined them",
            self.operations.clone(),
        );
        registry.register(
            "csi_cloud_seconds",
            "Duration of requests to the cloud, by what came of them",
            self.cloud.clone(),
        );
        registry.register(
            "csi_cloud_wait_seconds",
            "How long requests to the cloud waited for their turn in the token bucket",
            self.wait.clone(),
        );
        registry.register(
            "csi_cloud_retries",
            "Requests to the cloud that were sent again, by what came of the try before",
            self.retries.clone(),
        );
        registry.register(
            "csi_cloud_reachable",
            "1 if the last request to the cloud had an answer that tells what came of it, 0 if not, or if it was refused for \
             its token or for the rate limit; requests for shared file systems do not count",
            self.weather.reachable.clone(),
        );
        registry.register("csi_tool_seconds", "Duration of programs that the node ran", self.tools.clone());
        registry.register(
            "csi_disks_refused",
            "Stages that refused a disk without touching it, every repeat included",
            self.refused.clone(),
        );
        registry.register("csi_disks_formatted", "File systems made", self.formatted.clone());
        registry.register(
            "csi_controller_active",
            "Whether this process is the controller that works (1), or is none or waits for its lease (0)",
            self.active.clone(),
        );
        registry.register(
            "csi_twins",
            "Things of the account that were seen to have the name of an older one, every look included",
            self.twins.clone(),
        );
        registry.register_collector(Box::new(self.progress.clone()));
        registry
    }

    /// Counts a gRPC call.
    pub fn rpc(&self, rpc: &'static str, code: &'static str, took: Duration) {
        self.rpc.get_or_create(&RpcLabels { rpc, code }).observe(took.as_secs_f64());
    }

    /// Counts a gRPC call for as long as it is in flight.
    pub fn call(&self, rpc: &'static str) -> Counted {
        Counted::new(&self.calls.get_or_create(&CallLabels { rpc }))
    }

    /// Counts an operation for as long as it is under way.
    pub fn operation(&self, operation: &'static str) -> Counted {
        Counted::new(&self.operations.get_or_create(&OperationLabels { operation }))
    }

    /// Counts a request to the cloud, by its outcome and by the status that it was answered with.
    pub fn cloud(&self, operation: &'static str, outcome: &'static str, status: Option<u16>, took: Duration) {
        let status = status_class(status);
        self.cloud.get_or_create(&CloudLabels { operation, outcome, status }).observe(took.as_secs_f64());
    }

    /// Counts the waiting of a request before it may go.
    pub fn waited(&self, priority: Priority, took: Duration) {
        self.wait.get_or_create(&WaitLabels { priority: priority.word() }).observe(took.as_secs_f64());
    }

    /// Counts a request that is sent again.
    pub fn retry(&self, operation: &'static str, reason: &'static str) {
        self.retries.get_or_create(&RetryLabels { operation, reason }).inc();
    }

    /// Counts a run of a program.
    pub fn tool(&self, program: &'static str, outcome: &'static str, took: Duration) {
        self.tools.get_or_create(&ToolLabels { tool: program, outcome }).observe(took.as_secs_f64());
    }

    /// Counts a disk that was refused.
    pub fn refused(&self, why: Refusal) {
        self.refused.get_or_create(&RefusalLabels { reason: why.word() }).inc();
    }

    /// Counts a file system that was made.
    pub fn formatted(&self, fs: &'static str) {
        self.formatted.get_or_create(&FormatLabels { fs }).inc();
    }

    /// Notes that this process is the controller that works.
    pub fn is_active(&self) {
        self.active.set(1);
    }

    /// Counts a thing of this kind that was seen to have the name of an older one.
    pub fn twin(&self, kind: &'static str) {
        self.twins.get_or_create(&TwinLabels { kind }).inc();
    }

    /// All metrics in the text format of `OpenMetrics`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}

/// Something in flight, for as long as this lives.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
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
    /// Notes how a request ended. A refusal is an answer too; no answer, one that does not tell what came of it (5xx), a refused
    /// token and an exceeded limit are not.
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

/// The kind of a status, and of none. All that is no success is told apart by the outcome, but not an error of the cloud from
/// an answer that never came.
fn status_class(status: Option<u16>) -> &'static str {
    match status {
        None => "none",
        Some(..200) => "1xx",
        Some(200..300) => "2xx",
        Some(300..400) => "3xx",
        Some(400..500) => "4xx",
        Some(500..) => "5xx",
    }
}

/// What `deploy/metrics.md` says that a label of a metric can be.
#[cfg(test)]
pub(crate) fn described(label: &str, metric: &str) -> std::collections::BTreeSet<&'static str> {
    let page = include_str!("../deploy/metrics.md");
    let about = [format!("`{label}` of `{metric}`:"), format!("`{label}`:")];
    let values = page.split("\n- ").find_map(|item| about.iter().find_map(|about| item.strip_prefix(about))).unwrap();
    values.split("\n\n").next().unwrap().split('`').skip(1).step_by(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a scrape shows, as a table: kind and labels are read from what Prometheus would read.
    fn table(text: &str) -> String {
        let mut rows = Vec::new();
        for part in text.split("# HELP ").skip(1) {
            let (help, rest) = part.split_once('\n').unwrap();
            let (name, meaning) = help.split_once(' ').unwrap();
            let kind = rest.lines().next().unwrap().rsplit(' ').next().unwrap();
            let mut labels: Vec<_> = rest
                .lines()
                .filter(|line| !line.starts_with('#'))
                .flat_map(|line| line.split(['{', '}', ',']).filter_map(|pair| pair.split_once("=\"")))
                .map(|(label, _)| label)
                .filter(|label| *label != "le")
                .collect();
            labels.dedup();
            labels.sort_unstable();
            labels.dedup();
            let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
            let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
            rows.push(format!("| `{name}` | {kind} | {labels} | {} |\n", meaning.trim_end_matches('.')));
        }
        rows.concat()
    }

    #[test]
    fn dashboards_find_what_they_are_made_for() {
        let metrics = Metrics::default();
        let at_start = table(&metrics.text());
        for name in ["csi_build_info", "csi_disks_refused_total", "csi_disks_formatted_total", "csi_cloud_wait_seconds"]
        {
            assert!(at_start.contains(name), "{name} is not there at the start:\n{at_start}");
        }
        let moment = Duration::from_millis(1);
        metrics.rpc("NodeStageVolume", "OK", moment);
        metrics.cloud("create_block", "ok", Some(202), moment);
        metrics.retry("create_block", "rate_limited");
        metrics.tool("mkfs.ext4", "ok", moment);
        drop((metrics.call("NodeStageVolume"), metrics.operation("node_stage")));
        let documented: String = include_str!("../deploy/metrics.md")
            .lines()
            .filter(|line| line.starts_with("| `"))
            .fold(String::new(), |rows, line| rows + line + "\n");
        let shown = table(&metrics.text());
        assert_eq!(documented, shown, "deploy/metrics.md and the dashboards there have to follow:\n{shown}");
    }

    #[test]
    fn what_is_there_from_the_start_has_the_values_that_dashboards_know() {
        let text = Metrics::default().text();
        for (label, metric) in [
            ("priority", "csi_cloud_wait_seconds"),
            ("reason", "csi_disks_refused_total"),
            ("fs", "csi_disks_formatted_total"),
            ("kind", "csi_twins_total"),
            ("change", "csi_changes_stuck"),
        ] {
            let of_it = text.lines().filter(|line| line.starts_with(metric));
            let values = of_it.filter_map(|line| line.split_once(&format!("{label}=\""))?.1.split('"').next());
            let values: std::collections::BTreeSet<&str> = values.collect();
            assert_eq!(described(label, metric), values, "{label} of {metric}");
        }
    }

    #[test]
    fn statuses_are_those_that_dashboards_know() {
        let statuses = [Some(100), Some(204), Some(302), Some(404), Some(503), None];
        let classes = statuses.map(status_class).into();
        assert_eq!(described("status", "csi_cloud_seconds"), classes);
    }

    #[test]
    fn what_is_in_flight_is_counted_for_as_long_as_it_is() {
        let metrics = Metrics::default();
        let counted = [metrics.operation("attach"), metrics.operation("attach")];
        assert!(metrics.text().contains(r#"csi_operations_in_flight{operation="attach"} 2"#));
        drop(counted);
        assert!(metrics.text().contains(r#"csi_operations_in_flight{operation="attach"} 0"#));
    }

    #[test]
    fn calls_and_weather_are_shown_without_ids() {
        let metrics = Metrics::default();
        metrics.rpc("CreateVolume", "OK", Duration::from_millis(30));
        metrics.cloud("create_block", "unknown", None, Duration::from_secs(1));
        metrics.weather.tell(Some(&CloudError::Unknown("connection reset".to_owned())));
        let text = metrics.text();
        for line in [
            r#"csi_rpc_seconds_count{rpc="CreateVolume",code="OK"} 1"#,
            r#"csi_cloud_seconds_count{operation="create_block",outcome="unknown",status="none"} 1"#,
            "csi_cloud_reachable 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.contains(r#"csi_changes_stuck{change="attach"} 0"#), "{text}");
        metrics.weather.tell(Some(&CloudError::NotFound(String::new())));
        assert_eq!(metrics.weather.trouble(), None);
    }
}
