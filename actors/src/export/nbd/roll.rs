//! The clients that an iothread serves, by number: who wants to know where one stands asks there.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use futures_channel::oneshot;
use millpond_engine::iothread::{IoThread, Local};
use millpond_engine::node::Mail;
use millpond_messages::saved::SavedStanding;

use super::connections::ConnectionId;
use super::transmission::Standing;

/// The clients of one iothread.
#[derive(Default)]
struct Roll(RefCell<HashMap<ConnectionId, Rc<Standing>>>);

/// A client's place on the roll of its iothread, until it is dropped.
pub(super) struct Enrolled {
    roll: Rc<Roll>,
    id: ConnectionId,
}

/// Puts a client on the roll of the iothread that serves it from now on.
pub(super) fn enroll(local: &Local, id: ConnectionId) -> (Rc<Standing>, Enrolled) {
    let (roll, standing) = (local.ext::<Roll>(), Rc::<Standing>::default());
    roll.0.borrow_mut().insert(id, Rc::clone(&standing));
    (standing, Enrolled { roll, id })
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        self.roll.0.borrow_mut().remove(&self.id);
    }
}

/// Where a client stands that the iothread `home` serves; `None` if it does so no more.
pub(super) async fn look(home: &IoThread<Mail>, id: ConnectionId) -> Option<SavedStanding> {
    let (reply, answer) = oneshot::channel();
    let look = move || {
        let roll = Local::current()?.ext::<Roll>();
        roll.0.borrow().get(&id).map(|standing| standing.look())
    };
    // Who asked may have lost patience.
    let asked = home.send(Mail::Run(Box::new(move || drop(reply.send(look())))));
    asked.ok()?;
    answer.await.ok().flatten()
}
