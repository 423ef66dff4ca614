//! What each request does with the node, and what it answers.

use std::rc::Rc;

use millpond_engine::iothread::Local;
use millpond_engine::node::Begun;
use millpond_messages::io::{Operation, Outcome};
use millpond_messages::{Range, RequestFlags};
use millpond_ring::buffer::{Buffer, Buffers};

use super::bytes::{copy_all_out, copy_in, copy_out, total};
use super::chain::Broken;
use super::request::{Request, Status, Wish};
use super::session::{MOST_AT_ONCE, Session};
use crate::export::backend::ExportedNode;
use crate::export::virtio::device::SERIAL;

/// What serves a request.
enum Plan {
    /// One request to the node.
    One(Operation<Buffers>),
    /// Several, one after the other.
    Steps,
    /// None: this is the answer.
    Answered(Status),
}

/// Memory for `len` bytes, at most [`MOST_AT_ONCE`], if it can be had.
fn memory(len: u64) -> Option<Buffer> {
    usize::try_from(len).ok().and_then(Buffer::try_alloc)
}

impl Session {
    /// Sees to a request, up to its answer. If the node answers at once, so is the guest.
    pub(super) fn dispatch(self: &Rc<Self>, local: &Rc<Local>, request: Request) {
        let operation = match self.plan(&request) {
            Ok(Plan::One(operation)) => operation,
            Ok(Plan::Answered(status)) => return self.end(&request, Ok(status)),
            Ok(Plan::Steps) => {
                let session = Rc::clone(self);
                return local.spawn(async move {
                    let status = session.serve_in_steps(&request).await;
                    session.end(&request, status);
                });
            }
            Err(broken) => return self.end(&request, Err(broken)),
        };
        match ExportedNode::begin(&self.backend, operation) {
            Begun::Ended(outcome) => self.ended(&request, outcome),
            Begun::Pending(pending) => {
                let session = Rc::clone(self);
                local.spawn(async move {
                    let outcome = pending.await;
                    session.ended(&request, outcome);
                });
            }
        }
    }

    fn plan(&self, request: &Request) -> Result<Plan, Broken> {
        let operation = match request.wish {
            Wish::Refused(status) => return Ok(Plan::Answered(status)),
            Wish::Serial => return self.tell_serial(request).map(Plan::Answered),
            Wish::Read(range) | Wish::Write(range) => {
                if range.len() > MOST_AT_ONCE {
                    return Ok(Plan::Steps);
                }
                match memory(range.len()) {
                    Some(buffer) => self.transfer(request, range, buffer)?,
                    None => return Ok(Plan::Answered(Status::Failed)),
                }
            }
            Wish::Flush => Operation::Flush,
            Wish::Discard(range) => Operation::Discard { range },
            Wish::WriteZeroes(range, flags) => Operation::WriteZeroes {
                range,
                flags: flags | self.durable(),
            },
        };
        Ok(Plan::One(operation))
    }

    /// What makes a write durable where the guest was told that there is no cache.
    fn durable(&self) -> RequestFlags {
        if self.device.has_write_cache() {
            RequestFlags::empty()
        } else {
            RequestFlags::FUA
        }
    }

    fn tell_serial(&self, request: &Request) -> Result<Status, Broken> {
        // The status comes behind it.
        let room = usize::try_from(request.status_at()).unwrap_or(usize::MAX);
        let serial = self.device.serial().get(..SERIAL.min(room)).unwrap_or_default();
        copy_out(self.memory().space(), &request.writable, 0, serial)?;
        Ok(Status::Ok)
    }

    /// Reads a part of what a request covers into `buffer`, or writes what the guest has for it.
    fn transfer(
        &self,
        request: &Request,
        range: Range,
        mut buffer: Buffer,
    ) -> Result<Operation<Buffers>, Broken> {
        let offset = range.offset();
        if let Wish::Write(whole) = request.wish {
            let at = Request::data() + (offset - whole.offset());
            copy_in(self.memory().space(), &request.readable, at, &mut buffer)?;
            return Ok(Operation::Write {
                offset,
                buffers: buffer.into(),
                flags: self.durable(),
            });
        }
        Ok(Operation::Read {
            offset,
            buffers: buffer.into(),
            flags: RequestFlags::empty(),
        })
    }

    /// What came of a request to the node: what was read goes to the guest, `at` so many bytes from its request's first.
    fn take(&self, request: &Request, at: u64, outcome: Outcome<Buffers>) -> Result<Status, Broken> {
        let (result, data) = outcome.into_parts();
        match (request.wish, result, data) {
            (Wish::Read(_), Ok(_), Some(data)) => {
                copy_all_out(self.memory().space(), &request.writable, at, &data)?;
                Ok(Status::Ok)
            }
            (Wish::Read(_), ..) | (_, Err(_), _) => Ok(Status::Failed),
            _ => Ok(Status::Ok),
        }
    }

    /// The one request to the node that serves a request has ended.
    fn ended(&self, request: &Request, outcome: Outcome<Buffers>) {
        self.end(request, self.take(request, 0, outcome));
    }

    /// Serves a request whose data is not held at once.
    async fn serve_in_steps(&self, request: &Request) -> Result<Status, Broken> {
        let (Wish::Read(whole) | Wish::Write(whole)) = request.wish else {
            return Ok(Status::Unsupported);
        };
        let mut rest = whole;
        while !rest.is_empty() {
            let range = rest.first(MOST_AT_ONCE);
            let Some(buffer) = memory(range.len()) else {
                return Ok(Status::Failed);
            };
            let operation = self.transfer(request, range, buffer)?;
            let outcome = self.backend.request(operation).await;
            let status = self.take(request, range.offset() - whole.offset(), outcome)?;
            if status != Status::Ok {
                return Ok(status);
            }
            rest = rest.after(range.len());
        }
        Ok(Status::Ok)
    }

    /// Answers a request with its status.
    fn end(&self, request: &Request, status: Result<Status, Broken>) {
        let written = status.and_then(|status| {
            let at = request.status_at();
            copy_out(self.memory().space(), &request.writable, at, &[status as u8])?;
            // More than 4 GiB cannot be told.
            Ok(u32::try_from(total(&request.writable)).unwrap_or(u32::MAX))
        });
        self.answer(request, written);
    }
}
