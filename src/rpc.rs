//! Protobuf in, protobuf out: what a call asks is checked here, and what came of it is told, logged and counted once.
//!
//! Nothing below this module knows the generated types. A request is never logged as a whole: it may carry secrets.

mod content;
mod controller;
mod identity;
mod node;
mod share;
mod validate;

use std::{future::Future, time::Duration};

use tokio::time::Instant;
use tonic::{Code, Response, Status, metadata::MetadataMap};
use tracing::{Instrument, Span, debug, error, field, info, warn, warn_span};

pub use controller::ControllerService;
pub use identity::Identity;
pub use node::NodeService;

use crate::{
    error::Error,
    metrics::{Counted, Metrics},
};

/// What a call is about, for its span.
#[derive(Debug, Clone, Default)]
struct About {
    /// The volume's id, or the name of one to be made.
    volume: String,
    /// The node's id.
    node: String,
}

impl About {
    fn volume(volume: &str) -> Self {
        Self { volume: printable(volume), node: String::new() }
    }

    fn on(mut self, node: &str) -> Self {
        self.node = printable(node);
        self
    }
}

/// What a caller sent, fit for a log line.
fn printable(text: &str) -> String {
    text.chars().take(128).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Answers one call: in a span and in a task of its own, so that a panic is this call's INTERNAL and nothing more.
async fn answer<T: Send + 'static>(
    metrics: &Metrics,
    rpc: &'static str,
    about: About,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<Response<T>, Status> {
    let span = warn_span!("rpc", method = rpc, volume = about.volume, node = about.node, code = field::Empty);
    let (began, in_flight) = (Instant::now(), metrics.call(rpc));
    let mut count = Count { metrics, rpc, span: span.clone(), code: Code::Cancelled, began, _in_flight: in_flight };
    let result = tokio::spawn(work.instrument(span.clone())).await;
    let result = result.unwrap_or_else(|panicked| Err(Error::Panicked(panicked.to_string())));
    let code = result.as_ref().map_or_else(Error::code, |_| Code::Ok);
    count.code = code;
    let duration_ms = count.duration_ms();
    span.record("code", code_name(code));
    let _in_span = span.enter();
    match result {
        Ok(message) => {
            // What only looks is asked for every minute and every volume.
            if rpc.contains("Get") || rpc.contains("List") || rpc.starts_with("Validate") {
                debug!(duration_ms, "done");
            } else {
                info!(duration_ms, "done");
            }
            Ok(Response::new(message))
        }
        Err(failure) => {
            let message = failure.chain();
            if code == Code::Internal {
                error!(duration_ms, error = message, "failed");
            } else {
                warn!(duration_ms, error = message, "not done");
            }
            Err(Status::new(code, start_of(&message)))
        }
    }
}

/// Counts a call when it ends, also when the caller hung up before the answer.
struct Count<'a> {
    metrics: &'a Metrics,
    rpc: &'static str,
    span: Span,
    code: Code,
    began: Instant,
    _in_flight: Counted,
}

impl Count<'_> {
    fn duration_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        // No work of ours ends with it.
        if self.code == Code::Cancelled {
            self.span.record("code", code_name(self.code));
            let duration_ms = self.duration_ms();
            self.span
                .in_scope(|| warn!(duration_ms, "not done: the caller hung up before the answer; the work goes on"));
        }
        self.metrics.rpc(self.rpc, code_name(self.code), self.began.elapsed());
    }
}

/// How long before a caller's deadline its call ends, so that it still hears why.
const BEFORE_DEADLINE: Duration = Duration::from_secs(1);

/// Until when a call may wait for something: its own deadline (gRPC over HTTP/2, "grpc-timeout"), if it has one.
fn deadline(metadata: &MetadataMap) -> Option<Instant> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(count.saturating_mul(3600)),
        "M" => Duration::from_secs(count.saturating_mul(60)),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    };
    Instant::now().checked_add(timeout.saturating_sub(BEFORE_DEADLINE))
}

/// The longest message of a status: it travels percent-encoded in a header, and clients take 16 KiB of those.
const LONGEST_MESSAGE: usize = 4096;

fn start_of(message: &str) -> &str {
    let end = (0..=LONGEST_MESSAGE.min(message.len())).rev().find(|&at| message.is_char_boundary(at));
    &message[..end.unwrap_or(0)]
}

/// The code as the specification spells it: a closed set of labels.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// The answer to a call that is in the specification but not among our capabilities.
fn unsupported<T>(rpc: &'static str) -> Result<Response<T>, Status> {
    let error = unserved(rpc);
    Err(Status::new(error.code(), error.to_string()))
}

fn unserved(rpc: &'static str) -> Error {
    Error::Unserved(rpc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_may_wait_until_just_before_its_deadline() {
        let waits = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            deadline(&metadata).map(|deadline| deadline - Instant::now())
        };
        for (text, millis) in [
            ("120S", Some(119_000)),
            ("119999m", Some(118_999)),
            ("2M", Some(119_000)),
            ("1H", Some(3_599_000)),
            ("60000000u", Some(59_000)),
            ("500m", Some(0)),
            ("5", None),
            ("", None),
            ("xS", None),
        ] {
            assert_eq!(waits(text), millis.map(Duration::from_millis), "{text}");
        }
        assert_eq!(deadline(&MetadataMap::new()), None);
    }

    #[tokio::test]
    async fn a_panic_in_a_call_is_that_calls_internal() {
        let metrics = Metrics::default();
        let work = async { panic!("on purpose") };
        let status = answer::<()>(&metrics, "CreateVolume", About::default(), work).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal);
        assert!(metrics.text().contains(r#"code="INTERNAL""#));
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_is_counted() {
        let metrics = Metrics::default();
        let call = answer(&metrics, "Probe", About::default(), std::future::pending::<Result<(), Error>>());
        assert!(tokio::time::timeout(Duration::from_millis(1), call).await.is_err());
        assert!(metrics.text().contains(r#"csi_rpc_seconds_count{rpc="Probe",code="CANCELLED"} 1"#));
    }

    #[tokio::test]
    async fn a_long_message_still_fits_a_header() {
        let metrics = Metrics::default();
        let work = async { Err::<(), _>(Error::invalid("fs_type", "\u{e4}".repeat(100_000))) };
        let status = answer(&metrics, "NodeStageVolume", About::default(), work).await.unwrap_err();
        assert!((4000..=LONGEST_MESSAGE).contains(&status.message().len()));
    }

    #[test]
    fn what_a_caller_sent_cannot_forge_a_log_line() {
        assert_eq!(printable("pvc\n\u{1b}[31m"), "pvc??[31m");
        assert_eq!(printable(&"a".repeat(1000)).len(), 128);
    }
}
