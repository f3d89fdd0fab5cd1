//! The objects, and what requests do to them.

use std::collections::BTreeMap;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::failure;

/// The last segment of the paths of collections.
const COLLECTIONS: &[&str] = &["csinodes", "leases", "nodes", "volumeattachments"];

/// Objects by their paths.
#[derive(Debug, Default)]
pub(crate) struct Store {
    objects: BTreeMap<String, Value>,
    version: u64,
}

type Answer = (StatusCode, Value);

impl Store {
    pub(crate) fn object(&self, path: &str) -> Option<&Value> {
        self.objects.get(path)
    }

    pub(crate) fn put(&mut self, path: &str, mut object: Value) {
        self.version += 1;
        let name = path.rsplit('/').next().unwrap_or_default();
        object["metadata"]["name"] = json!(name);
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_owned(), object);
    }

    pub(crate) fn remove(&mut self, path: &str) {
        self.objects.remove(path);
    }

    pub(crate) fn request(
        &mut self,
        method: &Method,
        path: &str,
        query: &str,
        body: &[u8],
        is_json_patch: bool,
    ) -> Answer {
        let is_collection = path.rsplit('/').next().is_some_and(|last| COLLECTIONS.contains(&last));
        if is_collection && method == Method::GET {
            return self.list(path, query);
        }
        if method == Method::GET {
            return self.found(path);
        }
        let Ok(sent) = serde_json::from_slice::<Value>(body) else {
            return refused(StatusCode::BAD_REQUEST, "BadRequest", "the body is not JSON");
        };
        match (method, is_collection) {
            (&Method::POST, true) => self.create(path, sent),
            (&Method::PUT, false) => self.replace(path, sent),
            (&Method::PATCH, false) if is_json_patch => self.patch(path, sent),
            _ => refused(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "not simulated"),
        }
    }

    fn found(&self, path: &str) -> Answer {
        match self.objects.get(path) {
            Some(object) => (StatusCode::OK, object.clone()),
            None => refused(StatusCode::NOT_FOUND, "NotFound", &format!("{path} not found")),
        }
    }

    /// Pages of `limit` objects; `continue` is the last path of the page before.
    fn list(&self, path: &str, query: &str) -> Answer {
        let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let limit = parameter("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        // Tokens are numbers, as paths would have to be escaped.
        let skip: usize = parameter("continue").and_then(|token| token.parse().ok()).unwrap_or(0);
        let folder = format!("{path}/");
        let all: Vec<&Value> =
            self.objects.iter().filter(|(at, _)| at.starts_with(&folder)).map(|(_, object)| object).collect();
        let page: Vec<&&Value> = all.iter().skip(skip).take(limit).collect();
        let next = skip + page.len();
        let token = if next < all.len() { next.to_string() } else { String::new() };
        let metadata = json!({ "resourceVersion": self.version.to_string(), "continue": token });
        (StatusCode::OK, json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": page }))
    }

    fn create(&mut self, collection: &str, object: Value) -> Answer {
        let Some(name) = object["metadata"]["name"].as_str() else {
            return refused(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", "a name is required");
        };
        let path = format!("{collection}/{name}");
        if self.objects.contains_key(&path) {
            return refused(StatusCode::CONFLICT, "AlreadyExists", &format!("{path} already exists"));
        }
        self.put(&path, object);
        (StatusCode::CREATED, self.found(&path).1)
    }

    fn replace(&mut self, path: &str, object: Value) -> Answer {
        let Some(old) = self.objects.get(path) else { return self.found(path) };
        let version = &object["metadata"]["resourceVersion"];
        // As with the real one, no version means that the writer does not mind.
        if !version.is_null() && *version != old["metadata"]["resourceVersion"] {
            return refused(StatusCode::CONFLICT, "Conflict", "the object has been modified");
        }
        self.put(path, object);
        self.found(path)
    }

    fn patch(&mut self, path: &str, changes: Value) -> Answer {
        let Some(old) = self.objects.get(path) else { return self.found(path) };
        let mut object = old.clone();
        let applied = serde_json::from_value::<json_patch::Patch>(changes)
            .map_err(|error| error.to_string())
            .and_then(|changes| json_patch::patch(&mut object, &changes).map_err(|error| error.to_string()));
        if let Err(error) = applied {
            // This is what the real one says of a `test` that fails.
            return refused(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", &error);
        }
        self.put(path, object);
        self.found(path)
    }
}

fn refused(status: StatusCode, reason: &str, message: &str) -> Answer {
    (status, failure(status, reason, message))
}
