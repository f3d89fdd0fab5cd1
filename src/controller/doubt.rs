//! What a read does not prove yet, since something that was sent may still be on its way: an attach of ours whose end
//! nobody has seen, or what an earlier process sent just before it died.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::pauses::{SETTLING, SETTLING_SLOW};
use crate::volume::VolumeId;

/// What may still bring volumes, or (of shared file systems) a volume to an instance.
#[derive(Debug)]
pub(super) struct Doubts<T = VolumeId> {
    /// When this process began.
    begun: Instant,
    /// Volumes that an attach has gone out for whose end nobody has seen, and when.
    attaching: Mutex<HashMap<T, Instant>>,
    /// Volumes that this process knows, from soon after its start, to be on no instance unless it attaches them itself:
    /// it made them or saw them come off.
    free_since_start: Mutex<HashSet<T>>,
    /// Volumes that this process has brought to an instance soon after its start.
    brought_since_start: Mutex<HashSet<T>>,
}

impl<T: Clone + Eq + Hash> Doubts<T> {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            attaching: Mutex::default(),
            free_since_start: Mutex::default(),
            brought_since_start: Mutex::default(),
        }
    }

    /// Notes that an attach goes out.
    pub(super) fn attach_sent(&self, id: &T) {
        self.attaching().insert(id.clone(), Instant::now());
    }

    /// Notes that nothing can come of it any more, or all has.
    pub(super) fn attach_over(&self, id: &T) {
        self.attaching().remove(id);
    }

    /// Whether an attach has gone out whose end nobody has seen.
    pub(super) fn has(&self, id: &T) -> bool {
        self.attaching().contains_key(id)
    }

    /// When what has gone out for it is over, if somebody asked and nobody has seen the end.
    pub(super) fn over(&self, id: &T) -> Option<Instant> {
        self.attaching().get(id).map(|sent| *sent + SETTLING_SLOW)
    }

    /// `None` if a read of that time which shows the volume on no instance proves that none will have it, as far as
    /// requests go; else when to read again.
    pub(super) fn proves_detached(&self, id: &T, read: Instant) -> Option<Instant> {
        let settled = self.over(id).unwrap_or(self.begun).max(self.safe_from(id));
        if read >= settled {
            self.attach_over(id);
            return None;
        }
        Some(settled)
    }

    /// Notes that nothing of an earlier process can still bring a volume to an instance.
    pub(super) fn is_free(&self, id: &T) {
        if self.begun.elapsed() <= SETTLING_SLOW {
            lock(&self.free_since_start).insert(id.clone());
        }
    }

    /// From when on a read that shows a volume on no instance proves that no earlier process brings it to one.
    pub(super) fn free_from(&self, id: &T) -> Instant {
        let mut free = lock(&self.free_since_start);
        if self.begun.elapsed() > SETTLING_SLOW {
            free.clear();
        }
        if free.contains(id) { self.begun } else { self.begun + SETTLING_SLOW }
    }

    /// Notes that this process has brought a volume to an instance: by then nobody waited for it to come off another.
    pub(super) fn brought(&self, id: &T) {
        if self.begun.elapsed() <= SETTLING_SLOW {
            lock(&self.brought_since_start).insert(id.clone());
        }
    }

    /// From when on a volume that is on no instance can go to another. An earlier process may have sent a detach, which
    /// names no instance, and would take the volume from wherever it is by then.
    pub(super) fn safe_from(&self, id: &T) -> Instant {
        let mut brought = lock(&self.brought_since_start);
        if self.begun.elapsed() > SETTLING_SLOW {
            brought.clear();
        }
        let ours = brought.contains(id) || lock(&self.free_since_start).contains(id);
        self.begun + if ours { SETTLING } else { SETTLING_SLOW }
    }

    fn attaching(&self) -> MutexGuard<'_, HashMap<T, Instant>> {
        lock(&self.attaching)
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::volume::IdForm;

    #[tokio::test(start_paused = true)]
    async fn an_attach_that_nobody_saw_the_end_of_is_waited_for() {
        let (doubts, id) = (Doubts::new(), VolumeId::parse(IdForm::Decimal, "1").unwrap());
        let settled = doubts.proves_detached(&id, Instant::now()).unwrap();
        assert_eq!(settled - Instant::now(), SETTLING_SLOW, "an earlier process may have sent one, or a detach");
        doubts.brought(&id);
        let settled = doubts.proves_detached(&id, Instant::now()).unwrap();
        assert_eq!(settled - Instant::now(), SETTLING, "nobody had it taken off while it was brought");
        assert_eq!(doubts.proves_detached(&id, settled), None);
        doubts.attach_sent(&id);
        let again = doubts.proves_detached(&id, Instant::now()).unwrap();
        assert_eq!(again - Instant::now(), SETTLING_SLOW);
        assert_eq!(doubts.proves_detached(&id, again), None);
    }

    #[tokio::test(start_paused = true)]
    async fn soon_after_the_start_only_what_was_made_or_seen_to_come_off_is_free() {
        let (doubts, id) = (Doubts::new(), VolumeId::parse(IdForm::Decimal, "1").unwrap());
        assert!(doubts.free_from(&id) > Instant::now());
        doubts.is_free(&id);
        assert!(doubts.free_from(&id) <= Instant::now());
        tokio::time::sleep(SETTLING_SLOW + Duration::from_secs(1)).await;
        doubts.is_free(&id);
        assert!(doubts.free_from(&id) <= Instant::now());
        assert!(doubts.free_since_start.lock().unwrap().is_empty(), "what is no longer needed is not kept");
    }
}
