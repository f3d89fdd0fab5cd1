//! `/v2/vfs`: file systems that many instances share, over virtiofs. Their objects are not wrapped.

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::{
    PROFILE, VFS,
    wire::{Meta, decode, state},
};
use crate::{
    cloud::{CloudError, NewShare, Page, Region, Share, ShareAttachment, Shares, http::Call, pace::Priority},
    volume::{Gib, NodeId, VolumeId},
};

const SHARES: &str = "/v2/vfs";

/// A part of the API by itself: that it fails says nothing of block volumes.
fn call(operation: &'static str, priority: Priority, method: Method, path: String) -> Call {
    Call { vital: false, ..Call::new(operation, priority, method, path) }
}

#[async_trait::async_trait]
impl Shares for super::Vultr {
    async fn list_shares(&self, cursor: Option<&str>, size: u32) -> Result<Page<Share>, CloudError> {
        let call = call("list_vfs", Priority::List, Method::GET, SHARES.to_owned()).page(cursor, size);
        let page: Rows = decode(&self.http.send(call).await?)?;
        Ok(Page {
            next: page.meta.as_ref().and_then(Meta::next),
            total: page.meta.as_ref().and_then(|meta| meta.total),
            items: page.vfs.into_iter().map(Share::try_from).collect::<Result<_, _>>()?,
        })
    }

    async fn share(&self, id: &VolumeId) -> Result<Share, CloudError> {
        let call = call("get_vfs", Priority::Read, Method::GET, format!("{SHARES}/{id}"));
        decode::<Row>(&self.http.send(call).await?)?.try_into()
    }

    async fn create_share(&self, share: &NewShare) -> Result<Share, CloudError> {
        let body = json!({
            "region": share.region,
            "label": share.name,
            "storage_size": { "gb": share.size.0 },
            // The only one there is.
            "disk_type": "nvme",
            "tags": share.tags,
        });
        let call = call("create_vfs", Priority::Create, Method::POST, SHARES.to_owned()).with(body);
        decode::<Row>(&self.http.send(call).await?)?.try_into()
    }

    async fn grow_share(&self, id: &VolumeId, size: Gib) -> Result<(), CloudError> {
        let call = call("update_vfs", Priority::Expand, Method::PUT, format!("{SHARES}/{id}"));
        self.http.send(call.with(json!({ "storage_size": { "gb": size.0 } }))).await.map(drop)
    }

    async fn delete_share(&self, id: &VolumeId) -> Result<(), CloudError> {
        self.http.send(call("delete_vfs", Priority::Delete, Method::DELETE, format!("{SHARES}/{id}"))).await.map(drop)
    }

    async fn share_attachments(&self, id: &VolumeId) -> Result<Vec<ShareAttachment>, CloudError> {
        let call = call("list_vfs_attachments", Priority::Read, Method::GET, format!("{SHARES}/{id}/attachments"));
        let rows: Attachments = decode(&self.http.send(call).await?)?;
        rows.attachments.into_iter().map(ShareAttachment::try_from).collect()
    }

    async fn share_attachment(&self, id: &VolumeId, node: &NodeId) -> Result<ShareAttachment, CloudError> {
        let call = call("get_vfs_attachment", Priority::Read, Method::GET, format!("{SHARES}/{id}/attachments/{node}"));
        decode::<AttachmentRow>(&self.http.send(call).await?)?.try_into()
    }

    async fn attach_share(&self, id: &VolumeId, node: &NodeId) -> Result<ShareAttachment, CloudError> {
        let call = call("attach_vfs", Priority::Attach, Method::PUT, format!("{SHARES}/{id}/attachments/{node}"));
        decode::<AttachmentRow>(&self.http.send(call).await?)?.try_into()
    }

    async fn detach_share(&self, id: &VolumeId, node: &NodeId) -> Result<(), CloudError> {
        let call = call("detach_vfs", Priority::Detach, Method::DELETE, format!("{SHARES}/{id}/attachments/{node}"));
        self.http.send(call).await.map(drop)
    }

    async fn share_regions(&self) -> Result<Vec<Region>, CloudError> {
        let call = call("list_vfs_regions", Priority::Create, Method::GET, format!("{SHARES}/regions"));
        let rows: Regions = decode(&self.http.send(call).await?)?;
        let region = |row: RegionRow| Region { id: row.id.to_ascii_lowercase(), volume_types: vec![&VFS] };
        Ok(rows.regions.into_iter().map(region).collect())
    }
}

#[derive(Debug, Deserialize)]
struct Rows {
    vfs: Vec<Row>,
    meta: Option<Meta>,
}

/// Fields that a decision rests on are required.
#[derive(Debug, Deserialize)]
struct Row {
    id: String,
    region: String,
    status: String,
    label: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    disk_type: Option<String>,
    storage_size: StorageSize,
    date_created: Option<String>,
}

#[derive(Debug, Deserialize)]
struct StorageSize {
    gb: u64,
}

#[derive(Debug, Deserialize)]
struct Attachments {
    attachments: Vec<AttachmentRow>,
}

#[derive(Debug, Deserialize)]
struct AttachmentRow {
    state: String,
    target_id: String,
    mount_tag: u64,
}

#[derive(Debug, Deserialize)]
struct Regions {
    regions: Vec<RegionRow>,
}

#[derive(Debug, Deserialize)]
struct RegionRow {
    id: String,
}

impl TryFrom<Row> for Share {
    type Error = CloudError;

    fn try_from(row: Row) -> Result<Self, CloudError> {
        let id = VolumeId::parse(PROFILE.id_form, &row.id)
            .ok_or_else(|| CloudError::Unknown("the API shows a VFS with an id that is no UUID".to_owned()))?;
        Ok(Self {
            id,
            name: row.label.unwrap_or_default(),
            size: Gib(row.storage_size.gb),
            volume_type: row.disk_type.is_none_or(|kind| kind.eq_ignore_ascii_case("nvme")).then_some(&VFS),
            region: row.region.to_ascii_lowercase(),
            state: state(row.status),
            tags: row.tags,
            created: row.date_created.unwrap_or_default(),
        })
    }
}

impl TryFrom<AttachmentRow> for ShareAttachment {
    type Error = CloudError;

    fn try_from(row: AttachmentRow) -> Result<Self, CloudError> {
        let node = NodeId::parse(PROFILE.id_form, &row.target_id).ok_or_else(|| {
            CloudError::Unknown("the API shows a VFS attachment to an instance that is no UUID".to_owned())
        })?;
        Ok(Self { node, ready: row.state.eq_ignore_ascii_case("attached"), tag: row.mount_tag.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::VolumeState;

    const SHOWN: &str = r#"{"id":"cb676a46-66fd-4dfb-b839-443f2e6c0b60","region":"ewr","date_created":"2025-01-06 16:31:03",
        "status":"active","label":"pvc-1","tags":["csi-cluster:prod"],"disk_type":"nvme",
        "storage_size":{"bytes":107374182400,"gb":100},"storage_used":{"bytes":0,"gb":0},
        "billing":{"charges":0.15,"monthly":10}}"#;

    #[test]
    fn a_share_is_read_as_the_api_shows_it() {
        let share: Share = decode::<Row>(SHOWN.as_bytes()).unwrap().try_into().unwrap();
        assert_eq!((share.size, share.name.as_str(), share.region.as_str()), (Gib(100), "pvc-1", "ewr"));
        assert_eq!((share.state, share.volume_type), (VolumeState::Active, Some(&VFS)));
        assert_eq!(share.tags, ["csi-cluster:prod"]);
    }

    #[test]
    fn an_attachment_is_ready_only_when_it_is_attached() {
        for (state, ready) in [("ATTACHED", true), ("attached", true), ("PENDING", false), ("DETACHING", false)] {
            let row = format!(
                r#"{{"state":"{state}","vfs_id":"x","target_id":"cb676a46-66fd-4dfb-b839-443f2e6c0b60","mount_tag":12345}}"#
            );
            let attachment: ShareAttachment = decode::<AttachmentRow>(row.as_bytes()).unwrap().try_into().unwrap();
            assert_eq!((attachment.ready, attachment.tag.as_str()), (ready, "12345"), "{state}");
        }
    }
}
