//! Cuts the command line into options as C's `getopt_long` does, with its texts.

/// An option of `millpond serve`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// A node to open (`--blockdev`).
    Blockdev,
    /// A character device (`--chardev`).
    Chardev,
    /// How much the control thread is preferred.
    ControlPriority,
    /// Go to the background.
    Daemonize,
    /// An export to start (`--export`).
    Export,
    /// The options are to be explained (`--help`).
    Help,
    /// Where the log goes.
    Log,
    /// A monitor on a character device (`--monitor`).
    Monitor,
    /// The NBD server's address and limits (`--nbd-server`).
    NbdServer,
    /// An object to make (`--object`).
    Object,
    /// Where to write the process id.
    Pidfile,
    /// How long the end may take.
    ShutdownGrace,
    /// What to log besides warnings (`--trace`).
    Trace,
    /// The version is to be told (`--version`).
    Version,
    /// Something that is no option.
    Positional,
}

/// An option with its value, and both as they were typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Which option of the command line it is.
    pub name: Name,
    /// Its value; empty for those without.
    pub value: String,
    /// The option as it was typed, for error texts.
    pub typed: String,
}

/// Each long option, whether it has a value, and its short form.
const OPTIONS: &[(&str, Name, bool, Option<char>)] = &[
    ("blockdev", Name::Blockdev, true, None),
    ("chardev", Name::Chardev, true, None),
    ("daemonize", Name::Daemonize, false, None),
    ("export", Name::Export, true, None),
    ("help", Name::Help, false, Some('h')),
    ("log", Name::Log, true, None),
    ("monitor", Name::Monitor, true, None),
    ("nbd-server", Name::NbdServer, true, None),
    ("object", Name::Object, true, None),
    ("pidfile", Name::Pidfile, true, None),
    ("trace", Name::Trace, true, Some('T')),
    ("version", Name::Version, false, Some('V')),
    ("x-millpond-control-priority", Name::ControlPriority, true, None),
    ("x-millpond-shutdown-grace", Name::ShutdownGrace, true, None),
];

/// The options in `arguments`, in order, ending with the first that is wrong.
///
/// Long options may be shortened as far as they stay clear. What follows `--` is not looked at.
pub fn parse(arguments: &[String]) -> Vec<Result<Argument, String>> {
    let mut found = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            break;
        }
        let one = if let Some(long) = argument.strip_prefix("--") {
            long_option(argument, long, &mut arguments).map(|one| vec![one])
        } else if let Some(shorts) = argument.strip_prefix('-').filter(|shorts| !shorts.is_empty()) {
            short_options(argument, shorts, &mut arguments)
        } else {
            Ok(vec![Argument {
                name: Name::Positional,
                value: argument.clone(),
                typed: argument.clone(),
            }])
        };
        match one {
            Ok(options) => found.extend(options.into_iter().map(Ok)),
            Err(why) => {
                found.push(Err(why));
                break;
            }
        }
    }
    found
}

fn long_option(typed: &str, text: &str, rest: &mut std::slice::Iter<'_, String>) -> Result<Argument, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let (long, option, has_value, _) = find(name)?;
    match (has_value, value) {
        (false, Some(_)) => Err(format!("option '--{long}' doesn't allow an argument")),
        (false, None) => Ok(Argument {
            name: *option,
            value: String::new(),
            typed: typed.into(),
        }),
        (true, Some(value)) => Ok(Argument {
            name: *option,
            value: value.into(),
            typed: typed.into(),
        }),
        (true, None) => match rest.next() {
            Some(value) => Ok(Argument {
                name: *option,
                value: value.clone(),
                typed: format!("{typed} {value}"),
            }),
            None => Err(format!("option '--{long}' requires an argument")),
        },
    }
}

/// The option of this name, or the one whose name begins so.
fn find(name: &str) -> Result<&'static (&'static str, Name, bool, Option<char>), String> {
    if let Some(exact) = OPTIONS.iter().find(|(long, ..)| *long == name) {
        return Ok(exact);
    }
    let fits: Vec<_> = OPTIONS
        .iter()
        .filter(|(long, ..)| !name.is_empty() && long.starts_with(name))
        .collect();
    match fits.as_slice() {
        [] => Err(format!("unrecognized option '--{name}'")),
        [one] => Ok(one),
        several => {
            let names: Vec<String> = several.iter().map(|(long, ..)| format!(" '--{long}'")).collect();
            Err(format!(
                "option '--{name}' is ambiguous; possibilities:{}",
                names.concat()
            ))
        }
    }
}

fn short_options(
    typed: &str,
    shorts: &str,
    rest: &mut std::slice::Iter<'_, String>,
) -> Result<Vec<Argument>, String> {
    let mut found = Vec::new();
    for (at, short) in shorts.char_indices() {
        let Some((_, name, has_value, _)) = OPTIONS.iter().find(|(.., known)| *known == Some(short)) else {
            // Those before it count: `-Vx` tells the version.
            return if found.is_empty() {
                Err(format!("invalid option -- '{short}'"))
            } else {
                Ok(found)
            };
        };
        if !has_value {
            found.push(Argument {
                name: *name,
                value: String::new(),
                typed: typed.into(),
            });
            continue;
        }
        let attached = shorts.get(at + short.len_utf8()..).unwrap_or_default();
        let (value, typed) = if attached.is_empty() {
            let Some(value) = rest.next() else {
                return Err(format!("option requires an argument -- '{short}'"));
            };
            (value.clone(), format!("{typed} {value}"))
        } else {
            (attached.to_owned(), typed.to_owned())
        };
        found.push(Argument {
            name: *name,
            value,
            typed,
        });
        break;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Vec<(Name, String, String)> {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let parsed = parse(&arguments).into_iter().map(|one| match one {
            Ok(one) => (one.name, one.value, one.typed),
            Err(why) => (Name::Positional, why, String::new()),
        });
        parsed.collect()
    }

    fn one(name: Name, value: &str, typed: &str) -> (Name, String, String) {
        (name, value.into(), typed.into())
    }

    #[test]
    fn options_are_cut_as_getopt_cuts_them() {
        assert_eq!(
            parsed("--blockdev a,b=c --chardev=x foo -Tq -T r -hV --daem -- --zzz"),
            [
                one(Name::Blockdev, "a,b=c", "--blockdev a,b=c"),
                one(Name::Chardev, "x", "--chardev=x"),
                one(Name::Positional, "foo", "foo"),
                one(Name::Trace, "q", "-Tq"),
                one(Name::Trace, "r", "-T r"),
                one(Name::Help, "", "-hV"),
                one(Name::Version, "", "-hV"),
                one(Name::Daemonize, "", "--daem"),
            ]
        );
    }

    #[test]
    fn what_could_be_several_options_is_none() {
        let said = parsed("--x-millpond 3");
        let why = "option '--x-millpond' is ambiguous; possibilities: '--x-millpond-control-priority' \
            '--x-millpond-shutdown-grace'";
        assert_eq!(said, [one(Name::Positional, why, "")]);
        let said = parsed("--x-millpond-s 3");
        assert_eq!(said, [one(Name::ShutdownGrace, "3", "--x-millpond-s 3")]);
        let said = parsed("--zzz");
        assert_eq!(said, [one(Name::Positional, "unrecognized option '--zzz'", "")]);
    }
}
