//! `/v2/blocks/snapshots`: snapshots of block volumes (new in 2026).

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::{
    PROFILE,
    wire::{Meta, decode},
};
use crate::{
    cloud::{CloudError, Page, Snapshot, SnapshotState, Snapshots, http::Call, pace::Priority},
    volume::{SnapshotId, VolumeId},
};

const SNAPSHOTS: &str = "/v2/blocks/snapshots";

#[async_trait::async_trait]
impl Snapshots for super::Vultr {
    async fn list_snapshots(&self, cursor: Option<&str>, size: u32) -> Result<Page<Snapshot>, CloudError> {
        let call = Call::new("list_snapshots", Priority::Read, Method::GET, SNAPSHOTS).page(cursor, size);
        let page: Rows = decode(&self.http.send(call).await?)?;
        Ok(Page {
            next: page.meta.as_ref().and_then(Meta::next),
            total: page.meta.as_ref().and_then(|meta| meta.total),
            items: page.snapshots.into_iter().map(Snapshot::try_from).collect::<Result<_, _>>()?,
        })
    }

    async fn snapshot(&self, id: &SnapshotId) -> Result<Snapshot, CloudError> {
        let call = Call::new("get_snapshot", Priority::Read, Method::GET, format!("{SNAPSHOTS}/{id}"));
        one(&self.http.send(call).await?)
    }

    async fn create_snapshot(&self, source: &VolumeId, description: &str) -> Result<Snapshot, CloudError> {
        let body = json!({ "block_id": source.as_str(), "description": description });
        let call = Call::new("create_snapshot", Priority::Create, Method::POST, SNAPSHOTS).with(body);
        one(&self.http.send(call).await?)
    }

    async fn delete_snapshot(&self, id: &SnapshotId) -> Result<(), CloudError> {
        let call = Call::new("delete_snapshot", Priority::Delete, Method::DELETE, format!("{SNAPSHOTS}/{id}"));
        self.http.send(call).await.map(drop)
    }
}

#[derive(Debug, Deserialize)]
struct Rows {
    snapshots: Vec<Row>,
    meta: Option<Meta>,
}

/// Fields that a decision rests on are required.
#[derive(Debug, Deserialize)]
struct Row {
    id: String,
    block_id: Option<String>,
    #[serde(default)]
    description: String,
    state: String,
    size: u64,
    #[serde(default)]
    added_at: String,
}

/// One snapshot, in each of the shapes that Vultr's own documents and clients show: bare; wrapped as a snapshot, as a
/// block, and as a list of one.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum One {
    Bare(Row),
    Snapshot { snapshot: Row },
    Block { block: Row },
    List { snapshot: [Row; 1] },
}

fn one(body: &[u8]) -> Result<Snapshot, CloudError> {
    let (One::Bare(row) | One::Snapshot { snapshot: row } | One::Block { block: row } | One::List { snapshot: [row] }) =
        decode(body)?;
    row.try_into()
}

impl TryFrom<Row> for Snapshot {
    type Error = CloudError;

    fn try_from(row: Row) -> Result<Self, CloudError> {
        let unreadable = |what: &str| CloudError::Unknown(format!("the API shows a snapshot with {what}"));
        Ok(Self {
            id: SnapshotId::parse(PROFILE.id_form, &row.id).ok_or_else(|| unreadable("an id that is no UUID"))?,
            // Perhaps empty when the volume is gone: nothing is known of that.
            source: row.block_id.and_then(|id| VolumeId::parse(PROFILE.id_form, &id)),
            description: row.description,
            size_bytes: row.size,
            // The API's documents have the first of each pair, its tools the second.
            state: match row.state.to_ascii_uppercase().as_str() {
                "COMPLETE" | "AVAILABLE" => SnapshotState::Complete,
                "PENDING" => SnapshotState::Pending,
                "FAILED" => SnapshotState::Failed,
                _ => SnapshotState::Other(row.state),
            },
            // `2026-07-17 16:46:05`, without a zone: UTC.
            created: row.added_at.replacen(' ', "T", 1) + "Z",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = r#"{"id":"cb676a46-66fd-4dfb-b839-443f2e6c0b60","block_id":"0c2e5f2c-0c61-4c3b-9d2b-1a3d7a3c2f10",
        "description":"nightly","state":"COMPLETE","added_at":"2026-07-17 16:46:05","updated_at":"2026-07-17 16:46:09",
        "size":10737418240,"next_invoice_date":"","next_invoice_price":""}"#;

    #[test]
    fn a_snapshot_is_read_in_each_of_the_apis_shapes() {
        for shape in [
            SHOWN.to_owned(),
            format!(r#"{{"snapshot":{SHOWN}}}"#),
            format!(r#"{{"block":{SHOWN}}}"#),
            format!(r#"{{"snapshot":[{SHOWN}]}}"#),
        ] {
            let snapshot = one(shape.as_bytes()).unwrap();
            assert_eq!(snapshot.size_bytes, 10 << 30);
            assert_eq!(snapshot.state, SnapshotState::Complete);
            assert_eq!(snapshot.created, "2026-07-17T16:46:05Z");
            assert_eq!(snapshot.description, "nightly");
            assert!(snapshot.source.is_some());
        }
        for other in ["{}", "[]", r#"{"snapshot":[]}"#, r#"{"snapshots":[]}"#] {
            assert!(matches!(one(other.as_bytes()), Err(CloudError::Unknown(_))), "{other}");
        }
    }

    #[test]
    fn states_are_told_as_they_are() {
        for (word, state) in [
            ("PENDING", SnapshotState::Pending),
            ("pending", SnapshotState::Pending),
            ("available", SnapshotState::Complete),
            ("FAILED", SnapshotState::Failed),
            ("DELETED", SnapshotState::Other("DELETED".to_owned())),
        ] {
            assert_eq!(one(SHOWN.replace("COMPLETE", word).as_bytes()).unwrap().state, state);
        }
    }

    #[test]
    fn what_a_decision_rests_on_is_never_made_up() {
        for missing in ["id", "state", "size"] {
            let without = SHOWN.replace(&format!("\"{missing}\""), "\"other\"");
            assert!(matches!(one(without.as_bytes()), Err(CloudError::Unknown(_))), "{missing}");
        }
    }
}
