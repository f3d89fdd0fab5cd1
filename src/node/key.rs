//! The key of an encrypted volume: it comes with a call, goes through a pipe, and is shown to nobody.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// The key that unlocks a volume's disk.
///
/// There is no way to print it; it is wiped from memory when it is dropped.
#[derive(Clone)]
pub struct Key(SecretString);

impl Key {
    /// The key, if there is anything of it.
    pub fn new(key: String) -> Option<Self> {
        let key = SecretString::from(key);
        (!key.expose_secret().is_empty()).then_some(Self(key))
    }

    /// Its bytes, for the pipe to the program that needs them.
    pub(super) fn bytes(&self) -> &[u8] {
        self.0.expose_secret().as_bytes()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_compared_and_never_shown() {
        let key = |text: &str| Key::new(text.to_owned());
        assert_eq!(key(""), None);
        assert!(key("one") == key("one") && key("one") != key("two"));
        assert_eq!(format!("{:?}", key("canary")), "Some(Key(***))");
    }
}
