//! What the tests of file, null and raw stand on: a ring turned by the test, nodes without a graph, and other programs.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use millpond_drivers::api::{Answer, At, Child, ChildPort, Driver, Extent, OpenRequest, Opened, Purpose};
use millpond_drivers::builtin::builtin;
use millpond_messages::io::{Operation, Outcome, Value};
use millpond_messages::{IoResult, Limits, OpenFlags, Permissions, Range, RequestFlags, Result};
use millpond_ring::buffer::{Buffer, Buffers};
use millpond_ring::{Engine, Ring, RingConfig, Wait, Wake};
use serde_json::{Value as Json, json};

/// A range that there is.
pub fn range(offset: u64, len: u64) -> Range {
    Range::new(offset, len).unwrap()
}

pub fn ring(engine: Engine) -> Ring {
    let wake = Arc::new(Wake::new().unwrap());
    let ring = Ring::new(RingConfig {
        engine,
        ..RingConfig::new(wake)
    })
    .unwrap();
    assert_eq!(ring.engine(), engine);
    ring
}

/// Turns the ring until the future is ready. The future may only wait for the ring.
pub fn run<F: Future>(ring: &Ring, future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => return output,
            Poll::Pending => drop(ring.turn(Wait::Until(None))),
        }
    }
}

/// Makes one test an engine of each function.
#[macro_export]
macro_rules! on_each_engine {
    ($($name:ident)*) => {
        mod uring {
            $(#[test] fn $name() { super::$name(&super::host::ring(millpond_ring::Engine::Uring)); })*
        }
        mod threads {
            $(#[test] fn $name() { super::$name(&super::host::ring(millpond_ring::Engine::Threads)); })*
        }
    };
}

/// A node without a graph: its driver, turned by the test.
#[derive(Clone)]
pub struct Node {
    pub ring: Ring,
    pub driver: Rc<dyn Driver>,
    pub flags: OpenFlags,
}

impl Node {
    /// Opens a node of `driver`. `options` are the driver's own.
    pub fn open(
        ring: &Ring,
        driver: &str,
        options: Json,
        flags: OpenFlags,
        file: Option<Node>,
    ) -> Result<Self> {
        let registry = builtin();
        let kind = registry.find(driver).unwrap();
        let Json::Object(options) = options else {
            panic!("options are an object")
        };
        let children = file
            .map(|file| Child::new(Rc::new(Port(file))))
            .into_iter()
            .collect();
        let node_name = "node".to_owned();
        let request = OpenRequest {
            node_name,
            options,
            flags,
            children,
            ring: ring.clone(),
            notices: millpond_drivers::api::Notices::nowhere(),
        };
        let Opened { driver, flags, .. } = run(ring, kind.open(request))?;
        Ok(Self {
            ring: ring.clone(),
            driver,
            flags,
        })
    }

    /// Opens a regular file.
    pub fn file(ring: &Ring, path: &Path, flags: OpenFlags) -> Result<Self> {
        Self::open(ring, "file", json!({"filename": path}), flags, None)
    }

    pub fn write(&self, offset: u64, bytes: &[u8], flags: RequestFlags) {
        let (result, buffers) = run(
            &self.ring,
            Rc::clone(&self.driver).write(offset, Buffer::from_slice(bytes).into(), flags),
        );
        result.unwrap();
        assert_eq!(
            buffers.to_vec(),
            bytes,
            "a write gives its buffers back unchanged"
        );
    }

    /// Reads into buffers that are not zero before.
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let dirty = Buffer::from_slice(&vec![0xEE; len]).into();
        let (result, buffers) = run(
            &self.ring,
            Rc::clone(&self.driver).read(offset, dirty, RequestFlags::empty()),
        );
        result.unwrap();
        assert_eq!(buffers.len(), len);
        buffers.to_vec()
    }

    pub fn length(&self) -> u64 {
        run(&self.ring, self.driver.length()).unwrap()
    }

    pub fn allocated(&self) -> u64 {
        run(&self.ring, self.driver.flush()).unwrap();
        run(&self.ring, self.driver.allocated_size()).unwrap()
    }

    pub fn zero(&self, offset: u64, len: u64, flags: RequestFlags) -> IoResult<()> {
        run(&self.ring, self.driver.write_zeroes(range(offset, len), flags))
    }

    pub fn status(&self, offset: u64, len: u64) -> Extent {
        run(
            &self.ring,
            self.driver
                .locate(Purpose::Status { want_zero: true }, range(offset, len)),
        )
        .unwrap()
    }

    /// Takes and shares permissions, or is refused.
    pub fn permit(&self, taken: Permissions, shared: Permissions) -> Result<()> {
        run(&self.ring, self.driver.permissions_prepare(taken, shared))?;
        self.driver.permissions_commit();
        Ok(())
    }

    pub fn close(&self) {
        run(&self.ring, self.driver.close()).unwrap();
    }
}

/// An edge to a node whose driver keeps its own data.
struct Port(Node);

impl ChildPort for Port {
    fn request(&self, operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
        let driver = Rc::clone(&self.0.driver);
        Answer::wait(async move {
            let done = |result: IoResult<()>| Outcome::plain(result.map(|()| Value::Done));
            match operation {
                Operation::Read {
                    offset,
                    buffers,
                    flags,
                } => {
                    let (result, buffers) = Rc::clone(&driver).read(offset, buffers, flags).await;
                    Outcome {
                        result: result.map(|()| Value::Done),
                        buffers: Some(buffers),
                    }
                }
                Operation::Write {
                    offset,
                    buffers,
                    flags,
                } => {
                    let (result, buffers) = Rc::clone(&driver).write(offset, buffers, flags).await;
                    Outcome {
                        result: result.map(|()| Value::Done),
                        buffers: Some(buffers),
                    }
                }
                Operation::WriteZeroes { range, flags } => done(driver.write_zeroes(range, flags).await),
                Operation::Discard { range } => done(driver.discard(range).await),
                Operation::Flush => done(driver.flush().await),
                Operation::Truncate {
                    size,
                    exact,
                    preallocation,
                    flags,
                } => {
                    let result = driver.truncate(size, exact, preallocation, flags).await;
                    done(result.map_err(|error| millpond_messages::IoError::from_errno(error.errno())))
                }
                Operation::Length => Outcome::plain(driver.length().await.map(Value::Bytes)),
                other => panic!("the tests have no {other:?}"),
            }
        })
    }

    fn limits(&self) -> Limits {
        self.0.driver.abilities().limits
    }

    fn is_connected(&self) -> bool {
        true
    }

    fn node_name(&self) -> String {
        "node".to_owned()
    }

    fn filename(&self) -> String {
        self.0.driver.image().filename().unwrap_or_default()
    }
}

/// Runs one of QEMU's tools; gives whether it succeeded, and all it printed.
pub fn qemu(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program} ({error}): install qemu-utils"));
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// Bytes that tell where they belong.
pub fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251 + seed) as u8 | 1).collect()
}

/// What is at `at`, for tests that only look at data and zeroes.
pub fn is_zero(extent: Extent) -> bool {
    match extent.at {
        At::Own => false,
        At::Zero { .. } => true,
        other => panic!("a file has no {other:?}"),
    }
}
