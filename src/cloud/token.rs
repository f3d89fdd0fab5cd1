//! The API token, read from a file and followed when it rotates.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use secrecy::{ExposeSecret, SecretString};
use tracing::warn;

/// A file that holds the API token and nothing else.
///
/// It is read anew for every request: it is a few bytes in memory (Kubernetes mounts secrets on tmpfs), and so a
/// rotated token is used by the next request with nothing to watch.
pub struct TokenFile {
    path: PathBuf,
    /// The last token that could be read, for the moment in which a rotation has the file missing.
    last: Mutex<SecretString>,
}

impl TokenFile {
    /// Opens the token file.
    ///
    /// # Errors
    /// In words for the operator, if the file cannot be read or is empty.
    pub fn open(path: &Path) -> Result<Self, String> {
        let token = read(path)?;
        Ok(Self { path: path.to_owned(), last: Mutex::new(token) })
    }

    /// The token as the file has it now.
    pub fn current(&self) -> SecretString {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match read(&self.path) {
            Ok(token) => *last = token,
            Err(problem) => warn!(problem, "the token file cannot be read; the last token is used"),
        }
        last.clone()
    }
}

fn read(path: &Path) -> Result<SecretString, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("token file {}: {error}", path.display()))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(format!("token file {} is empty", path.display()));
    }
    // A token goes into a header; a file of several lines is some other file.
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("token file {} does not hold a token alone on one line", path.display()));
    }
    Ok(SecretString::from(token))
}

impl fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Whether two tokens are the same.
pub fn same(a: &SecretString, b: &SecretString) -> bool {
    a.expose_secret() == b.expose_secret()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_token_is_used_at_once_and_a_missing_file_keeps_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "first\n").unwrap();
        let token = TokenFile::open(&path).unwrap();
        assert_eq!(token.current().expose_secret(), "first");
        std::fs::write(&path, "second").unwrap();
        assert_eq!(token.current().expose_secret(), "second");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(token.current().expose_secret(), "second");
    }

    #[test]
    fn what_is_no_token_is_refused_without_being_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        for bad in ["", " \n", "one\ntwo", "s3cr\u{e9}t"] {
            std::fs::write(&path, bad).unwrap();
            let problem = TokenFile::open(&path).unwrap_err();
            assert!(problem.contains("token file"), "{problem}");
            assert!(!problem.contains("two") && !problem.contains("s3cr"), "{problem}");
        }
    }

    #[test]
    fn a_token_file_does_not_print_its_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "canary").unwrap();
        let token = TokenFile::open(&path).unwrap();
        assert!(!format!("{token:?} {:?}", token.current()).contains("canary"));
    }
}
