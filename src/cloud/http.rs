//! One HTTP call to a cloud: its turn in the token bucket, its token, the fence, its time-out, and what its answer means.
//!
//! A read is tried a few times. A write is sent again only where it is certain that the first one had no effect:
//! the request limit (429), a rotated token (401), a connection that never came about. Everything else that is not a
//! clear answer is [`CloudError::Unknown`], and the caller finds out what happened.

use std::{sync::Arc, time::Duration};

use reqwest::{Method, StatusCode};
use secrecy::ExposeSecret;
use serde_json::Value;
use tokio::time::Instant;
use tracing::{Instrument, debug, field, warn, warn_span};

use super::{
    Account, CloudError,
    fence::Fence,
    pace::{Pace, Priority},
    token::{self, TokenFile},
    transport::{Answer, Sockets, Transport},
};
use crate::metrics::Metrics;

/// How often a read, or a write that had no effect, is sent in all.
const TRIES: u32 = 4;
/// The first pause between two tries; it doubles, and is jittered so that several drivers do not march in step.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest that all requests are held for because the account's limit is exceeded.
const LONGEST_HOLD: Duration = Duration::from_secs(60);
/// The longest that one request waits because its part of the API asks for it.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

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
    /// Whether it is of the part of the API that everything hangs on: only then does its failing tell of the cloud.
    pub vital: bool,
}

impl Call {
    /// A vital request without a query or a body.
    pub fn new(operation: &'static str, priority: Priority, method: Method, path: impl Into<String>) -> Self {
        Self { operation, priority, method, path: path.into(), query: Vec::new(), body: None, vital: true }
    }

    /// The same with a body.
    #[must_use]
    pub fn with(self, body: Value) -> Self {
        Self { body: Some(body), ..self }
    }

    /// The same for one page of a listing, of `size` rows, from `cursor` on (Vultr's names of the two).
    #[must_use]
    pub fn page(mut self, cursor: Option<&str>, size: u32) -> Self {
        self.query.push(("per_page", size.to_string()));
        self.query.extend(cursor.map(|cursor| ("cursor", cursor.to_owned())));
        self
    }
}

/// A cloud's API over HTTP.
#[derive(Debug)]
pub struct Http {
    transport: Arc<dyn Transport>,
    token: TokenFile,
    pace: Pace,
    metrics: Metrics,
    fence: Fence,
    /// What a status other than 2xx means, by this cloud's own conventions.
    meaning: fn(StatusCode, &str) -> CloudError,
}

impl Http {
    /// A client of the account's API.
    ///
    /// # Errors
    /// In words for the operator, if there can be no HTTP client.
    pub fn new(account: Account, meaning: fn(StatusCode, &str) -> CloudError) -> Result<Self, String> {
        let sockets = Sockets::new(account.api_url.clone())?;
        Ok(Self::over(Arc::new(sockets), account, meaning))
    }

    /// A client that reaches the account's API in a way of its own.
    pub fn over(transport: Arc<dyn Transport>, account: Account, meaning: fn(StatusCode, &str) -> CloudError) -> Self {
        let Account { token, pace, metrics, fence, .. } = account;
        Self { transport, token, pace, metrics, fence, meaning }
    }

    /// Sends a request and returns the body of its 2xx answer.
    ///
    /// # Errors
    /// By what is known of the request's effect.
    pub async fn send(&self, call: Call) -> Result<Vec<u8>, CloudError> {
        let span = warn_span!("cloud", operation = call.operation, outcome = field::Empty);
        let outcome = self.send_until_answered(&call).instrument(span.clone()).await;
        span.record("outcome", outcome.as_ref().map_or_else(label, |_| "ok"));
        if call.vital {
            self.metrics.weather.tell(outcome.as_ref().err());
        }
        outcome
    }

    async fn send_until_answered(&self, call: &Call) -> Result<Vec<u8>, CloudError> {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let asked = Instant::now();
            self.pace.turn(call.priority).await;
            self.metrics.waited(call.priority, asked.elapsed());
            let token = self.token.current();
            let started = Instant::now();
            let answer = self.send_once(call, token.expose_secret()).await;
            let failure = match answer {
                Ok(Answer { status, body, .. }) => {
                    self.metrics.cloud(call.operation, "ok", Some(status.as_u16()), started.elapsed());
                    return Ok(body);
                }
                Err(failure) => failure,
            };
            self.metrics.cloud(call.operation, label(&failure.error), failure.status, started.elapsed());
            debug!(attempt, error = %failure.error, "no success");
            let limited = matches!(failure.error, CloudError::RateLimited);
            if let Some(hold) = failure.retry_after.filter(|_| limited) {
                // The limit is the account's: nobody else is to run into it either.
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
            self.metrics.retry(call.operation, label(&failure.error));
            if !limited {
                // What one part of the API asks for is no matter of the others.
                let asked = failure.retry_after.unwrap_or_default().min(LONGEST_WAIT);
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64()).max(asked)).await;
                pause *= 2;
            }
        }
        unreachable!("the loop ends by returning")
    }

    async fn send_once(&self, call: &Call, token: &str) -> Result<Answer, Failure> {
        if !self.fence.is_open() {
            let error = CloudError::Unknown("this process is no longer the one that may ask the cloud".to_owned());
            return Err(Failure { error, status: None, retry_after: None, never_sent: true });
        }
        let answer = self.transport.exchange(call, token).await.map_err(|lost| Failure {
            error: CloudError::Unknown(lost.reason),
            status: None,
            retry_after: None,
            never_sent: lost.never_sent,
        })?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let error = (self.meaning)(answer.status, &String::from_utf8_lossy(&answer.body));
        let limited = matches!(error, CloudError::RateLimited);
        // Vultr documents the header with its 429; whoever leaves it out, or says 0, means the same second.
        let second = Duration::from_secs(1);
        let retry_after =
            if limited { Some(answer.retry_after.unwrap_or(second).max(second)) } else { answer.retry_after };
        Err(Failure { error, status: Some(answer.status.as_u16()), retry_after, never_sent: false })
    }
}

struct Failure {
    error: CloudError,
    /// What it was answered with, if it was.
    status: Option<u16>,
    retry_after: Option<Duration>,
    never_sent: bool,
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

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        sync::{
            Mutex,
            atomic::{AtomicU32, Ordering},
        },
    };

    use super::*;
    use crate::cloud::transport::Lost;

    #[test]
    fn requests_end_in_the_ways_that_alerts_know() {
        let text = String::new;
        let errors = [
            CloudError::NotFound(text()),
            CloudError::Refused { status: 400, text: text() },
            CloudError::Busy(text()),
            CloudError::Exhausted(text()),
            CloudError::Unauthorized(text()),
            CloudError::RateLimited,
            CloudError::Unknown(text()),
        ];
        let outcomes = errors.iter().map(label).chain(["ok"]).collect();
        assert_eq!(crate::metrics::described("outcome", "csi_cloud_seconds"), outcomes);
    }

    /// Answers everything, and counts.
    #[derive(Debug, Default)]
    struct Counting(AtomicU32);

    #[async_trait::async_trait]
    impl Transport for Counting {
        async fn exchange(&self, _: &Call, _: &str) -> Result<Answer, Lost> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(Answer { status: StatusCode::OK, retry_after: None, body: Vec::new() })
        }
    }

    /// Gives these answers, one after the other.
    #[derive(Debug)]
    struct Scripted(Mutex<VecDeque<Result<Answer, Lost>>>);

    #[async_trait::async_trait]
    impl Transport for Scripted {
        async fn exchange(&self, _: &Call, _: &str) -> Result<Answer, Lost> {
            self.0.lock().unwrap().pop_front().unwrap()
        }
    }

    /// An account, and the file with its token.
    fn account(metrics: &Metrics, fence: &Fence) -> (Account, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "token").unwrap();
        let account = Account {
            api_url: String::new(),
            token: TokenFile::open(file.path()).unwrap(),
            pace: Pace::new(20, 30),
            metrics: metrics.clone(),
            fence: fence.clone(),
        };
        (account, file)
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_of_the_cloud_and_no_answer_are_counted_apart() {
        let answer = |status| Ok(Answer { status, retry_after: None, body: Vec::new() });
        let lost = Err(Lost { reason: "connection reset".to_owned(), never_sent: false });
        let answers = [answer(StatusCode::SERVICE_UNAVAILABLE), lost, answer(StatusCode::OK)];
        let (transport, metrics) = (Scripted(Mutex::new(answers.into())), Metrics::default());
        let (account, _file) = account(&metrics, &Fence::default());
        let http = Http::over(Arc::new(transport), account, |status, _| CloudError::Unknown(status.to_string()));
        http.send(Call::new("test", Priority::Read, Method::GET, "/")).await.unwrap();
        let text = metrics.text();
        for (outcome, status) in [("unknown", "5xx"), ("unknown", "none"), ("ok", "2xx")] {
            let line =
                format!(r#"csi_cloud_seconds_count{{operation="test",outcome="{outcome}",status="{status}"}} 1"#);
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_goes_out_once_the_fence_is_closed() {
        let (transport, fence) = (Arc::new(Counting::default()), Fence::default());
        let (account, _file) = account(&Metrics::default(), &fence);
        let http = Http::over(transport.clone(), account, |_, _| unreachable!("all is answered with 200"));
        let ask = async |method: Method| http.send(Call::new("test", Priority::Read, method, "/")).await;
        ask(Method::POST).await.unwrap();
        fence.close();
        for method in [Method::GET, Method::POST] {
            let refused = ask(method).await.unwrap_err();
            assert!(refused.to_string().contains("no longer"), "{refused}");
        }
        assert_eq!(transport.0.load(Ordering::Relaxed), 1);
    }
}
