//! What Vultr's API says: the JSON it sends and the one reading of its errors.

use reqwest::StatusCode;
use serde::{Deserialize, de::DeserializeOwned};

use super::{HDD, NVME, PROFILE};
use crate::{
    cloud::{CloudError, Origin, Volume, VolumeState},
    volume::{Gib, NodeId, SnapshotId, VolumeId},
};

/// `{"error":"<sentence>","status":<number>}`, the form of every error of the application.
#[derive(Debug, Deserialize)]
struct Refusal {
    error: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct OneBlock {
    pub(super) block: Block,
}

#[derive(Debug, Deserialize)]
pub(super) struct Blocks {
    pub(super) blocks: Vec<Block>,
    pub(super) meta: Option<Meta>,
}

/// Paging; the links are empty strings where there is no further page.
#[derive(Debug, Deserialize)]
pub(super) struct Meta {
    pub(super) total: Option<u64>,
    pub(super) links: Option<Links>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Links {
    #[serde(default)]
    pub(super) next: Option<String>,
}

impl Meta {
    pub(super) fn next(&self) -> Option<String> {
        self.links.as_ref()?.next.clone().filter(|next| !next.is_empty())
    }
}

/// A block volume. Fields that a decision rests on are required: their absence must not look like "not attached".
#[derive(Debug, Deserialize)]
pub(super) struct Block {
    id: String,
    status: String,
    size_gb: u64,
    region: String,
    attached_to_instance: String,
    label: Option<String>,
    /// Perhaps not there before the volume is; an attach is not reported without it.
    mount_id: Option<String>,
    /// Left out of the rows of a listing.
    #[serde(rename = "block_type")]
    kind: Option<String>,
    bootable: Option<bool>,
    /// Since 2026; older answers do not have it.
    snapshot_id: Option<String>,
    date_created: Option<String>,
}

impl TryFrom<Block> for Volume {
    type Error = CloudError;

    fn try_from(block: Block) -> Result<Self, CloudError> {
        let unreadable = |what: &str| CloudError::Unknown(format!("the API shows a block volume with {what}"));
        let id = VolumeId::parse(PROFILE.id_form, &block.id).ok_or_else(|| unreadable("an id that is no UUID"))?;
        let attached_to = match block.attached_to_instance.as_str() {
            "" => None,
            node => {
                Some(NodeId::parse(PROFILE.id_form, node).ok_or_else(|| unreadable("an instance that is no UUID"))?)
            }
        };
        Ok(Self {
            id,
            name: block.label.unwrap_or_default(),
            size: Gib(block.size_gb),
            volume_type: match block.kind.as_deref() {
                Some("high_perf") => Some(&NVME),
                Some("storage_opt") => Some(&HDD),
                _ => None,
            },
            region: block.region.to_ascii_lowercase(),
            attached_to,
            serial: block.mount_id.unwrap_or_default(),
            state: state(block.status),
            origin: match block.snapshot_id.as_deref() {
                None => Origin::Untold,
                Some("") => Origin::Blank,
                Some(id) => Origin::Snapshot(
                    SnapshotId::parse(PROFILE.id_form, id).ok_or_else(|| unreadable("a snapshot that is no UUID"))?,
                ),
            },
            bootable: block.bootable.unwrap_or_default(),
            created: block.date_created.unwrap_or_default(),
        })
    }
}

/// What the API calls the state of a volume, block or VFS.
pub(super) fn state(status: String) -> VolumeState {
    match status.as_str() {
        "active" => VolumeState::Active,
        "pending" => VolumeState::Pending,
        _ => VolumeState::Other(status),
    }
}

/// Decodes a 2xx answer.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CloudError> {
    serde_json::from_slice(body).map_err(|error| CloudError::Unknown(format!("the answer cannot be read: {error}")))
}

type Meaning = fn(String) -> CloudError;

/// Texts of a 4xx that mean something of their own. Status and code alone do not tell; the API has no error codes.
const TEXTS: &[(&str, Meaning)] = &[
    // vultr-csi and the Terraform provider match this one; its status is documented nowhere.
    ("invalid block storage id", CloudError::NotFound),
    // vultr-csi, for one hour in 2025-11.
    ("block storage subscription not found", CloudError::NotFound),
    ("subscription id not found", CloudError::NotFound),
    // Seen nowhere; the API's documents have no 404 for a snapshot that is asked for, so it comes with a 400.
    ("invalid block storage snapshot id", CloudError::NotFound),
    ("invalid snapshot id", CloudError::NotFound),
    // The Terraform provider takes this text for gone, whatever its status.
    ("instance not found", CloudError::NotFound),
    // vultr-csi: while another volume of the instance is being attached or detached.
    ("currently locked", CloudError::Busy),
    ("instance is locked", CloudError::Busy),
    // vultr-csi, in answer to an attach. Where the volume is on another instance a read says so; where it is on none, an
    // attach is under way.
    ("is already attached to a server", CloudError::Busy),
    // Seen by scripts that attach to an instance that has just been made.
    ("must be in an active state", CloudError::Busy),
    // Seen by the same: the region does not have the tier.
    ("unable to find a block storage cluster", CloudError::Exhausted),
    // vultr-csi, of a VFS that the instance does not have.
    ("attachment not found", CloudError::NotFound),
    // Seen nowhere; what a refusal for want of quota or money is likely to say.
    ("quota", CloudError::Exhausted),
    ("balance", CloudError::Exhausted),
    ("insufficient", CloudError::Exhausted),
    ("account limit", CloudError::Exhausted),
];

/// What a status other than 2xx means: the status first, then the text.
pub(super) fn meaning(status: StatusCode, body: &str) -> CloudError {
    let refusal = serde_json::from_str::<Refusal>(body).ok();
    let text = printable(refusal.as_ref().map_or(body, |refusal| &refusal.error));
    match status.as_u16() {
        401 | 403 => CloudError::Unauthorized(text),
        429 => CloudError::RateLimited,
        // A 404 of somebody else, a proxy or a wrong --api-url, does not mean that a volume is gone.
        404 if refusal.is_none() => CloudError::Unknown(format!("404 that is not the API's own: {text}")),
        404 => CloudError::NotFound(text),
        402 => CloudError::Exhausted(text),
        408 => CloudError::Unknown(format!("408: {text}")),
        code @ 400..=499 => {
            let lower = text.to_ascii_lowercase();
            match TEXTS.iter().find(|(part, _)| refusal.is_some() && lower.contains(part)) {
                Some((_, means)) => means(text),
                None => CloudError::Refused { status: code, text },
            }
        }
        // A 5xx may have had its effect, whatever it says.
        code => CloudError::Unknown(format!("{code}: {text}")),
    }
}

/// The API's words, fit for a log line and an event.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Is = fn(&CloudError) -> bool;

    const SHOWN: &str = r#"{"block":{"id":"cb676a46-66fd-4dfb-b839-443f2e6c0b60",
        "date_created":"2020-10-10T01:56:20+00:00","cost":5,"pending_charges":0.07,"status":"active","size_gb":50,
        "region":"EWR","attached_to_instance":"","attached_to_instance_ip":"","label":"pvc-0123456789abcdef",
        "mount_id":"ewr-2f5d7a314fe44f","block_type":"high_perf","os_id":0,"snapshot_id":"","bootable":false}}"#;

    fn volume(text: &str) -> Result<Volume, CloudError> {
        decode::<OneBlock>(text.as_bytes())?.block.try_into()
    }

    #[test]
    fn a_block_is_read_as_the_api_shows_it() {
        let volume = volume(SHOWN).unwrap();
        assert_eq!(volume.size, Gib(50));
        assert_eq!(volume.region, "ewr");
        assert_eq!(volume.attached_to, None);
        assert_eq!(volume.volume_type, Some(&NVME));
        assert_eq!(volume.origin, Origin::Blank);
        assert_eq!(volume.state, VolumeState::Active);
    }

    #[test]
    fn what_a_decision_rests_on_is_never_made_up() {
        for missing in ["attached_to_instance", "status", "size_gb", "region", "id"] {
            let without = SHOWN.replace(&format!("\"{missing}\""), "\"other\"");
            assert!(matches!(volume(&without), Err(CloudError::Unknown(_))), "{missing}");
        }
        let odd = SHOWN.replace(r#""attached_to_instance":"""#, r#""attached_to_instance":"somewhere""#);
        assert!(matches!(volume(&odd), Err(CloudError::Unknown(_))));
    }

    #[test]
    fn statuses_come_before_texts() {
        let app = |text: &str, status: u16| format!(r#"{{"error":"{text}","status":{status}}}"#);
        let cases: &[(u16, String, Is)] = &[
            (404, app("Invalid block storage ID", 404), |e| matches!(e, CloudError::NotFound(_))),
            (400, app("Invalid block storage ID", 400), |e| matches!(e, CloudError::NotFound(_))),
            (400, app("Block storage subscription not found.", 400), |e| matches!(e, CloudError::NotFound(_))),
            (404, "<html>not here</html>".to_owned(), |e| matches!(e, CloudError::Unknown(_))),
            (502, app("Invalid block storage ID", 404), |e| matches!(e, CloudError::Unknown(_))),
            (500, app("Unable to attach: Server is currently locked", 500), |e| matches!(e, CloudError::Unknown(_))),
            (400, app("Unable to attach: Server is currently locked", 400), |e| matches!(e, CloudError::Busy(_))),
            (401, app("Invalid API token.", 401), |e| matches!(e, CloudError::Unauthorized(_))),
            (401, app("Unauthorized IP address: 192.0.2.1", 401), |e| matches!(e, CloudError::Unauthorized(_))),
            (429, r#"{"status": 429,"error": "rate limit exceeded"}"#.to_owned(), |e| {
                matches!(e, CloudError::RateLimited)
            }),
            (400, app("Nothing to change", 400), |e| matches!(e, CloudError::Refused { status: 400, .. })),
            (400, app("Insufficient balance", 400), |e| matches!(e, CloudError::Exhausted(_))),
            (402, app("Please add a payment method", 402), |e| matches!(e, CloudError::Exhausted(_))),
            (422, app("Subscription ID Not Found.", 422), |e| matches!(e, CloudError::NotFound(_))),
            (301, String::new(), |e| matches!(e, CloudError::Unknown(_))),
        ];
        for (status, body, is) in cases {
            let error = meaning(StatusCode::from_u16(*status).unwrap(), body);
            assert!(is(&error), "{status} {body}: {error:?}");
        }
    }
}
