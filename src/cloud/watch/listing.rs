//! Whole listings of what an account has.

use std::collections::HashSet;

use crate::cloud::{Cloud, CloudError, kind::Kind};

/// How often an account that changes while it is listed is listed again.
const TRIES: usize = 3;

/// Everything of a kind that the account has, by a listing that begins now; one that changes meanwhile may hide some.
/// Also how many the cloud counts, if it does.
pub(super) async fn all<T: Kind>(cloud: &dyn Cloud) -> Result<(Vec<T>, Option<u64>), CloudError> {
    let (mut items, mut total) = (Vec::new(), None);
    let mut cursors: HashSet<String> = HashSet::new();
    let mut cursor: Option<String> = None;
    loop {
        let page = T::page(cloud, cursor.as_deref(), cloud.profile().page_size).await?;
        items.extend(page.items);
        // A row that goes while the pages are read may hide another: the greatest count is the one to hold against.
        total = total.max(page.total);
        let Some(next) = page.next else { return Ok((items, total)) };
        // A cloud that sends us in circles would have us list for ever.
        if !cursors.insert(next.clone()) {
            return Err(CloudError::Unknown(format!("page {next} of a listing comes twice")));
        }
        cursor = Some(next);
    }
}

/// Everything of a kind that the account has, and not fewer than the cloud counts.
pub(super) async fn whole<T: Kind>(cloud: &dyn Cloud) -> Result<Vec<T>, CloudError> {
    for _ in 0..TRIES {
        let (items, total) = all::<T>(cloud).await?;
        let ids: HashSet<_> = items.iter().map(Kind::id).collect();
        if total.is_none_or(|total| ids.len() as u64 >= total) {
            return Ok(items);
        }
    }
    Err(CloudError::Unknown(format!("the listing has fewer of kind {} than the cloud counts", T::WORD)))
}
