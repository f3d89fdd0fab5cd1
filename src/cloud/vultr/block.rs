//! `/v2/blocks`: block volumes.

use reqwest::Method;
use serde_json::json;

use super::wire::{Blocks, Meta, OneBlock, decode};
use crate::{
    cloud::{
        Change, CloudError, NewVolume, Page, Volume,
        http::{Call, Http},
        pace::Priority,
    },
    volume::{NodeId, VolumeId},
};

const BLOCKS: &str = "/v2/blocks";

pub(super) async fn list(http: &Http, cursor: Option<&str>, size: u32) -> Result<Page<Volume>, CloudError> {
    let call = Call::new("list_blocks", Priority::Read, Method::GET, BLOCKS).page(cursor, size);
    let page: Blocks = decode(&http.send(call).await?)?;
    Ok(Page {
        next: page.meta.as_ref().and_then(Meta::next),
        total: page.meta.as_ref().and_then(|meta| meta.total),
        items: page.blocks.into_iter().map(Volume::try_from).collect::<Result<_, _>>()?,
    })
}

pub(super) async fn get(http: &Http, id: &VolumeId) -> Result<Volume, CloudError> {
    let call = Call::new("get_block", Priority::Read, Method::GET, format!("{BLOCKS}/{id}"));
    decode::<OneBlock>(&http.send(call).await?)?.block.try_into()
}

pub(super) async fn create(http: &Http, volume: &NewVolume) -> Result<Volume, CloudError> {
    let mut body = json!({
        "region": volume.region,
        "size_gb": volume.size.0,
        "label": volume.name,
        "block_type": volume.volume_type.name,
    });
    if let Some(snapshot) = &volume.snapshot {
        body["snapshot_id"] = json!(snapshot.as_str());
    }
    let call = Call::new("create_block", Priority::Create, Method::POST, BLOCKS).with(body);
    decode::<OneBlock>(&http.send(call).await?)?.block.try_into()
}

pub(super) async fn change(http: &Http, id: &VolumeId, change: &Change) -> Result<(), CloudError> {
    let call = Call::new("update_block", Priority::Expand, Method::PATCH, format!("{BLOCKS}/{id}"));
    http.send(call.with(json!({ "size_gb": change.size.0 }))).await.map(drop)
}

pub(super) async fn delete(http: &Http, id: &VolumeId) -> Result<(), CloudError> {
    http.send(Call::new("delete_block", Priority::Delete, Method::DELETE, format!("{BLOCKS}/{id}"))).await.map(drop)
}

/// `live` is always sent: without it Vultr restarts the instance.
pub(super) async fn attach(http: &Http, id: &VolumeId, node: &NodeId) -> Result<(), CloudError> {
    let call = Call::new("attach_block", Priority::Attach, Method::POST, format!("{BLOCKS}/{id}/attach"));
    http.send(call.with(json!({ "instance_id": node.as_str(), "live": true }))).await.map(drop)
}

/// Takes no instance: it hits whichever has the volume.
pub(super) async fn detach(http: &Http, id: &VolumeId) -> Result<(), CloudError> {
    let call = Call::new("detach_block", Priority::Detach, Method::POST, format!("{BLOCKS}/{id}/detach"));
    http.send(call.with(json!({ "live": true }))).await.map(drop)
}
