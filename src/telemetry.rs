//! Logs: where they go and how they look; and traces, if they are wanted.

mod traces;

use tracing_subscriber::{
    EnvFilter, Layer, filter::LevelFilter, fmt, layer::SubscriberExt, registry, util::SubscriberInitExt,
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

/// Starts logging to standard error, at `level` (a level, or directives such as `info,cloud_block_csi=debug`), and the
/// sending of spans to `otlp_endpoint`, whatever `level` is.
///
/// # Errors
/// In words for the operator, if `level` is none, or if nothing can be sent to such an endpoint.
pub fn start(format: LogFormat, level: &str, otlp_endpoint: Option<&str>) -> Result<Traces, String> {
    let filter = filter(level)?;
    let logs = match format {
        LogFormat::Json => fmt::layer().json().with_writer(std::io::stderr).with_filter(filter).boxed(),
        LogFormat::Text => fmt::layer().with_ansi(false).with_writer(std::io::stderr).with_filter(filter).boxed(),
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
