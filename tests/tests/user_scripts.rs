//! The scripts of those who use a storage daemon, in `tests/users`, which talk over QEMU's own Python client: each runs
//! unchanged against QEMU's daemon and against ours, is told the same, and leaves the same images.

use std::path::{Path, PathBuf};

use millpond_tests::daemon::scratch;
use millpond_tests::program::{Program, oracle, under_test};
use millpond_tests::{image, tool};
use serde_json::Value;

/// What a script was told, and the images that it left: their names, what they name, and what they show.
type Outcome = (Vec<String>, Vec<(String, Value, Vec<u8>)>);

fn run(script: &str, program: &Program) -> Outcome {
    let dir = scratch();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("users").join(script);
    let command = program.command();
    let mut args = vec![path.display().to_string(), dir.path().display().to_string()];
    args.push(program.path().display().to_string());
    args.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    let told = tool::run("python3", &args);
    let told = told.lines().map(str::to_owned).collect();
    (told, images(dir.path()))
}

fn images(dir: &Path) -> Vec<(String, Value, Vec<u8>)> {
    let files = std::fs::read_dir(dir).expect("the folder is there");
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "qcow2"));
    paths.sort();
    paths.iter().map(|path| seen(dir, path)).collect()
}

fn seen(dir: &Path, path: &Path) -> (String, Value, Vec<u8>) {
    image::assert_clean(path);
    let name = path.display().to_string();
    let info = tool::run_json("qemu-img", &["info", "--output=json", &name]);
    let backing = info["backing-filename"].as_str().unwrap_or_default();
    let backing = backing.replace(&dir.display().to_string(), "FOLDER").into();
    let flat = dir.join("flat").display().to_string();
    tool::run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &name, &flat]);
    let bytes = std::fs::read(flat).expect("a file was made");
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned());
    (file.expect("a file has a name"), backing, bytes)
}

#[track_caller]
fn the_same_beside_qemu(script: &str, left: usize) {
    let (theirs, their_images) = run(script, &oracle());
    let (ours, our_images) = run(script, under_test());
    assert_eq!(ours, theirs, "left is ours, right is QEMU's");
    assert!(
        theirs.last().is_some_and(|last| last.starts_with("ended")),
        "{theirs:?}"
    );
    assert_eq!(their_images.len(), left, "the script makes images");
    for (ours, theirs) in our_images.iter().zip(&their_images) {
        assert_eq!((&ours.0, &ours.1), (&theirs.0, &theirs.1));
        assert!(ours.2 == theirs.2, "{} shows something else", ours.0);
    }
    assert_eq!(our_images.len(), left);
}

#[test]
fn proxmox_merges_streams_and_commits_its_snapshots() {
    the_same_beside_qemu("proxmox.py", 4);
}

#[test]
fn csi_qsd_streams_and_commits_its_snapshots_in_single_quotes() {
    the_same_beside_qemu("csi_qsd.py", 4);
}

#[test]
fn kubesan_exports_a_volume_and_finds_the_texts_that_it_looks_for() {
    the_same_beside_qemu("kubesan.py", 0);
}
