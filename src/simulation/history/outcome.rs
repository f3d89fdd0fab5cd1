//! What histories come to.

use std::{collections::BTreeMap, fmt};

/// What was wrong with a history, and all that happened in it.
#[derive(Debug)]
pub(in crate::simulation) struct Failure {
    pub(in crate::simulation) seed: u64,
    pub(in crate::simulation) problem: String,
    pub(in crate::simulation) log: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.problem)?;
        self.log.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        write!(f, "{}\nSEED={} replays it", self.problem, self.seed)
    }
}

/// What a history came to.
#[derive(Debug, Default, Clone)]
pub(in crate::simulation) struct Outcome {
    pub(in crate::simulation) log: Vec<String>,
    pub(super) counts: BTreeMap<String, usize>,
}

impl Outcome {
    pub(in crate::simulation) fn add(&mut self, other: &Self) {
        self.count("histories", 1);
        other.counts.iter().for_each(|(what, count)| self.count(what, *count));
    }

    pub(super) fn count(&mut self, what: &str, count: usize) {
        *self.counts.entry(what.to_owned()).or_default() += count;
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts: Vec<String> = self.counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
        f.write_str(&counts.join(", "))
    }
}
