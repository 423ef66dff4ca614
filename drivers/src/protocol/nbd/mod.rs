//! `nbd`: a disk that an NBD server has.
//!
//! ```text
//!   options (and filenames) ---> session (which connection; lost and made again)
//!                                   |---> connect ---> handshake          inbox: what has come
//!                                   '---> link: requests under way ---> reply <---'        wire: bytes
//! ```
//! A lost connection is made again by the requests that need it. They wait for that as long as `reconnect-delay` says, counted
//! from the loss, and fail from then on until the server is there.

mod connect;
mod handshake;
mod inbox;
mod link;
mod options;
mod reply;
mod session;
mod socket;
mod wire;

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::nbd::{CommandFlags, Mode, TransmissionFlags, command, state};
use millpond_messages::{
    Error, ErrorKind, IoError, IoResult, Limits, OpenFlags, Range, RequestFlags, Result,
};
use millpond_ring::buffer::Buffers;

use crate::api::reopen::check_unchanged;
use crate::api::{
    Abilities, Ability, AllocationTicket, Answer, At, ChildKind, Driver, DriverKind, Extent, Image,
    LengthSource, Lifecycle, Moved, OpenRequest, Opened, OptionNames, Placement, Purpose, ReopenRequest,
    SavesState, Transfer,
};
use crate::tls::ClientCredentialsById;
use handshake::Agreed;
use options::{NbdOptions, parse_filename};
use reply::Expected;
use session::{Luggage, Session};

/// The driver `nbd`, by name.
#[derive(Debug, Clone)]
pub struct NbdKind {
    /// The credentials that options may name.
    credentials: ClientCredentialsById,
}

impl NbdKind {
    /// The driver, whose nodes find their credentials there.
    #[must_use]
    pub const fn new(credentials: ClientCredentialsById) -> Self {
        Self { credentials }
    }
}

/// The longest zero write or discard where lengths have 32 bits.
const LONGEST: u64 = 1 << 31;

impl DriverKind for NbdKind {
    fn name(&self) -> &'static str {
        "nbd"
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::Checked
    }

    fn children(&self) -> &'static [ChildKind] {
        &[]
    }

    fn filename_prefixes(&self) -> &'static [&'static str] {
        &["nbd+tcp", "nbd+unix"]
    }

    fn reaches_out(&self) -> bool {
        true
    }

    fn is_protocol(&self) -> bool {
        true
    }

    fn prepares_permissions(&self) -> bool {
        false
    }

    fn parse_filename(&self, filename: &str) -> Result<Options> {
        parse_filename(filename)
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        let options = NbdOptions::new(request.options, &self.credentials);
        Box::pin(async move {
            let options = options?;
            let session = Session::open(options, request.ring).await?;
            let mut flags = request.flags;
            let is_read_only = session.agreed().flags.contains(TransmissionFlags::READ_ONLY);
            if is_read_only && flags.contains(OpenFlags::RDWR) {
                if !flags.contains(OpenFlags::AUTO_RDONLY) {
                    session.close().await;
                    let text = "request on write denied without write permission";
                    return Err(Error::new(ErrorKind::ReadOnly, text));
                }
                flags -= OpenFlags::RDWR;
            }
            Ok(Opened {
                driver: Rc::new(Nbd { session }),
                flags,
                backing: None,
            })
        })
    }
}

/// A disk of a server.
struct Nbd {
    session: Session,
}

impl Nbd {
    fn has(&self, flags: TransmissionFlags) -> bool {
        self.session.agreed().flags.contains(flags)
    }

    async fn do_plain(&self, command: u16, flags: CommandFlags, range: Range) -> IoResult<()> {
        let asked = link::Asked {
            command,
            flags,
            range,
        };
        self.session
            .request(asked, None, |_| Expected::Nothing)
            .await?
            .0
            .into_result()
    }

    async fn read_all(&self, offset: u64, buffers: Buffers) -> Transfer {
        let range = Range::between(offset, offset.saturating_add(buffers.len() as u64));
        let asked = link::Asked {
            command: command::READ,
            flags: CommandFlags::empty(),
            range,
        };
        self.session.read(asked, buffers).await
    }

    async fn write_all(&self, offset: u64, buffers: Buffers, flags: RequestFlags) -> Transfer {
        let range = Range::between(offset, offset.saturating_add(buffers.len() as u64));
        let fua = match flags.contains(RequestFlags::FUA) {
            true => CommandFlags::FUA,
            false => CommandFlags::empty(),
        };
        let asked = link::Asked {
            command: command::WRITE,
            flags: fua,
            range,
        };
        self.session.write(asked, buffers).await
    }

    /// What the server says of the beginning of a range; nothing where it cannot be asked.
    async fn status(&self, range: Range) -> IoResult<Option<Extent>> {
        let Some(context) = self.session.agreed().context else {
            return Ok(None);
        };
        let min = u64::from(self.session.agreed().min_block);
        let longest = match self.session.agreed().mode {
            Mode::Extended => range.len(),
            _ => range.len().min(u64::from(u32::MAX) / min * min),
        };
        let range = range.first(longest);
        let asked = link::Asked {
            command: command::BLOCK_STATUS,
            flags: CommandFlags::REQ_ONE,
            range,
        };
        // A server that has come back may have given the context another number.
        let expected = |agreed: &Agreed| Expected::Status {
            context: agreed.context.unwrap_or(context),
            range,
        };
        let (reply, _) = self.session.request(asked, None, expected).await?;
        let (len, flags) = reply.into_status()?;
        let at = match (flags & state::HOLE != 0, flags & state::ZERO != 0) {
            (_, true) => At::Zero { reserved: None },
            (true, false) => At::Unallocated,
            (false, false) => At::Own,
        };
        Ok(Some(Extent::new(len, at)))
    }
}

impl Driver for Nbd {
    fn abilities(&self) -> Abilities {
        let agreed = self.session.agreed();
        let native = |flag, otherwise| match agreed.flags.contains(flag) {
            true => Ability::Native,
            false => otherwise,
        };
        let longest = match agreed.mode {
            Mode::Extended => 0,
            _ => LONGEST,
        };
        Abilities {
            limits: Limits {
                request_alignment: agreed.min_block,
                max_transfer: agreed.max_data / agreed.min_block * agreed.min_block,
                opt_transfer: agreed.preferred_block.min(agreed.max_data),
                max_write_zeroes: longest,
                max_discard: longest,
                write_zeroes_alignment: agreed.min_block,
                discard_alignment: agreed.min_block,
                ..Limits::default()
            },
            write_zeroes: native(TransmissionFlags::SEND_WRITE_ZEROES, Ability::Emulated),
            zero_unmap: agreed.flags.contains(TransmissionFlags::SEND_WRITE_ZEROES),
            discard: native(TransmissionFlags::SEND_TRIM, Ability::None),
            fua: native(TransmissionFlags::SEND_FUA, Ability::Emulated),
            length: LengthSource::Requests,
            ..Abilities::default()
        }
    }

    fn locate(&self, purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        let own = Extent::new(range.len(), At::Own);
        if purpose == Purpose::Read {
            return Answer::ready(Ok(own));
        }
        Answer::wait(async move { Ok(self.status(range).await?.unwrap_or(own)) })
    }

    fn read(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move { self.read_all(offset, buffers).await })
    }

    fn place(&self, range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        Answer::ready(Ok(Placement::own(range.len())))
    }

    fn settle(&self, _ticket: AllocationTicket, written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        Answer::ready(written)
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move { self.write_all(offset, buffers, flags).await })
    }

    fn write_zeroes(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        if !self.has(TransmissionFlags::SEND_WRITE_ZEROES) {
            return Answer::ready(Err(IoError::NotSupported));
        }
        let mut how = CommandFlags::empty();
        how.set(CommandFlags::NO_HOLE, !flags.contains(RequestFlags::MAY_UNMAP));
        how.set(CommandFlags::FUA, flags.contains(RequestFlags::FUA));
        if flags.contains(RequestFlags::NO_FALLBACK) {
            if !self.has(TransmissionFlags::SEND_FAST_ZERO) {
                return Answer::ready(Err(IoError::NotSupported));
            }
            how |= CommandFlags::FAST_ZERO;
        }
        Answer::wait(self.do_plain(command::WRITE_ZEROES, how, range))
    }

    fn discard(&self, range: Range) -> Answer<'_, IoResult<()>> {
        if !self.has(TransmissionFlags::SEND_TRIM) {
            return Answer::ready(Err(IoError::NotSupported));
        }
        Answer::wait(self.do_plain(command::TRIM, CommandFlags::empty(), range))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        if !self.has(TransmissionFlags::SEND_FLUSH) {
            return Answer::ready(Ok(()));
        }
        let nothing = Range::between(0, 0);
        Answer::wait(self.do_plain(command::FLUSH, CommandFlags::empty(), nothing))
    }

    fn truncate(
        &self,
        size: u64,
        exact: bool,
        _preallocation: Preallocation,
        _flags: RequestFlags,
    ) -> Answer<'_, Result<()>> {
        let now = self.session.agreed().size;
        let unsupported = |text| Answer::ready(Err(Error::new(ErrorKind::Unsupported, text)));
        if exact && size != now {
            return unsupported("Cannot resize NBD nodes");
        }
        if size > now {
            return Answer::ready(Err(Error::new(
                ErrorKind::InvalidArgument,
                "Cannot grow NBD nodes",
            )));
        }
        Answer::ready(Ok(()))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Ok(self.session.agreed().size))
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn image(&self) -> &dyn Image {
        self
    }
}

impl Image for Nbd {
    fn filename(&self) -> Option<String> {
        Some(self.session.options().filename())
    }
}

impl Lifecycle for Nbd {
    fn cancel_in_flight(&self) {
        self.session.cancel();
    }

    fn reopen_prepare(&self, request: ReopenRequest) -> Answer<'_, Result<()>> {
        let unchanged = check_unchanged(&self.session.options().options, &request.options, &[]);
        let wants_to_write = request.flags.contains(OpenFlags::RDWR);
        if unchanged.is_ok() && wants_to_write && self.has(TransmissionFlags::READ_ONLY) {
            let text = "Can't reopen read-only NBD mount as read/write";
            return Answer::ready(Err(Error::new(ErrorKind::ReadOnly, text)));
        }
        Answer::ready(unchanged)
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    fn depart(&self) -> Moved {
        Moved::new(self.session.depart(), |luggage: Luggage, _, ring| {
            let session = Session::arrive(luggage, ring);
            Rc::new(Nbd { session })
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::wait(async move {
            self.session.close().await;
            Ok(())
        })
    }
}
