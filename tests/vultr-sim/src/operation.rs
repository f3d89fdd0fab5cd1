//! The closed set of API operations, and which of them a request is.

use hyper::Method;
use serde::{Deserialize, Serialize};

/// An operation of the API, as faults, statistics and the request log name it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// `GET /v2/blocks`
    ListBlocks,
    /// `POST /v2/blocks`
    CreateBlock,
    /// `GET /v2/blocks/{id}`
    GetBlock,
    /// `PATCH /v2/blocks/{id}`
    UpdateBlock,
    /// `DELETE /v2/blocks/{id}`
    DeleteBlock,
    /// `POST /v2/blocks/{id}/attach`
    AttachBlock,
    /// `POST /v2/blocks/{id}/detach`
    DetachBlock,
    /// `GET /v2/instances`
    ListInstances,
    /// `GET /v2/instances/{id}`
    GetInstance,
    /// `GET /v2/bare-metals/{id}`
    GetBareMetal,
    /// `GET /v2/regions`
    ListRegions,
    /// `GET /v2/account`
    GetAccount,
    /// `GET /v2/vfs`
    ListVfs,
    /// `GET /v2/vfs/{id}`
    GetVfs,
    /// A path that the simulation doesn't know, or a wrong verb.
    Unknown,
    /// In a fault: every operation.
    #[serde(rename = "*")]
    Any,
}

/// Where a request leads.
#[derive(Debug, PartialEq)]
pub(crate) enum Route {
    /// An operation, and the id in its path.
    Call(Operation, Option<String>),
    /// A known path with a verb it doesn't take; the verbs it does.
    WrongVerb(String),
    /// No such path.
    Nowhere,
}

impl Route {
    pub(crate) fn of(method: &Method, path: &str) -> Self {
        use Operation as O;
        const GET: Method = Method::GET;

        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let Some((&"v2", rest)) = segments.split_first() else {
            return Self::Nowhere;
        };
        // The verbs of each path stand in alphabetical order, as the 405's text lists them.
        let (id, verbs): (Option<&str>, Vec<(Method, O)>) = match rest {
            ["account"] => (None, vec![(GET, O::GetAccount)]),
            ["regions"] => (None, vec![(GET, O::ListRegions)]),
            ["instances"] => (None, vec![(GET, O::ListInstances)]),
            ["instances", id] => (Some(id), vec![(GET, O::GetInstance)]),
            ["bare-metals", id] => (Some(id), vec![(GET, O::GetBareMetal)]),
            ["vfs"] => (None, vec![(GET, O::ListVfs)]),
            ["vfs", id] => (Some(id), vec![(GET, O::GetVfs)]),
            ["blocks"] => (None, vec![(GET, O::ListBlocks), (Method::POST, O::CreateBlock)]),
            // Snapshots share the prefix and are no volume's id.
            ["blocks", "snapshots", ..] => return Self::Nowhere,
            ["blocks", id] => {
                (Some(id), vec![(Method::DELETE, O::DeleteBlock), (GET, O::GetBlock), (Method::PATCH, O::UpdateBlock)])
            }
            ["blocks", id, "attach"] => (Some(id), vec![(Method::POST, O::AttachBlock)]),
            ["blocks", id, "detach"] => (Some(id), vec![(Method::POST, O::DetachBlock)]),
            _ => return Self::Nowhere,
        };
        if let Some((_, operation)) = verbs.iter().find(|(verb, _)| verb == method) {
            return Self::Call(*operation, id.map(str::to_owned));
        }
        let verbs: Vec<&str> = verbs.iter().map(|(verb, _)| verb.as_str()).collect();
        Self::WrongVerb(verbs.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_their_operations() {
        let call = |operation, id: Option<&str>| Route::Call(operation, id.map(str::to_owned));
        for (method, path, route) in [
            (Method::GET, "/v2/blocks", call(Operation::ListBlocks, None)),
            (Method::GET, "/v2/blocks/a", call(Operation::GetBlock, Some("a"))),
            (Method::POST, "/v2/blocks/a/attach", call(Operation::AttachBlock, Some("a"))),
            (Method::GET, "/v2/blocks/snapshots", Route::Nowhere),
            (Method::GET, "/v2/blocks/snapshots/a", Route::Nowhere),
            (Method::GET, "/v1/blocks", Route::Nowhere),
            (Method::PUT, "/v2/blocks/a", Route::WrongVerb("DELETE, GET, PATCH".to_owned())),
        ] {
            assert_eq!(Route::of(&method, path), route, "{method} {path}");
        }
    }
}
