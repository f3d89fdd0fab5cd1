//! What volumes are being made from: it must not be deleted meanwhile.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::error::Error;

/// The snapshots and volumes that are being read from, by id.
#[derive(Debug, Clone, Default)]
pub(super) struct Sources {
    held: Arc<Mutex<BTreeMap<String, usize>>>,
}

/// Keeps a source from being deleted for as long as it lives.
#[derive(Debug)]
pub(super) struct Held {
    sources: Sources,
    id: String,
}

impl Sources {
    /// Notes that something is made from `id`.
    pub(super) fn hold(&self, id: &str) -> Held {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner).entry(id.to_owned()).or_default() += 1;
        Held { sources: self.clone(), id: id.to_owned() }
    }

    /// Whether `id` may be deleted.
    ///
    /// # Errors
    /// [`Error::Precondition`] while something is made from it.
    pub(super) fn free(&self, id: &str) -> Result<(), Error> {
        if self.held.lock().unwrap_or_else(PoisonError::into_inner).contains_key(id) {
            let problem = format!("{id} is in use: a snapshot or a volume is being made from it; delete it after that");
            return Err(Error::Precondition(problem));
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.sources.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_free_only_when_all_have_let_go_of_it() {
        let sources = Sources::default();
        let (one, two) = (sources.hold("a"), sources.hold("a"));
        assert!(sources.free("a").is_err() && sources.free("b").is_ok());
        drop(one);
        assert!(sources.free("a").is_err());
        drop(two);
        assert!(sources.free("a").is_ok());
    }
}
