//! A driver is a folder and a row, and neither is without the other.

use std::fs;

use millpond_drivers::builtin::builtin;

use super::source::{File, files, repository};

/// Drivers whose folder has another name, or which share one.
const ELSEWHERE: &[(&str, &str)] = &[
    ("host_device", "file"),
    ("null-co", "null"),
    ("null-aio", "null"),
    ("copy-before-write", "copy_before_write"),
    ("copy-on-read", "copy_on_read"),
    ("snapshot-access", "snapshot_access"),
];

/// A file without its tests.
fn code(file: &File) -> &str {
    file.text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default()
}

#[test]
fn drivers_are_a_folder_and_a_row() {
    let rows: Vec<String> = builtin().names(false).map(str::to_owned).collect();
    let folder_of = |driver: &str| {
        let other = ELSEWHERE.iter().find(|(name, _)| *name == driver);
        other.map_or(driver, |(_, folder)| folder).to_owned()
    };
    for driver in &rows {
        let folder = folder_of(driver);
        let is_there = files()
            .iter()
            .any(|file| file.of.name == "millpond_drivers" && file.module.last() == Some(&folder));
        assert!(
            is_there,
            "the driver {driver} has a row in builtin.rs and no folder {folder} in drivers/src"
        );
    }
    let kinds = files()
        .iter()
        .filter(|file| file.of.name == "millpond_drivers" && !file.is_tests());
    for file in kinds.filter(|file| file.text.contains("impl DriverKind for")) {
        let is_listed = rows.iter().any(|driver| file.module.contains(&folder_of(driver)));
        assert!(
            is_listed || file.path.contains("/guard/") || !code(file).contains("impl DriverKind for"),
            "{} has a driver that no row of builtin.rs names",
            file.path
        );
    }
}

#[test]
fn objects_are_a_file_and_a_row() {
    let folder = "actors/src/object/";
    let table = fs::read_to_string(repository().join(folder).join("mod.rs")).expect("there are objects");
    let mut kinds = 0;
    for file in files().iter().filter(|file| file.path.starts_with(folder)) {
        let name = file.module.last().map_or("", String::as_str);
        let is_kind = file.text.contains("const KIND: Kind");
        let has_row = table.contains(&format!("{name}::KIND"));
        assert_eq!(
            is_kind, has_row,
            "{}: a kind of object has a file and a row of KINDS",
            file.path
        );
        kinds += usize::from(is_kind);
    }
    assert!(kinds > 0, "{folder} has the kinds of objects");
}

#[test]
fn the_readme_names_files_that_are_there() {
    let readme = fs::read_to_string(repository().join("README.md")).expect("there is a README");
    let section = readme
        .split("## Find your way, and change it")
        .nth(1)
        .expect("the README says how to add things");
    let words = section.split('`').skip(1).step_by(2);
    let paths: Vec<&str> = words
        .filter(|word| {
            ["messages/", "drivers/", "actors/", "tests/", "benches/"]
                .iter()
                .any(|folder| word.starts_with(folder))
        })
        .collect();
    assert!(
        paths.len() > 20,
        "the README names the files that a driver, a command, an export, a job takes"
    );
    for path in paths {
        assert!(
            repository().join(path).exists(),
            "README.md names {path}, which is not there: say what it is called now"
        );
    }
}
