//! `/v2/blocks`: block volumes.

use reqwest::Method;
use serde_json::{Value, json};

use super::wire::{Blocks, OneBlock, decode};
use crate::{
    cloud::{
        CloudError, NewVolume, Volume, VolumePage,
        http::{Call, Http},
        pace::Priority,
    },
    volume::{Gib, NodeId, VolumeId},
};

const BLOCKS: &str = "/v2/blocks";

pub(super) async fn list(http: &Http, cursor: Option<&str>, size: u32) -> Result<VolumePage, CloudError> {
    let mut query = vec![("per_page", size.to_string())];
    if let Some(cursor) = cursor {
        query.push(("cursor", cursor.to_owned()));
    }
    let call = Call {
        operation: "list_blocks",
        priority: Priority::Read,
        method: Method::GET,
        path: BLOCKS.to_owned(),
        query,
        body: None,
    };
    let page: Blocks = decode(&http.send(call).await?)?;
    Ok(VolumePage {
        next: page.meta.as_ref().and_then(super::wire::Meta::next),
        total: page.meta.as_ref().and_then(|meta| meta.total),
        volumes: page.blocks.into_iter().map(Volume::try_from).collect::<Result<_, _>>()?,
    })
}

pub(super) async fn get(http: &Http, id: &VolumeId) -> Result<Volume, CloudError> {
    let call = Call {
        operation: "get_block",
        priority: Priority::Read,
        method: Method::GET,
        path: format!("{BLOCKS}/{id}"),
        query: Vec::new(),
        body: None,
    };
    match http.send(call).await {
        Ok(body) => decode::<OneBlock>(&body)?.block.try_into(),
        Err(CloudError::NotFound(text)) => Err(unless_vfs(http, id, text).await),
        Err(error) => Err(error),
    }
}

/// An id that blocks do not know may be a VFS's, which Vultr's own driver serves under the same name: it must not be
/// taken for gone, and while VFS cannot be reached nobody knows.
async fn unless_vfs(http: &Http, id: &VolumeId, text: String) -> CloudError {
    let call = Call {
        operation: "get_vfs",
        priority: Priority::Read,
        method: Method::GET,
        path: format!("/v2/vfs/{id}"),
        query: Vec::new(),
        body: None,
    };
    match http.send(call).await {
        Ok(_) => CloudError::Unsupported(format!("{id} is a VFS file system, which this version does not serve")),
        Err(CloudError::NotFound(_)) => CloudError::NotFound(text),
        Err(CloudError::Refused { status, text }) => {
            CloudError::Unknown(format!("blocks do not know it, and VFS answers {status}: {text}"))
        }
        Err(error) => error,
    }
}

pub(super) async fn create(http: &Http, volume: &NewVolume) -> Result<Volume, CloudError> {
    let body = json!({
        "region": volume.region,
        "size_gb": volume.size.0,
        "label": volume.name,
        "block_type": volume.volume_type.name,
    });
    let answer = write(http, "create_block", Priority::Create, Method::POST, BLOCKS.to_owned(), Some(body)).await?;
    decode::<OneBlock>(&answer)?.block.try_into()
}

pub(super) async fn grow(http: &Http, id: &VolumeId, size: Gib) -> Result<(), CloudError> {
    let body = json!({ "size_gb": size.0 });
    write(http, "update_block", Priority::Expand, Method::PATCH, format!("{BLOCKS}/{id}"), Some(body)).await?;
    Ok(())
}

pub(super) async fn delete(http: &Http, id: &VolumeId) -> Result<(), CloudError> {
    write(http, "delete_block", Priority::Delete, Method::DELETE, format!("{BLOCKS}/{id}"), None).await?;
    Ok(())
}

/// `live` is always sent: without it Vultr restarts the instance.
pub(super) async fn attach(http: &Http, id: &VolumeId, node: &NodeId) -> Result<(), CloudError> {
    let body = json!({ "instance_id": node.as_str(), "live": true });
    write(http, "attach_block", Priority::Attach, Method::POST, format!("{BLOCKS}/{id}/attach"), Some(body)).await?;
    Ok(())
}

/// Takes no instance: it hits whichever has the volume.
pub(super) async fn detach(http: &Http, id: &VolumeId) -> Result<(), CloudError> {
    let body = json!({ "live": true });
    write(http, "detach_block", Priority::Detach, Method::POST, format!("{BLOCKS}/{id}/detach"), Some(body)).await?;
    Ok(())
}

async fn write(
    http: &Http,
    operation: &'static str,
    priority: Priority,
    method: Method,
    path: String,
    body: Option<Value>,
) -> Result<Vec<u8>, CloudError> {
    http.send(Call { operation, priority, method, path, query: Vec::new(), body }).await
}
