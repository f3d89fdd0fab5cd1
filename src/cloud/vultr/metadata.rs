//! The metadata service of an instance.

use std::time::Duration;

use serde::Deserialize;

use super::PROFILE;
use crate::{cloud::InstanceIdentity, error::Error, volume::NodeId};

/// Vultr's own client gives it 3 s.
const TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Deserialize)]
struct Metadata {
    /// The API's id; `instanceid` is an older number.
    #[serde(rename = "instance-v2-id")]
    instance_v2_id: String,
    region: Region,
}

#[derive(Debug, Deserialize)]
struct Region {
    regioncode: String,
}

/// Who this instance is.
///
/// # Errors
/// [`Error::Metadata`] with what the operator can set instead.
pub(super) async fn identity(url: &str) -> Result<InstanceIdentity, Error> {
    let address = format!("{}/v1.json", url.trim_end_matches('/'));
    let problem = |what: String| {
        Error::Metadata(format!("the metadata service at {address} {what}; --node-id and --region can be set instead"))
    };
    let answer = async {
        // A proxy must not answer for a link-local address.
        let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        client.get(&address).send().await?.error_for_status()?.bytes().await
    };
    let body = answer.await.map_err(|error| problem(format!("cannot be read ({})", error.without_url())))?;
    let metadata: Metadata =
        serde_json::from_slice(&body).map_err(|error| problem(format!("says what is not understood ({error})")))?;
    let id = NodeId::parse(PROFILE.id_form, &metadata.instance_v2_id)
        .ok_or_else(|| problem("names an instance-v2-id that is no UUID".to_owned()))?;
    let region = metadata.region.regioncode.to_ascii_uppercase();
    if region.is_empty() || !region.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(problem("names no region".to_owned()));
    }
    Ok(InstanceIdentity { id, region })
}
