//! `/v2/instances` and `/v2/regions`.

use reqwest::Method;
use serde::Deserialize;

use super::{
    HDD, NVME,
    wire::{Meta, decode},
};
use crate::{
    cloud::{
        CloudError, InstanceState, Region,
        http::{Call, Http},
        pace::Priority,
    },
    volume::NodeId,
};

#[derive(Debug, Deserialize)]
struct OneInstance {
    instance: InstanceRow,
}

#[derive(Debug, Deserialize)]
struct InstanceRow {
    /// `none`, `locked`, `installingbooting` or `ok`.
    server_status: Option<String>,
}

pub(super) async fn get(http: &Http, id: &NodeId) -> Result<InstanceState, CloudError> {
    let call = Call::new("get_instance", Priority::Read, Method::GET, format!("/v2/instances/{id}"));
    match http.send(call).await {
        Ok(body) => match decode::<OneInstance>(&body)?.instance.server_status.as_deref() {
            Some("locked") => Ok(InstanceState::Locked),
            _ => Ok(InstanceState::Idle),
        },
        Err(CloudError::NotFound(_)) => Ok(InstanceState::Gone),
        Err(error) => Err(error),
    }
}

#[derive(Debug, Deserialize)]
struct Regions {
    regions: Vec<RegionRow>,
    meta: Option<Meta>,
}

#[derive(Debug, Deserialize)]
struct RegionRow {
    id: String,
    #[serde(default)]
    options: Vec<String>,
}

pub(super) async fn regions(http: &Http) -> Result<Vec<Region>, CloudError> {
    let mut regions = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let call = Call::new("list_regions", Priority::Create, Method::GET, "/v2/regions").page(cursor.as_deref(), 500);
        let page: Regions = decode(&http.send(call).await?)?;
        regions.extend(page.regions.into_iter().map(|row| {
            Region {
                volume_types: [&NVME, &HDD]
                    .into_iter()
                    .filter(|kind| row.options.iter().any(|option| *option == format!("block_storage_{}", kind.name)))
                    .collect(),
                id: row.id.to_ascii_lowercase(),
            }
        }));
        match page.meta.and_then(|meta| meta.next()) {
            Some(next) if cursor.as_ref() != Some(&next) => cursor = Some(next),
            _ => return Ok(regions),
        }
    }
}
