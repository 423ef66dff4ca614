//! One name for one thing, and the field's words explained.

use std::collections::BTreeMap;

use syn::Visibility;

use super::ratchet::hold;
use super::source::{CRATES, files};

fn exported(item: &syn::Item) -> Option<String> {
    let (visibility, name) = match item {
        syn::Item::Struct(item) => (&item.vis, &item.ident),
        syn::Item::Enum(item) => (&item.vis, &item.ident),
        syn::Item::Trait(item) => (&item.vis, &item.ident),
        syn::Item::Type(item) => (&item.vis, &item.ident),
        _ => return None,
    };
    matches!(visibility, Visibility::Public(_)).then(|| name.to_string())
}

#[test]
fn types_have_a_name_of_their_own() {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for file in files().iter().filter(|file| !file.is_tests()) {
        for name in file.parsed().items.iter().filter_map(exported) {
            *counts.entry(format!("{}::{name}", file.of.name)).or_default() += 1;
        }
    }
    counts.retain(|_, count| *count > 1);
    hold(
        "name",
        &counts,
        "types of one crate have different names: say what it is the state, the event, the kind of",
    );
}

#[test]
fn the_glossary_has_forty_words() {
    let front = files()
        .iter()
        .find(|file| file.path == "actors/src/lib.rs")
        .expect("there is a front door");
    let glossary = front
        .text
        .split("//! # Glossary")
        .nth(1)
        .expect("the front door has a glossary");
    let rows = glossary.lines().take_while(|line| !line.starts_with("//! # "));
    let words: Vec<&str> = rows
        .filter_map(|line| line.strip_prefix("//! | "))
        .skip(1)
        .filter(|row| !row.starts_with("---"))
        .collect();
    assert!(
        words.len() >= 40,
        "the glossary has {} words, of forty",
        words.len()
    );
    for row in &words {
        assert_eq!(
            row.split(" | ").count(),
            3,
            "a row is: word, meaning, QEMU's word: {row}"
        );
    }
    let name = |row: &&str| row.split(" | ").next().unwrap_or_default().to_lowercase();
    let names: Vec<String> = words.iter().map(name).collect();
    assert!(
        names.is_sorted(),
        "the glossary is in the order of the alphabet: {names:?}"
    );
}

#[test]
fn errors_are_told_apart_by_kind() {
    let mut wrong = Vec::new();
    for file in files().iter().filter(|file| !file.is_tests()) {
        let code = file
            .text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let literal = line
                .split("from_errno(")
                .nth(1)
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
            let text = [
                ".context() ==",
                ".context().contains",
                ".context().starts_with",
                "error.to_string().contains",
                "error.to_string() ==",
            ];
            if literal {
                wrong.push(format!(
                    "{}:{}: an errno is a constant of messages::error::errno",
                    file.path,
                    number + 1
                ));
            }
            if text.iter().any(|text| line.contains(text)) {
                wrong.push(format!(
                    "{}:{}: decide by the error's kind, not by its text",
                    file.path,
                    number + 1
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_crate_says_what_lives_there() {
    for each in CRATES {
        let path = format!("{}/src/lib.rs", each.folder);
        let library = files()
            .iter()
            .find(|file| file.path == path)
            .expect("a crate has a library");
        let head = library
            .text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .count();
        assert!(
            head >= 3,
            "{path}: its first lines say what lives here, and what may not"
        );
    }
}
