//! What becomes of each request on its way.

use std::time::Duration;

use fastrand::Rng;

use super::account::{Reply, Sent};

/// How a request ends for its sender.
#[derive(Debug, Clone)]
pub(super) enum Ending {
    /// By the account's answer.
    Answered,
    /// By the answer of something in between, or of an account in trouble.
    Told(Reply),
    /// By a connection that broke.
    Lost,
    /// By a connection that never came about.
    NeverSent,
}

/// What becomes of a request.
#[derive(Debug, Clone)]
pub(super) struct Fate {
    /// How long it takes to the account; `None`: it never gets there.
    pub(super) arrives: Option<Duration>,
    /// How long until its sender hears.
    pub(super) ends: Duration,
    pub(super) ending: Ending,
}

/// The weather between the controller and the account.
#[derive(Debug)]
pub(super) struct Faults {
    rng: Rng,
    /// How many of 1,000 requests something goes wrong with.
    pub(super) permille: u32,
}

const MS: fn(u64) -> Duration = Duration::from_millis;

impl Faults {
    pub(super) fn new(seed: u64, permille: u32) -> Self {
        Self { rng: Rng::with_seed(seed ^ 0x5eed), permille }
    }

    pub(super) fn fate(&mut self, sent: &Sent, _: Duration) -> Fate {
        let rng = &mut self.rng;
        let (there, back) = (MS(15), MS(rng.u64(15..60)));
        if rng.u32(0..1000) >= self.permille {
            return Fate { arrives: Some(there), ends: there + back, ending: Ending::Answered };
        }
        self.trouble(sent, there, back)
    }

    fn trouble(&mut self, _: &Sent, there: Duration, back: Duration) -> Fate {
        let rng = &mut self.rng;
        let both = there + back;
        match rng.u32(0..10) {
            // Lost before its effect.
            0 => Fate { arrives: None, ends: both, ending: Ending::Lost },
            // Lost after its effect.
            1 => Fate { arrives: Some(there), ends: both, ending: Ending::Lost },
            // Its sender hears of the loss before it gets there.
            2 => Fate { arrives: Some(both + MS(rng.u64(1..1900))), ends: both, ending: Ending::Lost },
            // It takes long, and nobody hears what came of it.
            3 => {
                let ends = MS(rng.u64(2500..20_000));
                let arrives = rng.bool().then(|| ends + MS(rng.u64(0..8000)));
                Fate { arrives, ends, ending: Ending::Lost }
            }
            4 => Fate { arrives: None, ends: there, ending: Ending::NeverSent },
            5 => {
                let retry_after = rng.bool().then(|| Duration::from_secs(rng.u64(1..4)));
                Fate { arrives: None, ends: both, ending: Ending::Told(Reply { retry_after, ..Reply::limited() }) }
            }
            // It takes long and is answered.
            6 => {
                let ends = MS(rng.u64(1000..40_000));
                let arrives = MS(rng.u64(15..ends.as_millis().try_into().expect("it is short")));
                Fate { arrives: Some(arrives), ends, ending: Ending::Answered }
            }
            _ => {
                let arrives = match rng.u32(0..3) {
                    0 => None,
                    1 => Some(there),
                    _ => Some(both + MS(rng.u64(1..1900))),
                };
                Fate { arrives, ends: both, ending: Ending::Told(unwell(rng)) }
            }
        }
    }
}

/// What a cloud in trouble says.
fn unwell(rng: &mut Rng) -> Reply {
    let html = |status, title: &str| Reply {
        status,
        retry_after: None,
        body: format!("<html><head><title>{title}</title></head><body>nginx</body></html>"),
    };
    match rng.u32(0..6) {
        0 => html(502, "502 Bad Gateway"),
        1 => Reply { retry_after: rng.bool().then(|| Duration::from_secs(2)), ..html(503, "503 Service Unavailable") },
        2 => html(504, "504 Gateway Time-out"),
        3 => Reply::refused(500, "Unable to destroy server: Unable to remove VM: Server is currently locked"),
        4 => Reply::refused(500, "Server is currently locked"),
        _ => Reply::refused(500, "Internal server error"),
    }
}
