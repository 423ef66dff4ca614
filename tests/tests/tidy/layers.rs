//! What may know of what: crates, and folders inside the front door.

use std::fs;

use super::source::{CRATES, files, repository};

/// Folders of `millpond`, lowest first: none knows of those below it in this table.
const FOLDERS: &[(&str, &[&str])] = &[
    ("log", &[]),
    ("socket", &[]),
    ("flight", &["log"]),
    ("graph", &["flight"]),
    ("image", &["graph"]),
    ("embed", &["graph"]),
    ("disk", &["graph", "image", "embed"]),
    ("tls", &[]),
    ("object", &["graph", "tls"]),
    ("monitor", &["log", "socket"]),
];

#[test]
fn only_the_ring_has_unsafe_code() {
    for each in CRATES.iter().filter(|each| each.name != "millpond_ring") {
        let path = repository().join(each.folder).join("src/lib.rs");
        let text = fs::read_to_string(path).expect("a crate has a library");
        assert!(
            text.contains("#![forbid(unsafe_code)]"),
            "{}: src/lib.rs begins with #![forbid(unsafe_code)]; a system call that needs more belongs to drivers/ring/src/os",
            each.folder
        );
    }
}

#[test]
fn nothing_waits_for_a_lock() {
    const LOCKS: &[&str] = &["Mutex", "RwLock", "Condvar", "Barrier"];
    let mut wrong = Vec::new();
    for file in files().iter().filter(|file| !file.is_tests()) {
        let mut words = file.text.split(|c: char| !c.is_alphanumeric() && c != '_');
        if let Some(lock) = words.find(|word| LOCKS.contains(word)) {
            wrong.push(format!(
                "{} has a {lock}: give what it guards one owner, and send to that",
                file.path
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_data_plane_and_the_policy_know_no_runtime() {
    for folder in ["messages", "drivers", "actors/engine", "actors/graph"] {
        let manifest =
            fs::read_to_string(repository().join(folder).join("Cargo.toml")).expect("a crate has a manifest");
        for runtime in ["actix", "tokio"] {
            let named = manifest.lines().any(|line| line.starts_with(runtime));
            assert!(
                !named,
                "{folder}/Cargo.toml names {runtime}: what needs a runtime belongs to actors/src"
            );
        }
    }
}

#[test]
fn lower_folders_do_not_know_higher_ones() {
    let mut wrong = Vec::new();
    for file in files().iter().filter(|file| file.of.name == "millpond") {
        let Some((folder, allowed)) = FOLDERS
            .iter()
            .find(|(folder, _)| file.module.first().is_some_and(|first| first == folder))
        else {
            continue;
        };
        for part in file.text.split("crate::").skip(1) {
            let name: String = part
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            if name != *folder && !name.is_empty() && !allowed.contains(&name.as_str()) {
                wrong.push(format!(
                    "{} uses crate::{name}; `{folder}` may use only {allowed:?}",
                    file.path
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
