//! How long things usually take, as far as this process has seen.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// No look comes sooner after the one before.
pub(super) const SHORTEST_PAUSE: Duration = Duration::from_millis(250);

/// So many waits in so long a time are few.
const QUIET_WAITS: usize = 3;
const QUIET: Duration = Duration::from_secs(5);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Awaited {
    /// Something new can be used.
    Created,
    /// A volume is on its instance.
    Attached,
    /// A volume is on no instance.
    Detached,
    /// A volume has its new size.
    Grown,
}

impl Awaited {
    /// How long it usually takes, until this process has seen better.
    fn at_first(self) -> Duration {
        match self {
            Self::Created => Duration::from_secs(1),
            Self::Attached | Self::Detached => Duration::from_millis(2500),
            Self::Grown => Duration::from_millis(500),
        }
    }

    /// How long is too long: beyond this something is wrong, and waiting on helps nobody.
    pub fn deadline(self) -> Duration {
        match self {
            // A volume made from a snapshot is filled first.
            Self::Created => Duration::from_secs(600),
            Self::Attached | Self::Detached | Self::Grown => Duration::from_secs(90),
        }
    }

    /// The kind that its duration is learnt with: what takes long to come on an instance takes as long to go.
    fn alike(self) -> Self {
        if self == Self::Detached { Self::Attached } else { self }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Created => "ready",
            Self::Attached => "attached",
            Self::Detached => "detached",
            Self::Grown => "grown",
        }
    }
}

/// The durations learnt, and whether there is much to wait for.
#[derive(Debug, Default)]
pub(super) struct Usual {
    durations: HashMap<Awaited, Duration>,
    /// When the waits of late began.
    waits: Vec<Instant>,
}

impl Usual {
    /// How long this usually takes.
    pub(super) fn of(&self, awaited: Awaited) -> Duration {
        self.durations.get(&awaited.alike()).copied().unwrap_or(awaited.at_first())
    }

    /// Notes that something is waited for, and tells whether that is rare at the moment.
    pub(super) fn is_quiet(&mut self) -> bool {
        let now = Instant::now();
        self.waits.retain(|began| now.duration_since(*began) < QUIET);
        self.waits.push(now);
        self.waits.len() <= QUIET_WAITS
    }

    /// The first look comes when things are usually done: a look too early costs a request, one too late some time.
    pub(super) fn learn(&mut self, awaited: Awaited, usual: Duration, took: Duration, late: bool) {
        let better = if late { took.min(usual * 2) } else { took.min(usual.mul_f64(0.99)) };
        self.durations.insert(awaited.alike(), better.max(SHORTEST_PAUSE));
    }
}
