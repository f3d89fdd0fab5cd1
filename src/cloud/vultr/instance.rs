//! `/v2/instances` and `/v2/regions`.

use reqwest::Method;
use serde::Deserialize;

use super::{
    HDD, NVME,
    wire::{Meta, decode},
};
use crate::{
    cloud::{
        CloudError, Region,
        http::{Call, Http},
        pace::Priority,
    },
    volume::NodeId,
};

pub(super) async fn exists(http: &Http, id: &NodeId) -> Result<bool, CloudError> {
    let call = Call {
        operation: "get_instance",
        priority: Priority::Read,
        method: Method::GET,
        path: format!("/v2/instances/{id}"),
        query: Vec::new(),
        body: None,
    };
    match http.send(call).await {
        Ok(_) => Ok(true),
        Err(CloudError::NotFound(_)) => Ok(false),
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
        let mut query = vec![("per_page", "500".to_owned())];
        query.extend(cursor.clone().map(|cursor| ("cursor", cursor)));
        let call = Call {
            operation: "list_regions",
            priority: Priority::Create,
            method: Method::GET,
            path: "/v2/regions".to_owned(),
            query,
            body: None,
        };
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
