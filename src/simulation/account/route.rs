//! Which request means what.

use reqwest::Method;
use serde_json::Value;

use super::{Account, answer::Reply};
use crate::cloud::http::Call;

/// A request as it travels.
#[derive(Debug, Clone)]
pub(in crate::simulation) struct Sent {
    pub(in crate::simulation) operation: &'static str,
    pub(in crate::simulation) method: Method,
    pub(in crate::simulation) path: String,
    query: Vec<(&'static str, String)>,
    body: Value,
}

impl Sent {
    pub(in crate::simulation) fn new(call: &Call) -> Self {
        Self {
            operation: call.operation,
            method: call.method.clone(),
            path: call.path.clone(),
            query: call.query.clone(),
            body: call.body.clone().unwrap_or_default(),
        }
    }

    /// The same at another path.
    pub(in crate::simulation) fn at(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }

    pub(in crate::simulation) fn is_read(&self) -> bool {
        self.method == Method::GET
    }

    /// A field of the body that is text.
    pub(in crate::simulation) fn text(&self, field: &str) -> &str {
        self.body[field].as_str().unwrap_or_default()
    }

    /// The size that a request about a shared file system asks for.
    pub(super) fn size(&self) -> Option<u64> {
        self.body["storage_size"]["gb"].as_u64()
    }

    /// A field of the body as it came.
    pub(super) fn json(&self, field: &str) -> String {
        self.body[field].to_string()
    }

    pub(super) fn number(&self, field: &str) -> Option<u64> {
        self.body[field].as_u64()
    }

    pub(super) fn is_set(&self, field: &str) -> bool {
        self.body[field].as_bool().unwrap_or_default()
    }

    pub(super) fn asked(&self, key: &str) -> &str {
        self.query.iter().find(|(name, _)| *name == key).map_or("", |(_, value)| value)
    }

    /// The parts of the path after `/v2/`.
    pub(in crate::simulation) fn parts(&self) -> Vec<&str> {
        self.path.split('/').skip(2).collect()
    }
}

impl Account {
    pub(super) fn handle(&mut self, sent: &Sent) -> Reply {
        let parts = sent.parts();
        match (sent.method.as_str(), parts.as_slice()) {
            ("GET", ["blocks"]) => self.list_blocks(sent),
            ("POST", ["blocks"]) => self.create_block(sent),
            ("GET", ["blocks", "snapshots"]) => self.list_snapshots(sent),
            ("POST", ["blocks", "snapshots"]) => self.create_snapshot(sent),
            ("GET", ["blocks", "snapshots", id]) => self.get_snapshot(id),
            ("DELETE", ["blocks", "snapshots", id]) => self.delete_snapshot(id),
            ("GET", ["blocks", id]) => self.get_block(id),
            ("PATCH", ["blocks", id]) => self.grow_block(id, sent),
            ("DELETE", ["blocks", id]) => self.delete_block(id),
            ("POST", ["blocks", id, "attach"]) => self.attach_block(id, sent),
            ("POST", ["blocks", id, "detach"]) => self.detach_block(id, sent),
            ("GET", ["instances", id]) => self.get_instance(id),
            ("GET", ["regions"]) => Self::list_regions(),
            (_, ["vfs", ..]) if self.at < self.vfs_out_until => Reply::refused(503, "Service Unavailable"),
            (_, ["vfs", rest @ ..]) => self.handle_share(sent, rest),
            // As a wrong path is answered: no refusal that a driver could take for its volume's.
            _ => Reply { status: 404, retry_after: None, body: "<html>404 Not Found</html>".to_owned() },
        }
    }
}
