//! How large images will be, beside what `qemu-img measure` tells.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

mod support;

use std::path::Path;
use std::process::{Command, Output};

use millpond::graph::GraphHandle;
use millpond::measure::Measured;
use millpond_drivers::builtin::builtin;
use millpond_drivers::secret::{SecretOptions, SecretSource};
use millpond_messages::qapi::schema::QCryptoSecretFormat;
use millpond_messages::{ImageMeasure, Result};
use serde_json::{Value, json};
use support::{with_graph, with_graph_of};

fn tool(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.expect("install the package qemu-utils")
}

fn run(program: &str, arguments: &[&str]) {
    let output = tool(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

/// What `qemu-img measure` tells, or how it refuses.
fn told(arguments: &[&str]) -> std::result::Result<Value, String> {
    let output = tool("qemu-img", &[&["measure", "--output=json"], arguments].concat());
    if output.status.success() {
        return Ok(serde_json::from_slice(&output.stdout).unwrap());
    }
    let text = String::from_utf8(output.stderr).unwrap();
    Err(text.trim().trim_start_matches("qemu-img: ").to_owned())
}

fn shown(measured: Result<ImageMeasure>) -> std::result::Result<Value, String> {
    let measured = measured.map_err(|error| error.to_string())?;
    let mut shown = json!({
        "required": measured.required,
        "fully-allocated": measured.fully_allocated,
    });
    if let Some(bitmaps) = measured.bitmaps {
        shown["bitmaps"] = bitmaps.into();
    }
    Ok(shown)
}

const QCOW2: &[&str] = &[
    "",
    "cluster_size=512",
    "cluster_size=2M",
    "cluster_size=4k,refcount_bits=1",
    "refcount_bits=64",
    "compat=0.10",
    "preallocation=metadata",
    "preallocation=falloc",
    "preallocation=full,cluster_size=1M",
    "lazy_refcounts=on",
    "compat=0.10,lazy_refcounts=on",
    "cluster_size=3k",
    "refcount_bits=3",
    "backing_file=below,backing_fmt=raw",
    "backing_file=below,backing_fmt=raw,preallocation=full",
    "compression_type=zstd,compat=0.10",
    "encrypt.format=luks",
];

/// Options of encrypted images, whose secret is `s`.
const ENCRYPTED: &[&str] = &[
    "encrypt.format=aes",
    "encryption=on",
    "encrypt.format=luks,encrypt.iter-time=10",
    "encrypt.format=luks,encrypt.iter-time=10,cluster_size=512",
    "encrypt.format=luks,encrypt.iter-time=10,cluster_size=2M,encrypt.cipher-alg=aes-128",
    "encrypt.format=luks,encrypt.iter-time=10,encrypt.cipher-mode=cbc,preallocation=full",
];

#[test]
fn encrypted_images_have_room_for_their_keys() {
    let registry = builtin();
    let secret = SecretOptions {
        source: SecretSource::Data(b"password".to_vec().into()),
        format: QCryptoSecretFormat::Raw,
        wrapped_by: None,
    };
    let secret = secret.load(registry.secrets()).unwrap();
    registry.secrets().add("s", secret);
    with_graph_of(registry, |graph| async move {
        for options in ENCRYPTED {
            let options = format!("{options},encrypt.key-secret=s");
            let object = ["--object", "secret,id=s,data=password"];
            let arguments = ["-O", "qcow2", "-o", &options, "--size", "5242880"];
            let ours = graph.measure_image("qcow2", &options, &Measured::Empty(5 << 20));
            let theirs = told(&[&object[..], &arguments].concat());
            assert_eq!(shown(ours.await), theirs, "{options}");
        }
    });
}

#[test]
fn empty_images_are_as_large_as_qemu_img_says() {
    with_graph(|graph| async move {
        for size in [
            0,
            1,
            512,
            65_536,
            65_537,
            1 << 20,
            (1 << 30) + 511,
            1 << 40,
            63 << 40,
        ] {
            let length = size.to_string();
            for options in QCOW2 {
                let arguments = ["-O", "qcow2", "-o", options, "--size", &length];
                // An empty list of options is refused there.
                let arguments = match *options {
                    "" => [&arguments[..2], &arguments[4..]].concat(),
                    _ => arguments.to_vec(),
                };
                let ours = graph
                    .measure_image("qcow2", options, &Measured::Empty(size))
                    .await;
                assert_eq!(shown(ours), told(&arguments), "{options} {size}");
            }
            let ours = graph.measure_image("raw", "", &Measured::Empty(size)).await;
            assert_eq!(shown(ours), told(&["-O", "raw", "--size", &length]), "{size}");
        }
        for format in ["null-co", "file", "none"] {
            let ours = graph.measure_image(format, "", &Measured::Empty(0)).await;
            assert_eq!(shown(ours), told(&["-O", format, "--size", "0"]), "{format}");
        }
    });
}

async fn compare(graph: &GraphHandle, folder: &Path, image: &str, node: &str) {
    let path = folder.join(image);
    let format = match image.rsplit_once('.') {
        Some((_, format)) => format,
        None => "raw",
    };
    for (target, options) in [
        ("raw", ""),
        ("qcow2", ""),
        ("qcow2", "cluster_size=4k"),
        ("qcow2", "cluster_size=2M"),
        ("qcow2", "compat=0.10"),
        ("qcow2", "preallocation=full"),
        ("qcow2", "backing_file=below,backing_fmt=raw"),
    ] {
        let mut arguments = vec!["-U", "-f", format, "-O", target];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        arguments.push(path.to_str().unwrap());
        let ours = graph
            .measure_image(target, options, &Measured::CopyOf(node.to_owned()))
            .await;
        assert_eq!(shown(ours), told(&arguments), "{image} to {target} {options}");
    }
}

#[test]
fn copies_are_as_large_as_qemu_img_says() {
    let folder = tempfile::tempdir().unwrap();
    with_graph(|graph| async move {
        let path = |image: &str| folder.path().join(image).to_str().unwrap().to_owned();
        run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", &path("base.qcow2"), "9M"],
        );
        for write in ["write 1k 1k", "write 100k 300k", "write -z 1M 1M", "write 4M 3M"] {
            run("qemu-io", &["-c", write, &path("base.qcow2")]);
        }
        let base = path("base.qcow2");
        let top = path("top.qcow2");
        run(
            "qemu-img",
            &[
                "create", "-q", "-f", "qcow2", "-b", &base, "-F", "qcow2", &top, "10000384",
            ],
        );
        run("qemu-io", &["-c", "write 2M 5k", "-c", "write -z 4M 512k", &top]);
        for (bitmap, granularity) in [("one", "512"), ("a second one", "64k")] {
            run("qemu-img", &["bitmap", "--add", "-g", granularity, &top, bitmap]);
        }
        run(
            "qemu-img",
            &[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                "compat=0.10",
                &path("old.qcow2"),
                "1M",
            ],
        );
        run(
            "qemu-img",
            &["create", "-q", "-f", "raw", &path("sparse.raw"), "3000000"],
        );
        run(
            "qemu-io",
            &["-f", "raw", "-c", "write 1M 70k", &path("sparse.raw")],
        );
        for image in ["top.qcow2", "old.qcow2", "sparse.raw"] {
            let (name, driver) = image.split_once('.').unwrap();
            let file = json!({"driver": "file", "filename": path(image)});
            let node = json!({"driver": driver, "node-name": name, "file": file, "read-only": true});
            graph.add_node(node.as_object().unwrap().clone()).await.unwrap();
            compare(&graph, folder.path(), image, name).await;
        }
        let gone = Measured::CopyOf("nobody".to_owned());
        let refused = graph.measure_image("qcow2", "", &gone).await.unwrap_err();
        assert!(refused.to_string().contains("nobody"), "{refused}");
    });
}
