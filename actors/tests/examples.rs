//! The examples of embedding run, and say what they promise.

use std::process::Command;

fn output_of(example: &str) -> String {
    let run = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "-p", "millpond", "--example", example])
        .output()
        .expect("cargo runs");
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{example} failed: {errors}");
    String::from_utf8_lossy(&run.stdout).into_owned()
}

#[test]
fn a_program_without_actix_brings_a_driver_and_uses_it_through_a_client() {
    assert_eq!(
        output_of("embed_async"),
        "read back: embedded\nstored inverted: true\n"
    );
}

#[test]
fn a_program_brings_storage_of_four_methods() {
    assert_eq!(output_of("simple_driver"), "read back: Four methods\n");
}

#[test]
fn an_actix_program_takes_a_snapshot_while_it_writes() {
    assert_eq!(output_of("embed_actix"), "block 7 reads back: true\nclosed\n");
}
