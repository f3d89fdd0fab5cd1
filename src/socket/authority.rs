//! A way around for clients whose `:authority` is the path of the socket.
//!
//! gRPC for Go takes what it dials for the authority, percent-encoded (`%2Fvar%2Flib%2F...`), unless it is told another
//! one; the kubelet's plugin manager tells none (Kubernetes 1.36). HTTP/2 here (`h2`, by way of `http::uri::Authority`)
//! takes no such authority and resets the stream, before anything of ours is asked (hyperium/h2, issue 487). To the server
//! of a Unix socket the authority means nothing; so it is made another one on the way in.
//!
//! Only frames of HTTP/2 and the outline of HPACK's fields are read for that (RFC 9113, 4.1 and 6.2; RFC 7541, 6), nothing
//! is decoded. The field stays at its place and of its kind, so the tables of both ends go on counting alike; its new value
//! is not longer, so that here nothing is dropped earlier than there.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// What every connection of HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length (24 bits), type, flags, stream (32 bits).
const FRAME_HEADER: usize = 9;
/// The type of a frame that begins a request.
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// The place of `:authority` in HPACK's static table.
const AUTHORITY: u64 = 1;
/// One letter, so that it is never longer than what was sent, however that is compressed.
const ANY_NAME: &[u8] = b"s";
/// What a frame may be at most, unless a server says more (`SETTINGS_MAX_FRAME_SIZE`); ours doesn't.
const LONGEST_FRAME: usize = 16_384;

/// A connection whose requests all come for one name.
#[derive(Debug)]
pub(crate) struct Renamed<S> {
    inner: S,
    awaited: Awaited,
    input: BytesMut,
    output: BytesMut,
}

/// What comes next in the input.
#[derive(Debug)]
enum Awaited {
    Preface,
    Frame,
    /// So many bytes of a frame that is none of our business.
    Rest(usize),
    /// It is not HTTP/2, whose server says so itself.
    Anything,
}

impl<S> Renamed<S> {
    /// Over a connection that was just accepted.
    pub(crate) fn new(inner: S) -> Self {
        Self { inner, awaited: Awaited::Preface, input: BytesMut::new(), output: BytesMut::new() }
    }

    /// Moves as much of the input to the output as can be judged.
    fn judge(&mut self) {
        loop {
            match self.awaited {
                Awaited::Preface if self.input.len() < PREFACE.len() && PREFACE.starts_with(&self.input) => return,
                Awaited::Preface if self.input.starts_with(PREFACE) => {
                    self.pass(PREFACE.len());
                    self.awaited = Awaited::Frame;
                }
                Awaited::Preface => self.awaited = Awaited::Anything,
                Awaited::Frame => {
                    let Some(header) = self.input.first_chunk::<FRAME_HEADER>() else { return };
                    let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
                    if header[3] != HEADERS || length > LONGEST_FRAME {
                        self.pass(FRAME_HEADER);
                        self.awaited = Awaited::Rest(length);
                        continue;
                    }
                    if self.input.len() < FRAME_HEADER + length {
                        return;
                    }
                    let frame = self.input.split_to(FRAME_HEADER + length).freeze();
                    match renamed(&frame) {
                        Some(frame) => self.output.extend_from_slice(&frame),
                        None => self.output.extend_from_slice(&frame),
                    }
                }
                Awaited::Rest(0) => self.awaited = Awaited::Frame,
                Awaited::Rest(_) | Awaited::Anything if self.input.is_empty() => return,
                Awaited::Rest(length) => {
                    let here = length.min(self.input.len());
                    self.pass(here);
                    self.awaited = Awaited::Rest(length - here);
                }
                Awaited::Anything => self.pass(self.input.len()),
            }
        }
    }

    fn pass(&mut self, length: usize) {
        self.output.extend_from_slice(&self.input.split_to(length));
    }
}

/// A HEADERS frame with that name for its authority; none if there is nothing to be changed, or nothing is understood.
fn renamed(frame: &Bytes) -> Option<BytesMut> {
    let flags = frame[4];
    let mut begin = FRAME_HEADER;
    let mut end = frame.len();
    if flags & PADDED != 0 {
        end = end.checked_sub(usize::from(*frame.get(begin)?))?;
        begin += 1;
    }
    if flags & PRIORITY != 0 {
        begin += 5;
    }
    let value = authority(frame.get(begin..end)?)?;
    let (from, to) = (begin + value.start, begin + value.end);
    let mut changed = BytesMut::with_capacity(frame.len());
    changed.extend_from_slice(&frame[..from]);
    changed.put_u8(u8::try_from(ANY_NAME.len()).expect("it is short"));
    changed.extend_from_slice(ANY_NAME);
    changed.extend_from_slice(&frame[to..]);
    let length = u32::try_from(changed.len() - FRAME_HEADER).ok()?.to_be_bytes();
    changed[..3].copy_from_slice(&length[1..]);
    Some(changed)
}

/// Where the value of `:authority` is among the fields, its length included; none if it is empty.
fn authority(fields: &[u8]) -> Option<std::ops::Range<usize>> {
    let mut rest = fields;
    while let Some(&first) = rest.first() {
        // An indexed field, a size of the table, or a literal: indexed from now on, or not.
        let (prefix, is_literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let index = integer(&mut rest, prefix)?;
        if !is_literal {
            continue;
        }
        if index == 0 {
            string(&mut rest)?;
        }
        let start = fields.len() - rest.len();
        let length = string(&mut rest)?;
        if index == AUTHORITY {
            return (length >= ANY_NAME.len()).then(|| start..fields.len() - rest.len());
        }
    }
    None
}

/// An integer whose first byte has `prefix` bits of it (RFC 7541, 5.1).
fn integer(rest: &mut &[u8], prefix: u32) -> Option<u64> {
    let limit = (1u64 << prefix) - 1;
    let mut value = u64::from(rest.try_get_u8().ok()?) & limit;
    let mut shift = 0;
    while value >= limit {
        let byte = rest.try_get_u8().ok()?;
        value = value.checked_add(u64::from(byte & 0x7f).checked_shl(shift)?)?;
        if byte & 0x80 == 0 {
            break;
        }
        shift += 7;
    }
    Some(value)
}

/// Skips a string and gives its length as it is sent (RFC 7541, 5.2).
fn string(rest: &mut &[u8]) -> Option<usize> {
    let length = usize::try_from(integer(rest, 7)?).ok()?;
    *rest = rest.get(length..)?;
    Some(length)
}

impl<S: AsyncRead + Unpin> AsyncRead for Renamed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.output.is_empty() {
            let mut chunk = [0; 4096];
            let mut read = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                // The end; half of a frame is the server's to complain of.
                this.output = this.input.split();
                if this.output.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                break;
            }
            this.input.extend_from_slice(read.filled());
            this.judge();
        }
        let length = this.output.len().min(buffer.remaining());
        buffer.put_slice(&this.output.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Renamed<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

impl<S: Connected> Connected for Renamed<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.inner.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    use super::*;

    /// A HEADERS frame that ends a request's head, of these fields.
    fn headers(flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[HEADERS, 0x4 | flags, 0, 0, 0, 1], payload].concat()
    }

    /// POST, a literal path, an authority that is kept in the table, and a literal with a name of its own.
    fn fields(authority: &[u8]) -> Vec<u8> {
        let length = u8::try_from(authority.len()).unwrap();
        [&[0x20, 0x83, 0x44, 2, b'/', b'x', 0x41, length], authority, &[0x00, 1, b'n', 1, b'v', 0xbe]].concat()
    }

    async fn read(sent: &[u8], piece: usize) -> Vec<u8> {
        let mut parts = tokio_test_reader(sent, piece);
        let mut got = Vec::new();
        parts.read_to_end(&mut got).await.unwrap();
        got
    }

    /// Gives `sent` in pieces of this size.
    fn tokio_test_reader(sent: &[u8], piece: usize) -> Renamed<tokio_util::io::StreamReader<Pieces, Bytes>> {
        let pieces: Vec<io::Result<Bytes>> =
            sent.chunks(piece.max(1)).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Renamed::new(tokio_util::io::StreamReader::new(futures_util::stream::iter(pieces)))
    }

    type Pieces = futures_util::stream::Iter<std::vec::IntoIter<io::Result<Bytes>>>;

    const PATH: &[u8] = b"%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fname-reg.sock";

    #[tokio::test]
    async fn a_path_for_an_authority_becomes_a_name_and_all_else_stays() {
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let data = [0, 0, 3, 0, 1, 0, 0, 0, 1, b'a', b'b', b'c'];
        let sent = [PREFACE, &settings, &headers(0, &fields(PATH)), &data].concat();
        let wanted = [PREFACE, &settings, &headers(0, &fields(ANY_NAME)), &data].concat();
        for piece in [1, 2, 7, 30, 10_000] {
            assert_eq!(read(&sent, piece).await, wanted, "in pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn a_short_path_becomes_that_name_too_and_none_stays_none() {
        for short in [&b"%2Fc"[..], b"x"] {
            let sent = [PREFACE, &headers(0, &fields(short))].concat();
            assert_eq!(read(&sent, 4).await, [PREFACE, &headers(0, &fields(ANY_NAME))].concat());
        }
        let none = [PREFACE, &headers(0, &fields(b""))].concat();
        assert_eq!(read(&none, 4).await, none);
    }

    #[tokio::test]
    async fn padding_and_priority_stay_where_they_are() {
        let frame = |authority: &[u8]| {
            headers(PADDED | PRIORITY, &[&[2, 0, 0, 0, 0, 16], &fields(authority)[..], &[0, 0]].concat())
        };
        let (sent, wanted) = ([PREFACE, &frame(PATH)].concat(), [PREFACE, &frame(ANY_NAME)].concat());
        assert_eq!(read(&sent, 5).await, wanted);
    }

    #[tokio::test]
    async fn what_is_not_http_2_passes() {
        let sent = b"GET / HTTP/1.1\r\n\r\n";
        assert_eq!(read(sent, 3).await, sent);
    }

    proptest! {
        /// A server has to see every byte of what it would complain of.
        #[test]
        fn nonsense_in_a_frame_is_neither_lost_nor_a_panic(payload in proptest::collection::vec(any::<u8>(), 0..80), flags: u8) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let sent = [PREFACE, &headers(flags, &payload), b"rest of it"].concat();
            let got = runtime.block_on(read(&sent, 11));
            prop_assert!(got.ends_with(b"rest of it") || got.len() >= sent.len() - payload.len());
        }
    }
}
