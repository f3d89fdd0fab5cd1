//! One HTTP call to a cloud: its turn in the token bucket, its token, its time-out, and what its answer means.
//!
//! A read is tried a few times. A write is sent again only where it is certain that the first one had no effect:
//! the request limit (429), a rotated token (401), a connection that never came about. Everything else that is not a
//! clear answer is [`CloudError::Unknown`], and the caller finds out what happened.

use std::{fmt, time::Duration};

use reqwest::{Client, Method, Response, StatusCode, header};
use secrecy::ExposeSecret;
use serde_json::Value;
use tokio::time::Instant;
use tracing::{Instrument, debug, field, warn, warn_span};

use super::{
    Account, CloudError,
    pace::{Pace, Priority},
    token::{self, TokenFile},
};
use crate::metrics::Metrics;

/// The longest that one request may take; Vultr documents no limit of its own, its clients use 60 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a read, or a write that had no effect, is sent in all.
const TRIES: u32 = 4;
/// The first pause between two tries; it doubles, and is jittered so that several drivers do not march in step.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest that a `Retry-After` is obeyed for within one call; beyond that the caller is told.
const LONGEST_HOLD: Duration = Duration::from_secs(60);
/// An answer longer than this is not an answer of a block-storage API (500 volumes are about 300 kB).
const LONGEST_ANSWER: usize = 16 << 20;

/// A request, before it is sent.
#[derive(Debug)]
pub struct Call {
    /// The API's operation, for metrics and logs: one of a closed set.
    pub operation: &'static str,
    /// Its place in the token bucket's order.
    pub priority: Priority,
    /// The HTTP method.
    pub method: Method,
    /// The path, which holds nothing but constants and parsed ids.
    pub path: String,
    /// The query.
    pub query: Vec<(&'static str, String)>,
    /// The JSON body.
    pub body: Option<Value>,
}

/// A cloud's API over HTTP.
pub struct Http {
    client: Client,
    base: String,
    token: TokenFile,
    pace: Pace,
    metrics: Metrics,
    /// What a status other than 2xx means, by this cloud's own conventions.
    meaning: fn(StatusCode, &str) -> CloudError,
}

impl Http {
    /// A client of the account's API.
    ///
    /// # Errors
    /// In words for the operator, if the TLS roots of this machine cannot be used.
    pub fn new(account: Account, meaning: fn(StatusCode, &str) -> CloudError) -> Result<Self, String> {
        let Account { api_url, token, pace, metrics } = account;
        let client = Client::builder()
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            // The token must not follow a redirect to somebody else.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| format!("the HTTP client cannot be built: {error}"))?;
        Ok(Self { client, base: api_url, token, pace, metrics, meaning })
    }

    /// Sends a request and returns the body of its 2xx answer.
    ///
    /// # Errors
    /// By what is known of the request's effect.
    pub async fn send(&self, call: Call) -> Result<Vec<u8>, CloudError> {
        let span = warn_span!("cloud", operation = call.operation, outcome = field::Empty);
        let outcome = self.send_until_answered(&call).instrument(span.clone()).await;
        span.record("outcome", outcome.as_ref().map_or_else(label, |_| "ok"));
        self.metrics.weather.tell(outcome.as_ref().err());
        outcome
    }

    async fn send_until_answered(&self, call: &Call) -> Result<Vec<u8>, CloudError> {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            self.pace.turn(call.priority).await;
            let token = self.token.current();
            let started = Instant::now();
            let answer = self.send_once(call, token.expose_secret()).await;
            let failure = match answer {
                Ok(body) => {
                    self.metrics.cloud(call.operation, "ok", started.elapsed());
                    return Ok(body);
                }
                Err(failure) => failure,
            };
            self.metrics.cloud(call.operation, label(&failure.error), started.elapsed());
            debug!(attempt, error = %failure.error, "no success");
            if let Some(hold) = failure.retry_after {
                self.pace.hold(Instant::now() + hold.min(LONGEST_HOLD));
            }
            let again = match failure.error {
                CloudError::RateLimited => true,
                CloudError::Unauthorized(_) => !token::same(&token, &self.token.current()),
                CloudError::Unknown(_) => call.method == Method::GET || failure.never_sent,
                _ => false,
            };
            if !again || attempt >= TRIES {
                return Err(failure.error);
            }
            warn!(operation = call.operation, error = %failure.error, "asking the cloud again");
            if failure.retry_after.is_none() {
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
                pause *= 2;
            }
        }
        unreachable!("the loop ends by returning")
    }

    async fn send_once(&self, call: &Call, token: &str) -> Result<Vec<u8>, Failure> {
        let mut request = self
            .client
            .request(call.method.clone(), format!("{}{}", self.base, call.path))
            .bearer_auth(token)
            .header(header::ACCEPT, "application/json");
        if !call.query.is_empty() {
            request = request.query(&call.query);
        }
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(Failure::of_transport)?;
        let status = answer.status();
        let retry_after = retry_after(&answer);
        let body = read(answer).await?;
        if status.is_success() {
            return Ok(body);
        }
        let error = (self.meaning)(status, &String::from_utf8_lossy(&body));
        let limited = matches!(error, CloudError::RateLimited);
        // Vultr documents the header with its 429; whoever leaves it out means the same second.
        let retry_after = if limited { retry_after.or(Some(Duration::from_secs(1))) } else { retry_after };
        Err(Failure { error, retry_after, never_sent: false })
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("base", &self.base).field("token", &self.token).finish_non_exhaustive()
    }
}

struct Failure {
    error: CloudError,
    retry_after: Option<Duration>,
    never_sent: bool,
}

impl Failure {
    fn of_transport(error: reqwest::Error) -> Self {
        let never_sent = error.is_connect() || error.is_builder();
        Self { error: CloudError::Unknown(plain(error)), retry_after: None, never_sent }
    }
}

/// The whole chain of a transport error, without the URL, which the span has.
fn plain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

async fn read(mut answer: Response) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(Failure::of_transport)? {
        if body.len() + chunk.len() > LONGEST_ANSWER {
            let error = CloudError::Unknown(format!("the answer is longer than {LONGEST_ANSWER} bytes"));
            return Err(Failure { error, retry_after: None, never_sent: false });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The seconds form of the header; the date form is not used by the clouds here.
fn retry_after(answer: &Response) -> Option<Duration> {
    let seconds: u64 = answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn label(error: &CloudError) -> &'static str {
    match error {
        CloudError::NotFound(_) => "not_found",
        CloudError::Refused { .. } => "refused",
        CloudError::Unsupported(_) => "unsupported",
        CloudError::Busy(_) => "busy",
        CloudError::Exhausted(_) => "exhausted",
        CloudError::Unauthorized(_) => "unauthorized",
        CloudError::RateLimited => "rate_limited",
        CloudError::Unknown(_) => "unknown",
    }
}
