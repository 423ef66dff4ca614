//! What QEMU makes of images that a crash or an error has left.

use std::path::Path;

use serde_json::{Value, json};

use super::census::census;
use super::keys::{KEYS, Opens};
use super::link::{Format, Images, Stored};
use crate::tool;

/// An image as QEMU's tools find it.
struct Shown {
    node: Value,
    /// Options that tell of the secrets.
    secrets: Vec<String>,
}

impl Shown {
    /// Puts the image into files in `directory`.
    fn put(image: &Stored, directory: &Path) -> Result<Self, String> {
        let put = |name: &str, bytes: &[u8]| {
            let path = directory.join(name);
            let written = std::fs::write(&path, bytes).map_err(|error| error.to_string());
            written.map(|()| json!({"driver": "file", "filename": path}))
        };
        let mut node = json!({"driver": "luks", "file": put("crashed", &image.bytes)?});
        if image.format == Format::Qcow2 {
            // Whatever backing file it names is left out.
            (node["driver"], node["backing"]) = (json!("qcow2"), Value::Null);
        }
        if let Some(data) = &image.data {
            node["data-file"] = put("crashed-data", data)?;
        }
        let secret = |id| ["--object".to_owned(), format!("secret,id={id},data={id}")];
        Ok(Self {
            node,
            secrets: KEYS.into_iter().flat_map(secret).collect(),
        })
    }

    fn unlock(&mut self, format: Format, key: &str) {
        match format {
            Format::Luks => self.node["key-secret"] = json!(key),
            _ => self.node["encrypt"] = json!({"format": "luks", "key-secret": key}),
        }
    }

    fn run(&self, program: &str, words: &[&str]) -> tool::Run {
        let (command, rest) = words.split_at(usize::from(program == "qemu-img"));
        let mut arguments: Vec<String> = command.iter().map(ToString::to_string).collect();
        arguments.extend(self.secrets.iter().cloned());
        arguments.extend(rest.iter().map(ToString::to_string));
        arguments.push(format!("json:{}", self.node));
        tool::try_run(program, &arguments)
    }

    /// Whether it can be opened and read.
    fn reads(&self) -> bool {
        self.run("qemu-io", &["-r", "-c", "read 0 512"]).code == Some(0)
    }
}

/// `qemu-img check` of the qcow2 images, which repairs those that are marked dirty first. Images that are encrypted are opened
/// by each password that must open them, or else by one that may.
pub fn check(images: &Images, directory: &Path, keys: &[(&'static str, Opens)]) -> Result<(), String> {
    for image in images.iter().filter(|image| image.format != Format::Raw) {
        let mut shown = Shown::put(image, directory)?;
        let mut found = None;
        for (key, opens) in keys {
            shown.unlock(image.format, key);
            match (shown.reads(), opens) {
                (true, Opens::Never) => return Err(format!("QEMU opens it by '{key}' still")),
                (false, Opens::Must) => return Err(format!("QEMU does not open it by '{key}'")),
                (reads, _) => found = found.or(reads.then_some(*key)),
            }
        }
        match found {
            Some(key) => shown.unlock(image.format, key),
            None if keys.is_empty() => {}
            None => return Err("QEMU opens it by no password".into()),
        }
        if image.format == Format::Qcow2 {
            check_qcow2(image, &shown)?;
        }
    }
    Ok(())
}

fn check_qcow2(image: &Stored, shown: &Shown) -> Result<(), String> {
    let dirty = census(image)?.dirty;
    if dirty && shown.run("qemu-img", &["check", "-q", "-r", "all"]).code != Some(0) {
        return Err("QEMU cannot repair it".into());
    }
    let run = shown.run("qemu-img", &["check"]);
    if !matches!(run.code, Some(0 | 3)) {
        return Err(format!("QEMU finds: {}{}", run.stdout, run.stderr));
    }
    Ok(())
}
