//! The way down: a request that a parent sends over one of its edges.
//!
//! The child carries it out as it would any other request: this is where the path of a request comes back to its
//! beginning.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use millpond_drivers::api::{Answer, Lasts};
use millpond_messages::IoError;
use millpond_messages::io::{Operation, OperationKind, Outcome};
use millpond_ring::buffer::Buffers;
use pin_project_lite::pin_project;

use super::elsewhere::send_there;
use super::execute::execute;
use super::fast_path::{self, Attempt};
use super::passage::By;
use super::request::extent_of;
use crate::iothread::{Local, is_delaying, now_ns};
use crate::node::cell::admission::Admission;
use crate::node::cell::delayed;
use crate::node::cell::edge::{Behind, EdgeCell};
use crate::node::cell::node::NodeCell;
use crate::node::gate::stack_depth::{self, Bounded, is_deep};

impl EdgeCell {
    /// Sends the child a request that serves one of the parent's. It runs to its end whatever becomes of the parent.
    pub fn pass_down(&self, operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
        match self.behind() {
            Behind::None => Answer::ready(Outcome::plain(Err(IoError::NoMedium))),
            Behind::Here(cell) => pass_to(cell, operation),
            Behind::There(address) => Answer::wait(async move { send_there(&address, operation).await }),
        }
    }
}

fn pass_to(cell: Rc<NodeCell>, operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
    let asked = (operation.kind(), extent_of(&operation));
    if is_delaying() {
        let passed = {
            let cell = Rc::clone(&cell);
            async move {
                delayed::pass_down(&cell, &operation).await;
                execute(&cell, operation, By::PARENT).await
            }
        };
        return lasting(cell, asked, passed);
    }
    let attempt = if is_deep() {
        Attempt::Later(operation)
    } else {
        fast_path::begin(&cell, operation, By::PARENT)
    };
    match attempt {
        Attempt::Ended(outcome) => Answer::ready(outcome),
        Attempt::Transfer(transfer) => {
            let future = stack_depth::passing(transfer);
            let node = cell;
            Answer::lasting(Down { node, asked, future }, true)
        }
        Attempt::Later(operation) => {
            let passed = {
                let cell = Rc::clone(&cell);
                async move { execute(&cell, operation, By::PARENT).await }
            };
            lasting(cell, asked, passed)
        }
    }
}

/// The answer of a request that begins when it is polled.
fn lasting<F>(node: Rc<NodeCell>, asked: Asked, future: F) -> Answer<'static, Outcome<Buffers>>
where
    F: Future<Output = Outcome<Buffers>> + 'static,
{
    match stack_depth::bounded(future) {
        Bounded::Here(future) => Answer::lasting(Down { node, asked, future }, false),
        Bounded::Apart(future) => Answer::lasting(Down { node, asked, future }, false),
    }
}

/// What a request is, and the bytes that it is for.
type Asked = (OperationKind, (u64, u64));

pin_project! {
    /// A parent's request on its way. Dropped before its end it goes on by itself, because a driver must not be left half-way by
    /// a parent that broke or gave up waiting. From then on its own node counts it, which the parent did until then.
    struct Down<F> {
        node: Rc<NodeCell>,
        asked: Asked,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Down<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.project().future.poll(context)
    }
}

impl<F: Future + 'static> Lasts for Down<F> {
    fn go_on(self: Pin<Box<Self>>) {
        let Some(local) = Local::current() else { return };
        let (kind, extent) = self.asked;
        let counted = Admission::new(Rc::clone(&self.node), kind, extent, now_ns());
        local.spawn(async move {
            drop(self.await);
            drop(counted);
        });
    }
}
