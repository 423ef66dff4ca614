//! A child of a driver without a node: a file in memory that answers at once.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use millpond_drivers::api::{Answer, Child, ChildPort};
use millpond_messages::io::{Operation, Outcome, Value};
use millpond_messages::{BlockStatus, IoError, Limits, StatusFlags};
use millpond_ring::buffer::Buffers;

const PAGE: usize = 4096;

/// The file. What was never written is zeroes.
#[derive(Default)]
pub struct Memory {
    pages: RefCell<HashMap<u64, Box<[u8; PAGE]>>>,
    length: Cell<u64>,
}

impl Memory {
    /// A new one, as a driver sees it.
    pub fn child() -> Child {
        Child::new(Rc::new(Self::default()))
    }

    fn read(&self, offset: u64, buffers: &mut Buffers) {
        let pages = self.pages.borrow();
        each_page(offset, buffers.len(), |page, within, at, len| {
            match pages.get(&page) {
                Some(bytes) => _ = buffers.copy_from_slice(at, &bytes[within..within + len]),
                None => buffers.fill_zero(at..at + len),
            }
        });
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let mut pages = self.pages.borrow_mut();
        each_page(offset, bytes.len(), |page, within, at, len| {
            let page = pages.entry(page).or_insert_with(|| Box::new([0; PAGE]));
            page[within..within + len].copy_from_slice(&bytes[at..at + len]);
        });
        self.length
            .set(self.length.get().max(offset + bytes.len() as u64));
    }

    fn zero(&self, offset: u64, len: u64) {
        let mut pages = self.pages.borrow_mut();
        each_page(offset, len as usize, |page, within, _, len| {
            if let Some(bytes) = pages.get_mut(&page) {
                bytes[within..within + len].fill(0);
            }
        });
        self.length.set(self.length.get().max(offset + len));
    }
}

/// The page, where in it, where in the whole, and how many bytes, for each page that a range touches.
fn each_page(offset: u64, len: usize, mut piece: impl FnMut(u64, usize, usize, usize)) {
    let mut at = 0;
    while at < len {
        let position = offset + at as u64;
        let within = (position % PAGE as u64) as usize;
        let here = (PAGE - within).min(len - at);
        piece(position / PAGE as u64, within, at, here);
        at += here;
    }
}

impl ChildPort for Memory {
    fn request(&self, operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
        let mut buffers = None;
        let value = match operation {
            Operation::Read {
                offset,
                buffers: mut room,
                ..
            } => {
                self.read(offset, &mut room);
                buffers = Some(room);
                Value::Done
            }
            Operation::Write {
                offset,
                buffers: data,
                ..
            } => {
                self.write(offset, &data.to_vec());
                buffers = Some(data);
                Value::Done
            }
            Operation::WriteZeroes { range, .. } => {
                self.zero(range.offset(), range.len());
                Value::Done
            }
            Operation::Truncate { size, .. } => {
                self.pages
                    .borrow_mut()
                    .retain(|page, _| page * (PAGE as u64) < size);
                self.length.set(size);
                Value::Done
            }
            Operation::Discard { .. } | Operation::Flush => Value::Done,
            Operation::Length | Operation::AllocatedSize => Value::Bytes(self.length.get()),
            Operation::Copy(_) | Operation::Snapshot(_) | Operation::Mirror(_) | Operation::Map { .. } => {
                unreachable!("no bench is a job, nor asks for a map")
            }
            Operation::BlockStatus { range, .. } => Value::Status(BlockStatus {
                flags: StatusFlags::DATA,
                len: range.len(),
                map: None,
                depth: 0,
            }),
        };
        Answer::ready(Outcome {
            result: Ok(value),
            buffers,
        })
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn is_connected(&self) -> bool {
        true
    }

    fn node_name(&self) -> String {
        "memory".to_owned()
    }

    fn filename(&self) -> String {
        "memory".to_owned()
    }
}

/// A child that there is not.
pub fn nothing() -> Child {
    Child::new(Rc::new(Nothing))
}

struct Nothing;

impl ChildPort for Nothing {
    fn request(&self, _operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
        Answer::ready(Outcome::plain(Err(IoError::NoMedium)))
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn is_connected(&self) -> bool {
        false
    }

    fn node_name(&self) -> String {
        String::new()
    }

    fn filename(&self) -> String {
        String::new()
    }
}
