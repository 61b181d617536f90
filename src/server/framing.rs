//! Where one HTTP/1 request ends and the next begins, read strictly.
//!
//! Requests are smuggled where two programs in a row disagree on that. The HTTP library reads
//! tolerantly, as it may: a bare line feed ends a line, a length beside chunks is passed over. Here
//! whatever two programs could read in two ways ends the connection before the library sees it: bare
//! line feeds and carriage returns, folded lines, blanks before a colon, a `Content-Length` beside a
//! `Transfer-Encoding`, more than one of either, numbers that are not plain, chunks with anything but
//! their size.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The longest line of a chunk's size, and of a trailer.
const LONGEST_LINE: usize = 256;
/// Room for a line that is kept for the next one, in bytes.
const KEPT_LINE: usize = 4096;
/// The most trailers.
const TRAILERS: usize = 16;

/// A stream of which only strictly framed requests are read.
pub struct Framed<S> {
    stream: S,
    frames: Frames,
    within: Arc<AtomicBool>,
}

impl<S> Framed<S> {
    /// Heads have at most this many bytes. `within` says whether a request has begun and has not ended.
    pub fn new(stream: S, head_bytes: usize, within: Arc<AtomicBool>) -> Self {
        Self {
            stream,
            frames: Frames::new(head_bytes),
            within,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Framed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let framed = &mut *self;
        let outcome = framed.frames.read(&buffer.filled()[before..]);
        let within = framed.frames.at != At::RequestLine || !framed.frames.line.is_empty();
        framed.within.store(within, Ordering::Relaxed);
        Poll::Ready(
            outcome.map_err(|ambiguous| io::Error::new(io::ErrorKind::InvalidData, ambiguous.0)),
        )
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Framed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// What could be read in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ambiguous(&'static str);

/// Follows the bytes of requests.
#[derive(Debug)]
struct Frames {
    head_bytes: usize,
    at: At,
    /// The line that is being read, without its end.
    line: Vec<u8>,
    /// Bytes of the head that were read.
    head: usize,
    body: Body,
    trailers: usize,
    failed: Option<Ambiguous>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    RequestLine,
    Header,
    Sized(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailer,
}

/// What a head says of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    None,
    Sized(u64),
    Chunked,
}

impl Frames {
    fn new(head_bytes: usize) -> Self {
        Self {
            head_bytes,
            at: At::RequestLine,
            line: Vec::new(),
            head: 0,
            body: Body::None,
            trailers: 0,
            failed: None,
        }
    }

    /// Reads on; what was ambiguous once stays so.
    fn read(&mut self, mut bytes: &[u8]) -> Result<(), Ambiguous> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        while !bytes.is_empty() {
            let outcome = match self.at {
                At::Sized(left) => {
                    bytes = skip(bytes, left, &mut self.at, At::Sized, At::RequestLine);
                    Ok(())
                }
                At::Chunk(left) => {
                    bytes = skip(bytes, left, &mut self.at, At::Chunk, At::ChunkEnd);
                    Ok(())
                }
                _ => {
                    let (taken, outcome) = match self.plain(bytes) {
                        0 => (1, self.byte(bytes[0])),
                        plain => (plain, self.text(&bytes[..plain])),
                    };
                    bytes = &bytes[taken..];
                    outcome
                }
            };
            if let Err(ambiguous) = outcome {
                self.failed = Some(ambiguous);
                return Err(ambiguous);
            }
        }
        Ok(())
    }

    /// How many bytes follow that neither end a line nor could be taken for an end.
    fn plain(&self, bytes: &[u8]) -> usize {
        if self.line.last() == Some(&b'\r') {
            return 0;
        }
        let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        // Piece by piece without a way out, which the compiler makes into few instructions.
        let pieces = bytes.chunks(32);
        let whole =
            pieces.take_while(|piece| !piece.iter().fold(false, |any, byte| any | is_end(byte)));
        let before = whole.map(<[u8]>::len).sum();
        let rest = bytes[before..].iter();
        before + rest.take_while(|byte| !is_end(byte)).count()
    }

    /// Reads one byte of a line.
    fn byte(&mut self, byte: u8) -> Result<(), Ambiguous> {
        let returned = self.line.last() == Some(&b'\r');
        if byte == b'\n' {
            if !returned {
                return Err(Ambiguous("a line ends in a bare line feed"));
            }
            self.line.pop();
            let mut line = std::mem::take(&mut self.line);
            let outcome = self.line(&line);
            // The next line has its room, unless this one was long.
            if line.capacity() <= KEPT_LINE {
                line.clear();
                self.line = line;
            }
            return outcome;
        }
        if returned {
            return Err(Ambiguous("a carriage return stands within a line"));
        }
        self.text(&[byte])
    }

    /// Reads bytes of a line.
    fn text(&mut self, bytes: &[u8]) -> Result<(), Ambiguous> {
        self.line.extend_from_slice(bytes);
        let longest = match self.at {
            At::RequestLine | At::Header => {
                self.head += bytes.len();
                self.head_bytes.saturating_sub(self.head - self.line.len())
            }
            _ => LONGEST_LINE,
        };
        if self.line.len() > longest {
            return Err(Ambiguous("a line is too long"));
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Ambiguous> {
        match self.at {
            At::RequestLine => {
                // An empty line before a request is what some old clients send behind a body.
                if line.is_empty() {
                    return Err(Ambiguous("an empty line stands before a request"));
                }
                self.body = Body::None;
                self.at = At::Header;
            }
            At::Header if line.is_empty() => {
                self.head = 0;
                self.at = match self.body {
                    Body::None | Body::Sized(0) => At::RequestLine,
                    Body::Sized(bytes) => At::Sized(bytes),
                    Body::Chunked => At::ChunkSize,
                };
            }
            At::Header => self.header(line)?,
            At::ChunkSize => {
                let size = chunk_size(line).ok_or(Ambiguous("a chunk has no plain size"))?;
                self.trailers = 0;
                self.at = if size == 0 {
                    At::Trailer
                } else {
                    At::Chunk(size)
                };
            }
            At::ChunkEnd => {
                if !line.is_empty() {
                    return Err(Ambiguous("a chunk is longer than its size"));
                }
                self.at = At::ChunkSize;
            }
            At::Trailer => {
                self.trailers += 1;
                if line.is_empty() {
                    self.at = At::RequestLine;
                } else if self.trailers > TRAILERS {
                    return Err(Ambiguous("there are too many trailers"));
                }
            }
            At::Sized(_) | At::Chunk(_) => {}
        }
        Ok(())
    }

    fn header(&mut self, line: &[u8]) -> Result<(), Ambiguous> {
        if line[0] == b' ' || line[0] == b'\t' {
            return Err(Ambiguous("a header is folded"));
        }
        let colon = line.iter().position(|&byte| byte == b':');
        let (name, value) = line.split_at(colon.ok_or(Ambiguous("a header has no colon"))?);
        if name.last().is_some_and(u8::is_ascii_whitespace) {
            return Err(Ambiguous("a blank stands before a colon"));
        }
        let value = value[1..].trim_ascii();
        let body = if name.eq_ignore_ascii_case(b"content-length") {
            let length = plain(value, 10, 18).ok_or(Ambiguous("a length is no plain number"))?;
            Body::Sized(length)
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Ambiguous("a transfer encoding is not just chunked"));
            }
            Body::Chunked
        } else {
            return Ok(());
        };
        if self.body != Body::None {
            return Err(Ambiguous("the length of a body is said twice"));
        }
        self.body = body;
        Ok(())
    }
}

/// Passes over bytes of a body; answers the rest.
fn skip<'a>(bytes: &'a [u8], left: u64, at: &mut At, going: fn(u64) -> At, done: At) -> &'a [u8] {
    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    let left = left - taken as u64;
    *at = if left == 0 { done } else { going(left) };
    &bytes[taken..]
}

/// The size of a chunk; extensions, which nobody uses, are none of a plain size.
fn chunk_size(line: &[u8]) -> Option<u64> {
    plain(line, 16, 8)
}

/// A number in digits only.
fn plain(text: &[u8], radix: u32, digits: usize) -> Option<u64> {
    let number = std::str::from_utf8(text).ok()?;
    let all_digits = number.chars().all(|letter| letter.is_digit(radix));
    (all_digits && (1..=digits).contains(&number.len()))
        .then(|| u64::from_str_radix(number, radix).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<At, &'static str> {
        let mut frames = Frames::new(1024);
        frames
            .read(text.as_bytes())
            .map_err(|ambiguous| ambiguous.0)?;
        Ok(frames.at)
    }

    #[test]
    fn plain_requests_follow_one_another() {
        for text in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nHost: a\r\n\r\nhello",
            "POST / HTTP/1.1\r\ncontent-length:0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nA\r\n0\r\n\r\n\r\n\r\n\n\r\n0\r\nx: y\r\n\r\n",
        ] {
            assert_eq!(read(&text.repeat(3)), Ok(At::RequestLine), "{text}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_not_read() {
        let body = "\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n";
        for (head, why) in [
            (
                "Content-Length: 5\r\nTransfer-Encoding: chunked",
                "said twice",
            ),
            (
                "Transfer-Encoding: chunked\r\nContent-Length: 5",
                "said twice",
            ),
            ("Content-Length: 5\r\nContent-Length: 5", "said twice"),
            ("Content-Length: 5\r\ncontent-length: 6", "said twice"),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
                "said twice",
            ),
            ("Transfer-Encoding: identity, chunked", "just chunked"),
            ("Transfer-Encoding: chunked, identity", "just chunked"),
            ("Transfer-Encoding: xchunked", "just chunked"),
            ("Content-Length: 5, 5", "plain number"),
            ("Content-Length: +5", "plain number"),
            ("Content-Length: 0x5", "plain number"),
            ("Content-Length: ", "plain number"),
            ("Content-Length: 99999999999999999999", "plain number"),
            ("Content-Length : 5", "before a colon"),
            ("Transfer-Encoding\t: chunked", "before a colon"),
            ("X: y\n Content-Length: 5", "bare line feed"),
            ("X: y\nContent-Length: 5", "bare line feed"),
            ("X: y\rContent-Length: 5", "carriage return"),
            ("X: y\r\n folded", "folded"),
            ("X: y\r\n\tfolded", "folded"),
            ("no colon", "no colon"),
        ] {
            let text = format!("POST / HTTP/1.1\r\n{head}{body}");
            let refused = read(&text).unwrap_err();
            assert!(refused.contains(why), "{head:?}: {refused}");
        }
        for (chunks, why) in [
            ("5;x=y\r\nhello\r\n0\r\n\r\n", "plain size"),
            ("0x5\r\nhello\r\n0\r\n\r\n", "plain size"),
            (" 5\r\nhello\r\n", "plain size"),
            ("-1\r\n", "plain size"),
            ("\r\n", "plain size"),
            ("fffffffff\r\n", "plain size"),
            ("5\nhello", "bare line feed"),
            ("5\r\nhelloworld\r\n", "longer than its size"),
        ] {
            let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
            let refused = read(&format!("{head}{chunks}")).unwrap_err();
            assert!(refused.contains(why), "{chunks:?}: {refused}");
        }
        let trailers = "x: y\r\n".repeat(20);
        for (text, why) in [
            (
                format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1024)),
                "too long",
            ),
            (
                format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(300)),
                "too long",
            ),
            (
                format!("GET /{} HTTP/1.1\r\n\r\n", "y".repeat(1024)),
                "too long",
            ),
            (
                format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{trailers}"),
                "too many trailers",
            ),
            ("\r\nGET / HTTP/1.1\r\n\r\n".to_owned(), "empty line"),
        ] {
            let refused = read(&text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_come_in(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..5),
            chunked in any::<bool>(),
            pieces in prop::collection::vec(1_usize..17, 1..20),
            noise in prop::option::of((0_usize..200, any::<u8>())),
        ) {
            let mut wire = Vec::new();
            for body in &bodies {
                if chunked {
                    wire.extend(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
                    if !body.is_empty() {
                        wire.extend(format!("{:x}\r\n", body.len()).bytes());
                        wire.extend(body);
                        wire.extend(b"\r\n");
                    }
                    wire.extend(b"0\r\n\r\n");
                } else {
                    let head = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
                    wire.extend(head.bytes());
                    wire.extend(body);
                }
            }
            if let Some((at, byte)) = noise
                && at < wire.len()
            {
                wire[at] = byte;
            }
            let mut whole = Frames::new(1024);
            let outcome = whole.read(&wire);
            if noise.is_none() {
                prop_assert_eq!(outcome, Ok(()));
                prop_assert_eq!(whole.at, At::RequestLine);
            }
            let mut piecewise = Frames::new(1024);
            let (mut left, mut sizes) = (&wire[..], pieces.iter().cycle());
            let mut by_pieces = Ok(());
            while !left.is_empty() && by_pieces.is_ok() {
                let (piece, rest) = left.split_at((*sizes.next().unwrap()).min(left.len()));
                by_pieces = piecewise.read(piece);
                left = rest;
            }
            prop_assert_eq!(by_pieces, outcome);
            prop_assert_eq!(piecewise.at, whole.at);
        }
    }
}
