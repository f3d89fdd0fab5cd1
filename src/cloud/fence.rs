//! Until when this process may ask the cloud for anything.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// Stands before every request. Open for ever, unless somebody who has to be the only one in the cloud sets its time.
///
/// It is read just before a request goes out, so that a process that was stopped for a while (a debugger, a frozen
/// container) and wakes up after its time sends nothing more, whichever of its tasks wakes first.
#[derive(Debug, Clone, Default)]
pub struct Fence {
    until: Arc<Mutex<Option<Instant>>>,
}

impl Fence {
    /// Opens it until then and no longer.
    pub fn open_until(&self, until: Instant) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// Closes it.
    pub fn close(&self) {
        self.open_until(Instant::now());
    }

    /// Whether a request may go out now.
    pub fn is_open(&self) -> bool {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_none_or(|until| Instant::now() < until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_open_until_its_time() {
        let fence = Fence::default();
        assert!(fence.is_open());
        fence.open_until(Instant::now() + Duration::from_secs(10));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(fence.is_open());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!fence.is_open());
        fence.open_until(Instant::now() + Duration::from_secs(10));
        fence.close();
        assert!(!fence.is_open());
    }
}
