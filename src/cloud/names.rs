//! The index of names: which things of a kind have which name.
//!
//! The API has no search and does not keep names unique, so before anything is made the account has to be known. It is
//! listed once after the start, and from then on the index follows our own writes. What it says is a hint: an entry is
//! verified by a read before it is trusted, and after a create whose outcome is unknown the account is listed again.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::{CloudError, kind::Kind, watch::Watcher};

/// Which things of a kind have which name.
#[derive(Debug)]
pub struct Names<T: Kind> {
    known: Mutex<Known<T::Id>>,
    /// Held while one is under way, so that there is one at a time.
    listed: tokio::sync::Mutex<Listed>,
}

/// When the listings began: the newest that went in, and the newest that failed.
#[derive(Debug, Default)]
struct Listed {
    last: Option<Instant>,
    failed: Option<(Instant, CloudError)>,
}

#[derive(Debug)]
struct Known<I> {
    /// The ids of each name, the oldest first.
    ids: HashMap<String, BTreeSet<(String, I)>>,
    /// The name and the age of each.
    names: HashMap<I, (String, String)>,
}

impl<T: Kind> Names<T> {
    /// An index that has yet to be filled.
    pub fn new() -> Self {
        let known = Known { ids: HashMap::new(), names: HashMap::new() };
        Self { known: Mutex::new(known), listed: tokio::sync::Mutex::default() }
    }

    /// Those named `name` according to a listing that began at `since` or later, the oldest first.
    ///
    /// # Errors
    /// The cloud's, if the account has to be listed for this and cannot be.
    pub async fn find(&self, watcher: &Watcher<T>, name: &str, since: Instant) -> Result<Vec<T::Id>, CloudError> {
        self.list_since(watcher, since).await?;
        let known = self.lock();
        Ok(known.ids.get(name).map(|ids| ids.iter().map(|(_, id)| id.clone()).collect()).unwrap_or_default())
    }

    /// Lists the account unless a listing that began at `since` or later is already in.
    ///
    /// # Errors
    /// The cloud's.
    pub async fn list_since(&self, watcher: &Watcher<T>, since: Instant) -> Result<(), CloudError> {
        let arrived = Instant::now();
        let mut listed = self.listed.lock().await;
        if listed.last.is_some_and(|begun| begun >= since) {
            return Ok(());
        }
        // Those who have waited for the same listing do not each try it again.
        if let Some((begun, error)) = &listed.failed
            && *begun > arrived
        {
            return Err(error.clone());
        }
        let begun = Instant::now();
        match watcher.list_whole().await {
            Ok(things) => things.iter().for_each(|thing| self.insert(thing)),
            Err(error) => {
                listed.failed = Some((begun, error.clone()));
                return Err(error);
            }
        }
        listed.last = Some(begun);
        Ok(())
    }

    /// Whether it is known that there is a thing of this id, or was.
    pub fn knows(&self, id: &T::Id) -> bool {
        self.lock().names.contains_key(id)
    }

    /// The name of a thing, as far as it is known.
    pub fn name_of(&self, id: &T::Id) -> Option<String> {
        self.lock().names.get(id).map(|(name, _)| name.clone()).filter(|name| !name.is_empty())
    }

    /// Notes a thing that exists.
    pub fn insert(&self, thing: &T) {
        let (id, created) = (thing.id().clone(), thing.created().to_owned());
        let mut known = self.lock();
        known.forget(&id);
        let name = thing.name().unwrap_or_default().to_owned();
        if !name.is_empty() {
            known.ids.entry(name.clone()).or_default().insert((created.clone(), id.clone()));
        }
        known.names.insert(id, (name, created));
    }

    /// Forgets a thing that is gone.
    pub fn remove(&self, gone: &T::Id) {
        self.lock().forget(gone);
    }

    fn lock(&self) -> MutexGuard<'_, Known<T::Id>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<I: Clone + Ord + std::hash::Hash> Known<I> {
    fn forget(&mut self, id: &I) {
        let Some((name, created)) = self.names.remove(id) else { return };
        if let Some(ids) = self.ids.get_mut(&name) {
            ids.remove(&(created, id.clone()));
            if ids.is_empty() {
                self.ids.remove(&name);
            }
        }
    }
}

impl<T: Kind> Default for Names<T> {
    fn default() -> Self {
        Self::new()
    }
}
