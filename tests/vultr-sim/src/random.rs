//! A small seeded generator (`SplitMix64`), for ids and for faults that replay.

use std::fmt::Write as _;

/// A stream of numbers that depends on nothing but its seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// True in the given share of the cases.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        let top = u32::try_from(self.next() >> 32).unwrap_or(u32::MAX);
        f64::from(top) / f64::from(u32::MAX) < probability
    }

    /// A UUID in the form of version 4.
    pub(crate) fn uuid(&mut self) -> String {
        let (high, low) = (self.next(), self.next());
        format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xFFFF,
            high & 0xFFF,
            0x8000 | ((low >> 48) & 0x3FFF),
            low & 0xFFFF_FFFF_FFFF
        )
    }

    /// The given number of hexadecimal digits.
    pub(crate) fn hex(&mut self, digits: usize) -> String {
        let mut text = String::new();
        while text.len() < digits {
            // Writing to a string can't fail.
            let _ = write!(text, "{:016x}", self.next());
        }
        text.truncate(digits);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_ids() {
        let (mut a, mut b) = (Random::new(7), Random::new(7));
        assert_eq!(a.uuid(), b.uuid());
        assert_eq!(a.hex(14).len(), 14);
        assert_eq!(b.uuid().len(), 36);
    }

    #[test]
    fn a_chance_is_never_at_zero_and_about_half_at_half() {
        let mut random = Random::new(1);
        assert!((0..1000).all(|_| !random.chance(0.0)));
        let hits = (0..1000).filter(|_| random.chance(0.5)).count();
        assert!((400..600).contains(&hits), "{hits}");
    }
}
