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
    /// `GET /v2/blocks/snapshots`
    ListSnapshots,
    /// `POST /v2/blocks/snapshots`
    CreateSnapshot,
    /// `GET /v2/blocks/snapshots/{id}`
    GetSnapshot,
    /// `PUT /v2/blocks/snapshots/{id}`
    UpdateSnapshot,
    /// `DELETE /v2/blocks/snapshots/{id}`
    DeleteSnapshot,
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
    /// `GET /v2/vfs/regions`
    ListVfsRegions,
    /// `GET /v2/vfs`
    ListVfs,
    /// `POST /v2/vfs`
    CreateVfs,
    /// `GET /v2/vfs/{id}`
    GetVfs,
    /// `PUT /v2/vfs/{id}`
    UpdateVfs,
    /// `DELETE /v2/vfs/{id}`
    DeleteVfs,
    /// `GET /v2/vfs/{id}/attachments`
    ListVfsAttachments,
    /// `GET /v2/vfs/{id}/attachments/{instance}`
    GetVfsAttachment,
    /// `PUT /v2/vfs/{id}/attachments/{instance}`
    AttachVfs,
    /// `DELETE /v2/vfs/{id}/attachments/{instance}`
    DetachVfs,
    /// A path that the simulation doesn't know, or a wrong verb.
    Unknown,
    /// In a fault: every operation.
    #[serde(rename = "*")]
    Any,
}

impl Operation {
    /// Whether it is one of the shared file systems'.
    pub(crate) fn of_vfs(self) -> bool {
        use Operation as O;
        let all = [O::ListVfsRegions, O::ListVfs, O::CreateVfs, O::GetVfs, O::UpdateVfs, O::DeleteVfs];
        let attachments = [O::ListVfsAttachments, O::GetVfsAttachment, O::AttachVfs, O::DetachVfs];
        all.contains(&self) || attachments.contains(&self)
    }
}

/// Where a request leads.
#[derive(Debug, PartialEq)]
pub(crate) enum Route {
    /// An operation, and the ids in its path.
    Call(Operation, Vec<String>),
    /// A known path with a verb it doesn't take; the verbs it does.
    WrongVerb(String),
    /// No such path.
    Nowhere,
}

impl Route {
    pub(crate) fn of(method: &Method, path: &str) -> Self {
        use Operation as O;
        const DELETE: Method = Method::DELETE;
        const GET: Method = Method::GET;
        const POST: Method = Method::POST;
        const PUT: Method = Method::PUT;

        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let Some((&"v2", rest)) = segments.split_first() else {
            return Self::Nowhere;
        };
        // The verbs of each path stand in alphabetical order, as the 405's text lists them. Words that are no ids come
        // before the ids in whose place they stand.
        let (ids, verbs): (&[&str], Vec<(Method, O)>) = match rest {
            ["account"] => (&[], vec![(GET, O::GetAccount)]),
            ["regions"] => (&[], vec![(GET, O::ListRegions)]),
            ["instances"] => (&[], vec![(GET, O::ListInstances)]),
            ["instances", id] => (&[id], vec![(GET, O::GetInstance)]),
            ["bare-metals", id] => (&[id], vec![(GET, O::GetBareMetal)]),
            ["vfs"] => (&[], vec![(GET, O::ListVfs), (POST, O::CreateVfs)]),
            ["vfs", "regions"] => (&[], vec![(GET, O::ListVfsRegions)]),
            ["vfs", id] => (&[id], vec![(DELETE, O::DeleteVfs), (GET, O::GetVfs), (PUT, O::UpdateVfs)]),
            ["vfs", id, "attachments"] => (&[id], vec![(GET, O::ListVfsAttachments)]),
            ["vfs", id, "attachments", instance] => {
                (&[id, instance], vec![(DELETE, O::DetachVfs), (GET, O::GetVfsAttachment), (PUT, O::AttachVfs)])
            }
            ["blocks"] => (&[], vec![(GET, O::ListBlocks), (POST, O::CreateBlock)]),
            ["blocks", "snapshots"] => (&[], vec![(GET, O::ListSnapshots), (POST, O::CreateSnapshot)]),
            ["blocks", "snapshots", id] => {
                (&[id], vec![(DELETE, O::DeleteSnapshot), (GET, O::GetSnapshot), (PUT, O::UpdateSnapshot)])
            }
            ["blocks", id] => {
                (&[id], vec![(DELETE, O::DeleteBlock), (GET, O::GetBlock), (Method::PATCH, O::UpdateBlock)])
            }
            ["blocks", id, "attach"] => (&[id], vec![(POST, O::AttachBlock)]),
            ["blocks", id, "detach"] => (&[id], vec![(POST, O::DetachBlock)]),
            _ => return Self::Nowhere,
        };
        if let Some((_, operation)) = verbs.iter().find(|(verb, _)| verb == method) {
            return Self::Call(*operation, ids.iter().map(|&id| id.to_owned()).collect());
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
        let call = |operation, ids: &[&str]| Route::Call(operation, ids.iter().map(|&id| id.to_owned()).collect());
        for (method, path, route) in [
            (Method::GET, "/v2/blocks", call(Operation::ListBlocks, &[])),
            (Method::GET, "/v2/blocks/a", call(Operation::GetBlock, &["a"])),
            (Method::POST, "/v2/blocks/a/attach", call(Operation::AttachBlock, &["a"])),
            (Method::GET, "/v2/blocks/snapshots", call(Operation::ListSnapshots, &[])),
            (Method::GET, "/v2/blocks/snapshots/a", call(Operation::GetSnapshot, &["a"])),
            (Method::POST, "/v2/blocks/snapshots/attach", Route::WrongVerb("DELETE, GET, PUT".to_owned())),
            (Method::GET, "/v2/vfs/regions", call(Operation::ListVfsRegions, &[])),
            (Method::PUT, "/v2/vfs/a/attachments/b", call(Operation::AttachVfs, &["a", "b"])),
            (Method::GET, "/v1/blocks", Route::Nowhere),
            (Method::PUT, "/v2/blocks/a", Route::WrongVerb("DELETE, GET, PATCH".to_owned())),
        ] {
            assert_eq!(Route::of(&method, path), route, "{method} {path}");
        }
    }
}
