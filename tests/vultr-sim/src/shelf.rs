//! Everything of one kind that the account has, in the order of its making.

use std::collections::{BTreeMap, HashMap};

/// A thing with an id.
pub(crate) trait Kept {
    fn id(&self) -> &str;
}

/// All things of one kind.
#[derive(Debug)]
pub(crate) struct Shelf<T> {
    by_place: BTreeMap<u64, T>,
    /// Keeps deleted ids too, so that a cursor survives the thing that it names.
    places: HashMap<String, u64>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { by_place: BTreeMap::new(), places: HashMap::new() }
    }
}

impl<T: Kept> Shelf<T> {
    pub(crate) fn insert(&mut self, thing: T) {
        let place = self.places.len() as u64;
        self.places.insert(thing.id().to_owned(), place);
        self.by_place.insert(place, thing);
    }

    pub(crate) fn get(&self, id: &str) -> Option<&T> {
        self.by_place.get(self.places.get(id)?)
    }

    pub(crate) fn get_mut(&mut self, id: &str) -> Option<&mut T> {
        self.by_place.get_mut(self.places.get(id)?)
    }

    pub(crate) fn remove(&mut self, id: &str) -> Option<T> {
        self.by_place.remove(self.places.get(id)?)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.by_place.values()
    }

    /// How many things come before the one that a cursor names; nothing for an id that never was.
    pub(crate) fn before(&self, id: &str) -> Option<usize> {
        let place = *self.places.get(id)?;
        Some(self.by_place.range(..place).count())
    }

    /// Whether there once was a thing with this id that is no more.
    pub(crate) fn had(&self, id: &str) -> bool {
        self.places.contains_key(id) && self.get(id).is_none()
    }
}
