//! Command lines given to `millpond serve` and to `qemu-storage-daemon`: the same words, the same exit code.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it must be"
)]

use std::io::Write;
use std::process::{Command, Stdio};

/// Runs a program to its end; its exit code, standard output and standard error, without its own name.
fn run(mut command: Command, name: &str) -> (Option<i32>, String, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; qemu-storage-daemon is in package qemu-utils"));
    // For those that have a monitor; the others may have ended already.
    let _ = child
        .stdin
        .take()
        .unwrap()
        .write_all(b"{'execute':'qmp_capabilities'}{'execute':'quit'}");
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| {
        String::from_utf8(bytes)
            .unwrap()
            .replace(&format!("{name}: "), "PROG: ")
    };
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn ours(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
    command.arg("serve").args(arguments);
    run(command, "millpond")
}

fn oracle(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new("qemu-storage-daemon");
    command.args(arguments);
    run(command, "qemu-storage-daemon")
}

fn compare(line: &str) {
    let arguments: Vec<&str> = if line.is_empty() {
        Vec::new()
    } else {
        line.split(' ').collect()
    };
    let (code, stdout, stderr) = ours(&arguments);
    // What is Millpond's own says so by its name.
    let shared = stdout
        .lines()
        .filter(|line| !line.trim_start().starts_with("x-millpond-"));
    let stdout = shared.map(|line| format!("{line}\n")).collect();
    assert_eq!((code, stdout, stderr), oracle(&arguments), "{line}");
}

#[test]
fn options_that_are_wrong() {
    for line in [
        "foo",
        "--foo",
        "--blockdev",
        "--blockdev=foo",
        "--bl foo",
        "--pid",
        "--daemonize=1",
        "-x",
        "-T",
        "--blockdev foo bar",
        "--blockdev foo --zzz",
        "--blockdev foo --object help",
        "--blockdev foo --pidfile",
        "--daemonize --blockdev foo",
        "--daemonize --daemonize --foo",
        "--blockdev null-co,node-name=a foo",
        "foo --blockdev null-co,node-name=a",
        "--monitor chardev=c,mode=control --chardev stdio,id=c --foo",
    ] {
        compare(line);
    }
}

#[test]
fn values_that_are_wrong() {
    for line in [
        "--blockdev foo",
        "--blockdev null-co",
        "--blockdev null-co,node-name=",
        "--blockdev {\"driver\":\"null-co\"}",
        "--blockdev file,filename=/nonexistent/x,node-name=a",
        "--blockdev raw,node-name=a,file=b",
        "--blockdev null-co,node-name=a --blockdev null-co,node-name=a",
        "--blockdev null-co,node-name=a,latency-ns=-1",
        "--export nbd,id=a,node-name=b",
        "--monitor foo",
        "--monitor chardev=foo,mode=readline",
        "--chardev null,id=c --monitor chardev=c --monitor chardev=c",
        "--chardev null,id=c --monitor chardev=c,mode=readline",
        "--chardev null,id=c --monitor chardev=c,id=x,foo=1",
        "--object iothread",
        "--object iothread,id=a,poll-max-ns=-1",
        "--object iothread,id=a --object iothread,id=a",
        "--object iothread,id=1",
        "--object {\"qom-type\":\"iothread\",\"id\":\"1\"}",
        "--object iothread,id=a,id.x=1",
        "--object iothread,id=a,help",
        "--object main-loop,?",
        "--object qom-type=iothread,foo=1,help",
        "--object main-loop,id=a --object main-loop,id=b",
        "--object iothread,id=a,thread-pool-min=65",
        "--object help,foo",
        "-T bar=1",
        "-T nope,bar=1",
        "-T enable=nope --blockdev foo",
        "-T file=/nonexistent/x",
        "--nbd-server addr.type=fd,addr.str=x",
        "--nbd-server addr.type=fd,addr.str=77",
        "--nbd-server addr.type=fd,addr.str=0",
        "--nbd-server addr.type=inet,addr.host=127.0.0.1,addr.port=nosuch",
        "--nbd-server addr.type=inet,addr.host=127.0.0.1,addr.port=-1",
        "--nbd-server addr.type=inet,addr.host=::,addr.port=1,addr.ipv4=on",
        "--nbd-server addr.type=inet,addr.host=nosuch.invalid,addr.port=1",
        "--pidfile /nonexistent/p",
        "--pidfile /nonexistent/p --blockdev foo",
    ] {
        compare(line);
    }
}

#[test]
fn character_devices_that_are_wrong() {
    for line in [
        "--chardev foo",
        "--chardev foo,id=a",
        "--chardev socket",
        "--chardev socket,id=a",
        "--chardev socket,id=a,path=/nonexistent/x,server=on",
        "--chardev socket,id=a,path=/nonexistent/x",
        "--chardev socket,id=a,path=/nonexistent/x,server=maybe",
        "--chardev socket,id=a,foo=b",
        "--chardev socket,id=a,path=/nonexistent/x,wait=off",
        "--chardev stdio,id=a --chardev stdio,id=a",
        "--chardev null,id=a --chardev null,id=a",
        "--chardev stdio,id=a --chardev null,id=a",
        "--chardev null,id=1a",
        "--chardev null,id=",
        "--chardev stdio",
        "--chardev socket,id=a,host=x",
        "--chardev socket,id=a,fd=99,server=on",
        "--chardev socket,id=a,fd=x,server=on",
        "--chardev {\"backend\":\"null\"}",
        "--chardev id=a",
        "--chardev id=a,null",
        "--chardev null,id=a,foo",
        "--chardev null,,x,id=a",
        "--chardev stdio,id=c,signal=x",
        "--chardev socket,id=c,host=localhost,port=foo,server=on,wait=off",
        "--daemonize --chardev stdio,id=a",
        "--chardev file,id=c",
        "--chardev file,id=c,path=/nonexistent/x",
        "--chardev file,id=c,path=x,append=maybe",
        "--chardev pipe,id=c",
        "--chardev pipe,id=c,path=/nonexistent/x",
        "--chardev udp,id=c",
        "--chardev ringbuf,id=c,size=3",
        "--chardev ringbuf,id=c,size=x",
        "--chardev mux,id=c",
        "--chardev mux,id=c,chardev=y",
        "--chardev null,id=c,logfile=/nonexistent/x",
        "--chardev socket,id=c,path=/nonexistent/x,server=off,websocket=on",
        "--chardev socket,id=c,path=/nonexistent/x,tls-creds=y,server=on",
        "--chardev socket,id=c,path=/nonexistent/x,tls-authz=y,server=on",
    ] {
        compare(line);
    }
    compare(&format!(
        "--chardev socket,id=c,path={},server=on,wait=off",
        "a".repeat(109)
    ));
}

#[test]
fn the_version_is_told_before_anything_is_done() {
    for line in ["-V", "-Vx", "--vers", "--daemonize -V", "--blockdev foo -V"] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let (code, output, error) = ours(&arguments);
        assert_eq!((code, error.as_str()), (Some(0), ""), "{line}");
        assert!(output.starts_with("millpond version "), "{output}");
    }
    let (code, output, _) = ours(&["--blockdev", "foo", "-h"]);
    assert_eq!(code, Some(0));
    assert!(output.contains("--nbd-server"), "{output}");
}

#[test]
fn a_link_named_as_qemus_program_behaves_as_it() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("qemu-storage-daemon");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_millpond"), &link).unwrap();
    for arguments in [&["--blockdev", "foo"][..], &["serve"]] {
        let mut command = Command::new(&link);
        command.args(arguments);
        assert_eq!(run(command, "qemu-storage-daemon"), oracle(arguments));
    }
}
