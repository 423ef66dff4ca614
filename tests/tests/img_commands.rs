//! What `millpond img` says before any command, beside `qemu-img`.

use millpond_tests::tools::Both;
use std::process::Command;

#[test]
fn commands_are_found_and_refused_as_qemu_does() {
    let both = Both::new();
    for line in [
        "",
        "foo",
        "help",
        "--foo",
        "--foo create",
        "-T",
        "-x create",
        "--tra",
        "--help=x",
    ] {
        both.same(&format!("qemu-img {line}"));
    }
}

#[test]
fn each_command_has_its_help() {
    let help = |arguments: &[&str]| {
        let output = Command::new(millpond_tests::program::millpond())
            .arg("img")
            .args(arguments)
            .output()
            .expect("what a test needs");
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).expect("what a test needs")
    };
    let whole = help(&["--help"]);
    assert!(help(&["-V"]).contains("version 10.0.2"));
    assert!(help(&["-T", "help"]).contains("FILTER"));
    for command in [
        "amend", "bitmap", "check", "create", "info", "map", "measure", "resize", "snapshot",
    ] {
        assert!(whole.contains(&format!("\n  {command} ")), "{command}");
        let text = help(&[command, "--help"]);
        assert!(
            text.starts_with("Usage: ") && text.contains(&format!(" {command} ")),
            "{text}"
        );
        assert_eq!(text, help(&[command, "-h"]));
    }
}
