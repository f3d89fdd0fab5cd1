//! The index of CSI names: which volumes of the account have which name.
//!
//! The API has no search and does not keep names unique, so before a volume is made the account has to be known. It is
//! listed once after the start, and from then on the index follows our own writes. What it says is a hint: an entry is
//! verified by a read before it is trusted, and after a create whose outcome is unknown the account is listed again.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
};

use tokio::time::Instant;

use super::{CloudError, Volume, watch::Watcher};
use crate::volume::VolumeId;

/// Which volumes have which CSI name.
#[derive(Debug)]
pub struct Names {
    /// The ids of each name, the oldest volume first.
    ids: Mutex<HashMap<String, BTreeSet<(String, VolumeId)>>>,
    /// When the newest listing that went in began. Held while one is under way, so that there is one at a time.
    listed: tokio::sync::Mutex<Option<Instant>>,
}

impl Names {
    /// An index that has yet to be filled.
    pub fn new() -> Self {
        Self { ids: Mutex::default(), listed: tokio::sync::Mutex::new(None) }
    }

    /// The volumes named `name` according to a listing that began at `since` or later, the oldest first.
    ///
    /// # Errors
    /// The cloud's, if the account has to be listed for this and cannot be.
    pub async fn find(&self, watcher: &Watcher, name: &str, since: Instant) -> Result<Vec<VolumeId>, CloudError> {
        self.list_since(watcher, since).await?;
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(ids.get(name).map(|ids| ids.iter().map(|(_, id)| id.clone()).collect()).unwrap_or_default())
    }

    /// Lists the account unless a listing that began at `since` or later is already in.
    ///
    /// # Errors
    /// The cloud's.
    pub async fn list_since(&self, watcher: &Watcher, since: Instant) -> Result<(), CloudError> {
        let mut listed = self.listed.lock().await;
        if listed.is_some_and(|begun| begun >= since) {
            return Ok(());
        }
        let begun = Instant::now();
        for volume in watcher.list_whole().await? {
            self.insert(&volume);
        }
        *listed = Some(begun);
        Ok(())
    }

    /// Notes a volume that exists. A volume that boots an instance is never ours, whatever its label.
    pub fn insert(&self, volume: &Volume) {
        if volume.bootable || volume.name.is_empty() {
            return;
        }
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.entry(volume.name.clone()).or_default().insert((volume.created.clone(), volume.id.clone()));
    }

    /// Forgets a volume that is gone.
    pub fn remove(&self, gone: &VolumeId) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.retain(|_, ids| {
            ids.retain(|(_, id)| id != gone);
            !ids.is_empty()
        });
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::new()
    }
}
