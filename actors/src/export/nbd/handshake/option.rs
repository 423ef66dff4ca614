//! What each option does.

use millpond_messages::nbd::{Cursor, HandshakeFlags, MAX_STRING, Mode, context, info, option, reply};
use std::sync::Arc;

use super::answer::{self, Wanted};
use super::{Contexts, Drop, Handshake, Negotiated, Progress, Stepped, Tls};
use crate::export::nbd::offer::{Catalogue, Offer, OfferedBitmap};

/// Characters of a client's export name that error texts repeat.
const NAME_SHOWN: usize = 80;

/// What the handshake waits for. Options with a payload carry how much of it has not come (`left`).
#[derive(Debug)]
pub(super) enum Step {
    /// The client's flags are awaited.
    ClientFlags,
    /// The header of an option is awaited.
    Header,
    /// The rest of an option whose answer is settled.
    Skip(Skip),
    /// The name of EXPORT_NAME, of this length.
    ExportName(usize),
    /// A name's length (INFO, GO and the metadata options).
    NameLength { option: u32, left: u32 },
    /// The name of an export is awaited.
    Name { option: u32, left: u32, length: usize },
    /// INFO, GO: how many pieces of information are asked for.
    InfoCount { option: u32, left: u32, name: Vec<u8> },
    /// INFO, GO: the next of them.
    InfoRequest(Info),
    /// Metadata options: how many queries there are.
    QueryCount { meta: Meta },
    /// The next query's length.
    QueryLength { meta: Meta, queries: u32 },
    /// A query for metadata contexts is awaited.
    Query { meta: Meta, queries: u32, length: usize },
}

/// An option's payload that is not looked at, and what follows it.
#[derive(Debug)]
pub(super) struct Skip {
    /// Bytes of it that have not come.
    pub(super) left: u32,
    then: Then,
}

/// What follows a payload that was skipped.
#[derive(Debug)]
enum Then {
    /// The option is answered by an error.
    Error { option: u32, kind: u32, text: String },
    /// The next query: this one was too long to be known.
    Queries { meta: Meta, queries: u32 },
}

/// An INFO or GO under way.
#[derive(Debug)]
pub(super) struct Info {
    option: u32,
    left: u32,
    name: Vec<u8>,
    /// Pieces of information that are asked for and have not come.
    requests: u16,
    wanted: Wanted,
}

/// A metadata option under way.
#[derive(Debug)]
pub(super) struct Meta {
    option: u32,
    left: u32,
    export: Arc<Offer>,
    contexts: Contexts,
}

impl Step {
    /// How many bytes the step needs, at most [`MAX_STRING`].
    pub(super) fn need(&self) -> usize {
        match self {
            Self::ClientFlags
            | Self::NameLength { .. }
            | Self::QueryCount { .. }
            | Self::QueryLength { .. } => 4,
            Self::Header => 16,
            Self::Skip(_) => 0,
            Self::ExportName(length) | Self::Name { length, .. } | Self::Query { length, .. } => *length,
            Self::InfoCount { .. } | Self::InfoRequest(_) => 2,
        }
    }

    /// Skips what is `left` of an option, then refuses it.
    pub(super) fn refuse(option: u32, left: u32, kind: u32, text: impl Into<String>) -> Self {
        Self::Skip(Skip {
            left,
            then: Then::Error {
                option,
                kind,
                text: text.into(),
            },
        })
    }

    fn invalid(option: u32, left: u32, text: String) -> Self {
        Self::refuse(option, left, reply::ERR_INVALID, text)
    }

    /// Refuses an option that has a payload and should have none, or more of it than it says itself.
    pub(super) fn unexpected_length(option: u32, left: u32) -> Self {
        let text = format!("option '{}' has unexpected length", option::name(option));
        Self::invalid(option, left, text)
    }
}

/// Takes `n` bytes off what is left of an option's payload; a client that contradicts itself gets `Err`.
fn take(option: u32, left: u32, n: usize) -> Result<u32, Step> {
    u32::try_from(n)
        .ok()
        .and_then(|n| left.checked_sub(n))
        .ok_or_else(|| {
            Step::invalid(
                option,
                left,
                format!("Inconsistent lengths in option {}", option::name(option)),
            )
        })
}

impl Handshake {
    /// Begins an option with `length` bytes of payload.
    pub(super) fn option(
        &mut self,
        option: u32,
        length: u32,
        exports: &(impl Catalogue + ?Sized),
        out: &mut Vec<u8>,
    ) -> Stepped {
        if !self.flags.contains(HandshakeFlags::FIXED_NEWSTYLE) && option != option::EXPORT_NAME {
            return Err(Drop(format!(
                "Unsupported option {option} ({})",
                option::name(option)
            )));
        }
        if self.tls == Tls::Required {
            return self.before_tls(option, length, out);
        }
        self.step = match option {
            option::EXPORT_NAME => self.begin_export_name(length)?,
            option::ABORT => {
                answer::ack(out, option);
                self.aborted = true;
                return Err(Drop("the client ended the handshake".to_owned()));
            }
            option::LIST | option::STARTTLS | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS
                if length > 0 =>
            {
                Step::unexpected_length(option, length)
            }
            option::LIST => {
                exports
                    .offers()
                    .iter()
                    .for_each(|offer| answer::server(out, offer));
                answer::ack(out, option);
                Step::Header
            }
            option::STARTTLS => self.refuse_tls(),
            option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => self.upgrade(option, out),
            option::SET_META_CONTEXT if self.mode < Mode::Structured => Step::invalid(
                option,
                length,
                format!(
                    "request option '{}' when structured reply is not negotiated",
                    option::name(option)
                ),
            ),
            option::INFO | option::GO | option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                if option == option::SET_META_CONTEXT {
                    self.contexts = None;
                }
                begin_fields(option, length, 4, |left| Step::NameLength { option, left })
            }
            _ => {
                let text = format!("Unsupported option {option} ({})", option::name(option));
                Step::refuse(option, length, reply::ERR_UNSUP, text)
            }
        };
        Ok(Progress::Continue)
    }

    /// Goes on with an option whose next bytes are `data`.
    pub(super) fn option_step(
        &mut self,
        step: Step,
        data: &[u8],
        exports: &(impl Catalogue + ?Sized),
        out: &mut Vec<u8>,
    ) -> Stepped {
        let mut fields = Cursor(data);
        self.step = match step {
            Step::ClientFlags | Step::Header => Step::Header,
            Step::Skip(skip) => self.skipped(skip.then, out),
            Step::ExportName(_) => return self.export_name(data, exports, out),
            Step::NameLength { option, left } => {
                name_length(option, left, fields.u32().unwrap_or_default() as usize)
            }
            Step::Name { option, left, .. } if data.contains(&0) => embedded_nul(option, left),
            Step::Name { option, left, .. } if matches!(option, option::INFO | option::GO) => {
                let name = data.to_vec();
                begin_fields(option, left, 2, |left| Step::InfoCount { option, left, name })
            }
            Step::Name { option, left, .. } => begin_meta(option, left, data, exports),
            Step::InfoCount { option, left, name } => {
                let info = Info {
                    option,
                    left,
                    name,
                    requests: fields.u16().unwrap_or_default(),
                    wanted: Wanted::default(),
                };
                return Ok(self.next_info(info, exports, out));
            }
            Step::InfoRequest(mut info) => {
                match fields.u16() {
                    Some(info::NAME) => info.wanted.name = true,
                    Some(info::BLOCK_SIZE) => info.wanted.block_size = true,
                    _ => {}
                }
                return Ok(self.next_info(info, exports, out));
            }
            Step::QueryCount { mut meta } => {
                let queries = fields.u32().unwrap_or_default();
                if meta.option == option::LIST_META_CONTEXT && queries == 0 {
                    meta.contexts = available(&meta.export);
                }
                self.next_query(meta, queries, out)
            }
            Step::QueryLength { meta, queries } => {
                query_length(meta, queries, fields.u32().unwrap_or_default() as usize)
            }
            Step::Query { meta, .. } if data.contains(&0) => embedded_nul(meta.option, meta.left),
            Step::Query {
                mut meta, queries, ..
            } => {
                meta.query(data);
                self.next_query(meta, queries, out)
            }
        };
        Ok(Progress::Continue)
    }

    fn skipped(&mut self, then: Then, out: &mut Vec<u8>) -> Step {
        match then {
            Then::Error { option, kind, text } => {
                answer::error(out, option, kind, &text);
                Step::Header
            }
            Then::Queries { meta, queries } => self.next_query(meta, queries, out),
        }
    }

    fn begin_export_name(&self, length: u32) -> Result<Step, Drop> {
        if self.mode >= Mode::Extended {
            return Err(Drop("Extended headers already negotiated".to_owned()));
        }
        match length as usize {
            length if length > MAX_STRING => Err(Drop("Bad length received".to_owned())),
            length => Ok(Step::ExportName(length)),
        }
    }

    fn export_name(
        &mut self,
        name: &[u8],
        exports: &(impl Catalogue + ?Sized),
        out: &mut Vec<u8>,
    ) -> Stepped {
        let export = exports
            .find(name)
            .ok_or_else(|| Drop("export not found".to_owned()))?;
        let no_zeroes = self.flags.contains(HandshakeFlags::NO_ZEROES);
        answer::export_name(out, &export, self.mode, no_zeroes);
        Ok(Progress::Chosen(self.chosen(export)))
    }

    /// Carries out STRUCTURED_REPLY and EXTENDED_HEADERS.
    fn upgrade(&mut self, option: u32, out: &mut Vec<u8>) -> Step {
        let structured = option == option::STRUCTURED_REPLY;
        let refused = match self.mode {
            Mode::Extended if structured => {
                Some((reply::ERR_EXT_HEADER_REQD, "extended headers already negotiated"))
            }
            Mode::Extended => Some((reply::ERR_INVALID, "extended headers already negotiated")),
            Mode::Structured if structured => {
                Some((reply::ERR_INVALID, "structured reply already negotiated"))
            }
            Mode::Structured | Mode::Simple => None,
        };
        match refused {
            Some((kind, text)) => Step::refuse(option, 0, kind, text),
            None => {
                self.mode = if structured {
                    Mode::Structured
                } else {
                    Mode::Extended
                };
                answer::ack(out, option);
                Step::Header
            }
        }
    }

    fn next_info(
        &mut self,
        mut info: Info,
        exports: &(impl Catalogue + ?Sized),
        out: &mut Vec<u8>,
    ) -> Progress {
        let (option, left) = (info.option, info.left);
        if let Some(requests) = info.requests.checked_sub(1) {
            self.step = begin_fields(option, left, 2, |left| {
                (info.left, info.requests) = (left, requests);
                Step::InfoRequest(info)
            });
            return Progress::Continue;
        }
        if left > 0 {
            self.step = Step::unexpected_length(option, left);
            return Progress::Continue;
        }
        let Some(export) = exports.find(&info.name) else {
            let text = not_present(&info.name);
            answer::error(out, option, reply::ERR_UNKNOWN, &text);
            self.missing = Some(text);
            return Progress::Continue;
        };
        let chosen = self.chosen(export);
        answer::information(out, option, info.wanted, &chosen);
        if option == option::INFO && !info.wanted.block_size && chosen.export.request_alignment > 1 {
            let text = "request NBD_INFO_BLOCK_SIZE to use this export";
            answer::error(out, option, reply::ERR_BLOCK_SIZE_REQD, text);
            return Progress::Continue;
        }
        answer::ack(out, option);
        match option {
            option::GO => Progress::Chosen(chosen),
            _ => Progress::Continue,
        }
    }

    fn next_query(&mut self, meta: Meta, queries: u32, out: &mut Vec<u8>) -> Step {
        if let Some(queries) = queries.checked_sub(1) {
            return match take(meta.option, meta.left, 4) {
                Ok(left) => Step::QueryLength {
                    meta: Meta { left, ..meta },
                    queries,
                },
                Err(refused) => refused,
            };
        }
        answer::meta_contexts(out, meta.option, meta.contexts, &meta.export);
        if meta.option == option::SET_META_CONTEXT {
            self.contexts = Some((meta.export, meta.contexts));
        }
        Step::Header
    }

    /// The contexts chosen, if they were chosen for this very export.
    fn contexts_for(&self, export: &Arc<Offer>) -> Contexts {
        match &self.contexts {
            Some((of, contexts)) if Arc::ptr_eq(of, export) => *contexts,
            _ => Contexts::default(),
        }
    }

    fn chosen(&self, export: Arc<Offer>) -> Negotiated {
        let contexts = self.contexts_for(&export);
        Negotiated {
            export,
            mode: self.mode,
            contexts,
        }
    }
}

/// The step that reads the next field of `n` bytes, unless the option's length contradicts it.
fn begin_fields(option: u32, left: u32, n: usize, step: impl FnOnce(u32) -> Step) -> Step {
    match take(option, left, n) {
        Ok(left) => step(left),
        Err(refused) => refused,
    }
}

fn name_length(option: u32, left: u32, length: usize) -> Step {
    if length > MAX_STRING {
        return Step::invalid(option, left, format!("Invalid name length: {length}"));
    }
    begin_fields(option, left, length, |left| Step::Name { option, left, length })
}

fn embedded_nul(option: u32, left: u32) -> Step {
    Step::invalid(
        option,
        left,
        format!("Unexpected embedded NUL in option {}", option::name(option)),
    )
}

fn begin_meta(option: u32, left: u32, name: &[u8], exports: &(impl Catalogue + ?Sized)) -> Step {
    let Some(export) = exports.find(name) else {
        return Step::refuse(option, left, reply::ERR_UNKNOWN, not_present(name));
    };
    begin_fields(option, left, 4, |left| {
        let contexts = Contexts::default();
        Step::QueryCount {
            meta: Meta {
                option,
                left,
                export,
                contexts,
            },
        }
    })
}

fn query_length(meta: Meta, queries: u32, length: usize) -> Step {
    let left = match take(meta.option, meta.left, length) {
        Ok(left) => left,
        Err(refused) => return refused,
    };
    let meta = Meta { left, ..meta };
    if length > MAX_STRING {
        // `take` showed that it fits.
        return Step::Skip(Skip {
            left: length as u32,
            then: Then::Queries { meta, queries },
        });
    }
    Step::Query {
        meta,
        queries,
        length,
    }
}

impl Meta {
    /// Chooses what a query stands for; those of other namespaces stand for nothing here.
    fn query(&mut self, query: &[u8]) {
        let available = available(&self.export);
        let listing = self.option == option::LIST_META_CONTEXT;
        match query {
            b"base:" => self.contexts.base_allocation |= listing,
            b"qemu:" if listing => {
                self.contexts.allocation_depth |= available.allocation_depth;
                self.contexts.bitmaps |= available.bitmaps;
            }
            b"qemu:dirty-bitmap:" if listing => self.contexts.bitmaps |= available.bitmaps,
            name if name == context::BASE_ALLOCATION_NAME.as_bytes() => self.contexts.base_allocation = true,
            name if name == context::ALLOCATION_DEPTH_NAME.as_bytes() => {
                self.contexts.allocation_depth = available.allocation_depth;
            }
            name => self.contexts.bitmaps |= named(&self.export, name),
        }
    }
}

/// The bitmap that a query names, as a set of bitmaps: of several of a name the first.
fn named(export: &Offer, query: &[u8]) -> u64 {
    let name = query.strip_prefix(context::DIRTY_BITMAPS_NAME.as_bytes());
    let is_named = |bitmap: &OfferedBitmap| Some(bitmap.name().as_bytes()) == name;
    export
        .bitmaps
        .iter()
        .position(is_named)
        .map_or(0, |place| 1 << place)
}

/// The contexts that an export has.
fn available(export: &Offer) -> Contexts {
    Contexts {
        base_allocation: true,
        allocation_depth: export.allocation_depth,
        bitmaps: export.bitmaps.iter().fold(0, |all, _| all << 1 | 1),
    }
}

fn not_present(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    match name.char_indices().nth(NAME_SHOWN - 1) {
        Some((last, char)) => format!("export '{}...' not present", &name[..last + char.len_utf8()]),
        None => format!("export '{name}' not present"),
    }
}
