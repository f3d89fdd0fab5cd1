//! How long a busy or silent cloud is given.

use std::time::Duration;

use tokio::time::Instant;

/// How long an operation goes on trying against a cloud that gives no certain answer or is busy, before the caller is
/// told and may repeat the call.
const PATIENCE: Duration = Duration::from_secs(120);
/// The pause before a busy or uncertain cloud is asked again; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// How long after the start of this process what the cloud shows counts as what came of an earlier one's last request,
/// which may have died between a request and its effect.
pub(super) const SETTLING: Duration = Duration::from_secs(5);
/// The same after a request of our own without a certain answer: its effect may come long after its answer was lost.
pub(super) const SETTLING_SLOW: Duration = Duration::from_secs(30);

/// The pauses between tries against a busy or silent cloud.
pub(super) struct Pauses {
    pub(super) began: Instant,
    next: Duration,
    tried: u32,
}

impl Pauses {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), next: FIRST_PAUSE, tried: 0 }
    }

    /// How often was waited.
    pub(super) fn tried(&self) -> u32 {
        self.tried
    }

    /// Waits before the next try, unless there was enough of them.
    pub(super) async fn wait(&mut self) -> bool {
        if self.began.elapsed() >= PATIENCE {
            return false;
        }
        self.tried += 1;
        tokio::time::sleep(self.next.mul_f64(0.75 + 0.5 * fastrand::f64())).await;
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        true
    }
}
