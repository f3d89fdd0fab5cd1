//! ListVolumes: the account's volumes, page by page as the cloud has them.

use super::Controller;
use crate::{
    cloud::{CloudError, Volume},
    error::Error,
};

/// What our page tokens begin with, before the cloud's own cursor.
const TOKEN: &str = "page:";

/// Some of the account's volumes.
#[derive(Debug, Clone)]
pub struct VolumeList {
    /// The volumes.
    pub volumes: Vec<Volume>,
    /// Where the next call goes on.
    pub next_token: Option<String>,
}

impl Controller {
    /// The volumes from `starting_token` on, at most `max_entries` (0: all there are).
    ///
    /// # Errors
    /// [`Error::BadPage`] for a token that is not ours or that the cloud no longer knows.
    pub async fn list(&self, starting_token: &str, max_entries: u32) -> Result<VolumeList, Error> {
        let mut cursor = match starting_token.strip_prefix(TOKEN) {
            Some(cursor) if !cursor.is_empty() => Some(cursor.to_owned()),
            _ if starting_token.is_empty() => None,
            _ => return Err(Error::BadPage(starting_token.to_owned())),
        };
        let cloud = &self.inner.cloud;
        let most = if max_entries == 0 { usize::MAX } else { max_entries as usize };
        let mut volumes = Vec::new();
        loop {
            let room = u32::try_from(most - volumes.len()).unwrap_or(u32::MAX).min(cloud.profile().page_size);
            let page = cloud.list_volumes(cursor.as_deref(), room).await.map_err(|cause| match (cause, &cursor) {
                (CloudError::Refused { .. } | CloudError::NotFound(_), Some(_)) => {
                    Error::BadPage(starting_token.to_owned())
                }
                (cause, _) => Error::Cloud { doing: "listing the volumes".to_owned(), cause },
            })?;
            volumes.extend(page.volumes);
            let next_token = page.next.as_ref().map(|next| format!("{TOKEN}{next}"));
            if next_token.is_none() || volumes.len() >= most || page.next == cursor {
                return Ok(VolumeList { volumes, next_token });
            }
            cursor = page.next;
        }
    }
}
