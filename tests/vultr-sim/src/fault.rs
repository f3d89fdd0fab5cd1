//! Faults on demand: what goes wrong, at which requests, before or after the effect.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{answer::Answer, operation::Operation, random::Random};

/// A rule: which requests it meets and what it does to them.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The operation that it meets; [`Operation::Any`] (`"*"`) meets all.
    pub operation: Operation,
    /// The volume, snapshot or file system that it meets, by its id or (also at a create) by its label or description;
    /// a snapshot's create is also met by its volume's, a request for an attachment by its instance's id. None meets all.
    #[serde(default)]
    pub volume: Option<String>,
    /// What it does.
    pub action: Action,
    /// How many matching requests it lets pass first.
    #[serde(default)]
    pub skip: u64,
    /// How often it strikes; none is without end.
    #[serde(default)]
    pub times: Option<u64>,
    /// The share of the requests, beyond the skipped ones, that it strikes; none is all.
    #[serde(default)]
    pub probability: Option<f64>,
    /// The seed of that chance, so that a run replays.
    #[serde(default)]
    pub seed: u64,
}

/// What a fault does. "After" means that the operation took effect.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Gives this answer in place of the real one.
    Answer {
        /// Before or after the effect.
        when: When,
        /// The status.
        status: u16,
        /// The body, word for word.
        #[serde(default)]
        body: String,
        /// The value of a `Retry-After` header.
        #[serde(default)]
        retry_after: Option<String>,
    },
    /// Closes the connection without an answer.
    Cut {
        /// Before or after the effect.
        when: When,
    },
    /// Waits, before the effect or between effect and answer.
    Delay {
        /// Before or after the effect.
        when: When,
        /// How long.
        milliseconds: u64,
    },
}

/// On which side of the effect a fault strikes.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// The operation has not happened (and unless the fault is a delay, it won't).
    Before,
    /// The operation has happened.
    After,
}

impl Fault {
    /// A rule that strikes every request of an operation.
    #[must_use]
    pub fn new(operation: Operation, action: Action) -> Self {
        Self { operation, volume: None, action, skip: 0, times: None, probability: None, seed: 0 }
    }

    /// Answers with a status and a text in the form of the API's errors.
    #[must_use]
    pub fn error(operation: Operation, when: When, status: u16, text: &str) -> Self {
        let Answer { body, .. } = Answer::error(status, text);
        let action = Action::Answer { when, status, body, retry_after: None };
        Self::new(operation, action)
    }

    /// Closes the connection.
    #[must_use]
    pub fn cut(operation: Operation, when: When) -> Self {
        Self::new(operation, Action::Cut { when })
    }

    /// Waits.
    #[must_use]
    pub fn delay(operation: Operation, when: When, time: Duration) -> Self {
        let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self::new(operation, Action::Delay { when, milliseconds })
    }

    /// Meets only this volume, by id or label.
    #[must_use]
    pub fn of_volume(mut self, volume: &str) -> Self {
        self.volume = Some(volume.to_owned());
        self
    }

    /// Lets the first matching requests pass.
    #[must_use]
    pub fn after_skipping(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// Strikes only so often.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// Strikes a share of the requests, drawn from a seed.
    #[must_use]
    pub fn with_probability(mut self, probability: f64, seed: u64) -> Self {
        (self.probability, self.seed) = (Some(probability), seed);
        self
    }
}

/// What is done to one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) before: Side,
    pub(crate) after: Side,
}

/// What is done on one side of the effect: a wait, then perhaps an end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Side {
    pub(crate) delay: Duration,
    pub(crate) end: Option<End>,
}

/// How a request ends other than by its own answer.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Answer(Answer),
    Cut,
}

/// The rules in force, in the order in which they were added.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    rules: Vec<Rule>,
    added: u64,
}

#[derive(Debug)]
struct Rule {
    id: u64,
    fault: Fault,
    met: u64,
    struck: u64,
    random: Random,
}

impl Faults {
    pub(crate) fn add(&mut self, fault: Fault) -> u64 {
        self.added += 1;
        self.rules.push(Rule { id: self.added, random: Random::new(fault.seed), fault, met: 0, struck: 0 });
        self.added
    }

    pub(crate) fn remove(&mut self, id: u64) -> bool {
        let before = self.rules.len();
        self.rules.retain(|rule| rule.id != id);
        self.rules.len() < before
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    /// Each rule with its id and how often it struck.
    pub(crate) fn list(&self) -> Vec<(u64, Fault, u64)> {
        let row = |rule: &Rule| (rule.id, rule.fault.clone(), rule.struck);
        self.rules.iter().map(row).collect()
    }

    /// Asks the rules in their order; delays add up, the first end wins and hides the request from later rules.
    pub(crate) fn plan(&mut self, operation: Operation, names: &[&str]) -> Plan {
        let mut plan = Plan::default();
        for rule in &mut self.rules {
            if !rule.strikes(operation, names) {
                continue;
            }
            let (when, end) = match &rule.fault.action {
                Action::Delay { when, milliseconds } => {
                    plan.side(*when).delay += Duration::from_millis(*milliseconds);
                    continue;
                }
                Action::Cut { when } => (when, End::Cut),
                Action::Answer { when, status, body, retry_after } => {
                    let mut answer = Answer::raw(*status, body.clone());
                    answer.retry_after.clone_from(retry_after);
                    (when, End::Answer(answer))
                }
            };
            plan.side(*when).end = Some(end);
            break;
        }
        plan
    }
}

impl Plan {
    fn side(&mut self, when: When) -> &mut Side {
        match when {
            When::Before => &mut self.before,
            When::After => &mut self.after,
        }
    }
}

impl Rule {
    fn strikes(&mut self, operation: Operation, names: &[&str]) -> bool {
        let fault = &self.fault;
        let meets = (fault.operation == Operation::Any || fault.operation == operation)
            && fault.volume.as_deref().is_none_or(|volume| names.contains(&volume));
        if !meets || fault.times.is_some_and(|times| self.struck >= times) {
            return false;
        }
        self.met += 1;
        let strikes = self.met > fault.skip && fault.probability.is_none_or(|share| self.random.chance(share));
        self.struck += u64::from(strikes);
        strikes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn struck(fault: Fault, names: &[&str], requests: usize) -> Vec<bool> {
        let mut faults = Faults::default();
        faults.add(fault);
        let mut ask = || faults.plan(Operation::GetBlock, names).before.end.is_some();
        (0..requests).map(|_| ask()).collect()
    }

    fn cut() -> Fault {
        Fault::cut(Operation::GetBlock, When::Before)
    }

    #[test]
    fn it_skips_and_ends() {
        let fault = cut().after_skipping(1).times(2);
        assert_eq!(struck(fault, &[], 4), [false, true, true, false]);
    }

    #[test]
    fn it_meets_its_operation_and_volume_only() {
        assert_eq!(struck(cut().of_volume("a"), &["b"], 1), [false]);
        assert_eq!(struck(cut().of_volume("a"), &["b", "a"], 1), [true]);
        let other = Fault::cut(Operation::ListBlocks, When::Before);
        assert_eq!(struck(other, &[], 1), [false]);
        let any = Fault::cut(Operation::Any, When::Before);
        assert_eq!(struck(any, &[], 1), [true]);
    }

    #[test]
    fn chance_replays_from_its_seed() {
        let run = || struck(cut().with_probability(0.5, 42), &[], 100);
        assert_eq!(run(), run());
        assert!(run().contains(&true) && run().contains(&false));
    }
}
