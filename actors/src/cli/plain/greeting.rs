//! What the plain mode tells when all is set up.

use super::{NODE, Plain};
use millpond_messages::graph::NodeFacts;
use millpond_messages::qapi::schema::{SocketAddress, UnixSocketAddress};
use std::fmt::Write;
use std::path::Path;

impl Plain {
    /// Where clients find the image, on a server that listens at `address`.
    pub(super) fn uri(&self, address: &SocketAddress) -> String {
        let name = escaped(&self.name);
        match address {
            SocketAddress::Unix(UnixSocketAddress {
                path,
                is_abstract: Some(true),
                ..
            }) => {
                format!("the abstract socket {path}, export '{name}'")
            }
            SocketAddress::Unix(unix) => format!("nbd+unix:///{name}?socket={}", escaped(&unix.path)),
            SocketAddress::Inet(inet) => {
                let host = match inet.host.as_str() {
                    "0.0.0.0" | "::" => "localhost".to_owned(),
                    host if host.contains(':') => format!("[{host}]"),
                    host => host.to_owned(),
                };
                format!("nbd://{host}:{}/{name}", inet.port)
            }
            SocketAddress::Vsock(vsock) => format!("nbd+vsock://{}:{}/{name}", vsock.cid, vsock.port),
            // A server tells the real address of what it was passed.
            SocketAddress::Fd(_) => String::new(),
        }
    }

    /// What a person is told when all is set up.
    pub(super) fn greeting(&self, facts: &NodeFacts, uris: &[String]) -> String {
        let uri = uris.first().map_or("", String::as_str);
        let access = if facts.read_only {
            "read-only"
        } else if self.snapshot {
            "writes are discarded at the end"
        } else {
            "read-write"
        };
        let mut text = format!(
            "Serving {} ({}, {}, {access}) at\n\n    {}\n\nTry in another terminal:\n\n",
            self.image.display(),
            facts.driver,
            human_size(facts.size),
            uris.join("\n    "),
        );
        for command in [format!("nbdinfo '{uri}'"), format!("qemu-img info '{uri}'")] {
            // Writing to a string does not fail.
            let _ = writeln!(text, "    {command}");
        }
        let _ = writeln!(text, "    nbdcopy '{uri}' copy.raw");
        match &self.qmp {
            Some(qmp) => text.push_str(&self.snapshot_example(qmp, facts)),
            None => text.push_str("\nWith --qmp PATH, the image can be changed while it is being served.\n"),
        }
        text.push_str("\nCtrl-C stops it.");
        text
    }

    fn snapshot_example(&self, qmp: &Path, facts: &NodeFacts) -> String {
        let (image, qmp) = (self.image.display(), qmp.display());
        format!(
            "\nTo take a snapshot while clients go on, create an overlay,\n\n    \
             qemu-img create -f qcow2 -u -b {image} -F {driver} overlay.qcow2 {size}\n\n\
             and put it on top:\n\n    \
             millpond qmp {qmp} blockdev-add driver=qcow2 node-name=overlay backing=null \
             file.driver=file file.filename=overlay.qcow2\n    \
             millpond qmp {qmp} blockdev-snapshot node={NODE} overlay=overlay\n",
            driver = facts.driver,
            size = facts.size,
        )
    }
}

/// `text` as a part of a URI.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

/// `bytes` with the largest unit that leaves a whole number or one decimal.
pub(super) fn human_size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    for (shift, unit) in units {
        let whole = bytes >> shift;
        if whole > 0 {
            let rest = bytes & ((1 << shift) - 1);
            let tenth = (rest >> (shift - 10)) * 10 / 1024;
            return if tenth == 0 {
                format!("{whole} {unit}")
            } else {
                format!("{whole}.{tenth} {unit}")
            };
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use millpond_messages::qapi::InetSocketAddress;

    fn plain(arguments: &[&str]) -> Plain {
        Plain::try_parse_from([&["millpond"], arguments].concat()).unwrap()
    }

    #[test]
    fn uris_name_the_socket_and_the_export() {
        let image = plain(&["a b.qcow2", "--name", "x?y"]);
        let unix = SocketAddress::Unix(UnixSocketAddress {
            path: "/tmp/a b".into(),
            ..UnixSocketAddress::default()
        });
        assert_eq!(image.uri(&unix), "nbd+unix:///x%3Fy?socket=/tmp/a%20b");
        let tcp = |host: &str| {
            let (host, port) = (host.into(), "10809".into());
            SocketAddress::Inet(InetSocketAddress {
                host,
                port,
                ..InetSocketAddress::default()
            })
        };
        assert_eq!(plain(&["x"]).uri(&tcp("127.0.0.1")), "nbd://127.0.0.1:10809/");
        assert_eq!(plain(&["x"]).uri(&tcp("::")), "nbd://localhost:10809/");
        assert_eq!(plain(&["x"]).uri(&tcp("::1")), "nbd://[::1]:10809/");
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [
            (512, "512 bytes"),
            (10 << 30, "10 GiB"),
            (1536, "1.5 KiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
    }
}
