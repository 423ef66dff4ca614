//! What a filter hands on to its child unchanged, written once for all filters.
//!
//! A filter keeps a [`PassThrough`] and names with [`delegate!`](crate::delegate) the operations that it does not look at;
//! the file that is left is what the filter does. [`Driver`](super::Driver) has no defaults for the data path, so a new
//! operation does not compile until each filter has said whether it hands that on.

use millpond_messages::io::{Operation, Preallocation};
use millpond_messages::{ChildSlot, Error, ErrorKind, IoError, IoResult, Range, RequestFlags, Result};
use millpond_ring::buffer::Buffers;

use super::answer::Answer;
use super::child::{Child, Transfer, transfer};
use super::{Abilities, Ability, AllocationTicket, At, Extent, LengthSource, Placement, Purpose, Target};

/// The flags that a write hands on to the child. Its order among others is a matter of the node that it was sent to.
const WRITE_FLAGS: RequestFlags = RequestFlags::FUA
    .union(RequestFlags::WRITE_UNCHANGED)
    .union(RequestFlags::WRITE_COMPRESSED);

/// The flags of that order, which no other request hands on either.
const ORDER_FLAGS: RequestFlags = RequestFlags::SERIALISING.union(RequestFlags::NO_WAIT);

/// The first of a driver's children, and every operation of the data path as it is handed on to that. What the child is
/// asked is sent once the answer is polled: so the node bounds the stack, however many filters there are.
#[derive(Clone)]
pub struct PassThrough {
    child: Child,
}

impl PassThrough {
    /// Hands on to `child`, which is the driver's first.
    #[must_use]
    pub const fn new(child: Child) -> Self {
        Self { child }
    }

    /// Hands on to the only child of a driver that is opened.
    ///
    /// # Errors
    /// There is another number of children.
    pub fn to_only(children: Vec<Child>) -> Result<Self> {
        let [child] = declared(children)?;
        Ok(Self { child })
    }

    /// Hands on to the only child of a driver that arrives from another iothread.
    #[must_use]
    pub fn moved(children: Vec<Child>) -> Self {
        let [child] = arrived(children);
        Self { child }
    }

    /// The child itself, to be asked directly.
    #[must_use]
    pub const fn child(&self) -> &Child {
        &self.child
    }

    /// The abilities of a filter that shows its child unchanged. Compressed writes are not among them: a filter that hands
    /// those on says so.
    #[inline]
    #[must_use]
    pub fn abilities(&self) -> Abilities {
        Abilities {
            write_zeroes: Ability::Native,
            zero_unmap: true,
            discard: Ability::Native,
            fua: Ability::Native,
            transparent: true,
            length: LengthSource::Children,
            ..Abilities::default()
        }
    }

    /// Answers that the child has the range.
    #[inline]
    pub fn locate(&self, _purpose: Purpose, range: Range) -> Answer<'static, IoResult<Extent>> {
        let (slot, offset) = (ChildSlot::FILE, range.offset());
        Answer::ready(Ok(Extent::new(range.len(), At::Child { slot, offset })))
    }

    /// For a filter that wants to see what is read: reads come to the filter, though the child has the range.
    #[inline]
    pub fn locate_here(&self, purpose: Purpose, range: Range) -> Answer<'static, IoResult<Extent>> {
        match purpose {
            Purpose::Read => Answer::ready(Ok(Extent::new(range.len(), At::Own))),
            Purpose::Status { .. } => self.locate(purpose, range),
        }
    }

    /// Reads from the child.
    #[inline]
    pub async fn read(&self, offset: u64, buffers: Buffers, flags: RequestFlags) -> Transfer {
        let read = Operation::Read {
            offset,
            buffers,
            flags,
        };
        transfer(self.child.request(read).await)
    }

    /// Answers that a write goes to the child.
    #[inline]
    pub fn place(&self, range: Range, _flags: RequestFlags) -> Answer<'static, IoResult<Placement>> {
        let (slot, offset) = (ChildSlot::FILE, range.offset());
        Answer::ready(Ok(Placement {
            target: Target::Child { slot, offset },
            ..Placement::own(range.len())
        }))
    }

    /// For a filter that wants to see what is written: writes go to [`Driver::write`](super::Driver::write).
    #[inline]
    pub fn place_here(&self, range: Range, _flags: RequestFlags) -> Answer<'static, IoResult<Placement>> {
        Answer::ready(Ok(Placement::own(range.len())))
    }

    /// Answers the write's own result: nothing was set aside for it.
    #[inline]
    pub fn settle(&self, _ticket: AllocationTicket, written: IoResult<()>) -> Answer<'static, IoResult<()>> {
        Answer::ready(written)
    }

    /// Writes to the child.
    #[inline]
    pub async fn write(&self, offset: u64, buffers: Buffers, flags: RequestFlags) -> Transfer {
        let flags = flags & WRITE_FLAGS;
        self.child.write(offset, buffers, flags).await
    }

    /// Has the child make a range read as zeroes.
    ///
    /// # Errors
    /// The request's.
    #[inline]
    pub async fn write_zeroes(&self, range: Range, flags: RequestFlags) -> IoResult<()> {
        let flags = flags.difference(ORDER_FLAGS);
        self.child
            .request(Operation::WriteZeroes { range, flags })
            .await
            .into_done()
    }

    /// Has the child forget a range.
    ///
    /// # Errors
    /// The request's.
    #[inline]
    pub async fn discard(&self, range: Range) -> IoResult<()> {
        self.child.request(Operation::Discard { range }).await.into_done()
    }

    /// Does nothing: a filter has nothing to write back, and the node flushes the child.
    #[inline]
    pub fn flush(&self) -> Answer<'static, IoResult<()>> {
        Answer::ready(Ok(()))
    }

    /// Changes the child's length.
    ///
    /// # Errors
    /// The request's.
    pub async fn truncate(
        &self,
        size: u64,
        exact: bool,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> Result<()> {
        self.child.resize(size, exact, preallocation, flags).await
    }

    /// Asks for the child's length.
    ///
    /// # Errors
    /// The request's.
    pub async fn length(&self) -> IoResult<u64> {
        self.child.length().await
    }

    /// Leaves the answer to the child, which the node asks.
    #[inline]
    pub fn allocated_size(&self) -> Answer<'static, IoResult<u64>> {
        Answer::ready(Err(IoError::NotSupported))
    }
}

/// The children of a driver that declares so many, at its open.
///
/// # Errors
/// There is another number.
pub fn declared<const N: usize>(children: Vec<Child>) -> Result<[Child; N]> {
    children.try_into().map_err(|children: Vec<Child>| {
        let text = format!("The driver has {} children rather than {N}", children.len());
        Error::new(ErrorKind::InvalidArgument, text)
    })
}

/// The children of a driver that declares so many, at its arrival from another iothread.
///
/// # Panics
/// Where they do not arrive with it: a move carries an edge for each child that the driver declares.
#[must_use]
pub fn arrived<const N: usize>(children: Vec<Child>) -> [Child; N] {
    declared(children).unwrap_or_else(|error| unreachable!("a driver lost its edges while moving: {error}"))
}

/// Methods of a [`Driver`](crate::api::Driver) that hand on to a field, a [`PassThrough`]: `delegate!(below: length, flush)`.
///
/// `locate_here` and `place_here` stand for `locate` and `place` of a filter whose own `read` and `write` see the data.
#[macro_export]
macro_rules! delegate {
    ($to:ident: $($operation:ident),+ $(,)?) => { $($crate::delegate!(@ $operation $to);)+ };
    (@ locate $to:ident) => { $crate::delegate!(@@ locate locate $to); };
    (@ locate_here $to:ident) => { $crate::delegate!(@@ locate locate_here $to); };
    (@@ locate $by:ident $to:ident) => {
        #[inline]
        fn locate(
            &self,
            purpose: $crate::api::Purpose,
            range: $crate::messages::Range,
        ) -> $crate::api::Answer<'_, $crate::messages::IoResult<$crate::api::Extent>> {
            self.$to.$by(purpose, range)
        }
    };
    (@ read $to:ident) => {
        #[inline]
        fn read(
            self: ::std::rc::Rc<Self>,
            offset: u64,
            buffers: $crate::ring::buffer::Buffers,
            flags: $crate::messages::RequestFlags,
        ) -> $crate::api::Answer<'static, $crate::api::Transfer> {
            $crate::api::Answer::wait(async move { self.$to.read(offset, buffers, flags).await })
        }
    };
    (@ place $to:ident) => { $crate::delegate!(@@ place place $to); };
    (@ place_here $to:ident) => { $crate::delegate!(@@ place place_here $to); };
    (@@ place $by:ident $to:ident) => {
        #[inline]
        fn place(
            &self,
            range: $crate::messages::Range,
            flags: $crate::messages::RequestFlags,
        ) -> $crate::api::Answer<'_, $crate::messages::IoResult<$crate::api::Placement>> {
            self.$to.$by(range, flags)
        }
    };
    (@ settle $to:ident) => {
        #[inline]
        fn settle(
            &self,
            ticket: $crate::api::AllocationTicket,
            written: $crate::messages::IoResult<()>,
        ) -> $crate::api::Answer<'_, $crate::messages::IoResult<()>> {
            self.$to.settle(ticket, written)
        }
    };
    (@ write $to:ident) => {
        #[inline]
        fn write(
            self: ::std::rc::Rc<Self>,
            offset: u64,
            buffers: $crate::ring::buffer::Buffers,
            flags: $crate::messages::RequestFlags,
        ) -> $crate::api::Answer<'static, $crate::api::Transfer> {
            $crate::api::Answer::wait(async move { self.$to.write(offset, buffers, flags).await })
        }
    };
    (@ write_zeroes $to:ident) => {
        #[inline]
        fn write_zeroes(
            &self,
            range: $crate::messages::Range,
            flags: $crate::messages::RequestFlags,
        ) -> $crate::api::Answer<'_, $crate::messages::IoResult<()>> {
            $crate::api::Answer::wait(self.$to.write_zeroes(range, flags))
        }
    };
    (@ discard $to:ident) => {
        #[inline]
        fn discard(
            &self,
            range: $crate::messages::Range,
        ) -> $crate::api::Answer<'_, $crate::messages::IoResult<()>> {
            $crate::api::Answer::wait(self.$to.discard(range))
        }
    };
    (@ flush $to:ident) => {
        #[inline]
        fn flush(&self) -> $crate::api::Answer<'_, $crate::messages::IoResult<()>> {
            self.$to.flush()
        }
    };
    (@ truncate $to:ident) => {
        #[inline]
        fn truncate(
            &self,
            size: u64,
            exact: bool,
            preallocation: $crate::messages::io::Preallocation,
            flags: $crate::messages::RequestFlags,
        ) -> $crate::api::Answer<'_, $crate::messages::Result<()>> {
            $crate::api::Answer::wait(self.$to.truncate(size, exact, preallocation, flags))
        }
    };
    (@ length $to:ident) => {
        #[inline]
        fn length(&self) -> $crate::api::Answer<'_, $crate::messages::IoResult<u64>> {
            $crate::api::Answer::wait(self.$to.length())
        }
    };
    (@ allocated_size $to:ident) => {
        #[inline]
        fn allocated_size(&self) -> $crate::api::Answer<'_, $crate::messages::IoResult<u64>> {
            self.$to.allocated_size()
        }
    };
}
