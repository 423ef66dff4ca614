//! Dependencies that something uses.

use std::fs;

use super::source::{repository, rust_files};

const PACKAGES: &[&str] = &[
    "messages",
    "drivers/ring",
    "drivers",
    "actors/engine",
    "actors/graph",
    "actors",
    "benches",
    "tests",
];

/// The names below a heading of a manifest.
fn names<'a>(manifest: &'a str, heading: &str) -> Vec<&'a str> {
    let Some((_, section)) = manifest.split_once(&format!("\n[{heading}]\n")) else {
        return Vec::new();
    };
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    lines
        .filter(|line| !line.starts_with('#') && line.contains('='))
        .filter_map(|line| line.split([' ', '.', '=']).next())
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn dependencies_are_used() {
    let mut wrong = Vec::new();
    for package in PACKAGES {
        let folder = repository().join(package);
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("a package has a manifest");
        let text = |folders: &[&str]| -> String {
            let files = folders.iter().flat_map(|name| rust_files(&folder.join(name)));
            files
                .map(|path| fs::read_to_string(path).expect("a source can be read"))
                .collect()
        };
        let library = text(&["src"]);
        let around = text(&["src", "tests", "benches", "examples", "fuzz_targets"]);
        for (heading, source) in [("dependencies", &library), ("dev-dependencies", &around)] {
            for name in names(&manifest, heading) {
                let ident = match name {
                    "perf-event2" => "perf_event".to_owned(),
                    "md-5" => "md5".to_owned(),
                    name => name.replace('-', "_"),
                };
                if !source.contains(&format!("{ident}::"))
                    && !source.contains(&format!("{ident}!"))
                    && !source.contains(&format!("use {ident};"))
                {
                    wrong.push(format!(
                        "{package}/Cargo.toml: nothing in its {heading} uses {name}: take it out"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
