//! Cuts a command line into options as C's `getopt_long` does, with its texts: what comes after is any program's own.

use std::slice::Iter;

/// Whether an option has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// It stands for itself.
    Nothing,
    /// It has one, behind `=` or as the next word.
    Value,
}

/// One option that a program knows.
#[derive(Clone, Copy, Debug)]
pub struct Row<N> {
    /// What is behind `--`; empty for an option that has only a letter.
    pub long: &'static str,
    /// The letter behind `-`.
    pub short: Option<char>,
    /// Whether it has a value.
    pub takes: Takes,
    /// What the program calls it.
    pub name: N,
}

impl<N> Row<N> {
    /// An option without a value.
    pub const fn flag(long: &'static str, short: Option<char>, name: N) -> Self {
        Self {
            long,
            short,
            takes: Takes::Nothing,
            name,
        }
    }

    /// An option with a value.
    pub const fn value(long: &'static str, short: Option<char>, name: N) -> Self {
        Self {
            long,
            short,
            takes: Takes::Value,
            name,
        }
    }
}

/// A word of the command line, or an option with its value; and both as they were typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument<N> {
    /// Which option it is; nothing for a word that is none.
    pub name: Option<N>,
    /// Its value, or the word; empty for an option without a value.
    pub value: String,
    /// The option as it was typed, for error texts.
    pub typed: String,
}

/// A command line, cut.
#[derive(Clone, Debug)]
pub struct Cut<N> {
    /// The options and the words that are none, in order, ending with the first that is wrong.
    pub arguments: Vec<Result<Argument<N>, String>>,
    /// The words that were not looked at.
    pub rest: Vec<String>,
}

/// Cuts a command line up to `--`, if there is one. Long options may be shortened as far as they stay clear.
pub fn parse<N: Copy>(rows: &[Row<N>], arguments: &[String]) -> Cut<N> {
    cut(rows, arguments, false)
}

/// Cuts a command line up to its first word that is no option: that one and all behind it are left.
pub fn parse_leading<N: Copy>(rows: &[Row<N>], arguments: &[String]) -> Cut<N> {
    cut(rows, arguments, true)
}

fn cut<N: Copy>(rows: &[Row<N>], arguments: &[String], ends_at_word: bool) -> Cut<N> {
    let mut found = Vec::new();
    let mut left = arguments.iter();
    while let Some(argument) = left.next() {
        if argument == "--" {
            break;
        }
        if let Some(long) = argument.strip_prefix("--") {
            found.push(long_option(rows, argument, long, &mut left));
        } else if let Some(shorts) = argument.strip_prefix('-').filter(|shorts| !shorts.is_empty()) {
            short_options(rows, argument, shorts, &mut left, &mut found);
        } else if ends_at_word {
            let looked_at = arguments.len() - left.len() - 1;
            left = arguments.iter();
            left.by_ref().take(looked_at).for_each(drop);
            break;
        } else {
            found.push(Ok(Argument {
                name: None,
                value: argument.clone(),
                typed: argument.clone(),
            }));
        }
        if found.last().is_some_and(Result::is_err) {
            break;
        }
    }
    Cut {
        arguments: found,
        rest: left.cloned().collect(),
    }
}

fn option<N: Copy>(row: &Row<N>, value: &str, typed: &str) -> Argument<N> {
    Argument {
        name: Some(row.name),
        value: value.into(),
        typed: typed.into(),
    }
}

fn long_option<N: Copy>(
    rows: &[Row<N>],
    typed: &str,
    text: &str,
    rest: &mut Iter<'_, String>,
) -> Result<Argument<N>, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let row = find(rows, name)?;
    let long = row.long;
    match (row.takes, value) {
        (Takes::Nothing, Some(_)) => Err(format!("option '--{long}' doesn't allow an argument")),
        (Takes::Nothing, None) => Ok(option(row, "", typed)),
        (Takes::Value, Some(value)) => Ok(option(row, value, typed)),
        (Takes::Value, None) => match rest.next() {
            Some(value) => Ok(option(row, value, &format!("{typed} {value}"))),
            None => Err(format!("option '--{long}' requires an argument")),
        },
    }
}

/// The option of this name, or the one whose name begins so.
fn find<'a, N>(rows: &'a [Row<N>], name: &str) -> Result<&'a Row<N>, String> {
    let mut long = rows.iter().filter(|row| !row.long.is_empty());
    if let Some(exact) = long.clone().find(|row| row.long == name) {
        return Ok(exact);
    }
    let fits: Vec<_> = long
        .by_ref()
        .filter(|row| !name.is_empty() && row.long.starts_with(name))
        .collect();
    match fits.as_slice() {
        [] => Err(format!("unrecognized option '--{name}'")),
        [one] => Ok(one),
        several => {
            let names: Vec<String> = several.iter().map(|row| format!(" '--{}'", row.long)).collect();
            Err(format!(
                "option '--{name}' is ambiguous; possibilities:{}",
                names.concat()
            ))
        }
    }
}

fn short_options<N: Copy>(
    rows: &[Row<N>],
    typed: &str,
    shorts: &str,
    rest: &mut Iter<'_, String>,
    found: &mut Vec<Result<Argument<N>, String>>,
) {
    for (at, short) in shorts.char_indices() {
        let Some(row) = rows.iter().find(|row| row.short == Some(short)) else {
            found.push(Err(format!("invalid option -- '{short}'")));
            return;
        };
        if row.takes == Takes::Nothing {
            found.push(Ok(option(row, "", typed)));
            continue;
        }
        let attached = shorts.get(at + short.len_utf8()..).unwrap_or_default();
        if !attached.is_empty() {
            found.push(Ok(option(row, attached, typed)));
            return;
        }
        let Some(value) = rest.next() else {
            found.push(Err(format!("option requires an argument -- '{short}'")));
            return;
        };
        found.push(Ok(option(row, value, &format!("{typed} {value}"))));
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: &[Row<u8>] = &[
        Row::value("blockdev", None, 1),
        Row::flag("daemonize", None, 2),
        Row::flag("help", Some('h'), 3),
        Row::value("trace", Some('T'), 4),
        Row::flag("version", Some('V'), 5),
        Row::value("x-ours-first", None, 6),
        Row::value("x-ours-second", None, 7),
        Row::flag("", Some('q'), 8),
    ];

    fn parsed(line: &str) -> Vec<(Option<u8>, String, String)> {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let parsed = parse(ROWS, &arguments)
            .arguments
            .into_iter()
            .map(|one| match one {
                Ok(one) => (one.name, one.value, one.typed),
                Err(why) => (None, why, String::new()),
            });
        parsed.collect()
    }

    fn one(name: u8, value: &str, typed: &str) -> (Option<u8>, String, String) {
        (Some(name), value.into(), typed.into())
    }

    fn word(text: &str, typed: &str) -> (Option<u8>, String, String) {
        (None, text.into(), typed.into())
    }

    #[test]
    fn options_are_cut_as_getopt_cuts_them() {
        assert_eq!(
            parsed("--blockdev a,b=c foo -Tq -T r -hqV --daem"),
            [
                one(1, "a,b=c", "--blockdev a,b=c"),
                word("foo", "foo"),
                one(4, "q", "-Tq"),
                one(4, "r", "-T r"),
                one(3, "", "-hqV"),
                one(8, "", "-hqV"),
                one(5, "", "-hqV"),
                one(2, "", "--daem"),
            ]
        );
    }

    #[test]
    fn what_cannot_be_cut_is_told_as_getopt_tells_it() {
        for (line, why) in [
            (
                "--x-ours 3",
                "option '--x-ours' is ambiguous; possibilities: '--x-ours-first' '--x-ours-second'",
            ),
            ("--zzz", "unrecognized option '--zzz'"),
            ("--=q", "unrecognized option '--'"),
            ("--help=q", "option '--help' doesn't allow an argument"),
            ("--trace", "option '--trace' requires an argument"),
            ("-T", "option requires an argument -- 'T'"),
            ("-z", "invalid option -- 'z'"),
        ] {
            assert_eq!(parsed(line), [word(why, "")], "{line}");
        }
        assert_eq!(
            parsed("-Vz foo"),
            [one(5, "", "-Vz"), word("invalid option -- 'z'", "")]
        );
    }

    #[test]
    fn what_is_left_is_left() {
        let arguments = ["-q", "foo", "-V", "--", "-h"].map(str::to_owned);
        let cut = parse(ROWS, &arguments);
        assert_eq!((cut.arguments.len(), cut.rest), (3, vec!["-h".to_owned()]));
        let cut = parse_leading(ROWS, &arguments);
        assert_eq!((cut.arguments.len(), cut.rest), (1, arguments[1..].to_vec()));
        assert_eq!(parse_leading(ROWS, &arguments[3..]).rest, ["-h"]);
    }
}
