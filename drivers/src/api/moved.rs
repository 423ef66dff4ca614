//! Moving a driver to another iothread: its state without anything that is bound to a thread.

use std::rc::Rc;

use super::child::Child;
use super::driver::Driver;
use millpond_ring::Ring;

/// A driver's state on its way between iothreads: tables, caches and files, nothing bound to a thread.
#[must_use = "a driver that does not arrive is lost with its node"]
pub struct Moved(Box<dyn Arrives>);

trait Arrives: Send {
    fn arrive(self: Box<Self>, children: Vec<Child>, ring: Ring) -> Rc<dyn Driver>;
}

struct Packed<S> {
    state: S,
    arrive: fn(S, Vec<Child>, Ring) -> Rc<dyn Driver>,
}

impl<S: Send> Arrives for Packed<S> {
    fn arrive(self: Box<Self>, children: Vec<Child>, ring: Ring) -> Rc<dyn Driver> {
        (self.arrive)(self.state, children, ring)
    }
}

impl Moved {
    /// All of a driver's `state`, and what makes a driver of it again with the handles of the new iothread: its children as
    /// [`OpenRequest::children`](super::OpenRequest::children) has them, and its ring. That cannot fail, since a move is a
    /// step of a transaction that has been committed to.
    pub fn new<S: Send + 'static>(state: S, arrive: fn(S, Vec<Child>, Ring) -> Rc<dyn Driver>) -> Self {
        Self(Box::new(Packed { state, arrive }))
    }

    /// Goes on where the driver left off.
    #[must_use]
    pub fn arrive(self, children: Vec<Child>, ring: Ring) -> Rc<dyn Driver> {
        self.0.arrive(children, ring)
    }
}
