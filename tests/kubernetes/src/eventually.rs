//! Waiting for what will be so, and telling at the end why it is not.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::Instant;

/// How often it is looked.
const EVERY: Duration = Duration::from_millis(500);

/// A reason for which it never will be so; nobody waits any longer.
#[derive(Debug)]
pub(crate) struct Never(pub String);

impl std::error::Error for Never {}

impl std::fmt::Display for Never {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Looks until `look` succeeds; when `within` is over, the last reason why it did not is the error.
pub(crate) async fn eventually<T>(what: &str, within: Duration, mut look: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + within;
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(error) if error.is::<Never>() => return Err(error),
            Err(error) if Instant::now() >= end => {
                return Err(error).with_context(|| format!("not within {} s: {what}", within.as_secs()));
            }
            Err(_) => tokio::time::sleep(EVERY).await,
        }
    }
}
