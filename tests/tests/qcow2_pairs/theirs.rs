//! The story as QEMU's tools carry it out.

use std::fs;

use millpond_tests::tool;

use super::image::{BASE_BYTE, BASE_SIZE, DataFile, Image, KEY, Kind, SIZE};
use super::story::{Act, GRANULARITY};

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(ToOwned::to_owned).collect()
}

/// The option that tells of the secret, for images that need it.
fn secret(image: &Image) -> Vec<String> {
    match image.kind.encryption {
        None => Vec::new(),
        Some(_) => words(&format!(
            "--object secret,id={KEY},file={}",
            image.path("password").display()
        )),
    }
}

/// The image as the tools open it.
fn opened(image: &Image) -> Vec<String> {
    let mut options = format!(
        "driver=qcow2,discard=unmap,file.driver=file,file.discard=unmap,file.filename={}",
        image.path("image").display()
    );
    if image.kind.encryption.is_some() {
        options += &format!(",encrypt.key-secret={KEY}");
    }
    let mut all = secret(image);
    all.extend(["--image-opts".to_owned(), options]);
    all
}

fn run(program: &str, arguments: &[Vec<String>]) -> Result<String, String> {
    let run = tool::try_run(program, &arguments.concat());
    match run.code {
        Some(0) if !run.stdout.contains("failed") => Ok(run.stdout),
        _ => Err(format!("{}: {}{}", run.line, run.stdout, run.stderr)),
    }
}

/// Makes the image below, if there is to be one.
pub fn make_base(image: &Image) -> Result<(), String> {
    let Some(format) = image.kind.backing else {
        return Ok(());
    };
    let base = image.path("base").display().to_string();
    run(
        "qemu-img",
        &[words(&format!("create -q -f {format} {base} {BASE_SIZE}"))],
    )?;
    let fill = format!("write -P {BASE_BYTE} 0 {BASE_SIZE}");
    run(
        "qemu-io",
        &[vec!["-f".into(), format.into(), "-c".into(), fill, base]],
    )?;
    Ok(())
}

fn create(image: &Image) -> Result<(), String> {
    make_base(image)?;
    let kind = image.kind;
    let mut options = format!(
        "cluster_size={},refcount_bits={}",
        kind.cluster, kind.refcount_bits
    );
    let mut also = |chosen: bool, option: &str| {
        if chosen {
            options += &format!(",{option}");
        }
    };
    also(kind.is_old, "compat=0.10");
    also(kind.has_subclusters, "extended_l2=on");
    also(kind.is_zstd, "compression_type=zstd");
    let data = format!("data_file={}", image.path("data").display());
    also(kind.data_file != DataFile::None, &data);
    also(kind.data_file == DataFile::Raw, "data_file_raw=on");
    let method = kind.encryption.unwrap_or_default();
    let encrypt = format!("encrypt.format={method},encrypt.key-secret={KEY}");
    also(kind.encryption.is_some(), &encrypt);
    also(method == "luks", "encrypt.iter-time=10");
    let mut arguments = words("create -q -f qcow2");
    arguments.extend(secret(image));
    if let Some(format) = kind.backing {
        arguments.extend(words(&format!("-F {format} -b {}", image.path("base").display())));
    }
    arguments.extend([
        "-o".to_owned(),
        options,
        image.path("image").display().to_string(),
    ]);
    arguments.push(SIZE.to_string());
    run("qemu-img", &[arguments]).map(drop)
}

/// Makes an image and does this to it, or says what is refused.
pub fn try_tell(image: &Image, acts: &[Act]) -> Result<(), String> {
    create(image)?;
    change(image, acts)
}

/// A request as `qemu-io` takes it.
fn request(kind: Kind, act: Act) -> Option<String> {
    match act {
        Act::Clear => Some(format!("write -P 0 0 {SIZE}")),
        Act::Write(offset, len, byte) => Some(format!("write -P {byte} {offset} {len}")),
        Act::Compressed(offset, byte) => Some(format!("write -c -P {byte} {offset} {}", kind.cluster)),
        Act::Zero(offset, len) => Some(format!("write -z -u {offset} {len}")),
        Act::Discard(offset, len) => Some(format!("discard {offset} {len}")),
        Act::Snapshot(_) | Act::Delete(_) | Act::Bitmap(_) => None,
    }
}

/// Does this to an image that is there, or says what is refused.
pub fn change(image: &Image, acts: &[Act]) -> Result<(), String> {
    let mut requests = Vec::new();
    for act in acts {
        if let Some(request) = request(image.kind, *act) {
            requests.extend(["-c".to_owned(), request]);
            continue;
        }
        perform(image, &mut requests)?;
        let opened = opened(image);
        let (command, rest) = match act {
            Act::Snapshot(name) => (format!("snapshot -c {name}"), String::new()),
            Act::Delete(name) => (format!("snapshot -d {name}"), String::new()),
            Act::Bitmap(name) => (format!("bitmap --add -g {GRANULARITY}"), (*name).to_owned()),
            _ => continue,
        };
        run("qemu-img", &[words(&command), opened, words(&rest)])?;
    }
    perform(image, &mut requests)
}

/// Makes the requests that were collected.
fn perform(image: &Image, requests: &mut Vec<String>) -> Result<(), String> {
    if requests.is_empty() {
        return Ok(());
    }
    let requests = std::mem::take(requests);
    run("qemu-io", &[requests, opened(image)]).map(drop)
}

/// `qemu-img check`, which finds neither errors nor leaks.
pub fn check(image: &Image) {
    let checked = run("qemu-img", &[words("check"), opened(image)]);
    checked.unwrap_or_else(|text| panic!("{text}"));
}

/// What a snapshot has.
pub fn snapshot(image: &Image, name: &str) -> Vec<u8> {
    let copy = image.path("copy");
    let command = format!("convert -O raw -l snapshot.name={name}");
    let to = vec![copy.display().to_string()];
    run("qemu-img", &[words(&command), opened(image), to]).expect("the snapshot can be read");
    fs::read(copy).expect("it was just made")
}
