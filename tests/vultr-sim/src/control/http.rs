//! The control interface over HTTP, for tests in other languages and processes. No token; it is for the loopback, or a
//! network of the tests' own.

use std::io;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{delete, get, patch, post, put},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Control, SeedVfs, SeedVolume};
use crate::{
    InstanceSpec,
    config::Behaviour,
    fault::Fault,
    record::{LogEntry, Stats},
    snapshot::SnapshotState,
    view::{InstanceChange, InstanceView, Leftovers, SnapshotView, VfsView, View, VolumeView},
};

type Told<T> = Result<Json<T>, Refused>;
type Done = Result<StatusCode, Refused>;

/// An error as an answer.
#[derive(Debug)]
struct Refused(io::Error);

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self.0.kind() {
            io::ErrorKind::NotFound => StatusCode::NOT_FOUND,
            io::ErrorKind::InvalidInput => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(json!({"error": self.0.to_string()}))).into_response()
    }
}

pub(crate) fn router(control: Control) -> Router {
    Router::new()
        .route("/state", get(state))
        .route("/leftovers", get(leftovers))
        .route("/stats", get(stats).delete(reset))
        .route("/log", get(log))
        .route("/behaviour", get(behaviour).patch(behave))
        .route("/listening", put(listen))
        .route("/token", put(change_token))
        .route("/faults", get(faults).post(add_fault).delete(clear_faults))
        .route("/faults/{id}", delete(remove_fault))
        .route("/fillers", post(seed_fillers))
        .route("/volumes", post(seed_volume))
        .route("/volumes/{name}", get(volume).delete(delete_volume))
        .route("/volumes/{name}/attach", post(attach))
        .route("/volumes/{name}/detach", post(detach))
        .route("/snapshots", post(seed_snapshot))
        .route("/snapshots/{name}", get(snapshot).patch(change_snapshot).delete(delete_snapshot))
        .route("/file-systems", post(seed_vfs))
        .route("/file-systems/{name}", get(file_system).delete(delete_vfs))
        .route("/file-systems/{name}/attach", post(attach_vfs))
        .route("/file-systems/{name}/detach", post(detach_vfs))
        .route("/instances", post(add_instance))
        .route("/instances/{name}", patch(change_instance).delete(delete_instance))
        .route("/instances/{name}/replug", post(replug))
        .with_state(control)
}

async fn state(State(control): State<Control>) -> Json<View> {
    Json(control.view())
}

async fn leftovers(State(control): State<Control>) -> Told<Leftovers> {
    Ok(Json(control.leftovers()?))
}

async fn stats(State(control): State<Control>) -> Json<Stats> {
    Json(control.stats())
}

async fn reset(State(control): State<Control>) -> StatusCode {
    control.reset();
    StatusCode::NO_CONTENT
}

async fn log(State(control): State<Control>) -> Json<Vec<LogEntry>> {
    Json(control.log())
}

async fn behaviour(State(control): State<Control>) -> Json<Behaviour> {
    Json(control.behaviour())
}

async fn behave(State(control): State<Control>, Json(changes): Json<Value>) -> Told<Behaviour> {
    Ok(Json(control.behave_as(&changes)?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listening {
    api: bool,
}

async fn listen(State(control): State<Control>, Json(asked): Json<Listening>) -> Done {
    control.listen(asked.api).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Without `Debug`, so that nothing prints it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    token: String,
}

async fn change_token(State(control): State<Control>, Json(new): Json<Token>) -> StatusCode {
    control.change_token(&new.token);
    StatusCode::NO_CONTENT
}

async fn faults(State(control): State<Control>) -> Json<Vec<Value>> {
    let row = |(id, fault, struck)| json!({"id": id, "fault": fault, "struck": struck});
    Json(control.faults().into_iter().map(row).collect())
}

async fn add_fault(State(control): State<Control>, Json(fault): Json<Fault>) -> Json<Value> {
    Json(json!({"id": control.add_fault(fault)}))
}

async fn clear_faults(State(control): State<Control>) -> StatusCode {
    control.clear_faults();
    StatusCode::NO_CONTENT
}

async fn remove_fault(State(control): State<Control>, Path(id): Path<u64>) -> Done {
    control.remove_fault(id)?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fillers {
    count: usize,
    region: String,
}

async fn seed_fillers(State(control): State<Control>, Json(asked): Json<Fillers>) -> Done {
    control.seed_fillers(asked.count, &asked.region)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn seed_volume(State(control): State<Control>, Json(seed): Json<SeedVolume>) -> Told<VolumeView> {
    Ok(Json(control.seed_volume(seed).await?))
}

async fn volume(State(control): State<Control>, Path(name): Path<String>) -> Told<VolumeView> {
    Ok(Json(control.volume(&name)?))
}

async fn delete_volume(State(control): State<Control>, Path(name): Path<String>) -> Done {
    control.delete(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attach {
    instance: String,
}

async fn attach(State(control): State<Control>, Path(name): Path<String>, Json(to): Json<Attach>) -> Done {
    control.attach(&name, &to.instance).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn detach(State(control): State<Control>, Path(name): Path<String>) -> Done {
    control.detach(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeedSnapshot {
    volume: String,
    description: String,
}

async fn seed_snapshot(State(control): State<Control>, Json(seed): Json<SeedSnapshot>) -> Told<SnapshotView> {
    Ok(Json(control.seed_snapshot(&seed.volume, &seed.description).await?))
}

async fn snapshot(State(control): State<Control>, Path(name): Path<String>) -> Told<SnapshotView> {
    Ok(Json(control.snapshot(&name)?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotChange {
    state: SnapshotState,
}

async fn change_snapshot(
    State(control): State<Control>,
    Path(name): Path<String>,
    Json(change): Json<SnapshotChange>,
) -> Told<SnapshotView> {
    Ok(Json(control.change_snapshot(&name, change.state)?))
}

async fn delete_snapshot(State(control): State<Control>, Path(name): Path<String>) -> Done {
    control.delete_snapshot(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn seed_vfs(State(control): State<Control>, Json(seed): Json<SeedVfs>) -> Told<VfsView> {
    Ok(Json(control.seed_vfs(seed).await?))
}

async fn file_system(State(control): State<Control>, Path(name): Path<String>) -> Told<VfsView> {
    Ok(Json(control.file_system(&name)?))
}

async fn attach_vfs(State(control): State<Control>, Path(name): Path<String>, Json(to): Json<Attach>) -> Done {
    control.attach_vfs(&name, &to.instance).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn detach_vfs(State(control): State<Control>, Path(name): Path<String>, Json(from): Json<Attach>) -> Done {
    control.detach_vfs(&name, &from.instance).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn delete_vfs(State(control): State<Control>, Path(name): Path<String>) -> Done {
    control.delete_vfs(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn add_instance(State(control): State<Control>, Json(spec): Json<InstanceSpec>) -> Told<InstanceView> {
    Ok(Json(control.add_instance(&spec).await?))
}

async fn change_instance(
    State(control): State<Control>,
    Path(name): Path<String>,
    Json(change): Json<InstanceChange>,
) -> Told<InstanceView> {
    Ok(Json(control.change_instance(&name, change)?))
}

async fn replug(State(control): State<Control>, Path(name): Path<String>) -> Done {
    control.replug(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn delete_instance(State(control): State<Control>, Path(name): Path<String>) -> Done {
    control.delete_instance(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
