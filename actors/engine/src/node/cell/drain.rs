//! A node's half of a drain: the gate closed and opened, and the answer once it is still.

use std::rc::Rc;

use millpond_messages::Token;

use super::node::NodeCell;
use crate::node::order::outcome::Event;

impl NodeCell {
    /// Closes the gate for a section. Answers when nothing is in flight and the driver's background work has stopped.
    pub fn quiesce(self: &Rc<Self>, token: Token) {
        if self.gate.close(token) {
            self.stop_background();
        }
        self.answer_quiesce();
    }

    fn stop_background(self: &Rc<Self>) {
        let Ok(driver) = self.driver() else {
            self.gate.stopped();
            return;
        };
        let cell = Rc::clone(self);
        self.home().local().spawn(async move {
            driver.quiesce().await;
            if cell.gate.stopped() {
                driver.resume();
            }
            cell.answer_quiesce();
        });
    }

    /// Ends a section; the last one lets parked requests go on.
    pub fn resume(&self, token: Token) {
        if !self.gate.release(token) {
            return;
        }
        if self.gate.starts()
            && let Ok(driver) = self.driver()
        {
            driver.resume();
        }
        self.gate.wake_queues();
    }

    /// Tells the graph actor of every section that this node is still for, if it is.
    pub fn answer_quiesce(&self) {
        for token in self.gate.take_answerable() {
            self.home().report(self.name(), Event::Quiesced(self.id, token));
        }
    }
}
