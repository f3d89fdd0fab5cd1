//! How a request gets to the cloud and its answer back: HTTP over a socket, and in tests whatever stands for it.

use std::{fmt, time::Duration};

use reqwest::{Client, Response, StatusCode, header};

use super::http::Call;

/// The longest that one request may take; Vultr documents no limit of its own, its clients use 60 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest that the other end may leave what was sent without a word. The kernel keeps to it, also when the process is no
/// more, so that a request comes within the time that its successor allows for that.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer longer than this is not an answer of a block-storage API (500 volumes are about 300 kB).
const LONGEST_ANSWER: usize = 16 << 20;

/// Sends one request, once, and gives the answer, whatever it says.
#[async_trait::async_trait]
pub trait Transport: fmt::Debug + Send + Sync {
    /// Sends a request with this token.
    ///
    /// # Errors
    /// [`Lost`] if no whole answer came.
    async fn exchange(&self, call: &Call, token: &str) -> Result<Answer, Lost>;
}

/// An answer of the cloud, or of something between it and us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its HTTP status.
    pub status: StatusCode,
    /// How long the sender asks to be left alone.
    pub retry_after: Option<Duration>,
    /// Its body.
    pub body: Vec<u8>,
}

/// A request that was not answered as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// What went wrong.
    pub reason: String,
    /// Whether it is certain that the request never reached the cloud.
    pub never_sent: bool,
}

/// HTTP over sockets.
pub struct Sockets {
    client: Client,
    base: String,
}

impl Sockets {
    /// A client of the API at `base` (scheme and host).
    ///
    /// # Errors
    /// In words for the operator, if the TLS roots of this machine cannot be used.
    pub fn new(base: String) -> Result<Self, String> {
        let client = Client::builder()
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .tcp_user_timeout(UNACKNOWLEDGED)
            // The token must not follow a redirect to somebody else.
            .redirect(reqwest::redirect::Policy::none())
            // What is sent again is ours to decide: behind the fence, and paid for in the bucket.
            .retry(reqwest::retry::never())
            .build()
            .map_err(|error| format!("the HTTP client cannot be built: {}", plain(error)))?;
        Ok(Self { client, base })
    }
}

#[async_trait::async_trait]
impl Transport for Sockets {
    async fn exchange(&self, call: &Call, token: &str) -> Result<Answer, Lost> {
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
        let answer = request.send().await.map_err(Lost::from)?;
        Ok(Answer { status: answer.status(), retry_after: retry_after(&answer), body: read(answer).await? })
    }
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sockets").field("base", &self.base).finish_non_exhaustive()
    }
}

impl From<reqwest::Error> for Lost {
    fn from(error: reqwest::Error) -> Self {
        let never_sent = error.is_connect() || error.is_builder();
        Self { reason: plain(error), never_sent }
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

async fn read(mut answer: Response) -> Result<Vec<u8>, Lost> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(Lost::from)? {
        if body.len() + chunk.len() > LONGEST_ANSWER {
            let reason = format!("the answer is longer than {LONGEST_ANSWER} bytes");
            return Err(Lost { reason, never_sent: false });
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
