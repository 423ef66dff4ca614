//! QEMU's own programs, which judge what is done here.

use std::path::Path;
use std::process::Command;

/// The password of encrypted images.
pub const PASSWORD: &str = "the password of tests";

/// Runs a program of QEMU's and gives its exit status, output and error output.
pub fn run(program: &str, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; install it with: apt-get install qemu-utils"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// Runs `qemu-img`, which must succeed.
pub fn qemu_img(arguments: &[&str]) -> String {
    let (status, output, errors) = run("qemu-img", arguments);
    assert_eq!(status, 0, "qemu-img {arguments:?}: {output}{errors}");
    output
}

/// Runs commands of `qemu-io` on an image.
pub fn qemu_io(path: &Path, commands: &[&str]) {
    let mut arguments = vec!["-f", "qcow2"];
    commands
        .iter()
        .for_each(|command| arguments.extend(["-c", command]));
    let path = path.to_str().unwrap();
    arguments.push(path);
    let (status, output, errors) = run("qemu-io", &arguments);
    assert!(
        status == 0 && !output.contains("failed"),
        "qemu-io {arguments:?}: {output}{errors}"
    );
}

/// The words by which `qemu-img` opens an image, which may be encrypted with the tests' password.
fn source(path: &Path) -> Vec<String> {
    let name = path.to_str().unwrap();
    let method = std::fs::read(path).unwrap()[35];
    if method == 0 {
        return ["-f", "qcow2", name].map(str::to_owned).to_vec();
    }
    let object = format!("secret,id=s,data={PASSWORD}");
    let options = format!("driver=qcow2,encrypt.key-secret=s,file.filename={name}");
    ["--object", &object, "--image-opts", &options]
        .map(str::to_owned)
        .to_vec()
}

/// What `qemu-img check` counts: corruptions and leaks.
pub fn check(path: &Path) -> (u64, u64, String) {
    let source = source(path);
    let mut arguments = vec!["check", "--output=json"];
    arguments.extend(source.iter().map(String::as_str));
    let (_, output, errors) = run("qemu-img", &arguments);
    let json: serde_json::Value =
        serde_json::from_str(&output).unwrap_or_else(|_| panic!("qemu-img check: {output}{errors}"));
    let count = |name: &str| json.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
    (
        count("corruptions") + count("check-errors"),
        count("leaks"),
        errors,
    )
}

/// The image's contents as `qemu-img` reads them.
pub fn contents(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("raw");
    let source = source(path);
    let mut arguments = vec!["convert", "-O", "raw"];
    arguments.extend(source.iter().map(String::as_str));
    arguments.push(raw.to_str().unwrap());
    qemu_img(&arguments);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(&raw).unwrap();
    bytes
}
