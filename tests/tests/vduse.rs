//! The export vduse-blk at the daemon's door. No machine that tests this has the kernel's side: what needs it is tested beside
//! the export, over a kernel of the tests' own.

use std::process::Command;

use millpond_tests::program::{oracle, under_test};

/// What a program says of an export, behind its own name.
fn refusal(mut program: Command, options: &str) -> String {
    let export = format!("vduse-blk,id=e,node-name=n{options}");
    program.args(["--blockdev", "null-co,node-name=n", "--export", &export]);
    let output = program.output().expect("it can be run");
    assert!(!output.status.success(), "{export}");
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    let (_, reason) = last.split_once(": --export ").unwrap_or(("", last));
    reason.to_owned()
}

#[test]
fn what_cannot_be_is_refused_in_qemus_words() {
    let long = "x".repeat(256);
    let cases = [
        String::new(),
        ",name=d,num-queues=0".to_owned(),
        ",name=d,num-queues=65536".to_owned(),
        ",name=d,num-queues=0,queue-size=3,logical-block-size=3".to_owned(),
        ",name=d,queue-size=3,logical-block-size=3".to_owned(),
        ",name=d,queue-size=0".to_owned(),
        ",name=d,queue-size=1".to_owned(),
        ",name=d,queue-size=2".to_owned(),
        ",name=d,queue-size=2048".to_owned(),
        ",name=d,queue-size=70000".to_owned(),
        ",name=d,logical-block-size=100".to_owned(),
        ",name=d,logical-block-size=4194304".to_owned(),
        ",name=d,writable=on,addr=x".to_owned(),
        // No device can be made of these, also where there is a kernel that makes some.
        format!(",name={long}"),
        format!(",name={long},queue-size=4,num-queues=1024,logical-block-size=0,serial={long}"),
    ];
    for options in cases {
        let theirs = refusal(oracle().command(), &options);
        assert_eq!(refusal(under_test().command(), &options), theirs, "{options}");
    }
}
