//! Logs: where they go and how they look; and traces, if they are wanted.

mod traces;

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
};

use tracing_subscriber::{
    EnvFilter, Layer,
    filter::LevelFilter,
    fmt::{self, writer::BoxMakeWriter},
    layer::SubscriberExt,
    registry,
    util::SubscriberInitExt,
};

pub use self::traces::Traces;
use crate::config::LogFormat;

/// The filter that `level` means; `tracing` would take a misspelt level for the name of a module, and log nothing.
///
/// # Errors
/// In words for the operator, if it is neither a level nor directives.
pub fn filter(level: &str) -> Result<EnvFilter, String> {
    let is_misspelt =
        |part: &str| part.is_empty() || (!part.contains(['=', '[']) && part.parse::<LevelFilter>().is_err());
    if level.split(',').any(is_misspelt) {
        return Err(format!(
            "--log-level: '{level}' is not off, error, warn, info, debug or trace, nor directives such as \
             info,cloud_block_csi=debug"
        ));
    }
    EnvFilter::try_new(level).map_err(|error| format!("--log-level '{level}': {error}"))
}

/// Where a log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Standard error.
    Stderr,
    /// The standard error of the container's first process, if that is the driver too. What a hook says itself is heard by
    /// nobody: the kubelet keeps it out of the event (1.36).
    Container,
}

impl Place {
    fn writer(self) -> BoxMakeWriter {
        match self {
            Self::Container if let Some(log) = of_container() => BoxMakeWriter::new(std::sync::Mutex::new(log)),
            _ => BoxMakeWriter::new(io::stderr),
        }
    }
}

fn of_container() -> Option<File> {
    let program = |process: &str| {
        let found = std::fs::metadata(format!("/proc/{process}/exe")).ok()?;
        Some((found.dev(), found.ino()))
    };
    let first = program("1").filter(|first| Some(first) == program("self").as_ref());
    first.and_then(|_| OpenOptions::new().append(true).open("/proc/1/fd/2").ok())
}

/// Starts logging to `place`, at `level` (a level, or directives such as `info,cloud_block_csi=debug`), and the
/// sending of spans to `otlp_endpoint`, whatever `level` is.
///
/// # Errors
/// In words for the operator, if `level` is none, or if nothing can be sent to such an endpoint.
pub fn start(place: Place, format: LogFormat, level: &str, otlp_endpoint: Option<&str>) -> Result<Traces, String> {
    let filter = filter(level)?;
    let logs = match format {
        LogFormat::Json => fmt::layer().json().with_writer(place.writer()).with_filter(filter).boxed(),
        LogFormat::Text => fmt::layer().with_ansi(false).with_writer(place.writer()).with_filter(filter).boxed(),
    };
    let traces = otlp_endpoint.map_or_else(|| Ok(Traces::default()), Traces::to)?;
    let started = registry().with(logs).with(traces.layer()).try_init();
    started.map_err(|error| format!("logging cannot be started: {error}"))?;
    Ok(traces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_a_mistake_and_not_a_module() {
        for good in ["info", "WARN", "off", "info,cloud_block_csi=debug", "hyper=trace"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "info,infoo", "a=b=c"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}
