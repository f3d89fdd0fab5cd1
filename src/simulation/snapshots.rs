//! What became of snapshots, as the story of the account has it.

use std::{collections::BTreeMap, time::Duration};

use super::account::{Snapshot, State};

/// A snapshot's life.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) source: String,
    pub(super) description: String,
    pub(super) gb: u64,
    /// When it was complete.
    pub(super) complete: Option<Duration>,
    pub(super) failed: bool,
    pub(super) gone: Option<Duration>,
}

impl Taken {
    /// Whether a clone is made by way of it.
    pub(super) fn is_temporary(&self) -> bool {
        self.description.contains(" clone=")
    }
}

/// All snapshots there ever were.
#[derive(Debug, Default)]
pub(super) struct Snapshots(pub(super) BTreeMap<String, Taken>);

impl Snapshots {
    /// A snapshot is being taken; one description is one snapshot.
    pub(super) fn made(&mut self, _: Duration, id: &str, snapshot: &Snapshot, wrong: &mut Vec<String>) {
        let same = |taken: &Taken| taken.description == snapshot.description && taken.gone.is_none() && !taken.failed;
        if let Some((other, _)) = self.0.iter().find(|(_, taken)| same(taken)) {
            wrong.push(format!("snapshot {id} is described as {other} is: {}", snapshot.description));
        }
        let taken = Taken {
            source: snapshot.source.clone(),
            description: snapshot.description.clone(),
            gb: snapshot.gb,
            complete: None,
            failed: false,
            gone: None,
        };
        self.0.insert(id.to_owned(), taken);
    }

    pub(super) fn any_failed(&self) -> bool {
        self.0.values().any(|taken| taken.failed)
    }

    pub(super) fn ended(&mut self, at: Duration, id: &str, state: State) {
        let taken = self.0.get_mut(id).expect("it was taken");
        taken.failed = state == State::Failed;
        taken.complete = (state == State::Complete).then_some(at);
    }

    pub(super) fn gone(&mut self, at: Duration, id: &str) {
        self.0.get_mut(id).expect("it was taken").gone = Some(at);
    }
}
