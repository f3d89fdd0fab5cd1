//! Snapshots of block volumes: list, create, get, update, delete.

use std::sync::Arc;

use hyper::Uri;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Outcome, Refusal, block, page::ListQuery, read};
use crate::{
    answer::Answer,
    clock,
    cloud::{Cloud, State},
    config::SnapshotAnswer,
    snapshot::{Snapshot, SnapshotState},
    volume::Status,
};

const GIB: u64 = 1 << 30;

/// A snapshot as the API writes it, without its region.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    block_id: String,
    description: String,
    state: SnapshotState,
    added_at: String,
    updated_at: String,
    size: u64,
    next_invoice_date: &'static str,
    next_invoice_price: &'static str,
}

impl Row {
    fn of(snapshot: &Snapshot) -> Self {
        Self {
            id: snapshot.id.clone(),
            block_id: snapshot.block_id.clone(),
            description: snapshot.description.clone(),
            state: snapshot.state,
            added_at: snapshot.added_at.clone(),
            updated_at: snapshot.updated_at.clone(),
            size: u64::from(snapshot.size_gb) * GIB,
            next_invoice_date: "",
            next_invoice_price: "",
        }
    }
}

pub(super) fn list(cloud: &Cloud, uri: &Uri) -> Outcome {
    let query = ListQuery::of(uri)?;
    let state = cloud.state();
    let all: Vec<&Snapshot> = state.snapshots.iter().collect();
    let (page, meta) = query.page(all, |s| &s.id, |_, id| state.snapshots.before(id))?;
    let rows: Vec<Row> = page.into_iter().map(Row::of).collect();
    Ok(Answer::json(200, &json!({"snapshots": rows, "meta": meta})))
}

pub(super) fn get(cloud: &Cloud, id: &str) -> Outcome {
    let state = cloud.state();
    let row = Row::of(known(&state, id)?);
    Ok(match state.behaviour.snapshot_answer {
        SnapshotAnswer::Bare => Answer::json(200, &row),
        SnapshotAnswer::Wrapped | SnapshotAnswer::Listed => Answer::json(200, &json!({ "snapshot": row })),
    })
}

/// The snapshot, or the refusal of an unknown one as it is set.
fn known<'a>(state: &'a State, id: &str) -> Result<&'a Snapshot, Refusal> {
    let Some(snapshot) = state.snapshots.get(id) else {
        let set = &state.behaviour;
        return Err(Refusal::new(set.unknown_snapshot_status, set.unknown_snapshot_text.as_str()));
    };
    Ok(snapshot)
}

#[derive(Debug, Deserialize)]
struct Create {
    block_id: String,
    description: String,
}

pub(super) async fn create(cloud: &Arc<Cloud>, body: &[u8]) -> Outcome {
    let asked: Create = read(body)?;
    // Held from the check on, so that the volume is still there, and as attached as it was, when it is copied.
    let machine = cloud.machine.lock().await;
    let (id, answer, delay, end) = {
        let mut state = cloud.state();
        let volume = block::known(&state, &asked.block_id)?;
        if volume.status != Status::Active {
            let text = "Unable to create snapshot: Block storage volume is not active";
            return Err(Refusal::new(400, text));
        }
        let volume = volume.clone();
        let id = state.make_snapshot(&volume, &asked.description);
        let row = Row::of(known(&state, &id)?);
        let answer = match state.behaviour.snapshot_answer {
            SnapshotAnswer::Bare => Answer::json(201, &row),
            SnapshotAnswer::Wrapped => Answer::json(201, &json!({ "block": row })),
            SnapshotAnswer::Listed => Answer::json(201, &json!({"snapshot": [row]})),
        };
        let fails = state.behaviour.snapshot_fails;
        let end = if fails { SnapshotState::Failed } else { SnapshotState::Complete };
        (id, answer, state.behaviour.snapshot, end)
    };
    cloud.take_snapshot(&machine, &id).await;
    drop(machine);
    let worker = Arc::clone(cloud);
    cloud.spawn(async move {
        tokio::time::sleep(delay).await;
        worker.state().settle_snapshot(&id, end);
    });
    Ok(answer)
}

#[derive(Debug, Deserialize)]
struct Update {
    description: String,
}

pub(super) fn update(cloud: &Cloud, id: &str, body: &[u8]) -> Outcome {
    let asked: Update = read(body)?;
    let mut state = cloud.state();
    known(&state, id)?;
    if let Some(snapshot) = state.snapshots.get_mut(id) {
        (snapshot.description, snapshot.updated_at) = (asked.description, clock::now_without_zone());
    }
    Ok(Answer::empty())
}

/// Whatever state it is in; volumes made from it have content of their own.
pub(super) async fn delete(cloud: &Cloud, id: &str) -> Outcome {
    known(&cloud.state(), id)?;
    cloud.drop_snapshot(id).await;
    Ok(Answer::empty())
}
