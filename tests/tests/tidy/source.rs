//! The sources: every Rust file of the workspace, read and parsed once.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// A crate: its folder from the repository's root, and its name in code.
pub struct Crate {
    pub folder: &'static str,
    pub name: &'static str,
}

/// The crates that are published, lowest first.
pub const CRATES: &[Crate] = &[
    Crate {
        folder: "messages",
        name: "millpond_messages",
    },
    Crate {
        folder: "drivers/ring",
        name: "millpond_ring",
    },
    Crate {
        folder: "drivers",
        name: "millpond_drivers",
    },
    Crate {
        folder: "actors/engine",
        name: "millpond_engine",
    },
    Crate {
        folder: "actors/graph",
        name: "millpond_graph",
    },
    Crate {
        folder: "actors",
        name: "millpond",
    },
];

/// A source file.
pub struct File {
    /// From the repository's root.
    pub path: String,
    /// Its crate.
    pub of: &'static Crate,
    /// The module's path within the crate.
    pub module: Vec<String>,
    pub text: String,
}

impl File {
    pub fn parsed(&self) -> syn::File {
        syn::parse_file(&self.text).unwrap_or_else(|error| panic!("{}: {error}", self.path))
    }

    /// A file of tests only.
    pub fn is_tests(&self) -> bool {
        self.module
            .iter()
            .any(|part| part == "tests" || part.ends_with("_tests") || part.ends_with("_loom"))
    }
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the repository")
}

/// The files of the published crates' `src` folders, in the order of their paths.
pub fn files() -> &'static [File] {
    static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
        let mut files = Vec::new();
        for of in CRATES {
            let root = repository().join(of.folder).join("src");
            for path in rust_files(&root) {
                let below = path.strip_prefix(&root).expect("a file lies below its root");
                files.push(File {
                    path: shown(&path),
                    of,
                    module: module(below),
                    text: fs::read_to_string(&path).expect("a source can be read"),
                });
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    });
    &FILES
}

fn module(below: &Path) -> Vec<String> {
    let parts = below.with_extension("");
    let mut parts: Vec<String> = parts
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        parts.pop();
    }
    parts
}

/// A path as failures show it.
pub fn shown(path: &Path) -> String {
    let below = path.strip_prefix(repository()).unwrap_or(path);
    below.display().to_string()
}

/// All Rust files below a folder.
pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return found;
    };
    for entry in entries {
        let path = entry.expect("a folder can be read").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}
