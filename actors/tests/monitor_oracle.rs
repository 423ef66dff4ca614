//! The same bytes given to our session and to `qemu-storage-daemon`'s monitor: the same bytes come back.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it must be"
)]

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use millpond::monitor::{Dispatch, Session, Turn};
use millpond_messages::qapi::schema::COMMANDS;
use millpond_messages::qapi::{JsonText, Object, QmpError};
use serde_json::json;
use std::io::Write;
use std::process::{Command, Stdio};

/// Answers what needs no daemon as an empty daemon does.
struct Empty {
    commands: Vec<&'static str>,
}

impl Dispatch for Empty {
    fn commands(&self) -> &[&'static str] {
        &self.commands
    }

    fn dispatch(&self, command: &str, _: Object) -> LocalBoxFuture<'static, Result<JsonText, QmpError>> {
        let reply = if command == "query-block" {
            json!([])
        } else {
            json!({})
        };
        async { Ok(reply.into()) }.boxed_local()
    }
}

/// Bytes that one session sends for `input`, the greeting left out; stops after `quit`.
fn ours(input: &[u8], pretty: bool) -> String {
    let dispatch = Empty {
        commands: COMMANDS.iter().map(|command| command.name).collect(),
    };
    let mut session = Session::new(pretty);
    let mut output = Vec::new();
    session.feed(input);
    while let Some(turn) = session.next(&dispatch) {
        match turn {
            Turn::Send(bytes) => output.extend(bytes),
            Turn::Run(call) => {
                let result = dispatch
                    .dispatch(call.command, call.arguments)
                    .now_or_never()
                    .unwrap();
                output.extend(session.answer(call.id, result));
                if call.command == "quit" {
                    break;
                }
            }
        }
    }
    String::from_utf8(output).unwrap()
}

fn oracle(input: &[u8], pretty: bool) -> String {
    let mut child = Command::new("qemu-storage-daemon")
        .args(["--chardev", "stdio,id=c", "--monitor"])
        .arg(format!("chardev=c,pretty={}", if pretty { "on" } else { "off" }))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("qemu-storage-daemon must be installed: package qemu-utils");
    // Kept open: at its end the oracle forgets what it has not yet looked at.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    let text = String::from_utf8(output.stdout).unwrap();
    // The greeting ends with the first line that closes its outermost brace.
    let end = if pretty { "\r\n}\r\n" } else { "}\r\n" };
    text.split_once(end).unwrap().1.to_owned()
}

fn compare(pretty: bool, input: &[u8]) {
    let mut whole = b"{'execute':'qmp_capabilities'}\n".to_vec();
    whole.extend_from_slice(input);
    compare_from_start(pretty, &whole);
}

fn compare_from_start(pretty: bool, input: &[u8]) {
    let mut input = input.to_vec();
    // Whatever went before, this is read as it stands.
    input.extend_from_slice(b"\xff\n{'execute':'qmp_capabilities'}{'execute':'quit'}\n");
    let shown = String::from_utf8_lossy(&input).into_owned();
    assert_eq!(ours(&input, pretty), oracle(&input, pretty), "{shown}");
}

#[test]
fn malformed_json() {
    let inputs: &[&[u8]] = &[
        br#"{"a" 1}"#,
        br#"{"a":1,}"#,
        br#"{"a":1 "b"}"#,
        b"{a:1}",
        br#"{"a":1}}"#,
        b"}",
        b"]",
        b"[1,]",
        b"[1 2]",
        b"[,]",
        b"{,}",
        b"{1:2}",
        b"{true:2}",
        br#"{"a":}"#,
        br#"{"a":1,"a":2}"#,
        br#"{"a":tru}"#,
        br#"{"a":truE}"#,
        br#"{"execute":True}"#,
        br#"{"a":01}"#,
        br#"{"a":1.}"#,
        br#"{"a":1.5e}"#,
        br#"{"a":1e5x}"#,
        br#"{"a":-}"#,
        br#"{"a":-x}"#,
        br#"{"a":+1}"#,
        br#"{"a":.5}"#,
        br#"{"a":%d}"#,
        b"%",
        b"\"abc\n",
        br#"{"a":"\x"}"#,
        br#"{"a":"\uD800"}"#,
        br#"{"a":"\uD800\u0041"}"#,
        br#"{"a":"\u0000"}"#,
        br#"{"a":"\u12"}"#,
        br#"{"a":"\u12G4"}"#,
        b"{\"a\":\"\xff\"}",
        b"{\"a\":\"\xc0\x80\"}",
        b"{\"a\":\"\xed\xa0\x80\"}",
        b"{\"a\":\"\t\"}",
        b"{\"a\":\"\x01\"}",
        b"\x01{'execute':'query-block'}",
        b"\x00{'execute':'query-block'}",
        b"{\"execute\"\x01{'execute':'query-block'}",
        b"foo{'execute':'query-block'}",
        b"FOO BAR{'execute':'query-block'}",
        b"$$$ [1] x",
        b"1a2",
        b"1 2 3",
        b"true false",
        b"{]{'execute':'query-block','id':2}",
        b"[}{'execute':'query-block','id':2}",
        br#"{"a":[}}{"execute":"query-block","id":2}"#,
        br#"{"a":{]}{"execute":"query-block","id":2}"#,
        b":,{'execute':'query-block'}",
        b"\"\xe2\x82\xac\x01",
        b"\"\xe2\x82\x01",
        b"\"\xef\xbf\xbf\x01",
        b"\"\xf0\x80\x80\x80\x01",
        b"$ \t\"b\"{'execute':'query-block'}",
        b"$ \r\"b\"{'execute':'query-block'}",
        b"$ \x01\x01\"b\"{'execute':'query-block'}",
        b"$ \xfd\"b\"{'execute':'query-block'}",
        b"1.\n\"b\"{'execute':'query-block'}",
        b"{\"a\" : ABC:\"b\"}{'execute':'query-block'}",
        b"{\"a\" : 1 ;\n \"b\"}{'execute':'query-block'}",
        b"// comment\n",
        b"\"\xc3\x28\"",
        b"'it\\'s \"x\"'",
    ];
    for input in inputs {
        compare(false, input);
    }
}

#[test]
fn requests_of_the_wrong_form() {
    let inputs = [
        r#"{"execute":"foo","id":{"b":[1,{}],"a":[],"x":0.1,"y":1e300,"z":1.0,"s":"a\"\\\n\u0001é😀/","n":-0.0}}"#,
        r#"{"execute":"x","id":[1.0,1e2,-0,0,1E5,12345678901234567890,99999999999999999999,0.1e1,-1.5e-7]}"#,
        r#"{"execute":"block_resize","arguments":[]}"#,
        r#"{"execute":"block_resize","arguments":null}"#,
        r#"{"execute":"block_resize","foo":1}"#,
        r#"{"execute":5}"#,
        r#"{"arguments":{}}"#,
        r#"{"execute":"query-block","exec-oob":"quit"}"#,
        r#"{"exec-oob":"query-version","id":null}"#,
        "[]",
        "5",
        r#""x""#,
        r#"{"execute":"qmp_capabilities"}"#,
        r#"{"execute":"a","arguments":5,"foo":1}"#,
        r#"{"execute":"query-block", "id":{"a":1},"control":5}"#,
        r#"{"execute":"query-block"}{"execute":"query-block","id":"x"} {"execute":
            "query-block"}"#,
    ];
    for input in inputs {
        compare(false, input.as_bytes());
        compare(true, input.as_bytes());
    }
}

#[test]
fn arguments_that_do_not_fit_the_schema() {
    let inputs = [
        r#"{"execute":"block_resize","arguments":{}}"#,
        r#"{"execute":"block_resize","arguments":{"size":"x"}}"#,
        r#"{"execute":"block_resize","arguments":{"size":1.5}}"#,
        r#"{"execute":"block_resize","arguments":{"size":18446744073709551615}}"#,
        r#"{"execute":"block_resize","arguments":{"size":1,"foo":1}}"#,
        r#"{"execute":"block_resize","arguments":{"size":1,"device":3}}"#,
        r#"{"execute":"blockdev-add","arguments":{"driver":"foo"}}"#,
        r#"{"execute":"blockdev-add","arguments":{"driver":5}}"#,
        r#"{"execute":"blockdev-add","arguments":{}}"#,
        r#"{"execute":"blockdev-add","arguments":{"driver":"file","filename":"x","cache":5}}"#,
        r#"{"execute":"blockdev-add","arguments":{"driver":"file","filename":"x","cache":{"direct":1}}}"#,
        r#"{"execute":"blockdev-add","arguments":{"driver":"file","filename":"x","cache":{"dirct":true}}}"#,
        r#"{"execute":"blockdev-add","arguments":{"driver":"file","filename":"x","cache.direct":true}}"#,
        r#"{"execute":"blockdev-add","arguments":{"driver":"file","filename":"x","aio":"foo"}}"#,
        r#"{"execute":"blockdev-add","arguments":{"driver":"raw","file":{"driver":"file","filename":"x","aio":"y"}}}"#,
        r#"{"execute":"blockdev-add","arguments":{"driver":"raw","file":5}}"#,
        r#"{"execute":"blockdev-add","arguments":{"driver":"raw","file":null}}"#,
        r#"{"execute":"blockdev-add","arguments":{"driver":"raw","file":{"driver":"file"}}}"#,
        r#"{"execute":"blockdev-add","arguments":{"driver":"raw","file":{"driver":"file","filename":"x","b":1}}}"#,
        r#"{"execute":"blockdev-add","arguments":{"driver":"qcow2","file":"a","backing":5}}"#,
        r#"{"execute":"blockdev-add","arguments":{"driver":"null-co","read-zeroes":"on"}}"#,
        r#"{"execute":"blockdev-add","arguments":{"driver":"null-co","latency-ns":"x"}}"#,
        r#"{"execute":"blockdev-add","arguments":{"driver":"null-co","latency-ns":1.5}}"#,
        r#"{"execute":"nbd-server-start","arguments":{"addr":{"type":"unix","data":{"path":5}}}}"#,
        r#"{"execute":"nbd-server-start","arguments":{"addr":{"type":"unix"},"max-connections":-1}}"#,
        r#"{"execute":"nbd-server-start","arguments":{"addr":{"type":"unix"},"max-connections":4294967296}}"#,
        r#"{"execute":"nbd-server-start","arguments":{"addr":{"type":"unix"},"max-connections":"a"}}"#,
        r#"{"execute":"nbd-server-start","arguments":{"addr":{"type":"inet","data":{"host":"x","port":"1","to":70000}}}}"#,
        r#"{"execute":"nbd-server-start","arguments":{"addr":{"type":"unix"}}}"#,
        r#"{"execute":"nbd-server-start","arguments":{"addr":{"type":"foo"}}}"#,
        r#"{"execute":"block-export-add","arguments":{"type":"nbd","id":"x","node-name":"y","bitmaps":["a",{"node":"x"}]}}"#,
        r#"{"execute":"block-export-add","arguments":{"type":"nbd","id":"x","node-name":"y","bitmaps":["a",5]}}"#,
        r#"{"execute":"block-export-add","arguments":{"type":"nbd","id":"x","node-name":"y","bitmaps":"a"}}"#,
        r#"{"execute":"block-export-del","arguments":{"id":"x","mode":"soft"}}"#,
        r#"{"execute":"blockdev-reopen","arguments":{"options":[{"driver":"raw"}]}}"#,
        r#"{"execute":"blockdev-reopen","arguments":{"options":[{"driver":"raw","file":{"driver":"x"}}]}}"#,
        r#"{"execute":"blockdev-reopen","arguments":{"options":[5]}}"#,
        r#"{"execute":"blockdev-reopen","arguments":{"options":{}}}"#,
        r#"{"execute":"blockdev-create","arguments":{"job-id":"x","options":{"driver":"qcow2","file":"x","size":1.0}}}"#,
        r#"{"execute":"blockdev-create","arguments":{"job-id":"x","options":{"driver":"qcow2","file":"x","size":"1G"}}}"#,
        r#"{"execute":"x-blockdev-amend","arguments":{"job-id":"x","node-name":"y","options":{}}}"#,
        r#"{"execute":"x-blockdev-amend","arguments":{"job-id":"x","node-name":"y","options":{"driver":"foo"}}}"#,
        r#"{"execute":"x-blockdev-amend","arguments":{"job-id":"x","node-name":"y","options":{"driver":"qcow2","size":1}}}"#,
        r#"{"execute":"x-blockdev-amend","arguments":{"job-id":"x","node-name":"y","options":{"driver":"qcow2","encrypt":{"format":"luks"}}}}"#,
        r#"{"execute":"x-blockdev-amend","arguments":{"job-id":"x","node-name":"y","options":{"driver":"qcow2","encrypt":{"format":"luks","state":"x"}}}}"#,
        r#"{"execute":"x-blockdev-amend","arguments":{"job-id":"x","node-name":"y","force":1,"options":{"driver":"qcow2"}}}"#,
        r#"{"execute":"x-blockdev-set-iothread","arguments":{"node-name":"x","iothread":5}}"#,
        r#"{"execute":"x-blockdev-set-iothread","arguments":{"node-name":5,"iothread":5}}"#,
        r#"{"execute":"object-add","arguments":{"qom-type":"iothread","id":"a","poll-max-ns":"x"}}"#,
        r#"{"execute":"object-add","arguments":{"qom-type":"foo","id":"a"}}"#,
        r#"{"execute":"query-block", "arguments":{"a":1}}"#,
        r#"{"execute":"job-dismiss"}"#,
    ];
    for input in inputs {
        compare(false, input.as_bytes());
    }
}

#[test]
fn negotiation() {
    let inputs = [
        r#"{"execute":"query-block"}"#,
        r#"{"execute":"foo","id":1}"#,
        r#"{"exec-oob":"qmp_capabilities"}"#,
        r#"{"execute":"query-block","arguments":5}"#,
        r#"{"execute":"qmp_capabilities","foo":1}"#,
        r#"{"execute":"qmp_capabilities","arguments":{"enable":["foo"]}}"#,
        r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}{"exec-oob":"query-block"}"#,
        r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}{"exec-oob":"foo"}"#,
        r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}{"execute":"a","exec-oob":"b"}"#,
        r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}{"exec-oob":5}"#,
    ];
    for input in inputs {
        compare_from_start(false, input.as_bytes());
    }
}
