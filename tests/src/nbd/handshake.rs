//! The negotiation of a connection, one option at a time.

use std::io::{self, Read, Write};

use super::wire::*;
use super::{Address, Info, Session, Stream};

/// One reply of the server to an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionReply {
    /// The reply's type: acknowledgement, information or error.
    pub kind: u32,
    /// Its payload.
    pub data: Vec<u8>,
}

impl OptionReply {
    /// Whether this is an error.
    pub fn is_error(&self) -> bool {
        self.kind & REP_ERROR_BIT != 0
    }

    /// The payload as text, as errors have it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.data).into_owned()
    }
}

/// A connection in negotiation.
#[derive(Debug)]
pub struct Handshake {
    /// The socket, for saying what no method says.
    pub stream: Stream,
    structured: bool,
    extended: bool,
    contexts: Vec<(u32, String)>,
}

impl Handshake {
    /// Connects, checks the server's greeting and answers it as a modern client.
    pub fn start(address: &Address) -> io::Result<Handshake> {
        let mut handshake = Handshake::greeted(address)?;
        let flags = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        handshake.stream.write_all(&flags.to_be_bytes())?;
        Ok(handshake)
    }

    /// Connects and checks the greeting; the client's flags are not sent yet.
    pub fn greeted(address: &Address) -> io::Result<Handshake> {
        let mut stream = address.connect()?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        let expected = [&MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes()[..]].concat();
        if greeting[..16] != expected {
            return Err(invalid(format!("the greeting is {greeting:02x?}")));
        }
        let flags = u16::from_be_bytes([greeting[16], greeting[17]]);
        if flags != FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES {
            return Err(invalid(format!("the server's flags are {flags:#x}")));
        }
        Ok(Handshake {
            stream,
            structured: false,
            extended: false,
            contexts: Vec::new(),
        })
    }

    /// Sends the header of an option that announces `length` bytes of data, then `data`, which may be shorter.
    pub fn send(&mut self, option: u32, length: u32, data: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(16 + data.len());
        bytes.extend(OPTION_MAGIC.to_be_bytes());
        bytes.extend(option.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes)
    }

    /// Receives one reply to `option`.
    pub fn receive(&mut self, option: u32) -> io::Result<OptionReply> {
        let mut header = [0; 20];
        self.stream.read_exact(&mut header)?;
        let word =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if header[..8] != OPTION_REPLY_MAGIC.to_be_bytes() || word(8) != option {
            return Err(invalid(format!("not a reply to option {option}: {header:02x?}")));
        }
        let mut data = vec![0; word(16) as usize];
        self.stream.read_exact(&mut data)?;
        Ok(OptionReply { kind: word(12), data })
    }

    /// Sends an option and receives its replies up to the acknowledgement or error that ends them, which is the last.
    pub fn option(&mut self, option: u32, data: &[u8]) -> io::Result<Vec<OptionReply>> {
        let length = u32::try_from(data.len()).expect("test data is small");
        self.send(option, length, data)?;
        let mut replies = Vec::new();
        loop {
            let reply = self.receive(option)?;
            let last = reply.kind == REP_ACK || reply.is_error();
            replies.push(reply);
            if last {
                return Ok(replies);
            }
        }
    }

    /// Sends an option and returns only the reply that ends it.
    pub fn outcome(&mut self, option: u32, data: &[u8]) -> io::Result<OptionReply> {
        let mut replies = self.option(option, data)?;
        Ok(replies.pop().expect("the list ends with the outcome"))
    }

    /// Asks for structured replies; whether they were granted.
    pub fn structured_replies(&mut self) -> io::Result<bool> {
        self.structured = self.outcome(OPT_STRUCTURED_REPLY, &[])?.kind == REP_ACK;
        Ok(self.structured)
    }

    /// Asks for extended headers, which imply structured replies; whether they were granted.
    pub fn extended_headers(&mut self) -> io::Result<bool> {
        self.extended = self.outcome(OPT_EXTENDED_HEADERS, &[])?.kind == REP_ACK;
        self.structured |= self.extended;
        Ok(self.extended)
    }

    /// Selects metadata contexts; the names the server granted.
    pub fn set_contexts(&mut self, export: &str, queries: &[&str]) -> io::Result<Vec<String>> {
        self.contexts = self.contexts_of(OPT_SET_META_CONTEXT, export, queries)?;
        Ok(self.contexts.iter().map(|(_, name)| name.clone()).collect())
    }

    /// Lists metadata contexts that match the queries.
    pub fn list_contexts(&mut self, export: &str, queries: &[&str]) -> io::Result<Vec<String>> {
        let listed = self.contexts_of(OPT_LIST_META_CONTEXT, export, queries)?;
        Ok(listed.into_iter().map(|(_, name)| name).collect())
    }

    fn contexts_of(&mut self, option: u32, export: &str, queries: &[&str]) -> io::Result<Vec<(u32, String)>> {
        let mut contexts = Vec::new();
        for reply in self.option(option, &meta_context_data(export, queries))? {
            match reply.kind {
                REP_ACK => {}
                REP_META_CONTEXT if reply.data.len() >= 4 => {
                    let id = u32::from_be_bytes([reply.data[0], reply.data[1], reply.data[2], reply.data[3]]);
                    contexts.push((id, String::from_utf8_lossy(&reply.data[4..]).into_owned()));
                }
                _ => {
                    return Err(invalid(format!(
                        "contexts {queries:?} of {export:?}: {}",
                        reply.text()
                    )));
                }
            }
        }
        Ok(contexts)
    }

    /// The names of all exports.
    pub fn list(&mut self) -> io::Result<Vec<String>> {
        let replies = self.option(OPT_LIST, &[])?;
        let servers = replies.iter().filter(|reply| reply.kind == REP_SERVER);
        Ok(servers
            .map(|reply| String::from_utf8_lossy(&reply.data[4..]).into_owned())
            .collect())
    }

    /// Ends negotiation and enters transmission, or returns the server's refusal.
    pub fn go(mut self, export: &str) -> io::Result<Result<Session, OptionReply>> {
        let replies = self.option(OPT_GO, &go_data(export, &[INFO_BLOCK_SIZE]))?;
        let mut info = Info::default();
        for reply in &replies {
            if reply.is_error() {
                return Ok(Err(reply.clone()));
            }
            if reply.kind == REP_INFO {
                info.learn(&reply.data).map_err(invalid)?;
            }
        }
        info.contexts = self.contexts;
        info.structured = self.structured;
        info.extended = self.extended;
        Ok(Ok(Session::new(self.stream, info)))
    }

    /// Ends negotiation the old way, by `NBD_OPT_EXPORT_NAME`.
    pub fn export_name(mut self, export: &str) -> io::Result<Session> {
        self.send(
            OPT_EXPORT_NAME,
            u32::try_from(export.len()).expect("a short name"),
            export.as_bytes(),
        )?;
        let mut bytes = [0; 10];
        self.stream.read_exact(&mut bytes)?;
        let mut info = Info {
            structured: self.structured,
            extended: self.extended,
            ..Info::default()
        };
        info.learn(&[&INFO_EXPORT.to_be_bytes()[..], &bytes[..]].concat())
            .map_err(invalid)?;
        Ok(Session::new(self.stream, info))
    }
}

/// The payload of INFO and GO.
pub fn go_data(export: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = Vec::new();
    data.extend(u32::try_from(export.len()).expect("a short name").to_be_bytes());
    data.extend(export.as_bytes());
    data.extend(
        u16::try_from(infos.len())
            .expect("few kinds of information")
            .to_be_bytes(),
    );
    for info in infos {
        data.extend(info.to_be_bytes());
    }
    data
}

/// The payload of LIST_META_CONTEXT and SET_META_CONTEXT.
pub fn meta_context_data(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    let text = |text: &str, data: &mut Vec<u8>| {
        data.extend(u32::try_from(text.len()).expect("short text").to_be_bytes());
        data.extend(text.as_bytes());
    };
    text(export, &mut data);
    data.extend(u32::try_from(queries.len()).expect("few queries").to_be_bytes());
    for query in queries {
        text(query, &mut data);
    }
    data
}

/// What to negotiate before transmission.
#[derive(Debug, Clone)]
pub struct Connect {
    /// Ask for structured replies.
    pub structured: bool,
    /// Ask for extended headers.
    pub extended: bool,
    /// Metadata contexts to select.
    pub contexts: Vec<&'static str>,
}

impl Default for Connect {
    fn default() -> Connect {
        Connect {
            structured: true,
            extended: false,
            contexts: vec!["base:allocation"],
        }
    }
}

impl Connect {
    /// Neither structured replies nor anything that needs them.
    pub fn simple() -> Connect {
        Connect {
            structured: false,
            extended: false,
            contexts: Vec::new(),
        }
    }

    /// Extended headers and `base:allocation`.
    pub fn extended() -> Connect {
        Connect {
            extended: true,
            ..Connect::default()
        }
    }

    /// Both contexts by which a chain of images can be seen.
    pub fn with_depth() -> Connect {
        Connect {
            contexts: vec!["base:allocation", "qemu:allocation-depth"],
            ..Connect::default()
        }
    }

    /// Negotiates all of it, each of which must be granted, and enters transmission.
    #[track_caller]
    pub fn open(&self, address: &Address, export: &str) -> Session {
        match self.try_open(address, export) {
            Ok(Ok(session)) => session,
            Ok(Err(refusal)) => panic!("export {export}: {}", refusal.text()),
            Err(error) => panic!("export {export} at {address:?}: {error}"),
        }
    }

    /// Negotiates, and returns the server's refusal of the export if there was one.
    pub fn try_open(&self, address: &Address, export: &str) -> io::Result<Result<Session, OptionReply>> {
        let mut handshake = Handshake::start(address)?;
        if self.extended && !handshake.extended_headers()? {
            return Err(invalid("extended headers were refused".to_owned()));
        }
        if self.structured && !self.extended && !handshake.structured_replies()? {
            return Err(invalid("structured replies were refused".to_owned()));
        }
        if !self.contexts.is_empty() {
            // An export that does not exist is reported by GO.
            if let Ok(granted) = handshake.set_contexts(export, &self.contexts)
                && granted != self.contexts
            {
                return Err(invalid(format!(
                    "of contexts {:?} only {granted:?} were granted",
                    self.contexts
                )));
            }
        }
        handshake.go(export)
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
