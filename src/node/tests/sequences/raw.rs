//! What is written to a raw volume: one thing a block, each with its name.

use std::io;

use super::world::Contents;

/// Where the first block is; nothing that a file system keeps there would be seen as one.
const AT: u64 = 1 << 20;
/// How a block begins; what was never written need not be zero.
const MARK: &[u8] = b"written: ";
/// The size of a block.
pub(crate) const BLOCK: usize = 4096;
/// No sequence writes more.
const BLOCKS: u64 = 256;

fn places() -> impl Iterator<Item = u64> {
    (0..BLOCKS).map(|number| AT + number * BLOCK as u64)
}

/// A block with something in it.
pub(crate) fn block(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut block = MARK.to_vec();
    block.extend(format!("{name}\n").into_bytes());
    block.extend(bytes);
    block.resize(BLOCK, 0);
    block
}

/// Where the next block goes.
pub(crate) fn free(read: impl Fn(u64) -> io::Result<Vec<u8>>) -> io::Result<u64> {
    for at in places() {
        if !read(at)?.starts_with(MARK) {
            return Ok(at);
        }
    }
    Err(io::ErrorKind::StorageFull.into())
}

/// All that was written.
pub(crate) fn contents(read: impl Fn(u64) -> io::Result<Vec<u8>>) -> io::Result<Contents> {
    let mut contents = Contents::new();
    for at in places() {
        let block = read(at)?;
        let Some(text) = block.strip_prefix(MARK) else { break };
        let text = String::from_utf8_lossy(text);
        let Some((name, text)) = text.trim_end_matches('\0').split_once('\n') else { break };
        contents.insert(name.to_owned(), text.as_bytes().to_owned());
    }
    Ok(contents)
}
