//! What follows `millpond` and is no image: `serve`, the tools, `qmp`, `flight` and `help`, and what is told to a person who misses one.

use super::runtime::start;
use super::{flight, help, img, io, nbd, plain, qmp, serve, trace};
use std::path::Path;
use std::process::ExitCode;

/// The names of the subcommands.
pub const NAMES: &[&str] = &["flight", "help", "img", "io", "nbd", "qmp", "serve"];

/// How many letters may be wrong in a name that is still guessed.
const CLOSE: usize = 2;

/// Runs the subcommand that the first argument names, if it names one.
pub fn run(program: &str, arguments: &[String]) -> Option<ExitCode> {
    let (first, rest) = arguments.split_first()?;
    match first.as_str() {
        "serve" => Some(serve::serve(program, rest, start)),
        "img" => Some(img::run(&format!("{program} img"), rest)),
        "io" => Some(io::run(&format!("{program} io"), rest)),
        "nbd" => Some(nbd::run(&format!("{program} nbd"), rest)),
        "flight" => Some(flight::print(program, rest)),
        "qmp" => Some(qmp::run(program, rest)),
        "help" => Some(explain(program, rest)),
        _ => None,
    }
}

/// `millpond help`, or `millpond help TOPIC`.
fn explain(program: &str, topics: &[String]) -> ExitCode {
    let asked = ["--help".to_owned()];
    match topics.first().map(String::as_str) {
        None | Some("help") => plain::help(),
        Some("serve") => serve::serve(program, &asked, start),
        Some("img") => img::run(&format!("{program} img"), &asked),
        Some("io") => io::run(&format!("{program} io"), &asked),
        Some("nbd") => nbd::run(&format!("{program} nbd"), &asked),
        Some("flight") => flight::print(program, &asked),
        Some("qmp") => qmp::run(program, &asked),
        Some("drivers") => {
            print!("{}", help::drivers());
            ExitCode::SUCCESS
        }
        Some("trace") => {
            print!("{}", trace::HELP);
            ExitCode::SUCCESS
        }
        Some(other) => {
            eprintln!(
                "{program}: there is no help on '{other}'; the topics are serve, img, io, nbd, qmp, flight, trace and drivers"
            );
            ExitCode::FAILURE
        }
    }
}

/// The subcommand that was meant by a first argument that is no option and no file, if it is close to one.
pub fn meant(arguments: &[String]) -> Option<&'static str> {
    let first = arguments.first()?;
    let makes = arguments
        .iter()
        .any(|argument| argument == "--create" || argument.starts_with("--create="));
    if makes || first.starts_with('-') || first.contains(['/', '.']) || Path::new(first).exists() {
        return None;
    }
    let distance = |name: &&&str| strsim::osa_distance(first, name);
    let closest = NAMES.iter().min_by_key(distance)?;
    // Of a name of three letters, two wrong ones leave nothing.
    (distance(&closest) <= CLOSE.min(closest.len() - 2)).then_some(closest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_subcommand_is_known_again() {
        let meant = |line: &str| meant(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(meant("sreve --blockdev x"), Some("serve"));
        assert_eq!(meant("server"), Some("serve"));
        assert_eq!(meant("fligth x"), Some("flight"));
        assert_eq!(meant("qpm s"), Some("qmp"));
        for line in [
            "server --create 1G",
            "disk",
            "serve.img",
            "./serv",
            "--serve",
            "abc",
        ] {
            assert_eq!(meant(line), None, "{line}");
        }
    }
}
