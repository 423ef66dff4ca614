//! Which connection a disk's requests go over: the one there is, or one that is made again.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use millpond_messages::{Error, ErrorKind, IoError, IoResult, Result};
use millpond_ring::Ring;
use millpond_ring::buffer::Buffers;

use super::connect::connect;
use super::handshake::Agreed;
use super::inbox::Inbox;
use super::link::{Asked, Link};
use super::options::NbdOptions;
use super::reply::{Expected, Reply};
use super::socket::ServerSocketLuggage;
use crate::api::Transfer;

/// How long after a failure a server is tried again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(16);

/// How long a try may take, whatever it is for.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a try may take that is made though requests do not wait for it: a server that answers at all is had again.
const SHORTEST_TRY: Duration = Duration::from_secs(1);

/// The error of requests that have no connection.
const LOST: IoError = IoError::Os(libc::EIO);

/// The connection of a disk, and what comes after it.
pub(super) struct Session {
    options: NbdOptions,
    ring: Ring,
    /// What was agreed on first. It holds for later connections too.
    agreed: Agreed,
    link: RefCell<Option<Rc<Link>>>,
    /// When the connection was lost.
    lost: Cell<Option<Instant>>,
    is_connecting: Cell<bool>,
    /// Who waits for the end of a try, or of a pause.
    waiting: RefCell<Vec<Waker>>,
    /// How often requests were cancelled.
    cancels: Cell<u64>,
}

/// A session on its way to another iothread.
pub(super) struct Luggage {
    options: NbdOptions,
    agreed: Agreed,
    link: Option<(ServerSocketLuggage, Agreed, Inbox)>,
    lost: Option<Instant>,
}

impl Session {
    /// Connects, trying for as long as the options say.
    ///
    /// # Errors
    /// Why the last try failed.
    pub(super) async fn open(options: NbdOptions, ring: Ring) -> Result<Self> {
        let deadline = ring.now() + options.open_timeout;
        let mut pause = FIRST_PAUSE;
        let link = loop {
            match connect(&ring, &options, PATIENCE).await {
                Ok(link) => break link,
                Err(error) if ring.now() >= deadline || !is_passing(&error) => return Err(error),
                Err(_) => {}
            }
            ring.sleep_until(deadline.min(ring.now() + pause)).await;
            pause = LONGEST_PAUSE.min(2 * pause);
        };
        let agreed = link.agreed().clone();
        let session = Self::new(options, ring, agreed);
        session.link.replace(Some(Rc::new(link)));
        Ok(session)
    }

    fn new(options: NbdOptions, ring: Ring, agreed: Agreed) -> Self {
        Self {
            options,
            ring,
            agreed,
            link: RefCell::default(),
            lost: Cell::new(None),
            is_connecting: Cell::new(false),
            waiting: RefCell::default(),
            cancels: Cell::new(0),
        }
    }

    pub(super) const fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    pub(super) const fn options(&self) -> &NbdOptions {
        &self.options
    }

    /// Does a request without data of its own. One whose connection is lost is done again if there is a new one in time.
    pub(super) async fn request(
        &self,
        asked: Asked,
        data: Option<Buffers>,
        expected: impl Fn(&Agreed) -> Expected,
    ) -> IoResult<(Reply, Option<Buffers>)> {
        let mut data = data;
        loop {
            let link = self.link().await?;
            let (reply, back) = link.request(asked, data.take(), expected(link.agreed())).await;
            if !self.is_to_be_repeated(&link, &reply) {
                return Ok((reply, back));
            }
            data = back;
        }
    }

    /// Reads, and does so again as [`Session::request`] does.
    pub(super) async fn read(&self, asked: Asked, mut buffers: Buffers) -> Transfer {
        loop {
            let link = match self.link().await {
                Ok(link) => link,
                Err(error) => return (Err(error), buffers),
            };
            let expected = Expected::Data {
                range: asked.range,
                buffers,
            };
            let (reply, _) = link.request(asked, None, expected).await;
            let again = self.is_to_be_repeated(&link, &reply);
            let (read, back) = reply.into_data();
            if !again {
                return (read, back);
            }
            buffers = back;
        }
    }

    /// Writes, and does so again as [`Session::request`] does.
    pub(super) async fn write(&self, asked: Asked, mut buffers: Buffers) -> Transfer {
        loop {
            let link = match self.link().await {
                Ok(link) => link,
                Err(error) => return (Err(error), buffers),
            };
            let (reply, back) = link.request(asked, Some(buffers), Expected::Nothing).await;
            let again = self.is_to_be_repeated(&link, &reply);
            buffers = back.unwrap_or_default();
            if !again {
                return (reply.into_result(), buffers);
            }
        }
    }

    /// Whether a request had no reply because its connection was lost, and requests wait for a new one.
    fn is_to_be_repeated(&self, link: &Rc<Link>, reply: &Reply) -> bool {
        match link.broken() {
            Some(IoError::Cancelled) | None => false,
            Some(_) => {
                self.lose(link);
                !reply.is_whole() && self.may_wait()
            }
        }
    }

    fn lose(&self, link: &Rc<Link>) {
        let mut current = self.link.borrow_mut();
        if current.as_ref().is_some_and(|current| Rc::ptr_eq(current, link)) {
            *current = None;
            self.lost.set(Some(self.ring.now()));
        }
    }

    /// For how long requests wait for a server that was lost.
    fn time_left(&self) -> Duration {
        let delay = self.options.reconnect_delay;
        self.lost.get().map_or(delay, |lost| {
            delay.saturating_sub(self.ring.now().saturating_duration_since(lost))
        })
    }

    /// Whether requests wait for a server that was lost.
    fn may_wait(&self) -> bool {
        !self.time_left().is_zero()
    }

    /// The connection to be used, made anew if need be.
    async fn link(&self) -> IoResult<Rc<Link>> {
        let cancels = self.cancels.get();
        let mut pause = FIRST_PAUSE;
        loop {
            let current = self.link.borrow().clone();
            match current {
                Some(link) if link.broken().is_none() => return Ok(link),
                Some(link) => self.lose(&link),
                None => {}
            }
            if self.cancels.get() != cancels {
                return Err(IoError::Cancelled);
            }
            if self.is_connecting.get() {
                self.wait().await;
                if self.link.borrow().is_none() && !self.may_wait() {
                    return Err(LOST);
                }
                continue;
            }
            let _connecting = Connecting::begin(self);
            if let Some(link) = self.try_again(cancels).await? {
                return Ok(link);
            }
            if !self.may_wait() {
                return Err(LOST);
            }
            let rest = self.ring.sleep(pause.min(self.time_left()));
            self.unless_cancelled(cancels, rest).await?;
            pause = LONGEST_PAUSE.min(2 * pause);
        }
    }

    /// Tries to connect once.
    async fn try_again(&self, cancels: u64) -> IoResult<Option<Rc<Link>>> {
        let patience = self.time_left().clamp(SHORTEST_TRY, PATIENCE);
        let connecting = connect(&self.ring, &self.options, patience);
        let connected = self.unless_cancelled(cancels, connecting).await?;
        let link = match connected.and_then(|link| self.check(&link).map(|()| link)) {
            Ok(link) => Rc::new(link),
            Err(error) => {
                tracing::debug!(%error, "an NBD server cannot be had again");
                return Ok(None);
            }
        };
        self.link.replace(Some(Rc::clone(&link)));
        self.lost.set(None);
        Ok(Some(link))
    }

    /// Refuses a server that has another disk than before.
    fn check(&self, link: &Link) -> Result<()> {
        let (old, new) = (&self.agreed, link.agreed());
        let is_same = old.size == new.size
            && new.flags.contains(old.flags)
            && new.min_block <= old.min_block
            && new.max_data >= old.max_data
            && new.mode >= old.mode
            && (new.context.is_some() || old.context.is_none());
        match is_same {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::InvalidArgument,
                "the server has another export than before",
            )),
        }
    }

    /// Waits for the end of another request's try.
    async fn wait(&self) {
        let mut is_first = true;
        poll_fn(|context| {
            if !std::mem::take(&mut is_first) {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    async fn unless_cancelled<T>(&self, cancels: u64, future: impl Future<Output = T>) -> IoResult<T> {
        let cancelled = pin!(poll_fn(|context| {
            if self.cancels.get() != cancels {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        }));
        match select(pin!(future), cancelled).await {
            Either::Left((done, _)) => Ok(done),
            Either::Right(_) => Err(IoError::Cancelled),
        }
    }

    fn wake_all(&self) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Has what waits for a server fail.
    pub(super) fn cancel(&self) {
        self.cancels.set(self.cancels.get() + 1);
        if let Some(link) = &*self.link.borrow() {
            link.break_off(IoError::Cancelled);
        }
        self.wake_all();
    }

    /// Tells the server that nothing more comes.
    pub(super) async fn close(&self) {
        let link = self.link.take();
        if let Some(link) = link.filter(|link| link.broken().is_none()) {
            link.say_goodbye().await;
        }
    }

    /// All of it, to go on on another iothread: nothing is under way.
    pub(super) fn depart(&self) -> Luggage {
        let link = self.link.take().filter(|link| link.broken().is_none());
        let link = link.and_then(|link| {
            let (socket, agreed, inbox) = link.take_parts();
            inbox.map(|inbox| (socket, agreed, inbox))
        });
        Luggage {
            options: self.options.clone(),
            agreed: self.agreed.clone(),
            link,
            lost: self.lost.get(),
        }
    }

    /// Goes on on the iothread of `ring`.
    pub(super) fn arrive(luggage: Luggage, ring: Ring) -> Self {
        let Luggage {
            options,
            agreed,
            link,
            lost,
        } = luggage;
        let session = Self::new(options, ring.clone(), agreed);
        session.lost.set(lost);
        if let Some((socket, agreed, inbox)) = link {
            let link = Link::new(socket.here(ring), agreed, inbox);
            session.link.replace(Some(Rc::new(link)));
        }
        session
    }
}

/// Whether a server that cannot be reached may be there later.
fn is_passing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Io(_))
}

/// The one request that connects.
struct Connecting<'a>(&'a Session);

impl<'a> Connecting<'a> {
    fn begin(session: &'a Session) -> Self {
        session.is_connecting.set(true);
        Self(session)
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.is_connecting.set(false);
        self.0.wake_all();
    }
}
