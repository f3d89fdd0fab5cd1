//! Block volumes: list, create, get, update, delete.

use std::sync::Arc;

use hyper::Uri;
use serde::{Deserialize, Serialize};
use serde_json::{Number, json};
use tokio::time::Instant;

use super::{Outcome, Refusal, page::ListQuery, read};
use crate::{
    answer::Answer,
    cloud::{Cloud, NewVolume, State},
    config::DeleteAttached,
    region::Region,
    snapshot::SnapshotState,
    volume::{BlockType, Status, Volume},
};

/// A volume as the API writes it.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    date_created: String,
    cost: Number,
    pending_charges: f64,
    status: &'static str,
    size_gb: u32,
    region: &'static str,
    attached_to_instance: String,
    attached_to_instance_ip: String,
    attached_to_instance_label: String,
    label: String,
    mount_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    block_type: Option<BlockType>,
    os_id: u32,
    snapshot_id: String,
    bootable: bool,
}

impl Row {
    fn of(volume: &Volume, state: &State) -> Self {
        let instance = volume.attached.as_deref().and_then(|id| state.instance(id));
        Self {
            id: volume.id.clone(),
            date_created: volume.date_created.clone(),
            cost: cost(volume),
            pending_charges: 0.07,
            status: volume.status.as_str(),
            size_gb: volume.size_gb,
            region: volume.region,
            attached_to_instance: volume.attached.clone().unwrap_or_default(),
            attached_to_instance_ip: instance.map(|i| i.main_ip.clone()).unwrap_or_default(),
            attached_to_instance_label: instance.map(|i| i.label.clone()).unwrap_or_default(),
            label: volume.label.clone(),
            mount_id: volume.mount_id.clone(),
            block_type: Some(volume.block_type),
            os_id: 0,
            snapshot_id: volume.snapshot.clone().unwrap_or_default(),
            bootable: volume.bootable,
        }
    }
}

/// A whole number of dollars where it is one, a fraction where not.
fn cost(volume: &Volume) -> Number {
    let mills = volume.size_gb * volume.block_type.mills();
    if mills.is_multiple_of(1000) {
        return Number::from(mills / 1000);
    }
    Number::from_f64(f64::from(mills) / 1000.0).unwrap_or_else(|| Number::from(0))
}

pub(super) fn list(cloud: &Cloud, uri: &Uri) -> Outcome {
    let query = ListQuery::of(uri)?;
    let state = cloud.state();
    let all: Vec<&Volume> = state.volumes.iter().collect();
    // A cursor whose volume was deleted goes on where it stood.
    let (page, meta) = query.page(all, |v| &v.id, |_, id| state.volumes.before(id))?;
    let row = |volume: &&Volume| {
        let mut block = Row::of(volume, &state);
        block.block_type = block.block_type.filter(|_| state.behaviour.list_block_type);
        block
    };
    let blocks: Vec<Row> = page.iter().map(row).collect();
    Ok(Answer::json(200, &json!({"blocks": blocks, "meta": meta})))
}

pub(super) fn get(cloud: &Cloud, id: &str) -> Outcome {
    let state = cloud.state();
    let block = Row::of(known(&state, id)?, &state);
    Ok(Answer::json(200, &json!({ "block": block })))
}

/// The volume, or the refusal of an unknown one as it is set.
pub(super) fn known<'a>(state: &'a State, id: &str) -> Result<&'a Volume, Refusal> {
    let Some(volume) = state.volumes.get(id) else {
        let set = &state.behaviour;
        return Err(Refusal::new(set.unknown_block_status, set.unknown_block_text.as_str()));
    };
    Ok(volume)
}

#[derive(Debug, Deserialize)]
struct Create {
    region: String,
    size_gb: i64,
    label: Option<String>,
    block_type: Option<BlockType>,
    snapshot_id: Option<String>,
}

pub(super) async fn create(cloud: &Arc<Cloud>, body: &[u8]) -> Outcome {
    let asked: Create = read(body)?;
    // Held from the check on, so that the snapshot is still there when it is copied.
    let machine = cloud.machine.lock().await;
    let (id, answer, delay) = {
        let mut state = cloud.state();
        let new = checked(asked, &state)?;
        let id = state.make_volume(new);
        let block = Row::of(known(&state, &id)?, &state);
        let answer = Answer::json(state.behaviour.create_status, &json!({ "block": block }));
        (id, answer, state.behaviour.create)
    };
    cloud.provide_disk(&machine, &id).await;
    drop(machine);
    let worker = Arc::clone(cloud);
    cloud.spawn(async move {
        tokio::time::sleep(delay).await;
        if let Some(volume) = worker.state().volumes.get_mut(&id) {
            volume.status = Status::Active;
        }
    });
    Ok(answer)
}

fn checked(asked: Create, state: &State) -> Result<NewVolume, Refusal> {
    const PREFIX: &str = "Unable to add block storage:";
    let refuse = |why: &str| Refusal::new(400, format!("{PREFIX} {why}"));
    let block_type = asked.block_type.unwrap_or_default();
    let region = Region::find(&asked.region).ok_or_else(|| refuse("Invalid location."))?;
    if !region.has(block_type) {
        return Err(refuse("unable to find a block storage cluster in that location"));
    }
    let size_gb =
        size(asked.size_gb, block_type).map_err(|why| refuse(&format!("Failed to add block storage device. {why}")))?;
    let snapshot = asked.snapshot_id.filter(|id| !id.is_empty());
    if let Some(id) = &snapshot {
        restorable(state, id, region, size_gb).map_err(|why| refuse(&why))?;
    }
    Ok(NewVolume {
        label: asked.label.unwrap_or_default(),
        region,
        size_gb,
        block_type,
        status: Status::Pending,
        snapshot,
        filler: false,
    })
}

/// Whether a snapshot can become a volume of this size in this region, or why not. Vultr's words for it are unknown.
fn restorable(state: &State, id: &str, region: &Region, size_gb: u32) -> Result<(), String> {
    let Some(snapshot) = state.snapshots.get(id) else {
        return Err("Invalid snapshot ID.".to_owned());
    };
    if snapshot.state != SnapshotState::Complete {
        return Err("the snapshot is not complete".to_owned());
    }
    if snapshot.region != region.id {
        return Err("the snapshot is in another region".to_owned());
    }
    if size_gb < snapshot.size_gb {
        return Err(format!("the size must be at least the snapshot's, {}GB", snapshot.size_gb));
    }
    Ok(())
}

/// A size within the limits of its type, or the captured complaint.
fn size(asked: i64, block_type: BlockType) -> Result<u32, String> {
    let (min, max) = block_type.limits();
    let size = u32::try_from(asked).ok();
    size.filter(|size| (min..=max).contains(size))
        .ok_or_else(|| format!("Invalid size ({asked}GB) - Must be between {min}GB and {max}GB."))
}

#[derive(Debug, Deserialize)]
struct Update {
    label: Option<String>,
    size_gb: Option<i64>,
}

pub(super) async fn update(cloud: &Cloud, id: &str, body: &[u8]) -> Outcome {
    let asked: Update = read(body)?;
    let now = Instant::now();
    let grown = {
        let mut state = cloud.state();
        let every = state.behaviour.resize_every;
        let volume = known(&state, id)?;
        let label = asked.label.filter(|label| *label != volume.label);
        let size_gb = asked.size_gb.filter(|size| *size != i64::from(volume.size_gb));
        if label.is_none() && size_gb.is_none() {
            return Err(Refusal::new(400, "Nothing to change"));
        }
        let size_gb = size_gb.map(|size| grown(volume, size)).transpose()?;
        // Vultr's own tests wait for 61 seconds between two changes of size.
        let soon = volume.resized.is_some_and(|last| now - last < every);
        if size_gb.is_some() && soon {
            let text = "Unable to resize block storage: it was resized less than 60 seconds ago";
            return Err(Refusal::new(400, text));
        }
        if let Some(volume) = state.volumes.get_mut(id) {
            volume.label = label.unwrap_or_else(|| volume.label.clone());
            if let Some(size_gb) = size_gb {
                (volume.size_gb, volume.resized) = (size_gb, Some(now));
            }
        }
        size_gb.is_some()
    };
    if grown {
        cloud.grow_disk(id).await;
    }
    Ok(Answer::empty())
}

fn grown(volume: &Volume, asked: i64) -> Result<u32, Refusal> {
    let refuse = |why: &str| Refusal::new(400, format!("Unable to resize block storage: {why}"));
    let size = size(asked, volume.block_type).map_err(|why| refuse(&why))?;
    if size < volume.size_gb {
        return Err(refuse("the new size must be larger than the current size"));
    }
    Ok(size)
}

pub(super) async fn delete(cloud: &Cloud, id: &str) -> Outcome {
    {
        let state = cloud.state();
        let volume = known(&state, id)?;
        let refuse = |why: &str| {
            let text = format!("Unable to delete block storage: {why}");
            Err(Refusal::new(400, text))
        };
        if volume.moving {
            return refuse("an operation on it is in progress");
        }
        let in_use = volume.attached.is_some();
        if in_use && state.behaviour.delete_attached == DeleteAttached::Refuse {
            return refuse("it is attached to a server");
        }
    }
    cloud.erase(id).await;
    Ok(Answer::empty())
}
