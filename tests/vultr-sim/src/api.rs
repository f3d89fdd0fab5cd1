//! The API: one request's way from the gateway to its answer.
//!
//! rate limit → path and verb → token → faults before → the operation → faults after. The way is walked by a task of
//! its own, so that a client that hangs up doesn't undo what it asked for, as in a real cloud.

mod attach;
mod block;
mod catalogue;
mod page;
mod snapshot;
mod vfs;

use std::{net::SocketAddr, sync::Arc};

use axum::body::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    Method, Request, Uri,
    body::Incoming,
    header::{AUTHORIZATION, HeaderMap},
};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    answer::Answer,
    cloud::Cloud,
    fault::{End, Plan, Side},
    operation::{Operation, Route},
    record::LogEntry,
};

/// A request with its body read.
#[derive(Debug)]
struct Call {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

/// A refusal in the API's words. Operations fail with it, so that `?` works in them.
#[derive(Debug)]
struct Refusal {
    status: u16,
    text: String,
}

impl Refusal {
    fn new(status: u16, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }
}

type Outcome = Result<Answer, Refusal>;

/// Answers a request; none cuts the connection.
pub(crate) async fn answer(cloud: Arc<Cloud>, peer: SocketAddr, request: Request<Incoming>) -> Option<Answer> {
    let (head, body) = request.into_parts();
    let call =
        Call { method: head.method, uri: head.uri, headers: head.headers, body: body.collect().await.ok()?.to_bytes() };
    let (done, answered) = oneshot::channel();
    let worker = Arc::clone(&cloud);
    cloud.spawn(async move {
        // Nobody listens when the client hung up.
        let _ = done.send(walk(&worker, peer, &call).await);
    });
    answered.await.ok()?
}

async fn walk(cloud: &Arc<Cloud>, peer: SocketAddr, call: &Call) -> Option<Answer> {
    let now = Instant::now();
    let route = Route::of(&call.method, call.uri.path());
    let (operation, mut names) = match &route {
        Route::Call(operation, ids) => (*operation, ids.clone()),
        Route::WrongVerb(_) | Route::Nowhere => (Operation::Unknown, Vec::new()),
    };
    names.extend(names_of(operation, &call.body));
    let entry = LogEntry {
        at_ms: 0,
        method: call.method.to_string(),
        path: call.uri.to_string(),
        operation,
        volume: names.first().cloned(),
        status: None,
    };
    let ticket = cloud.state().record.arrive(entry.clone(), now);
    let answer = pass(cloud, peer, call, route, &names).await;
    let status = answer.as_ref().map_or(0, |answer| answer.status);
    cloud.state().record.answered(ticket, status);
    answer
}

async fn pass(cloud: &Arc<Cloud>, peer: SocketAddr, call: &Call, route: Route, names: &[String]) -> Option<Answer> {
    if let Some(refused) = rate_limit(cloud, peer) {
        return Some(refused);
    }
    let (operation, ids) = match route {
        Route::Call(operation, ids) => (operation, ids),
        Route::Nowhere => return Some(Answer::error(404, "Not found.")),
        Route::WrongVerb(verbs) => {
            let text = format!("Method not allowed. Must be one of: {verbs}");
            return Some(Answer::error(405, &text));
        }
    };
    // The list of regions is public.
    if operation != Operation::ListRegions && !authorized(cloud, &call.headers) {
        return Some(Answer::error(401, "Invalid API token."));
    }
    let Plan { before, after } = plan(cloud, operation, names);
    if let Some(end) = wait(before).await {
        return ended(end);
    }
    let outcome = operate(cloud, operation, &ids, call).await;
    if let Some(end) = wait(after).await {
        return ended(end);
    }
    Some(outcome.unwrap_or_else(|refusal| Answer::error(refusal.status, &refusal.text)))
}

/// The gateway's refusal, whose body is not written as the application's are (captured 2021-12).
fn rate_limit(cloud: &Cloud, peer: SocketAddr) -> Option<Answer> {
    let mut state = cloud.state();
    let limit = state.behaviour.requests_per_second;
    if state.pace.admits(peer.ip(), limit, Instant::now()) {
        return None;
    }
    state.record.stats.rate_limited += 1;
    let body = r#"{"status": 429,"error": "rate limit exceeded"}"#;
    let mut answer = Answer::raw(429, body.to_owned());
    answer.retry_after = state.behaviour.retry_after.then(|| "1".to_owned());
    Some(answer)
}

fn authorized(cloud: &Cloud, headers: &HeaderMap) -> bool {
    let header = headers.get(AUTHORIZATION).and_then(|h| h.to_str().ok());
    let token = header.and_then(|h| h.strip_prefix("Bearer "));
    token == Some(cloud.state().token.as_str())
}

/// The names in the body of a create, for the log and for faults: what the new thing will be called, and for a
/// snapshot also its volume's id.
fn names_of(operation: Operation, body: &[u8]) -> Vec<String> {
    let keys: &[&str] = match operation {
        Operation::CreateBlock | Operation::CreateVfs => &["label"],
        Operation::CreateSnapshot => &["description", "block_id"],
        _ => &[],
    };
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    keys.iter().filter_map(|key| body.get(key)?.as_str().map(str::to_owned)).collect()
}

/// Things are known to faults by their ids and by their labels, snapshots by their descriptions.
fn plan(cloud: &Cloud, operation: Operation, names: &[String]) -> Plan {
    let mut state = cloud.state();
    let label = |id: &String| {
        let volume = state.volumes.get(id).map(|v| &v.label);
        let other = || state.snapshots.get(id).map(|s| &s.description);
        volume.or_else(other).or_else(|| state.file_systems.get(id).map(|f| &f.label)).cloned()
    };
    let labels: Vec<String> = names.iter().filter_map(label).collect();
    let names: Vec<&str> = names.iter().chain(&labels).map(String::as_str).collect();
    state.faults.plan(operation, &names)
}

async fn wait(side: Side) -> Option<End> {
    if !side.delay.is_zero() {
        tokio::time::sleep(side.delay).await;
    }
    side.end
}

fn ended(end: End) -> Option<Answer> {
    match end {
        End::Answer(answer) => Some(answer),
        End::Cut => None,
    }
}

async fn operate(cloud: &Arc<Cloud>, operation: Operation, ids: &[String], call: &Call) -> Outcome {
    if operation.of_vfs() && cloud.state().behaviour.vfs_down {
        return Err(Refusal::new(503, "Service unavailable."));
    }
    let id = ids.first().map_or("", String::as_str);
    let instance = ids.get(1).map_or("", String::as_str);
    match operation {
        Operation::ListBlocks => block::list(cloud, &call.uri),
        Operation::CreateBlock => block::create(cloud, &call.body).await,
        Operation::GetBlock => block::get(cloud, id),
        Operation::UpdateBlock => block::update(cloud, id, &call.body).await,
        Operation::DeleteBlock => block::delete(cloud, id).await,
        Operation::AttachBlock => attach::attach(cloud, id, &call.body),
        Operation::DetachBlock => attach::detach(cloud, id, &call.body),
        Operation::ListSnapshots => snapshot::list(cloud, &call.uri),
        Operation::CreateSnapshot => snapshot::create(cloud, &call.body).await,
        Operation::GetSnapshot => snapshot::get(cloud, id),
        Operation::UpdateSnapshot => snapshot::update(cloud, id, &call.body),
        Operation::DeleteSnapshot => snapshot::delete(cloud, id).await,
        Operation::ListInstances => catalogue::list_instances(cloud, &call.uri),
        Operation::GetInstance => catalogue::get_instance(cloud, id),
        Operation::ListRegions => catalogue::list_regions(&call.uri),
        Operation::GetAccount => Ok(catalogue::account()),
        Operation::ListVfsRegions => Ok(vfs::list_regions()),
        Operation::ListVfs => vfs::list(cloud, &call.uri),
        Operation::CreateVfs => vfs::create(cloud, &call.body).await,
        Operation::GetVfs => vfs::get(cloud, id),
        Operation::UpdateVfs => vfs::update(cloud, id, &call.body),
        Operation::DeleteVfs => vfs::delete(cloud, id).await,
        Operation::ListVfsAttachments => vfs::attachment::list(cloud, id),
        Operation::GetVfsAttachment => vfs::attachment::get(cloud, id, instance),
        Operation::AttachVfs => vfs::attachment::attach(cloud, id, instance),
        Operation::DetachVfs => vfs::attachment::detach(cloud, id, instance),
        Operation::GetBareMetal | Operation::Unknown | Operation::Any => Err(Refusal::new(404, "Not found.")),
    }
}

/// Reads a JSON body; an empty one counts as an object without keys.
fn read<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    let body = if body.trim_ascii().is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| Refusal::new(400, format!("Invalid request body: {error}")))
}
