//! One client's conversation with a monitor, as a state machine without I/O.
//!
//! Bytes go in, and come out as requests to carry out and replies to send. Requests are taken one at a
//! time, in order; nothing but replies is sent before the client has negotiated capabilities.

use super::Dispatch;
use millpond_messages::qapi::schema::find_command;
use millpond_messages::qapi::{
    ErrorClass, Form, JsonStream, JsonText, Object, QmpError, TimedEvent, Validator, VersionInfo, bucket,
    in_qdict_order, spread, to_compact,
};
use serde_json::{Value, json};
use std::collections::VecDeque;

/// Requests that may wait before no more input should be read.
const QUEUE: usize = 8;

/// What a reply has besides its members: their names, and what is around them.
const ROOM: usize = 64;

/// A conversation with one client.
#[derive(Debug)]
pub struct Session {
    stream: JsonStream,
    queue: VecDeque<Result<Value, String>>,
    pretty: bool,
    negotiated: bool,
    out_of_band: bool,
}

/// What is to be done next for the client.
#[derive(Debug, PartialEq)]
pub enum Turn {
    /// These bytes are to be sent to the client.
    Send(Vec<u8>),
    /// Carry this out, then give the result to [`Session::answer`].
    Run(Call),
}

/// A command that passed the checks.
#[derive(Debug, PartialEq)]
pub struct Call {
    /// The name of the command, from the schema.
    pub command: &'static str,
    /// Its arguments, checked and of their types.
    pub arguments: Object,
    /// What the client wants back with the answer.
    pub id: Option<Value>,
}

/// A request whose form is right.
struct Request {
    command: String,
    out_of_band: bool,
    arguments: Object,
}

impl Session {
    /// A session that has yet to send its [`greeting`](Self::greeting); `pretty` spreads each reply over
    /// several lines.
    pub fn new(pretty: bool) -> Self {
        Self {
            stream: JsonStream::default(),
            queue: VecDeque::new(),
            pretty,
            negotiated: false,
            out_of_band: false,
        }
    }

    /// What a client is sent first.
    pub fn greeting(&self) -> Vec<u8> {
        let version = serde_json::to_value(VersionInfo::current()).unwrap_or_default();
        self.line(to_compact(
            &json!({"QMP": {"version": version, "capabilities": ["oob"]}}),
        ))
    }

    /// Takes what the client sent.
    pub fn feed(&mut self, input: &[u8]) {
        self.queue.extend(self.stream.feed(input));
    }

    /// Enough requests wait: no more input should be read for now.
    pub fn is_full(&self) -> bool {
        self.queue.len() >= QUEUE
    }

    /// Whether a request of the client waits to be run.
    pub fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// What to do about the next request; `None` if there is none.
    pub fn next(&mut self, dispatch: &dyn Dispatch) -> Option<Turn> {
        let request = match self.queue.pop_front()? {
            Ok(request) => request,
            Err(why) => return Some(Turn::Send(self.answer(None, Err(QmpError::generic(why))))),
        };
        let Value::Object(mut request) = request else {
            let error = QmpError::generic("QMP input must be a JSON object");
            return Some(Turn::Send(self.answer(None, Err(error))));
        };
        let id = request.shift_remove("id");
        let turn = match self.check(request, dispatch) {
            Err(error) => Turn::Send(self.answer(id, Err(error))),
            Ok(("qmp_capabilities", arguments)) => {
                let result = self.negotiate(&arguments);
                Turn::Send(self.answer(id, result))
            }
            Ok((command, arguments)) => Turn::Run(Call {
                command,
                arguments,
                id,
            }),
        };
        Some(turn)
    }

    /// The bytes that tell the client the result of a command.
    pub fn answer(&self, id: Option<Value>, result: Result<JsonText, QmpError>) -> Vec<u8> {
        let (name, text) = match result {
            Ok(text) => ("return", text),
            Err(error) => {
                let told = json!({"class": error.class, "desc": error.desc});
                ("error", told.into())
            }
        };
        let id = id.map(|id| ("id", JsonText::from(id)));
        let mut members: Vec<(&str, JsonText)> = id.into_iter().chain([(name, text)]).collect();
        // As QEMU orders all objects.
        members.sort_by_key(|(name, _)| bucket(name));
        let length: usize = members.iter().map(|(_, text)| text.as_str().len()).sum();
        let mut line = String::with_capacity(length + ROOM);
        for (index, (name, text)) in members.iter().enumerate() {
            let before = if index == 0 { "{" } else { ", " };
            for part in [before, "\"", name, "\": ", text.as_str()] {
                line.push_str(part);
            }
        }
        line.push('}');
        self.line(line)
    }

    /// The bytes that tell the client of an event, once it has negotiated.
    pub fn event(&self, event: &TimedEvent) -> Option<Vec<u8>> {
        self.negotiated
            .then(|| self.line(to_compact(&Value::Object(event.to_json()))))
    }

    /// A line of JSON as the client is sent it.
    fn line(&self, compact: String) -> Vec<u8> {
        let mut text = if self.pretty {
            spread(&compact).replace('\n', "\r\n")
        } else {
            compact
        };
        text.push_str("\r\n");
        text.into_bytes()
    }

    /// The command that `request` names, and its arguments.
    fn check(&self, request: Object, dispatch: &dyn Dispatch) -> Result<(&'static str, Object), QmpError> {
        let request = self.form(request).map_err(QmpError::generic)?;
        if !self.negotiated && request.command != "qmp_capabilities" {
            let text = "Expecting capabilities negotiation with 'qmp_capabilities'";
            return Err(QmpError::new(ErrorClass::CommandNotFound, text));
        }
        let served = |name: &str| name == "qmp_capabilities" || dispatch.commands().contains(&name);
        let found = find_command(&request.command).filter(|command| served(command.name));
        let Some(command) = found else {
            let text = format!("The command {} has not been found", request.command);
            return Err(QmpError::new(ErrorClass::CommandNotFound, text));
        };
        if request.out_of_band {
            let text = format!("The command {} does not support OOB", request.command);
            return Err(QmpError::generic(text));
        }
        let validator = Validator::new(Form::Json, dispatch.extra_drivers());
        Ok((
            command.name,
            validator.check((command.arguments)(), request.arguments)?,
        ))
    }

    /// Looks at the members of a request in the order in which QEMU does.
    fn form(&self, mut request: Object) -> Result<Request, String> {
        let mut command: Option<&str> = None;
        for (name, value) in in_qdict_order(&request) {
            match (name.as_str(), value) {
                ("execute", Value::String(_)) | ("exec-oob", Value::String(_))
                    if name == "execute" || self.out_of_band =>
                {
                    if let Some(other) = command.replace(name) {
                        return Err(format!("QMP input member '{name}' clashes with '{other}'"));
                    }
                }
                ("execute", _) => return Err("QMP input member 'execute' must be a string".into()),
                ("exec-oob", _) if self.out_of_band => {
                    return Err("QMP input member 'exec-oob' must be a string".into());
                }
                ("arguments", Value::Object(_)) => {}
                ("arguments", _) => return Err("QMP input member 'arguments' must be an object".into()),
                _ => return Err(format!("QMP input member '{name}' is unexpected")),
            }
        }
        let Some(member) = command else {
            return Err("QMP input lacks member 'execute'".into());
        };
        let out_of_band = member == "exec-oob";
        let command = request
            .get(member)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let arguments = match request.shift_remove("arguments") {
            Some(Value::Object(arguments)) => arguments,
            _ => Object::new(),
        };
        Ok(Request {
            command,
            out_of_band,
            arguments,
        })
    }

    fn negotiate(&mut self, arguments: &Object) -> Result<JsonText, QmpError> {
        if self.negotiated {
            let text = "Capabilities negotiation is already complete, command ignored";
            return Err(QmpError::new(ErrorClass::CommandNotFound, text));
        }
        self.negotiated = true;
        // The schema knows no capability but this one.
        self.out_of_band = arguments
            .get("enable")
            .and_then(Value::as_array)
            .is_some_and(|list| !list.is_empty());
        Ok(json!({}).into())
    }
}
