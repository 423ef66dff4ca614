//! Takes replies apart as their bytes come, and hands on their data where it lies.

use crate::Outcome;

pub(super) const SIMPLE_MAGIC: u32 = 0x6744_6698;
pub(super) const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const SIMPLE: usize = 16;
const STRUCTURED: usize = 20;
/// The longest header with what follows it before data: a structured one with the offset and length of a hole.
const LONGEST: usize = STRUCTURED + 12;
const FLAG_DONE: u16 = 1;
const TYPE_NONE: u16 = 0;
const TYPE_DATA: u16 = 1;
const TYPE_HOLE: u16 = 2;
const TYPE_ERROR: u16 = 1 << 15;
/// The longest text of an error that is believed, in bytes.
const MOST_TEXT: u32 = 4096 + 10;

/// The requests that replies belong to.
pub(super) trait Requests {
    /// The offset and length of a read in flight, and (0, 0) for another request; an error if there is no such request.
    fn range(&self, cookie: u64) -> Outcome<(u64, u32)>;
    /// A piece of a read's data.
    fn data(&mut self, cookie: u64, offset: u64, bytes: &[u8]) -> Outcome<()>;
    /// A part of a read that is zeroes.
    fn hole(&mut self, cookie: u64, offset: u64, len: u32) -> Outcome<()>;
    /// A request has ended, well or with an error of `errno` and a text that may be empty.
    fn done(&mut self, cookie: u64, error: Option<(u32, &str)>) -> Outcome<()>;
}

/// What comes next.
#[derive(Debug)]
enum State {
    /// A header, of which `have` bytes are kept.
    Header,
    /// Data of a read.
    Data {
        cookie: u64,
        offset: u64,
        left: usize,
        last: bool,
    },
    /// The rest of an error.
    Error { cookie: u64, left: usize, text: Vec<u8> },
}

/// The receiving side of a connection.
#[derive(Debug)]
pub(super) struct Replies {
    state: State,
    kept: [u8; LONGEST],
    have: usize,
}

fn be<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    // Headers are looked at once they are complete.
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
    field.copied().unwrap_or([0; N])
}

impl Replies {
    pub fn new() -> Replies {
        Replies {
            state: State::Header,
            kept: [0; LONGEST],
            have: 0,
        }
    }

    /// Takes bytes in.
    ///
    /// # Errors
    /// They are no reply, or `requests` has refused one.
    #[inline]
    pub fn take(&mut self, mut bytes: &[u8], requests: &mut impl Requests) -> Outcome<()> {
        while !bytes.is_empty() {
            bytes = match &mut self.state {
                State::Header => self.header(bytes, requests)?,
                State::Data {
                    cookie,
                    offset,
                    left,
                    last,
                } => {
                    let (now, later) = bytes.split_at(bytes.len().min(*left));
                    requests.data(*cookie, *offset, now)?;
                    *offset += now.len() as u64;
                    *left -= now.len();
                    if *left == 0 {
                        let (cookie, last) = (*cookie, *last);
                        self.state = State::Header;
                        if last {
                            requests.done(cookie, None)?;
                        }
                    }
                    later
                }
                State::Error { cookie, left, text } => {
                    let (now, later) = bytes.split_at(bytes.len().min(*left));
                    text.extend(now);
                    *left -= now.len();
                    if *left == 0 {
                        let (cookie, text) = (*cookie, std::mem::take(text));
                        self.state = State::Header;
                        failed(cookie, &text, requests)?;
                    }
                    later
                }
            };
        }
        Ok(())
    }

    /// Takes a header, or as much of it as there is; the bytes after it.
    #[inline]
    fn header<'a>(&mut self, bytes: &'a [u8], requests: &mut impl Requests) -> Outcome<&'a [u8]> {
        if self.have == 0
            && let Some(header) = bytes.first_chunk::<SIMPLE>()
            && u32::from_be_bytes(be(header, 0)) == SIMPLE_MAGIC
        {
            self.simple(header, requests)?;
            return Ok(&bytes[SIMPLE..]);
        }
        let wanted = self.wanted()?;
        let (now, later) = bytes.split_at((wanted - self.have).min(bytes.len()));
        self.kept[self.have..self.have + now.len()].copy_from_slice(now);
        self.have += now.len();
        if self.have == wanted && self.wanted()? == wanted {
            let header = self.kept;
            self.have = 0;
            match wanted {
                SIMPLE => self.simple(&header, requests)?,
                _ => self.structured(&header, requests)?,
            }
        }
        Ok(later)
    }

    /// How many bytes the header has that is being received, as far as that can be told.
    fn wanted(&self) -> Outcome<usize> {
        if self.have < 4 {
            return Ok(4);
        }
        match u32::from_be_bytes(be(&self.kept, 0)) {
            SIMPLE_MAGIC => Ok(SIMPLE),
            STRUCTURED_MAGIC if self.have < STRUCTURED => Ok(STRUCTURED),
            STRUCTURED_MAGIC => Ok(match u16::from_be_bytes(be(&self.kept, 6)) {
                TYPE_DATA => STRUCTURED + 8,
                TYPE_HOLE => STRUCTURED + 12,
                _ => STRUCTURED,
            }),
            other => Err(format!("a reply begins with {other:#010x}").into()),
        }
    }

    #[inline]
    fn simple(&mut self, header: &[u8], requests: &mut impl Requests) -> Outcome<()> {
        let cookie = u64::from_be_bytes(be(header, 8));
        let (offset, length) = requests.range(cookie)?;
        match u32::from_be_bytes(be(header, 4)) {
            0 if length > 0 => {
                self.state = State::Data {
                    cookie,
                    offset,
                    left: length as usize,
                    last: true,
                };
                Ok(())
            }
            0 => requests.done(cookie, None),
            errno => requests.done(cookie, Some((errno, ""))),
        }
    }

    fn structured(&mut self, header: &[u8; LONGEST], requests: &mut impl Requests) -> Outcome<()> {
        let last = u16::from_be_bytes(be(header, 4)) & FLAG_DONE != 0;
        let kind = u16::from_be_bytes(be(header, 6));
        let cookie = u64::from_be_bytes(be(header, 8));
        let length = u32::from_be_bytes(be(header, 16));
        let range = requests.range(cookie)?;
        let offset = u64::from_be_bytes(be(header, STRUCTURED));
        match kind {
            TYPE_NONE if length == 0 && last => requests.done(cookie, None),
            TYPE_DATA if length > 8 && holds(range, offset, length - 8) => {
                self.state = State::Data {
                    cookie,
                    offset,
                    left: length as usize - 8,
                    last,
                };
                Ok(())
            }
            TYPE_HOLE if length == 12 => {
                let hole = u32::from_be_bytes(be(header, STRUCTURED + 8));
                if !holds(range, offset, hole) {
                    return Err(format!("a hole of {hole} bytes at {offset} is outside of the read").into());
                }
                requests.hole(cookie, offset, hole)?;
                if last { requests.done(cookie, None) } else { Ok(()) }
            }
            _ if kind & TYPE_ERROR != 0 && (6..=MOST_TEXT).contains(&length) => {
                self.state = State::Error {
                    cookie,
                    left: length as usize,
                    text: Vec::new(),
                };
                Ok(())
            }
            _ => Err(
                format!("a chunk of type {kind} and {length} bytes does not belong to its request").into(),
            ),
        }
    }
}

/// Whether a piece lies inside a read.
fn holds((start, len): (u64, u32), offset: u64, piece: u32) -> bool {
    offset >= start
        && offset
            .checked_add(u64::from(piece))
            .is_some_and(|end| end <= start + u64::from(len))
}

/// Hands on an error: its number, the length of its text, and the text.
fn failed(cookie: u64, bytes: &[u8], requests: &mut impl Requests) -> Outcome<()> {
    let errno = u32::from_be_bytes(be(bytes, 0));
    let length = usize::from(u16::from_be_bytes(be(bytes, 4)));
    let text = bytes.get(6..6 + length).unwrap_or_default();
    requests.done(cookie, Some((errno, &String::from_utf8_lossy(text))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads of 30 bytes at 100 times their cookie; what came of them as text.
    #[derive(Debug, Default, PartialEq)]
    struct Log {
        data: Vec<u8>,
        events: Vec<String>,
    }

    impl Requests for Log {
        fn range(&self, cookie: u64) -> Outcome<(u64, u32)> {
            match cookie {
                0 => Ok((0, 0)),
                1..10 => Ok((100 * cookie, 30)),
                _ => Err("no such request".into()),
            }
        }

        fn data(&mut self, _cookie: u64, _offset: u64, bytes: &[u8]) -> Outcome<()> {
            self.data.extend(bytes);
            Ok(())
        }

        fn hole(&mut self, cookie: u64, offset: u64, len: u32) -> Outcome<()> {
            self.events.push(format!("hole {cookie} {offset} {len}"));
            Ok(())
        }

        fn done(&mut self, cookie: u64, error: Option<(u32, &str)>) -> Outcome<()> {
            self.events.push(format!("done {cookie} {error:?}"));
            Ok(())
        }
    }

    fn simple(cookie: u64, errno: u32, data: &[u8]) -> Vec<u8> {
        [
            &SIMPLE_MAGIC.to_be_bytes()[..],
            &errno.to_be_bytes(),
            &cookie.to_be_bytes(),
            data,
        ]
        .concat()
    }

    fn chunk(flags: u16, kind: u16, cookie: u64, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32).to_be_bytes();
        [
            &STRUCTURED_MAGIC.to_be_bytes()[..],
            &flags.to_be_bytes(),
            &kind.to_be_bytes(),
            &cookie.to_be_bytes(),
            &length,
            body,
        ]
        .concat()
    }

    /// What is understood of bytes, which must not depend on how they are cut.
    fn understood(bytes: &[u8]) -> Log {
        let log = |size: usize| {
            let (mut replies, mut log) = (Replies::new(), Log::default());
            for piece in bytes.chunks(size) {
                replies.take(piece, &mut log).unwrap();
            }
            log
        };
        let whole = log(bytes.len());
        for size in 1..bytes.len() {
            assert_eq!(log(size), whole, "in pieces of {size}");
        }
        whole
    }

    #[test]
    fn simple_replies() {
        let bytes = [simple(7, 0, &[0xaa; 30]), simple(0, 0, &[]), simple(3, 5, &[])].concat();
        let log = understood(&bytes);
        assert_eq!(log.data, [0xaa; 30]);
        assert_eq!(
            log.events,
            ["done 7 None", "done 0 None", "done 3 Some((5, \"\"))"]
        );
    }

    #[test]
    fn structured_replies() {
        let data = [&705_u64.to_be_bytes()[..], &[0xbb; 25]].concat();
        let hole = [&700_u64.to_be_bytes()[..], &5_u32.to_be_bytes()].concat();
        let error = [&22_u32.to_be_bytes()[..], &3_u16.to_be_bytes(), b"bad"].concat();
        let bytes = [
            chunk(0, TYPE_DATA, 7, &data),
            chunk(FLAG_DONE, TYPE_HOLE, 7, &hole),
            chunk(FLAG_DONE, TYPE_NONE, 0, &[]),
            chunk(FLAG_DONE, TYPE_ERROR | 1, 2, &error),
        ]
        .concat();
        let log = understood(&bytes);
        assert_eq!(log.data, [0xbb; 25]);
        assert_eq!(
            log.events,
            [
                "hole 7 700 5",
                "done 7 None",
                "done 0 None",
                "done 2 Some((22, \"bad\"))"
            ]
        );
    }

    #[test]
    fn what_belongs_to_no_request_is_refused() {
        let far = [&729_u64.to_be_bytes()[..], &[1; 2]].concat();
        let hole = [&699_u64.to_be_bytes()[..], &1_u32.to_be_bytes()].concat();
        for bytes in [
            simple(11, 0, &[]),
            vec![1; 16],
            chunk(0, TYPE_DATA, 7, &far),
            chunk(0, TYPE_HOLE, 7, &hole),
            chunk(0, TYPE_NONE, 7, &[]),
            chunk(0, TYPE_ERROR, 7, &[0; 5]),
            chunk(0, 77, 7, &[]),
        ] {
            assert!(
                Replies::new().take(&bytes, &mut Log::default()).is_err(),
                "{bytes:x?}"
            );
        }
    }
}
