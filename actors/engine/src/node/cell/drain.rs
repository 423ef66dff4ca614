//! A node's half of a drain: its gate is closed and opened, and the graph is answered once the node is still.

use std::rc::Rc;

use millpond_messages::Token;

use super::node::NodeCell;
use crate::node::gate::sections::Background;
use crate::node::order::outcome::Event;

impl NodeCell {
    /// Closes the gate for a section. The section is answered when no request is in flight and the driver's background work
    /// has stopped.
    pub fn quiesce(self: &Rc<Self>, token: Token) {
        if self.gate.close(token) == Background::Stop {
            self.stop_background();
        }
        self.gate.tell_closed();
        self.answer_quiesce();
    }

    fn stop_background(self: &Rc<Self>) {
        let Ok(driver) = self.driver() else {
            // Without a driver there is nothing to resume.
            let _nothing = self.gate.background_stopped();
            return;
        };
        let cell = Rc::clone(self);
        self.home().local().spawn(async move {
            driver.quiesce().await;
            if cell.gate.background_stopped() == Background::Resume {
                driver.resume();
            }
            cell.answer_quiesce();
        });
    }

    /// Ends a section. The end of the last one opens the gate, and parked requests go on.
    pub fn resume(&self, token: Token) {
        if !self.gate.release(token) {
            return;
        }
        if self.gate.resume_background() == Background::Resume
            && let Ok(driver) = self.driver()
        {
            driver.resume();
        }
        self.gate.wake_queues();
    }

    /// Answers the sections that wait for this node to be still, if it is.
    pub fn answer_quiesce(&self) {
        for token in self.gate.take_answerable() {
            self.home().report(self.name(), Event::Quiesced(self.id, token));
            self.home().passed(self.id, token);
        }
        if self.gate.is_quiet() {
            self.gate.wake_waiting();
        }
    }
}
