//! Spans for an OpenTelemetry collector: of calls (`rpc`), of the operations that they start, and of the requests to the
//! cloud and the runs of programs within those. They carry what the log's lines carry, and so no secret.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use opentelemetry::{
    KeyValue,
    trace::{Status, TracerProvider},
};
use opentelemetry_otlp::{Protocol, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use tracing::{Subscriber, level_filters::LevelFilter, warn};
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

/// How long a collector may take for one batch.
const EXPORT: Duration = Duration::from_secs(5);
/// How long the end waits for what has not been sent: with the drain's 25 s still within a pod's 30.
const END: Duration = Duration::from_secs(3);
/// How often a collector that is away is told of.
const TELL_EVERY: Duration = Duration::from_secs(600);

/// The sending of spans, if they are wanted.
#[derive(Debug, Default)]
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Sends to a collector that takes OTLP over HTTP at `url`, which has no path.
    pub(super) fn to(url: &str) -> Result<Self, String> {
        let inner = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", url.trim_end_matches('/')))
            .with_timeout(EXPORT)
            .build()
            .map_err(|error| format!("--otlp-endpoint: nothing can be sent to {url}: {error}"))?;
        let resource = Resource::builder()
            .with_service_name(env!("CARGO_PKG_NAME"))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        // It has a thread of its own and a queue that drops what is too much: no call ever waits for it.
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_batch_exporter(Exporter { inner, told: Mutex::new(None) })
            .build();
        Ok(Self(Some(provider)))
    }

    /// Takes this program's own spans, and its log lines of level info and above as their events: not those of the HTTP
    /// client, which would tell of the sending itself.
    pub(super) fn layer<S>(&self) -> Option<impl Layer<S> + use<S>>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let tracer = self.0.as_ref()?.tracer(env!("CARGO_PKG_NAME"));
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_target(false);
        Some(layer.with_filter(Targets::new().with_target("cloud_block_csi", LevelFilter::INFO)))
    }

    /// Sends what has not been sent; must not be called within the runtime.
    pub fn end(self) {
        if let Some(Err(error)) = self.0.map(|provider| provider.shutdown_with_timeout(END)) {
            warn!(%error, "the last spans were not sent");
        }
    }
}

/// Gives spans the names that people look for, and tells of a collector that is away, but rarely.
#[derive(Debug)]
struct Exporter {
    inner: opentelemetry_otlp::SpanExporter,
    told: Mutex<Option<Instant>>,
}

impl SpanExporter for Exporter {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        batch.iter_mut().for_each(name);
        let sent = self.inner.export(batch).await;
        if let Err(error) = &sent {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.is_none_or(|when| when.elapsed() >= TELL_EVERY) {
                warn!(%error, "spans are lost: the collector of --otlp-endpoint does not take them");
                *told = Some(Instant::now());
            }
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// `rpc` is `rpc CreateVolume`, `cloud` is `cloud create_block`, and so on; a call that failed is marked as that.
fn name(span: &mut SpanData) {
    let of =
        |key: &str| span.attributes.iter().find(|pair| pair.key.as_str() == key).map(|pair| pair.value.to_string());
    let what = match &*span.name {
        "rpc" => of("method"),
        "operation" | "cloud" => of("operation"),
        "tool" => of("tool"),
        _ => None,
    };
    let failure = of("code").filter(|code| code != "OK");
    if let Some(what) = what {
        span.name = format!("{} {what}", span.name).into();
    }
    if let Some(code) = failure {
        span.status = Status::error(code);
    }
}
