//! Questions about single things, and their answers.

use std::collections::{HashMap, VecDeque};

use tokio::{
    sync::oneshot,
    time::{Duration, Instant},
};

use crate::cloud::{CloudError, kind::Kind};

pub(super) type Asker<T> = oneshot::Sender<Result<T, CloudError>>;

/// How something stands, asked by somebody who waits for the answer.
pub(super) struct Question<T: Kind> {
    pub(super) id: T::Id,
    pub(super) asker: Asker<T>,
}

/// All who ask about one thing.
pub(super) type Asked<T> = (<T as Kind>::Id, Vec<Asker<T>>);

/// In the order of the first question for each thing.
pub(super) fn by_id<T: Kind>(questions: impl Iterator<Item = Question<T>>) -> Vec<Asked<T>> {
    let mut places: HashMap<T::Id, usize> = HashMap::new();
    let mut asked: Vec<Asked<T>> = Vec::new();
    for question in questions {
        let place = *places.entry(question.id.clone()).or_insert_with(|| {
            asked.push((question.id.clone(), Vec::new()));
            asked.len() - 1
        });
        asked[place].1.push(question.asker);
    }
    asked
}

pub(super) fn tell<T: Kind>(askers: Vec<Asker<T>>, answer: &Result<T, CloudError>) {
    for asker in askers {
        // Whoever went away in the meantime needs no answer.
        asker.send(answer.clone()).ok();
    }
}

/// When single questions were answered by requests of their own.
#[derive(Debug, Default)]
pub(super) struct Singles(VecDeque<Instant>);

impl Singles {
    /// How many there were within `time` up to now.
    pub(super) fn within(&mut self, time: Duration) -> u64 {
        let now = Instant::now();
        while self.0.front().is_some_and(|at| now.duration_since(*at) > time) {
            self.0.pop_front();
        }
        self.0.len() as u64
    }

    pub(super) fn add(&mut self, count: usize) {
        self.0.extend(std::iter::repeat_n(Instant::now(), count));
    }
}
