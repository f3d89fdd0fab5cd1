//! The rate limit: so many requests of one source address in any one second.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

/// The requests of the last second.
#[derive(Debug, Default)]
pub(crate) struct Window(VecDeque<Instant>);

impl Window {
    /// Forgets what is older than a second and says how many are left.
    fn len_at(&mut self, now: Instant) -> usize {
        while self.0.front().is_some_and(|first| now - *first >= SECOND) {
            self.0.pop_front();
        }
        self.0.len()
    }

    /// Counts a request and says how many the last second had, with it.
    pub(crate) fn count(&mut self, now: Instant) -> usize {
        self.0.push_back(now);
        self.len_at(now)
    }
}

/// The limiter of all source addresses. A refused request doesn't count against its source.
#[derive(Debug, Default)]
pub(crate) struct Pace(HashMap<IpAddr, Window>);

impl Pace {
    /// Whether a request is within the limit; a limit of 0 is none.
    pub(crate) fn admits(&mut self, source: IpAddr, limit: u32, now: Instant) -> bool {
        let window = self.0.entry(source).or_default();
        let free = limit == 0 || window.len_at(now) < limit as usize;
        if free && limit != 0 {
            window.count(now);
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_window_slides() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let source = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut admits = |ms| pace.admits(source, 2, start + Duration::from_millis(ms));
        assert!(admits(0));
        assert!(admits(900));
        assert!(!admits(999));
        assert!(admits(1000), "the first request is a second old");
        assert!(!admits(1500), "the second is not");
        assert!(admits(1900));
    }

    #[test]
    fn each_source_has_its_own_limit() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert!(pace.admits(IpAddr::V4(Ipv4Addr::LOCALHOST), 1, now));
        assert!(pace.admits(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)), 1, now));
        assert!(!pace.admits(IpAddr::V4(Ipv4Addr::LOCALHOST), 1, now));
    }
}
