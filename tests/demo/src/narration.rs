//! The steps as they are told on the terminal: what was asked, what happened, how long it took.

use std::{
    fmt,
    io::{Write, stdout},
    time::{Duration, Instant},
};

use vultr_sim::{Control, Operation};

/// Prints a line. A terminal that went away is no reason to end without tidying up, so that is ignored.
pub fn say(line: impl fmt::Display) {
    let mut out = stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// Numbers the steps and measures each one, in time and in requests to the cloud.
#[derive(Debug)]
pub struct Narration {
    cloud: Control,
    step: u32,
    began: Instant,
    requests: u64,
}

impl Narration {
    /// Nothing is told yet.
    #[must_use]
    pub fn new(cloud: Control) -> Self {
        Self { cloud, step: 0, began: Instant::now(), requests: 0 }
    }

    /// Says what is asked now.
    pub fn ask(&mut self, what: impl fmt::Display) {
        self.step += 1;
        say(format_args!("\n{:>2}. {what}", self.step));
        self.requests = self.cloud.stats().count(Operation::Any);
        self.began = Instant::now();
    }

    /// Says how long the answer to the last question took, and what it cost in requests.
    pub fn took(&self) {
        let time = Took(self.began.elapsed());
        match self.cloud.stats().count(Operation::Any) - self.requests {
            0 => say(format_args!("    [{time}]")),
            1 => say(format_args!("    [{time}, 1 request to the cloud]")),
            several => say(format_args!("    [{time}, {several} requests to the cloud]")),
        }
    }

    /// How many steps were told.
    #[must_use]
    pub fn steps(&self) -> u32 {
        self.step
    }
}

/// Says one thing that happened.
pub fn tell(what: impl fmt::Display) {
    say(format_args!("    {what}"));
}

/// A time as a person reads it.
#[derive(Debug, Clone, Copy)]
pub struct Took(pub Duration);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            short if short < Duration::from_secs(1) => write!(f, "{} ms", short.as_millis()),
            long => write!(f, "{:.1} s", long.as_secs_f64()),
        }
    }
}

/// A number of bytes as a person reads it.
#[derive(Debug, Clone, Copy)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    #[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1 << 20;
        const GIB: u64 = 1 << 30;
        match self.0 {
            whole if whole >= GIB && whole % GIB == 0 => write!(f, "{} GiB", whole / GIB),
            large if large >= GIB => write!(f, "{:.2} GiB", large as f64 / GIB as f64),
            whole if whole >= MIB && whole % MIB == 0 => write!(f, "{} MiB", whole / MIB),
            large if large >= MIB => write!(f, "{:.2} MiB", large as f64 / MIB as f64),
            small => write!(f, "{small} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short_and_true() {
        assert_eq!(Bytes(10 << 30).to_string(), "10 GiB");
        assert_eq!(Bytes((10 << 30) + (512 << 20)).to_string(), "10.50 GiB");
        assert_eq!(Bytes(32 << 20).to_string(), "32 MiB");
        assert_eq!(Bytes(17).to_string(), "17 bytes");
        assert_eq!(Took(Duration::from_millis(999)).to_string(), "999 ms");
        assert_eq!(Took(Duration::from_millis(2040)).to_string(), "2.0 s");
    }
}
