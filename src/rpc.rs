//! Protobuf in, protobuf out: what a call asks is checked here, and what came of it is told, logged and counted once.
//!
//! Nothing below this module knows the generated types. A request is never logged as a whole: it may carry secrets.

mod controller;
mod identity;
mod node;
mod validate;

use std::future::Future;

use tokio::time::Instant;
use tonic::{Code, Response, Status};
use tracing::{Instrument, error, field, info, warn, warn_span};

pub use controller::ControllerService;
pub use identity::Identity;
pub use node::NodeService;

use crate::{error::Error, metrics::Metrics};

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
    let started = Instant::now();
    let result = tokio::spawn(work.instrument(span.clone())).await;
    let result = result.unwrap_or_else(|panicked| Err(Error::Panicked(panicked.to_string())));
    let code = result.as_ref().map_or_else(Error::code, |_| Code::Ok);
    let took = started.elapsed();
    metrics.rpc(rpc, code_name(code), took);
    span.record("code", code_name(code));
    let _in_span = span.enter();
    let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    match result {
        Ok(message) => {
            info!(duration_ms, "done");
            Ok(Response::new(message))
        }
        Err(failure) => {
            let message = failure.chain();
            if code == Code::Internal {
                error!(duration_ms, error = message, "failed");
            } else {
                warn!(duration_ms, error = message, "not done");
            }
            Err(Status::new(code, message))
        }
    }
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
fn unsupported<T>(rpc: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(format!("{rpc} is not among this driver's capabilities")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_call_is_that_calls_internal() {
        let metrics = Metrics::default();
        let work = async { panic!("on purpose") };
        let status = answer::<()>(&metrics, "CreateVolume", About::default(), work).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal);
        assert!(metrics.text().contains(r#"code="INTERNAL""#));
    }

    #[test]
    fn what_a_caller_sent_cannot_forge_a_log_line() {
        assert_eq!(printable("pvc\n\u{1b}[31m"), "pvc??[31m");
        assert_eq!(printable(&"a".repeat(1000)).len(), 128);
    }
}
