//! Character devices, and the monitors on them.

use super::socket::SocketAddressLegacy;
use crate::qapi::row::qapi;

qapi! {
    /// A character device as it is shown.
    struct ChardevInfo {
        /// The id of the device.
        label: String,
        /// What it is connected to.
        filename: String,
        /// Whether a monitor uses it.
        frontend_open: bool,
    }

    /// Shows the character devices.
    command QueryChardev = "query-chardev" {} -> Vec<ChardevInfo>;

    /// A kind of character device.
    struct ChardevBackendInfo {
        /// The name of the kind.
        name: String,
    }

    /// Lists the kinds of character device.
    command QueryChardevBackends = "query-chardev-backends" {} -> Vec<ChardevBackendInfo>;

    /// The kinds of character device that can be made.
    enum ChardevBackendKind {
        /// Files.
        File = "file",
        /// Pipes with names.
        Pipe = "pipe",
        /// A stream socket.
        Socket = "socket",
        /// Datagrams.
        Udp = "udp",
        /// A pseudoterminal.
        Pty = "pty",
        /// Nothing.
        Null = "null",
        /// Another device, shared by several users.
        Mux = "mux",
        /// Standard input and output.
        Stdio = "stdio",
        /// Memory that keeps what was written last.
        Ringbuf = "ringbuf",
        /// The same by an older name.
        Memory = "memory" ["deprecated"],
    }

    /// What is behind a character device, of any kind.
    branches ChardevBackend by "type": ChardevBackendKind {
        /// Files.
        File = "file": ChardevFileWrapper,
        /// Pipes with names.
        Pipe = "pipe": ChardevHostdevWrapper,
        /// A stream socket.
        Socket = "socket": ChardevSocketWrapper,
        /// Datagrams.
        Udp = "udp": ChardevUdpWrapper,
        /// A pseudoterminal.
        Pty = "pty": ChardevPtyWrapper,
        /// Nothing.
        Null = "null": ChardevCommonWrapper,
        /// Another device, shared by several users.
        Mux = "mux": ChardevMuxWrapper,
        /// Standard input and output.
        Stdio = "stdio": ChardevStdioWrapper,
        /// Memory that keeps what was written last.
        Ringbuf = "ringbuf": ChardevRingbufWrapper,
        /// The same by an older name.
        Memory = "memory": ChardevRingbufWrapper,
    }

    /// Files, one level down.
    struct ChardevFileWrapper {
        /// The options of files.
        data: ChardevFile,
    }

    /// The files that are written and read.
    struct ChardevFile {
        /// A file that gets all output as well.
        logfile: Option<String>,
        /// Add to that file, rather than begin it anew.
        logappend: Option<bool>,
        /// The file that input comes from.
        input as "in": Option<String>,
        /// The file that output goes to.
        out: String,
        /// Add to the output's file, rather than begin it anew.
        append: Option<bool>,
    }

    /// Pipes, one level down.
    struct ChardevHostdevWrapper {
        /// The options of pipes.
        data: ChardevHostdev,
    }

    /// Pipes with names, or a device of the host.
    struct ChardevHostdev {
        /// A file that gets all output as well.
        logfile: Option<String>,
        /// Add to that file, rather than begin it anew.
        logappend: Option<bool>,
        /// The path; for two pipes what stands before `.in` and `.out`.
        device: String,
    }

    /// A stream socket, one level down.
    struct ChardevSocketWrapper {
        /// The options of stream sockets.
        data: ChardevSocket,
    }

    /// A stream socket, and what is spoken over it.
    struct ChardevSocket {
        /// A file that gets all output as well.
        logfile: Option<String>,
        /// Add to that file, rather than begin it anew.
        logappend: Option<bool>,
        /// Where to listen, or to connect to.
        addr: SocketAddressLegacy,
        /// TLS credentials by their id.
        tls_creds: Option<String>,
        /// Who may connect by TLS, by an object's id.
        tls_authz: Option<String>,
        /// Listen, rather than connect; default true.
        server: Option<bool>,
        /// Wait for the first client; default false.
        wait: Option<bool>,
        /// Send without delay; default false.
        nodelay: Option<bool>,
        /// Speak telnet's protocol; default false.
        telnet: Option<bool>,
        /// Speak a terminal protocol of mainframes; default false.
        tn3270: Option<bool>,
        /// Be a WebSocket server; default false.
        websocket: Option<bool>,
        /// Connect again after so many seconds; 0 for never.
        reconnect: Option<i64> ["deprecated"],
        /// The same in milliseconds.
        reconnect_ms: Option<i64>,
    }

    /// Datagrams, one level down.
    struct ChardevUdpWrapper {
        /// The options of datagrams.
        data: ChardevUdp,
    }

    /// Datagrams, and between whom.
    struct ChardevUdp {
        /// A file that gets all output as well.
        logfile: Option<String>,
        /// Add to that file, rather than begin it anew.
        logappend: Option<bool>,
        /// Where output is sent.
        remote: SocketAddressLegacy,
        /// Where input is received.
        local: Option<SocketAddressLegacy>,
    }

    /// A pseudoterminal, one level down.
    struct ChardevPtyWrapper {
        /// The options of pseudoterminals.
        data: ChardevPty,
    }

    /// A pseudoterminal, and a name for it.
    struct ChardevPty {
        /// A file that gets all output as well.
        logfile: Option<String>,
        /// Add to that file, rather than begin it anew.
        logappend: Option<bool>,
        /// Where to make a link to it.
        path: Option<String>,
    }

    /// Options that all kinds have, one level down.
    struct ChardevCommonWrapper {
        /// The options that all kinds have.
        data: ChardevCommon,
    }

    /// Options that all kinds have.
    struct ChardevCommon {
        /// A file that gets all output as well.
        logfile: Option<String>,
        /// Add to that file, rather than begin it anew.
        logappend: Option<bool>,
    }

    /// A shared device, one level down.
    struct ChardevMuxWrapper {
        /// The options of shared devices.
        data: ChardevMux,
    }

    /// A shared device, and what is below it.
    struct ChardevMux {
        /// A file that gets all output as well.
        logfile: Option<String>,
        /// Add to that file, rather than begin it anew.
        logappend: Option<bool>,
        /// The device that is shared, by its id.
        chardev: String,
    }

    /// Standard input and output, one level down.
    struct ChardevStdioWrapper {
        /// The options of standard input and output.
        data: ChardevStdio,
    }

    /// Standard input and output.
    struct ChardevStdio {
        /// A file that gets all output as well.
        logfile: Option<String>,
        /// Add to that file, rather than begin it anew.
        logappend: Option<bool>,
        /// Whether keys of the terminal make signals.
        signal: Option<bool>,
    }

    /// Memory, one level down.
    struct ChardevRingbufWrapper {
        /// The options of memory.
        data: ChardevRingbuf,
    }

    /// Memory that keeps what was written last.
    struct ChardevRingbuf {
        /// A file that gets all output as well.
        logfile: Option<String>,
        /// Add to that file, rather than begin it anew.
        logappend: Option<bool>,
        /// How many bytes are kept, a power of two; default 65536.
        size: Option<i64>,
    }

    /// What is told of a character device that was made.
    struct ChardevReturn {
        /// The name of the pseudoterminal, if it is one.
        pty: Option<String>,
    }

    /// Makes a character device.
    command ChardevAdd = "chardev-add" {
        /// The id that it is to have.
        id: String,
        /// What is to be behind it.
        backend: ChardevBackend,
    } -> ChardevReturn;

    /// Puts something else behind a character device.
    command ChardevChange = "chardev-change" {
        /// The id of the device.
        id: String,
        /// What is to be behind it.
        backend: ChardevBackend,
    } -> ChardevReturn;

    /// Removes a character device that nobody uses.
    command ChardevRemove = "chardev-remove" {
        /// The id of the device.
        id: String,
    };

    /// Tells the user of a character device of a break.
    command ChardevSendBreak = "chardev-send-break" {
        /// The id of the device.
        id: String,
    };

    /// How bytes stand in JSON.
    #[derive(Default)]
    enum DataFormat {
        /// As text.
        #[default]
        Utf8 = "utf8",
        /// In Base64.
        Base64 = "base64",
    }

    /// Writes to a device that is memory.
    command RingbufWrite = "ringbuf-write" {
        /// The id of the device.
        device: String,
        /// The bytes to write.
        data: String,
        /// How they stand in `data`; as text unless told.
        format: DataFormat = default,
    };

    /// Takes bytes from a device that is memory.
    command RingbufRead = "ringbuf-read" {
        /// The id of the device.
        device: String,
        /// How many bytes at most.
        size: i64,
        /// How they are to stand in the answer; as text unless told.
        format: DataFormat = default,
    } -> String;

    /// The languages of monitors.
    enum MonitorMode {
        /// For people; not served.
        Readline = "readline",
        /// QMP, for programs.
        Control = "control",
    }

    /// What the option `--monitor` takes.
    struct MonitorOptions {
        /// The monitor's id, which nothing refers to.
        id: Option<String>,
        /// The monitor's language; QMP if nothing is said.
        mode: Option<MonitorMode>,
        /// Spread each reply over several lines; default false.
        pretty: bool = default,
        /// The character device that it is on.
        chardev: String,
    }
}

impl MonitorOptions {
    /// A monitor on a character device, with all else at its default.
    pub fn on(chardev: &str) -> Self {
        Self {
            id: None,
            mode: None,
            pretty: false,
            chardev: chardev.to_owned(),
        }
    }
}
