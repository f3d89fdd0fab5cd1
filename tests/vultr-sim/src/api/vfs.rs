//! Shared file systems: list, create, get, update, delete, and the regions that have them. Objects are not wrapped, and
//! a bad request is a 422, as in the schema of this part of the API. The texts are guesses where no capture is named.

pub(super) mod attachment;

use std::sync::Arc;

use hyper::Uri;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Outcome, Refusal, page::ListQuery};
use crate::{
    answer::Answer,
    cloud::{Cloud, State},
    region::{REGIONS, Region},
    vfs::{NewVfs, Vfs},
    volume::{BlockType, Status},
};

const GIB: u64 = 1 << 30;
const MIN_GB: u32 = 10;
/// The price of one GB for a month, in dollars.
const PRICE: f64 = 0.1;
/// The only kind that a create takes, though the regions tell prices for two.
const DISK_TYPE: &str = "nvme";

/// A file system as the API writes it.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    region: &'static str,
    date_created: String,
    status: &'static str,
    label: String,
    tags: Vec<String>,
    disk_type: &'static str,
    storage_size: Size,
    storage_used: Size,
    billing: Billing,
}

#[derive(Debug, Serialize)]
struct Size {
    bytes: u64,
    gb: u32,
}

#[derive(Debug, Serialize)]
struct Billing {
    charges: f64,
    monthly: f64,
}

impl Row {
    fn of(vfs: &Vfs) -> Self {
        Self {
            id: vfs.id.clone(),
            region: vfs.region,
            date_created: vfs.date_created.clone(),
            status: vfs.status.as_str(),
            label: vfs.label.clone(),
            tags: vfs.tags.clone(),
            disk_type: DISK_TYPE,
            storage_size: Size { bytes: u64::from(vfs.size_gb) * GIB, gb: vfs.size_gb },
            storage_used: Size { bytes: 0, gb: 0 },
            billing: Billing { charges: 0.15, monthly: f64::from(vfs.size_gb) * PRICE },
        }
    }
}

/// No list of them is published; those with `NVMe` volumes are a guess.
fn has_vfs(region: &Region) -> bool {
    region.has(BlockType::HighPerf)
}

pub(super) fn list_regions() -> Answer {
    let row = |region: &Region| {
        json!({
            "id": region.id,
            "country": region.country,
            "continent": region.continent,
            "description": region.city,
            "price_per_gb": {"nvme": PRICE, "hdd": 0.025},
            "min_size_gb": {"nvme": MIN_GB, "hdd": 40},
        })
    };
    let rows: Vec<Value> = REGIONS.iter().filter(|r| has_vfs(r)).map(row).collect();
    Answer::json(200, &json!({ "regions": rows }))
}

/// The published schema has no `meta` here, but Vultr's own driver reads it unchecked.
pub(super) fn list(cloud: &Cloud, uri: &Uri) -> Outcome {
    let query = ListQuery::of(uri)?;
    let state = cloud.state();
    let all: Vec<&Vfs> = state.file_systems.iter().collect();
    let (page, meta) = query.page(all, |f| &f.id, |_, id| state.file_systems.before(id))?;
    let rows: Vec<Row> = page.into_iter().map(Row::of).collect();
    Ok(Answer::json(200, &json!({"vfs": rows, "meta": meta})))
}

pub(super) fn get(cloud: &Cloud, id: &str) -> Outcome {
    Ok(Answer::json(200, &Row::of(known(&cloud.state(), id)?)))
}

/// The file system, or the refusal in the words that official tools look for.
fn known<'a>(state: &'a State, id: &str) -> Result<&'a Vfs, Refusal> {
    state.file_systems.get(id).ok_or_else(|| Refusal::new(404, "Subscription ID Not Found."))
}

fn bad(text: impl Into<String>) -> Refusal {
    Refusal::new(422, text)
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    super::read(body).map_err(|refusal| bad(refusal.text))
}

#[derive(Debug, Deserialize)]
struct Create {
    region: String,
    label: String,
    storage_size: AskedSize,
    disk_type: Option<String>,
    tags: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct AskedSize {
    gb: i64,
}

pub(super) async fn create(cloud: &Arc<Cloud>, body: &[u8]) -> Outcome {
    let asked: Create = read(body)?;
    let new = checked(asked)?;
    let (id, answer, delay) = {
        let mut state = cloud.state();
        let id = state.make_vfs(new);
        let answer = Answer::json(201, &Row::of(known(&state, &id)?));
        (id, answer, state.behaviour.vfs_create)
    };
    cloud.provide_share(&id).await;
    let worker = Arc::clone(cloud);
    cloud.spawn(async move {
        tokio::time::sleep(delay).await;
        if let Some(vfs) = worker.state().file_systems.get_mut(&id) {
            vfs.status = Status::Active;
        }
    });
    Ok(answer)
}

fn checked(asked: Create) -> Result<NewVfs, Refusal> {
    let region = Region::find(&asked.region).filter(|region| has_vfs(region));
    let region = region.ok_or_else(|| bad("Invalid region."))?;
    if asked.disk_type.is_some_and(|kind| kind != DISK_TYPE) {
        return Err(bad("Invalid disk type."));
    }
    let size_gb = u32::try_from(asked.storage_size.gb).ok().filter(|size| *size >= MIN_GB);
    let size_gb = size_gb.ok_or_else(|| bad(format!("Invalid storage size - Must be at least {MIN_GB}GB.")))?;
    let tags = asked.tags.unwrap_or_default();
    Ok(NewVfs { label: asked.label, region, size_gb, tags, status: Status::Pending })
}

#[derive(Debug, Deserialize)]
struct Update {
    label: Option<String>,
    storage_size: Option<AskedSize>,
}

pub(super) fn update(cloud: &Cloud, id: &str, body: &[u8]) -> Outcome {
    let asked: Update = read(body)?;
    let mut state = cloud.state();
    let vfs = known(&state, id)?;
    // The official client sends a size of 0 when only the label is to change.
    let size = asked.storage_size.map(|size| size.gb).filter(|gb| *gb != 0);
    if asked.label.is_none() && size.is_none() {
        return Err(bad("Nothing to change"));
    }
    let grown = size.map(|gb| u32::try_from(gb).ok().filter(|gb| *gb >= vfs.size_gb));
    if grown == Some(None) {
        return Err(bad("The storage size can only be increased."));
    }
    if let Some(vfs) = state.file_systems.get_mut(id) {
        vfs.label = asked.label.unwrap_or_else(|| vfs.label.clone());
        vfs.size_gb = grown.flatten().unwrap_or(vfs.size_gb);
    }
    Ok(Answer::json(200, &Row::of(known(&state, id)?)))
}

pub(super) async fn delete(cloud: &Cloud, id: &str) -> Outcome {
    {
        let state = cloud.state();
        if state.file_systems.had(id) {
            return Err(Refusal::new(409, "Subscription is already closed."));
        }
        if !known(&state, id)?.attachments.is_empty() {
            // Vultr's spelling.
            let text = "Can not delete this subscription until it is detatched from all machines";
            return Err(Refusal::new(state.behaviour.vfs_in_use_status, text));
        }
    }
    cloud.drop_vfs(id).await;
    Ok(Answer::empty())
}
