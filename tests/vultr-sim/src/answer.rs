//! An answer of the API before it is bytes.

use axum::body::Bytes;
use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use serde::Serialize;

/// A status, a body and at most one header of interest.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) content_type: &'static str,
    pub(crate) retry_after: Option<String>,
}

impl Answer {
    pub(crate) fn json(status: u16, body: &impl Serialize) -> Self {
        match serde_json::to_string(body) {
            Ok(body) => Self::raw(status, body),
            Err(error) => Self::error(500, &error.to_string()),
        }
    }

    pub(crate) fn empty() -> Self {
        Self::raw(204, String::new())
    }

    pub(crate) fn text(status: u16, body: &str) -> Self {
        Self { content_type: "text/plain", ..Self::raw(status, body.to_owned()) }
    }

    /// An error in the application's form; its keys stand in this order.
    pub(crate) fn error(status: u16, text: &str) -> Self {
        let text = serde_json::Value::from(text);
        Self::raw(status, format!(r#"{{"error":{text},"status":{status}}}"#))
    }

    pub(crate) fn raw(status: u16, body: String) -> Self {
        Self { status, body, content_type: "application/json", retry_after: None }
    }

    pub(crate) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.body));
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        if self.status != 204 {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        }
        if let Some(Ok(value)) = self.retry_after.as_deref().map(HeaderValue::from_str) {
            headers.insert(RETRY_AFTER, value);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_captured_form() {
        let answer = Answer::error(400, "Nothing to change");
        assert_eq!(answer.body, r#"{"error":"Nothing to change","status":400}"#);
    }
}
