//! QMP as it comes from a client. How the bytes were cut into pieces does not matter, every reply is one line of JSON
//! without control characters, and arguments that pass validation have the types that the commands ask for.

use futures_util::future::{LocalBoxFuture, ready};
use millpond::monitor::{Call, Dispatch, Session, Turn};
use millpond_messages::qapi::schema::{COMMANDS, find_command};
use millpond_messages::qapi::{JsonText, Object, QmpError};
use serde_json::Value;

/// Knows every command and does nothing.
struct Nothing(Vec<&'static str>);

impl Dispatch for Nothing {
    fn commands(&self) -> &[&'static str] {
        &self.0
    }

    fn dispatch(&self, _: &str, _: Object) -> LocalBoxFuture<'static, Result<JsonText, QmpError>> {
        Box::pin(ready(Ok(Value::Null.into())))
    }
}

pub(super) fn run(bytes: &[u8]) {
    let dispatch = Nothing(COMMANDS.iter().map(|command| command.name).collect());
    let whole = converse(bytes, bytes.len(), &dispatch);
    assert_eq!(converse(bytes, 7, &dispatch), whole);
    for reply in whole {
        let line = reply.strip_suffix(b"\r\n").expect("a reply is a line");
        assert!(
            line.iter().all(|byte| (b' '..0x7f).contains(byte)),
            "{}",
            line.escape_ascii()
        );
        let value: Value = serde_json::from_slice(line).expect("a reply is JSON");
        assert!(value.is_object());
    }
}

/// All replies to `bytes` given in pieces.
fn converse(bytes: &[u8], piece: usize, dispatch: &Nothing) -> Vec<Vec<u8>> {
    let mut session = Session::new(false);
    let mut replies = vec![session.greeting()];
    for piece in bytes.chunks(piece.max(1)) {
        session.feed(piece);
        while let Some(turn) = session.next(dispatch) {
            replies.push(match turn {
                Turn::Send(bytes) => bytes,
                Turn::Run(call) => {
                    typed(&call);
                    session.answer(call.id, Ok(Value::Object(call.arguments).into()))
                }
            });
        }
    }
    replies
}

/// Arguments that were checked can be given their types.
fn typed(call: &Call) {
    let row = find_command(call.command).expect("a command has a row");
    if let Err(problem) = (row.accepts)(call.arguments.clone()) {
        panic!("{} {:?}: {problem}", call.command, call.arguments);
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let begin = "{'execute': 'qmp_capabilities', 'arguments': {'enable': ['oob']}}\n";
    [
        "{\"execute\": \"blockdev-add\", \"arguments\": {\"driver\": \"qcow2\", \"node-name\": \"a\", \"file\": {\"driver\": \
         \"file\", \"filename\": \"\\u00e9\\ud83d\\ude00\\n\"}, \"backing\": null}, \"id\": [1, 2.5e3, {\"x\": null}]}",
        "{'execute': 'block-export-add', 'arguments': {'type': 'nbd', 'id': 'x', 'node-name': 'a', 'bitmaps': ['b', {'node': \
         'c', 'name': 'd'}], 'writable': true}, 'id': -1}{'exec-oob': 'query-block-exports'}",
        "{'execute': 'nbd-server-start', 'arguments': {'addr': {'type': 'inet', 'data': {'host': 'h', 'port': '1'}}}}",
        "{'execute': 'blockdev-create', 'arguments': {'job-id': 'j', 'options': {'driver': 'qcow2', 'file': 'f', 'size': \
         1048576, 'cluster-size': 512}}}",
        "{'execute': 'blockdev-reopen', 'arguments': {'options': [{'driver': 'raw', 'file': 'x', 'node-name': 'y'}]}}",
        "{'execute': 'x-blockdev-set-iothread', 'arguments': {'node-name': 'a', 'iothread': 'b', 'force': false}}",
        "{'execute': 'object-add', 'arguments': {'qom-type': 'iothread', 'id': 'io', 'poll-max-ns': 1}}",
        "[[[[[[[[{}]]]]]]]] nonsense \u{1b}[31m 'x\n{'execute': 'query-status'}",
    ]
    .map(|text| format!("{begin}{text}\n").into_bytes())
    .to_vec()
}
