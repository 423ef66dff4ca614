//! Nodes, exports and connections that are there and do nothing.

use serde_json::json;

use crate::daemon::Daemon;
use crate::nbd::{Request, Session};

/// How many there are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Size {
    /// Null nodes.
    pub nodes: usize,
    /// NBD exports of some of them, in the iothread `io` where `in_iothread` says so.
    pub exports: usize,
    /// Connections to these exports in turn, through with their handshake.
    pub connections: usize,
    /// Exports live in the iothread `io`, which the daemon has.
    pub in_iothread: bool,
}

/// What of it has to be kept: the connections end when this is dropped.
#[derive(Debug)]
pub struct Crowd {
    /// The connections, in the order in which they were made.
    pub sessions: Vec<Session>,
}

/// The export and node of this number.
pub fn name(number: usize) -> String {
    format!("idle{number}")
}

/// Has a daemon with an NBD server make all of it.
pub fn gather(daemon: &mut Daemon, size: Size) -> Crowd {
    for number in 0..size.nodes.max(size.exports) {
        let node =
            json!({ "driver": "null-co", "node-name": name(number), "size": 1 << 20, "read-zeroes": true });
        daemon.qmp.ok("blockdev-add", node);
    }
    for number in 0..size.exports {
        let mut export = json!({
            "type": "nbd", "id": format!("export-{}", name(number)), "node-name": name(number), "name": name(number),
            "writable": true,
        });
        if size.in_iothread {
            export["iothread"] = json!("io");
        }
        daemon.qmp.ok("block-export-add", export);
    }
    let connect = |number: usize| daemon.session(&name(number % size.exports.max(1)));
    Crowd {
        sessions: (0..size.connections).map(connect).collect(),
    }
}

/// The first so many bytes of a write of 4 KiB.
pub fn begun_write(bytes: usize) -> Vec<u8> {
    let mut write = Request::write(0, vec![1; 4096]).encode(1, false);
    write.truncate(bytes);
    write
}
