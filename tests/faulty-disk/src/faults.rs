//! What goes wrong at the moment, and what has been written so far.

use std::{
    collections::BTreeSet,
    io,
    ops::Range,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What is asked of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Bytes are read from an offset on.
    Read(u64, u64),
    /// Bytes are written, or made zero, from an offset on.
    Write(u64, u64),
    /// Everything written has to be on the medium.
    Flush,
}

/// The faults of a disk, which can be changed while it is in use.
#[derive(Debug, Default)]
pub struct Faults {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    reads: Vec<Range<u64>>,
    writes: Vec<Range<u64>>,
    all: bool,
    pause: Duration,
    write_pause: Duration,
    hung: bool,
    /// Requests that wait for the end of a hang.
    waiting: usize,
    written: u64,
    unflushed: bool,
    /// Offsets, in units of [`UNIT`], of which something was read.
    read: BTreeSet<u64>,
}

impl State {
    fn pause_of(&self, request: Request) -> Duration {
        if matches!(request, Request::Read(..)) { self.pause } else { self.pause.max(self.write_pause) }
    }
}

/// How finely it is remembered what was read.
const UNIT: u64 = 4096;

impl Faults {
    /// From now on reads that touch the range fail with EIO.
    pub fn fail_reads(&self, range: Range<u64>) {
        self.state().reads.push(range);
    }

    /// From now on writes that touch the range fail with EIO.
    pub fn fail_writes(&self, range: Range<u64>) {
        self.state().writes.push(range);
    }

    /// From now on every request fails with EIO.
    pub fn fail_all(&self) {
        self.state().all = true;
    }

    /// Every request takes this much longer.
    pub fn slow(&self, pause: Duration) {
        self.state().pause = pause;
    }

    /// Every write and every flush takes this much longer; reads take what they do.
    pub fn slow_writes(&self, pause: Duration) {
        self.state().write_pause = pause;
    }

    /// From now on requests wait until [`Faults::release`].
    pub fn hang(&self) {
        self.state().hung = true;
    }

    /// Ends a hang; what waited is answered.
    pub fn release(&self) {
        self.state().hung = false;
        self.changed.notify_all();
    }

    /// Ends all faults.
    pub fn heal(&self) {
        let mut state = self.state();
        (state.reads, state.writes) = (Vec::new(), Vec::new());
        (state.all, state.hung) = (false, false);
        (state.pause, state.write_pause) = (Duration::ZERO, Duration::ZERO);
        drop(state);
        self.changed.notify_all();
    }

    /// How many requests wait for the end of a hang.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state().waiting
    }

    /// Begins to count anew.
    pub fn mark(&self) {
        let mut state = self.state();
        state.written = 0;
        state.read.clear();
    }

    /// How many bytes were written since the mark.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.state().written
    }

    /// Whether anything of the range was read since the mark, whether it could be or not.
    #[must_use]
    pub fn was_read(&self, range: Range<u64>) -> bool {
        self.state().read.range(range.start / UNIT..range.end.div_ceil(UNIT)).next().is_some()
    }

    /// Whether a flush came after the last write, if there was any.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        !self.state().unflushed
    }

    /// Whether a request has to wait, and so may not hold up those that don't.
    pub(crate) fn delays(&self, request: Request) -> bool {
        let state = self.state();
        state.hung || !state.pause_of(request).is_zero()
    }

    /// Waits as the faults want it, and says whether the request fails.
    pub(crate) fn admit(&self, request: Request) -> io::Result<()> {
        let mut state = self.state();
        if let Request::Read(at, length) = request {
            state.read.extend(at / UNIT..(at + length).div_ceil(UNIT));
        }
        state.waiting += 1;
        state = self.changed.wait_while(state, |state| state.hung).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        let pause = state.pause_of(request);
        if !pause.is_zero() {
            // A fault that is healed is over at once.
            let slow = self.changed.wait_timeout_while(state, pause, |state| !state.pause_of(request).is_zero());
            state = slow.unwrap_or_else(PoisonError::into_inner).0;
        }
        let touches = |bad: &[Range<u64>], at: u64, length: u64| {
            bad.iter().any(|range| range.start < at.saturating_add(length) && at < range.end)
        };
        let fails = state.all
            || match request {
                Request::Read(at, length) => touches(&state.reads, at, length),
                Request::Write(at, length) => touches(&state.writes, at, length),
                Request::Flush => false,
            };
        if fails { Err(io::Error::from_raw_os_error(nix::errno::Errno::EIO as i32)) } else { Ok(()) }
    }

    /// A request has done what was asked.
    pub(crate) fn done(&self, request: Request) {
        let mut state = self.state();
        match request {
            Request::Read(..) => {}
            Request::Write(_, length) => {
                state.written += length;
                state.unflushed = true;
            }
            Request::Flush => state.unflushed = false,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked holds nothing up.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
