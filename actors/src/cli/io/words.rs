//! The words of a command, and the options among them.

use crate::cli::getopt::{self, Argument, Row};

/// The words of a line. Nothing but blanks parts them, and nothing quotes one.
pub fn split(line: &str) -> Vec<String> {
    let words = line.split(' ').filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

/// The options of a command in their order, and what is no option.
#[derive(Debug, PartialEq, Eq)]
pub struct CutWords {
    /// Each option with its value, which is empty for those that take none.
    pub options: Vec<(char, String)>,
    /// The words that are no options, in their order.
    pub operands: Vec<String>,
    /// What is wrong with the option after those.
    pub wrong: Option<String>,
}

/// Cuts a command's words as C's `getopt` does: `accepted` names the options, those that take a value with a colon behind.
pub fn cut(words: &[String], accepted: &str) -> CutWords {
    let (name, rest) = words
        .split_first()
        .map_or(("", words), |(name, rest)| (name.as_str(), rest));
    let cut = getopt::parse(&rows(accepted), rest);
    let mut found = CutWords {
        options: Vec::new(),
        operands: Vec::new(),
        wrong: None,
    };
    for argument in cut.arguments {
        match argument {
            Ok(Argument {
                name: Some(letter),
                value,
                ..
            }) => found.options.push((letter, value)),
            Ok(Argument {
                name: None, value, ..
            }) => found.operands.push(value),
            Err(why) => found.wrong = Some(format!("{name}: {why}")),
        }
    }
    found.operands.extend(cut.rest);
    found
}

fn rows(accepted: &str) -> Vec<Row<char>> {
    let letters = accepted.char_indices().filter(|&(_, letter)| letter != ':');
    let row = |(at, letter): (usize, char)| match accepted[at + letter.len_utf8()..].starts_with(':') {
        true => Row::value("", Some(letter), letter),
        false => Row::flag("", Some(letter), letter),
    };
    letters.map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut_line(line: &str) -> CutWords {
        cut(&split(line), "qvP:")
    }

    #[test]
    fn options_stand_anywhere_and_take_their_values_along() {
        let cut = cut_line("read  -qP1 0 -P 2 512 -- -x");
        let options = [('q', ""), ('P', "1"), ('P', "2")];
        assert_eq!(
            cut.options,
            options.map(|(letter, value)| (letter, value.to_owned()))
        );
        assert_eq!(cut.operands, ["0", "512", "-x"]);
        assert_eq!(cut.wrong, None);
    }

    #[test]
    fn the_first_wrong_option_ends_it() {
        let cut = cut_line("read -q -5 -v");
        assert_eq!(cut.options, [('q', String::new())]);
        assert_eq!(cut.wrong.as_deref(), Some("read: invalid option -- '5'"));
        let cut = cut_line("read 0 -P");
        assert_eq!(
            cut.wrong.as_deref(),
            Some("read: option requires an argument -- 'P'")
        );
    }
}
