//! What the account answers: a status and JSON.

use std::time::Duration;

/// An answer.
#[derive(Debug, Clone)]
pub(in crate::simulation) struct Reply {
    pub(in crate::simulation) status: u16,
    pub(in crate::simulation) retry_after: Option<Duration>,
    pub(in crate::simulation) body: String,
}

impl Reply {
    pub(in crate::simulation) fn ok(body: String) -> Self {
        Self { status: 200, retry_after: None, body }
    }

    pub(in crate::simulation) fn accepted(body: String) -> Self {
        Self { status: 202, retry_after: None, body }
    }

    pub(in crate::simulation) fn done() -> Self {
        Self { status: 204, retry_after: None, body: String::new() }
    }

    /// The form of every error of the application.
    pub(in crate::simulation) fn refused(status: u16, text: &str) -> Self {
        Self { status, retry_after: None, body: format!(r#"{{"error":"{text}","status":{status}}}"#) }
    }

    /// The gateway's word, which has a form of its own.
    pub(in crate::simulation) fn limited() -> Self {
        let body = r#"{"status": 429,"error": "rate limit exceeded"}"#.to_owned();
        Self { status: 429, retry_after: Some(Duration::from_secs(1)), body }
    }
}

/// The end of a listing: the number of all rows, and where the next page begins.
pub(super) fn meta(total: usize, next: &str) -> String {
    format!(r#""meta":{{"total":{total},"links":{{"next":"{next}","prev":""}}}}"#)
}

/// A moment as the API writes it.
pub(super) fn date(at: Duration) -> String {
    let (seconds, days) = (at.as_secs() % 86_400, at.as_secs() / 86_400);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("2026-01-{:02}T{hour:02}:{minute:02}:{second:02}+00:00", days + 1)
}

/// The same as snapshots and shared file systems have it.
pub(super) fn sql_date(at: Duration) -> String {
    date(at).replace('T', " ").replace("+00:00", "")
}
