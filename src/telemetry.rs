//! Logs: where they go and how they look.

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, registry, util::SubscriberInitExt};

use crate::config::LogFormat;

/// Starts logging to standard error, at `level` (a level, or directives such as `info,cloud_block_csi=debug`).
///
/// # Errors
/// In words for the operator, if `level` is none.
pub fn start(format: LogFormat, level: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(level).map_err(|error| format!("--log-level '{level}': {error}"))?;
    let logs = registry().with(filter);
    let started = match format {
        LogFormat::Json => logs.with(fmt::layer().json().with_writer(std::io::stderr)).try_init(),
        LogFormat::Text => logs.with(fmt::layer().with_ansi(false).with_writer(std::io::stderr)).try_init(),
    };
    started.map_err(|error| format!("logging cannot be started: {error}"))
}
