//! Images as an embedder handles them: made, checked, resized, described and deleted, held against QEMU's tools.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::future::Future;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use millpond::graph::{Graph, GraphConfig, GraphHandle, ImplicitOpens, system_iothreads};
use millpond::image::NewImage;
use millpond::node::Client;
use millpond_drivers::api::{Registry, Whitelist};
use millpond_drivers::builtin::builtin;
use millpond_messages::graph::{
    BlockStatistics, CheckImage, CopyOnRead, DeleteFile, DescribeImage, FindBackingImage, IothreadOptions,
    ListDrains, ListDrivers, Options, RootRequest, RootUser, SetActive, SetReadOnly, Truncate,
};
use millpond_messages::io::Preallocation;
use millpond_messages::{
    ErrorKind, IoError, MAX_LENGTH, OpenFlags, Permissions, REQUEST_MAX_BYTES, Repair, RequestFlags,
    StatusFlags,
};
use millpond_ring::Engine;
use millpond_ring::buffer::Buffers;
use serde_json::{Value, json};

const PLAIN: RequestFlags = RequestFlags::empty();
const READ_WRITE: Permissions = Permissions::CONSISTENT_READ.union(Permissions::WRITE);
const ALL: Repair = Repair {
    leaks: true,
    errors: true,
};
const NOTHING: Repair = Repair {
    leaks: false,
    errors: false,
};

/// Runs a test against a graph of its own, with a directory of its own.
fn with_graph<F: Future<Output = ()>>(test: impl FnOnce(GraphHandle, PathBuf) -> F) {
    with_drivers(builtin(), test);
}

fn with_drivers<F: Future<Output = ()>>(registry: Registry, test: impl FnOnce(GraphHandle, PathBuf) -> F) {
    let directory = tempfile::tempdir().unwrap();
    actix_rt::System::new().block_on(async {
        let config = GraphConfig {
            registry,
            implicit: ImplicitOpens::Allow,
            iothreads: system_iothreads(Engine::Auto),
            main: IothreadOptions::named("main"),
        };
        let (_, graph) = Graph::start(config).expect("an iothread can be started");
        test(graph.clone(), directory.path().to_owned()).await;
        graph.close_all().await.expect("everything closes");
    });
}

fn options(json: Value) -> Options {
    match json {
        Value::Object(options) => options,
        other => panic!("not an object: {other}"),
    }
}

async fn add(graph: &GraphHandle, json: Value) {
    graph.add_node(options(json)).await.unwrap();
}

async fn attach(graph: &GraphHandle, node: &str, permissions: Permissions, shared: Permissions) -> Client {
    let user = RootUser::Embedder("test".to_owned());
    let request = RootRequest {
        shared,
        ..RootRequest::new(node, user, permissions)
    };
    graph.attach(request).await.unwrap()
}

fn tool(directory: &Path, program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program)
        .current_dir(directory)
        .args(arguments)
        .output();
    output.unwrap_or_else(|error| panic!("{program}: {error}: install the package qemu-utils"))
}

fn img(directory: &Path, line: &str) -> String {
    let arguments: Vec<&str> = line.split_whitespace().collect();
    let output = tool(directory, "qemu-img", &arguments);
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn img_json(directory: &Path, line: &str) -> Value {
    let arguments: Vec<&str> = line.split_whitespace().collect();
    // A check that finds something says so by its status.
    serde_json::from_slice(&tool(directory, "qemu-img", &arguments).stdout).unwrap()
}

/// What `qemu-img create` makes of the same arguments: the line that it prints, or the error.
fn theirs(directory: &Path, image: &NewImage) -> Result<String, String> {
    let size = image.size.map(|size| size.to_string());
    let mut arguments = vec!["create", "-f", &image.format];
    if image.flags.contains(OpenFlags::NO_BACKING) {
        arguments.push("-u");
    }
    for (flag, value) in [
        ("-b", image.base.as_deref()),
        ("-F", image.base_format.as_deref()),
        (
            "-o",
            Some(image.options.as_str()).filter(|options| !options.is_empty()),
        ),
    ] {
        arguments.extend(value.map(|value| [flag, value]).into_iter().flatten());
    }
    arguments.push(&image.filename);
    arguments.extend(size.as_deref());
    let output = tool(directory, "qemu-img", &arguments);
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).unwrap().trim_end().to_owned());
    }
    let text = String::from_utf8(output.stderr).unwrap();
    let prefix = format!("qemu-img: {}: ", image.filename);
    Err(text.trim_end().strip_prefix(&prefix).unwrap_or(&text).to_owned())
}

fn new_image(format: &str, options: &str, size: Option<u64>) -> NewImage {
    NewImage {
        format: format.to_owned(),
        options: options.to_owned(),
        size,
        ..NewImage::default()
    }
}

fn on_base(options: &str, base: &str, base_format: Option<&str>, size: Option<u64>) -> NewImage {
    NewImage {
        base: Some(base.to_owned()),
        base_format: base_format.map(str::to_owned),
        ..new_image("qcow2", options, size)
    }
}

#[test]
fn images_are_made_as_qemu_img_makes_them() {
    let unopened = |size| NewImage {
        flags: OpenFlags::NO_BACKING,
        ..on_base("", "missing", Some("raw"), size)
    };
    let mib = Some(1 << 20);
    let cases = [
        new_image("qcow2", "", mib),
        new_image("qcow2", "compat=0.10,cluster_size=4k", Some(5 << 20)),
        new_image("qcow2", "compat=v3,lazy_refcounts=on,refcount_bits=8", mib),
        new_image("qcow2", "size=3M", None),
        new_image("qcow2", "preallocation=metadata", mib),
        new_image("qcow2", "compression_type=zstd", Some(1000)),
        new_image("raw", "", Some(1000)),
        new_image("raw", "preallocation=falloc,nocow=on", mib),
        on_base("", "base", Some("qcow2"), None),
        on_base("cluster_size=64k", "base", Some("qcow2"), Some(9 << 20)),
        new_image("qcow2", "backing_file=base,backing_fmt=qcow2", None),
        unopened(Some(5 << 20)),
        // What is refused.
        on_base("", "base", None, None),
        on_base("", "missing", Some("raw"), None),
        unopened(None),
        on_base("", "", Some("raw"), mib),
        NewImage {
            format: "raw".to_owned(),
            ..on_base("", "base", Some("qcow2"), None)
        },
        NewImage {
            base: None,
            ..on_base("", "", Some("qcow2"), mib)
        },
        new_image("qcow2", "", None),
        new_image("raw", "", None),
        new_image("nope", "", mib),
        new_image("throttle", "", mib),
        new_image("qcow2", "colour=red", mib),
        new_image("qcow2", "size=3M", mib),
        new_image("qcow2", "extended_l2=banana", mib),
        new_image("qcow2", "compat=2", mib),
        new_image("qcow2", "cluster_size=3", mib),
        new_image("qcow2", "refcount_bits=3", mib),
    ];
    with_graph(|graph, directory| async move {
        for (number, case) in cases.into_iter().enumerate() {
            let made = |side: &str| {
                let directory = directory.join(format!("{number}-{side}"));
                std::fs::create_dir(&directory).unwrap();
                img(&directory, "create -q -f qcow2 base 2M");
                let filename = directory.join("disk").to_str().unwrap().to_owned();
                let image = NewImage {
                    filename,
                    ..case.clone()
                };
                (directory, image)
            };
            let (their_directory, their_image) = made("theirs");
            let (our_directory, our_image) = made("ours");
            let expected = theirs(&their_directory, &their_image);
            let found = graph.create_image(our_image).await;
            let found = found.map(Option::unwrap).map_err(|error| match error.hint() {
                Some(hint) => format!("{error}\n{hint}"),
                None => error.to_string(),
            });
            let (ours, others) = (our_directory.to_str().unwrap(), their_directory.to_str().unwrap());
            let place = |text: String| text.replace(ours, "DIR").replace(others, "DIR");
            assert_eq!(
                found.map(place).map_err(place),
                expected.map(place).map_err(place),
                "{case:?}"
            );
            let exists = their_directory.join("disk").exists();
            assert_eq!(our_directory.join("disk").exists(), exists, "{case:?}");
            if exists {
                let line = format!("info -U --output=json -f {} disk", case.format);
                let info = |directory| {
                    let mut info = img_json(directory, &line);
                    for name in ["filename", "actual-size", "full-backing-filename", "children"] {
                        info.as_object_mut().unwrap().remove(name);
                    }
                    info
                };
                assert_eq!(info(&our_directory), info(&their_directory), "{case:?}");
            }
        }
        let facts = graph.facts().await.unwrap();
        assert!(facts.nodes.is_empty(), "nothing stays open: {facts:?}");
    });
}

#[test]
fn a_quiet_image_is_not_told_of_and_an_image_is_not_its_own_base() {
    with_graph(|graph, directory| async move {
        let filename = directory.join("disk").to_str().unwrap().to_owned();
        let quiet = NewImage {
            filename: filename.clone(),
            quiet: true,
            ..new_image("qcow2", "", Some(1 << 20))
        };
        assert_eq!(graph.create_image(quiet).await.unwrap(), None);
        let itself = NewImage {
            filename: filename.clone(),
            ..on_base("", &filename, Some("qcow2"), None)
        };
        let expected = theirs(&directory, &itself).unwrap_err();
        assert_eq!(
            graph.create_image(itself).await.unwrap_err().to_string(),
            expected
        );
        img(&directory, "check disk");
        let strange = NewImage {
            filename: "foo:bar".to_owned(),
            ..new_image("qcow2", "", Some(1 << 20))
        };
        let expected = theirs(&directory, &strange).unwrap_err();
        assert_eq!(
            graph.create_image(strange).await.unwrap_err().to_string(),
            expected
        );
    });
}

/// Makes a cluster at the end of an image's file that its refcounts count and nothing refers to.
fn leak(path: &Path) {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let read = |offset| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset).unwrap();
        u64::from_be_bytes(bytes)
    };
    let length = file.metadata().unwrap().len().next_multiple_of(65536);
    let block = read(read(48));
    file.write_all_at(&1_u16.to_be_bytes(), block + length / 65536 * 2)
        .unwrap();
    file.set_len(length + 65536).unwrap();
}

#[test]
fn a_check_of_an_open_image_finds_and_mends_what_qemu_img_finds() {
    with_graph(|graph, directory| async move {
        img(&directory, "create -q -f qcow2 disk 4M");
        tool(&directory, "qemu-io", &["-c", "write -P 1 100k 1M", "disk"]);
        let path = directory.join("disk");
        leak(&path);
        let expected = img_json(&directory, "check --output=json disk");
        add(
            &graph,
            json!({"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": path}}),
        )
        .await;
        let client = attach(&graph, "disk", READ_WRITE, Permissions::all()).await;
        let found = graph
            .ask(CheckImage {
                node_name: "disk".to_owned(),
                repair: NOTHING,
            })
            .await
            .unwrap();
        for (name, number) in [
            ("leaks", found.leaks),
            ("check-errors", found.check_errors),
            ("image-end-offset", found.image_end_offset),
            ("total-clusters", found.fragments.total_clusters),
            ("allocated-clusters", found.fragments.allocated_clusters),
        ] {
            assert_eq!(expected[name], number, "{name}");
        }
        assert_eq!((found.leaks, found.leaks_fixed, found.corruptions), (1, 0, 0));
        // Requests beside the check end, and what they write stays.
        let (written, mended) = futures_util::join!(
            client.write(2 << 20, Buffers::zeroed(512), PLAIN),
            graph.ask(CheckImage {
                node_name: "disk".to_owned(),
                repair: ALL
            })
        );
        written.0.unwrap();
        let mended = mended.unwrap();
        assert_eq!((mended.leaks_fixed, mended.leaks), (1, 0));
        assert_eq!(
            graph
                .ask(CheckImage {
                    node_name: "disk".to_owned(),
                    repair: NOTHING
                })
                .await
                .unwrap()
                .leaks,
            0
        );
        graph.detach(client.root()).await.unwrap();
        graph.delete_node("disk").await.unwrap();
        img(&directory, "check disk");
    });
}

#[test]
fn a_repair_needs_the_right_to_write_and_a_check_an_image_that_has_something_to_check() {
    with_graph(|graph, directory| async move {
        img(&directory, "create -q -f qcow2 disk 1M");
        let file = json!({"driver": "file", "node-name": "f", "filename": directory.join("disk")});
        add(
            &graph,
            json!({"driver": "qcow2", "node-name": "disk", "file": file}),
        )
        .await;
        let quiet = Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED;
        let client = attach(&graph, "disk", Permissions::CONSISTENT_READ, quiet).await;
        graph
            .ask(CheckImage {
                node_name: "disk".to_owned(),
                repair: NOTHING,
            })
            .await
            .unwrap();
        let refused = graph
            .ask(CheckImage {
                node_name: "disk".to_owned(),
                repair: ALL,
            })
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Permission);
        graph.detach(client.root()).await.unwrap();
        graph
            .ask(CheckImage {
                node_name: "disk".to_owned(),
                repair: ALL,
            })
            .await
            .unwrap();
        let refused = graph
            .ask(CheckImage {
                node_name: "f".to_owned(),
                repair: NOTHING,
            })
            .await
            .unwrap_err();
        assert_eq!(
            (refused.kind(), refused.to_string().as_str()),
            (
                ErrorKind::Unsupported,
                "This image format does not support checks"
            )
        );
        let refused = graph
            .ask(CheckImage {
                node_name: "g".to_owned(),
                repair: NOTHING,
            })
            .await
            .unwrap_err();
        assert_eq!(refused.to_string(), "Cannot find device='' nor node-name='g'");
        assert!(graph.ask(ListDrains).await.unwrap().is_empty());
        graph.delete_node("disk").await.unwrap();
    });
}

#[test]
fn an_image_marked_as_corrupt_is_mended_by_who_opened_it_to_be_checked() {
    with_graph(|graph, directory| async move {
        img(&directory, "create -q -f qcow2 disk 1M");
        let path = directory.join("disk");
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        // The bit that marks an image as corrupt.
        file.write_all_at(&[2], 79).unwrap();
        let open = |flags| millpond_messages::graph::OpenImage {
            filename: Some(path.to_str().unwrap().to_owned()),
            options: options(json!({"driver": "qcow2", "node-name": "disk"})),
            flags,
            ..Default::default()
        };
        graph.open(open(OpenFlags::RDWR)).await.unwrap_err();
        graph
            .open(open(OpenFlags::RDWR | OpenFlags::CHECK))
            .await
            .unwrap();
        graph
            .ask(CheckImage {
                node_name: "disk".to_owned(),
                repair: ALL,
            })
            .await
            .unwrap();
        graph.delete_node("disk").await.unwrap();
        graph.open(open(OpenFlags::RDWR)).await.unwrap();
    });
}

#[test]
fn a_length_is_changed_as_it_is_said() {
    with_graph(|graph, directory| async move {
        let path = directory.join("disk");
        std::fs::write(&path, [7; 512]).unwrap();
        add(
            &graph,
            json!({"driver": "file", "node-name": "f", "filename": path}),
        )
        .await;
        let blocks = || std::fs::metadata(&path).unwrap().blocks() * 512;
        let resized = async |size, preallocation| {
            graph
                .ask(Truncate {
                    node_name: "f".to_owned(),
                    size,
                    exact: true,
                    preallocation,
                    flags: PLAIN,
                })
                .await
                .unwrap();
            assert_eq!(graph.node("f").await.unwrap().size, size);
        };
        resized(4 << 20, Preallocation::Off).await;
        assert!(blocks() < 1 << 20, "nothing is reserved");
        resized(8 << 20, Preallocation::Falloc).await;
        assert!(
            blocks() >= 4 << 20 && blocks() < 5 << 20,
            "what is new is reserved"
        );
        resized(12 << 20, Preallocation::Full).await;
        assert!(
            blocks() >= 8 << 20 && blocks() < 9 << 20,
            "what is new is written"
        );
        let refused = graph
            .ask(Truncate {
                node_name: "f".to_owned(),
                size: 16 << 20,
                exact: true,
                preallocation: Preallocation::Metadata,
                flags: PLAIN,
            })
            .await;
        assert_eq!(
            refused.unwrap_err().to_string(),
            "Unsupported preallocation mode: metadata"
        );
        let refused = graph
            .ask(Truncate {
                node_name: "f".to_owned(),
                size: 16 << 20,
                exact: true,
                preallocation: Preallocation::Off,
                flags: RequestFlags::FUA,
            })
            .await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidArgument);
        let refused = graph
            .ask(Truncate {
                node_name: "f".to_owned(),
                size: MAX_LENGTH + 1,
                exact: true,
                preallocation: Preallocation::Off,
                flags: PLAIN,
            })
            .await;
        assert_eq!(
            refused.unwrap_err().to_string(),
            format!("offset({}) exceeds maximum({MAX_LENGTH})", MAX_LENGTH + 1)
        );
        assert_eq!(graph.node("f").await.unwrap().size, 12 << 20);

        // A format lays its tables out, and a client's own request may say as much.
        img(&directory, "create -q -f qcow2 image 1M");
        let file = json!({"driver": "file", "filename": directory.join("image")});
        add(&graph, json!({"driver": "qcow2", "node-name": "q", "file": file})).await;
        graph
            .ask(Truncate {
                node_name: "q".to_owned(),
                size: 4 << 20,
                exact: false,
                preallocation: Preallocation::Metadata,
                flags: PLAIN,
            })
            .await
            .unwrap();
        let client = attach(&graph, "q", READ_WRITE, Permissions::all()).await;
        let status = client.block_status(3 << 20, 65536, false, false).await.unwrap();
        assert!(status.flags.contains(StatusFlags::OFFSET_VALID), "{status:?}");
    });
}

#[test]
fn the_file_of_an_open_node_is_deleted_and_the_node_goes_on() {
    with_graph(|graph, directory| async move {
        let path = directory.join("disk");
        img(&directory, "create -q -f qcow2 disk 1M");
        let file = json!({"driver": "file", "node-name": "f", "filename": path});
        add(
            &graph,
            json!({"driver": "qcow2", "node-name": "disk", "file": file}),
        )
        .await;
        let client = attach(&graph, "disk", READ_WRITE, Permissions::all()).await;
        let refused = graph
            .ask(DeleteFile {
                node_name: "disk".to_owned(),
            })
            .await
            .unwrap_err();
        assert_eq!(
            (refused.kind(), refused.to_string().as_str()),
            (
                ErrorKind::Unsupported,
                "Driver 'qcow2' does not support image deletion"
            )
        );
        graph.delete_file_noerr("disk").await;
        assert!(path.exists());
        graph
            .ask(DeleteFile {
                node_name: "f".to_owned(),
            })
            .await
            .unwrap();
        assert!(!path.exists());
        client.write(0, Buffers::zeroed(512), PLAIN).await.0.unwrap();
        let gone = graph
            .ask(DeleteFile {
                node_name: "f".to_owned(),
            })
            .await
            .unwrap_err()
            .to_string();
        let text = format!(
            "{} is not a regular file: No such file or directory",
            path.display()
        );
        assert_eq!(gone, text);
        // Whoever has taken the name since keeps it.
        std::fs::write(&path, b"another's").unwrap();
        let refused = graph
            .ask(DeleteFile {
                node_name: "f".to_owned(),
            })
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InUse);
        graph.delete_file_noerr("f").await;
        assert_eq!(std::fs::read(&path).unwrap(), b"another's");
    });
}

#[test]
fn what_a_format_says_of_its_image_is_told_through_what_is_above_it() {
    with_graph(|graph, directory| async move {
        img(&directory, "create -q -f qcow2 -o cluster_size=4k disk 5M");
        std::fs::write(directory.join("plain"), [0; 4096]).unwrap();
        let file = |name: &str| json!({"driver": "file", "filename": directory.join(name)});
        add(
            &graph,
            json!({"driver": "qcow2", "node-name": "q", "file": file("disk")}),
        )
        .await;
        add(
            &graph,
            json!({"driver": "copy-on-read", "node-name": "cor", "file": "q"}),
        )
        .await;
        add(
            &graph,
            json!({"driver": "raw", "node-name": "raw", "file": file("plain")}),
        )
        .await;
        add(
            &graph,
            json!({"driver": "copy-on-read", "node-name": "cor-raw", "file": "raw"}),
        )
        .await;
        add(&graph, json!({"driver": "null-co", "node-name": "null"})).await;
        let info = img_json(&directory, "info -U --output=json disk");
        for node in ["q", "cor"] {
            let found = graph
                .ask(DescribeImage {
                    node_name: node.to_owned(),
                })
                .await
                .unwrap();
            assert_eq!(info["cluster-size"], found.cluster_size);
            assert_eq!(info["dirty-flag"], found.is_dirty);
            assert!(!found.needs_compressed_writes);
            // VM state begins where the tables of the disk end: each L1 entry is for 512 clusters of 4 KiB.
            assert_eq!(found.vm_state_offset, 6 << 20);
            assert!(graph.node(node).await.unwrap().takes_compressed);
        }
        for node in ["raw", "cor-raw", "null"] {
            assert!(!graph.node(node).await.unwrap().takes_compressed, "{node}");
        }
        assert_eq!(
            graph
                .ask(DescribeImage {
                    node_name: "raw".to_owned()
                })
                .await
                .unwrap()
                .cluster_size,
            0
        );
        let silent = graph
            .ask(DescribeImage {
                node_name: "null".to_owned(),
            })
            .await
            .unwrap_err();
        assert_eq!(silent.kind(), ErrorKind::Unsupported);
        for (node, result) in [("cor", Ok(())), ("cor-raw", Err(IoError::NotSupported))] {
            let client = attach(&graph, node, READ_WRITE, Permissions::all()).await;
            let flags = RequestFlags::WRITE_COMPRESSED;
            assert_eq!(
                client.write(0, Buffers::zeroed(4096), flags).await.0,
                result,
                "{node}"
            );
        }
    });
}

#[test]
fn a_backing_image_is_found_by_whatever_path_leads_to_it() {
    with_graph(|graph, directory| async move {
        img(&directory, "create -q -f qcow2 base 1M");
        std::os::unix::fs::symlink("base", directory.join("link")).unwrap();
        std::fs::create_dir(directory.join("sub")).unwrap();
        std::os::unix::fs::symlink(&directory, directory.join("sub/up")).unwrap();
        img(&directory, "create -q -f qcow2 -F qcow2 -b link top");
        std::fs::write(directory.join("other"), b"").unwrap();
        let file = json!({"driver": "file", "filename": directory.join("top")});
        add(
            &graph,
            json!({"driver": "qcow2", "node-name": "top", "file": file}),
        )
        .await;
        let whole = directory.join("base").to_str().unwrap().to_owned();
        for name in ["link", "base", "sub/up/base", "sub/up/./link", &whole] {
            let found = graph
                .ask(FindBackingImage {
                    top: "top".to_owned(),
                    filename: name.to_owned(),
                })
                .await
                .unwrap();
            assert!(found.is_some_and(|found| found.driver == "qcow2"), "{name}");
        }
        // What exists and is another, and what does not exist though its name would do.
        for name in ["other", "missing/../base", "top"] {
            let found = graph
                .ask(FindBackingImage {
                    top: "top".to_owned(),
                    filename: name.to_owned(),
                })
                .await
                .unwrap();
            assert_eq!(found, None, "{name}");
        }
    });
}

#[test]
fn layers_are_looked_at_down_to_a_base() {
    with_graph(|graph, directory| async move {
        img(&directory, "create -q -f qcow2 base 1M");
        tool(&directory, "qemu-io", &["-c", "write -P 1 0 192k", "base"]);
        img(&directory, "create -q -f qcow2 -F qcow2 -b base mid");
        tool(&directory, "qemu-io", &["-c", "write -P 2 64k 64k", "mid"]);
        img(&directory, "create -q -f qcow2 -F qcow2 -b mid top");
        tool(&directory, "qemu-io", &["-c", "write -P 3 128k 64k", "top"]);
        let file = |name: &str| json!({"driver": "file", "filename": directory.join(name)});
        add(
            &graph,
            json!({"driver": "qcow2", "node-name": "base", "file": file("base")}),
        )
        .await;
        let mid = json!({"driver": "qcow2", "node-name": "mid", "file": file("mid"), "backing": "base"});
        add(&graph, mid).await;
        let filter = json!({"driver": "copy-on-read", "node-name": "filter", "file": "mid"});
        add(&graph, filter).await;
        let top = json!({"driver": "qcow2", "node-name": "top", "file": file("top"), "backing": "filter"});
        add(&graph, top).await;
        let client = attach(&graph, "top", Permissions::CONSISTENT_READ, Permissions::all()).await;
        // For each cluster the layer that has it: 1 is the top, 0 none of those that count.
        let layers = async |base: &str| {
            let base = graph.node(base).await.unwrap().id;
            let mut layers = Vec::new();
            for cluster in 0..4_u64 {
                let status = client
                    .block_status_above(cluster << 16, 1 << 16, true, base)
                    .await
                    .unwrap();
                assert_eq!(status.len, 1 << 16);
                assert_eq!(status.flags.contains(StatusFlags::ALLOCATED), status.depth > 0);
                layers.push(status.depth);
            }
            layers
        };
        assert_eq!(layers("filter").await, [0, 0, 1, 0]);
        assert_eq!(layers("mid").await, [0, 0, 1, 0]);
        assert_eq!(layers("base").await, [0, 2, 1, 0]);
        let all = layers("top").await;
        assert_eq!(
            (all[0] > 3, all[1], all[2], all[3]),
            (true, 2, 1, 0),
            "the base is not below: {all:?}"
        );
        let whole = client.block_status(0, 1 << 16, true, true).await.unwrap();
        assert_eq!(whole.depth, all[0]);
    });
}

#[test]
fn drivers_that_are_not_on_the_list_are_refused() {
    let mut registry = builtin();
    registry.set_whitelist(Whitelist {
        read_write: vec!["file".to_owned()],
        read_only: vec!["raw".to_owned()],
    });
    with_drivers(registry, |graph, directory| async move {
        std::fs::write(directory.join("disk"), [0; 512]).unwrap();
        let file = json!({"driver": "file", "node-name": "f", "filename": directory.join("disk")});
        add(&graph, file).await;
        let refused = async |node| graph.add_node(options(node)).await.unwrap_err().to_string();
        let raw = |read_only: bool| json!({"driver": "raw", "node-name": "raw", "file": "f", "read-only": read_only});
        assert_eq!(
            refused(raw(false)).await,
            "Driver 'raw' can only be used for read-only devices"
        );
        add(&graph, raw(true)).await;
        let null = json!({"driver": "null-co", "node-name": "null"});
        assert_eq!(refused(null).await, "Driver 'null-co' is not whitelisted");
        let names = async |read_only| {
            let drivers = graph.ask(ListDrivers { read_only }).await.unwrap();
            drivers.into_iter().map(|driver| driver.name).collect::<Vec<_>>()
        };
        assert_eq!(names(false).await, ["file"]);
        assert_eq!(names(true).await, ["file", "raw"]);
    });
}

#[test]
fn a_request_longer_than_any_may_be_is_refused() {
    with_graph(|graph, _| async move {
        let null = json!({"driver": "null-co", "node-name": "null", "size": 4_u64 << 30});
        add(&graph, null).await;
        let client = attach(&graph, "null", READ_WRITE, Permissions::all()).await;
        let most = usize::try_from(REQUEST_MAX_BYTES).unwrap();
        client.write(0, Buffers::zeroed(most), PLAIN).await.0.unwrap();
        for len in [most + 1, most + 512] {
            let (result, _) = client.write(0, Buffers::zeroed(len), PLAIN).await;
            assert_eq!(result, Err(IoError::OutOfRange));
            let (result, _) = client.read(0, Buffers::zeroed(len)).await;
            assert_eq!(result, Err(IoError::OutOfRange));
        }
        // What carries no data may be as long as the node.
        client.write_zeroes(0, 4 << 30, PLAIN).await.unwrap();
    });
}

#[test]
fn a_node_tells_how_memory_is_to_be_aligned_for_it() {
    with_graph(|graph, directory| async move {
        let path = directory.join("disk");
        std::fs::write(&path, vec![7; 1 << 16]).unwrap();
        let file = |direct: bool| json!({"driver": "file", "filename": path, "cache": {"direct": direct}});
        add(
            &graph,
            json!({"driver": "raw", "node-name": "buffered", "file": file(false)}),
        )
        .await;
        add(
            &graph,
            json!({"driver": "raw", "node-name": "direct", "file": file(true)}),
        )
        .await;
        let limits = graph.node("buffered").await.unwrap().limits;
        assert_eq!((limits.mem_alignment, limits.opt_mem_alignment), (1, 4096));
        let limits = graph.node("direct").await.unwrap().limits;
        let expected = rustix::fs::statx(
            rustix::fs::CWD,
            &path,
            rustix::fs::AtFlags::empty(),
            rustix::fs::StatxFlags::from_bits_retain(0x2000),
        );
        // A kernel or file system that does not tell has it tried out.
        let told = expected.unwrap().stx_dio_mem_align;
        assert!(
            limits.mem_alignment > 1 && (told == 0 || told == limits.mem_alignment),
            "{limits:?}"
        );
        assert_eq!(limits.opt_mem_alignment, limits.mem_alignment.max(4096));
        let client = attach(&graph, "direct", READ_WRITE, Permissions::all()).await;
        let minimum = usize::try_from(limits.mem_alignment).unwrap();
        let best = usize::try_from(limits.opt_mem_alignment).unwrap();
        for (shift, align) in [(0, minimum), (0, best), (1, best), (8, minimum)] {
            let mut buffer = millpond_ring::buffer::Buffer::try_aligned(4096 + shift, align).unwrap();
            assert_eq!(buffer.as_ptr().addr() % align, 0);
            // What is not aligned gets through as well, by way of memory that is.
            let buffer = buffer.split_off(shift);
            let (result, buffers) = client.read(0, Buffers::from(buffer)).await;
            result.unwrap();
            assert_eq!(buffers.to_vec(), [7; 4096]);
        }
    });
}

#[test]
fn limits_are_merged_up_the_graph_and_hold_for_requests() {
    with_graph(|graph, directory| async move {
        let path = directory.join("disk");
        std::fs::write(&path, vec![7; 1 << 16]).unwrap();
        let file = json!({"driver": "file", "node-name": "file", "filename": path});
        let debug = json!({
            "driver": "blkdebug", "node-name": "debug", "image": file,
            "align": 4096, "max-transfer": 16384, "opt-write-zero": 32768, "max-discard": 65536,
        });
        add(
            &graph,
            json!({"driver": "raw", "node-name": "raw", "file": debug}),
        )
        .await;
        let debug = graph.node("debug").await.unwrap().limits;
        assert_eq!(
            (
                debug.request_alignment,
                debug.write_zeroes_alignment,
                debug.max_discard
            ),
            (4096, 32768, 65536)
        );
        let raw = graph.node("raw").await.unwrap().limits;
        for limits in [debug, raw] {
            assert_eq!((limits.max_transfer, limits.opt_mem_alignment), (16384, 4096));
        }
        let client = attach(&graph, "raw", READ_WRITE, Permissions::all()).await;
        let (result, buffers) = client.read(100, Buffers::zeroed(40_000)).await;
        result.unwrap();
        assert_eq!(buffers.to_vec(), vec![7; 40_000]);
        let nodes = graph.ask(BlockStatistics).await.unwrap();
        let file = nodes
            .iter()
            .find(|node| node.node_name.as_deref() == Some("file"));
        let counted = &file.unwrap().stats;
        // Ten blocks around what was read, four at a time.
        assert_eq!(counted.rd_operations, 3);
        assert_eq!(counted.rd_bytes, 40_960);
    });
}

/// The flags that files of this name are open with in this process.
fn open_flags(path: &Path) -> Vec<i64> {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    let names = descriptors.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let of_file = names.filter(|name| {
        std::fs::read_link(format!("/proc/self/fd/{name}")).is_ok_and(|target| target == path)
    });
    of_file
        .map(|name| {
            let facts = std::fs::read_to_string(format!("/proc/self/fdinfo/{name}")).unwrap();
            let flags = facts
                .lines()
                .find_map(|line| line.strip_prefix("flags:"))
                .unwrap();
            i64::from_str_radix(flags.trim(), 8).unwrap()
        })
        .collect()
}

#[test]
fn a_file_is_opened_past_the_page_cache_if_and_only_if_that_was_asked_for() {
    with_graph(|graph, directory| async move {
        let path = directory.join("disk");
        std::fs::write(&path, [0; 4096]).unwrap();
        for (flags, option, direct) in [
            (OpenFlags::NOCACHE, None, true),
            (OpenFlags::empty(), Some(true), true),
            (OpenFlags::NOCACHE, Some(false), false),
            (OpenFlags::empty(), None, false),
        ] {
            let mut given = options(json!({"driver": "raw", "node-name": "disk"}));
            if let Some(option) = option {
                given.insert("cache".to_owned(), json!({"direct": option}));
            }
            let image = millpond_messages::graph::OpenImage {
                filename: Some(path.to_str().unwrap().to_owned()),
                options: given,
                flags,
                ..Default::default()
            };
            graph.open(image).await.unwrap();
            let found = open_flags(&path);
            assert!(!found.is_empty());
            let expected = i64::from(rustix::fs::OFlags::DIRECT.bits());
            assert!(
                found.iter().all(|flags| (flags & expected != 0) == direct),
                "{found:?}"
            );
            graph.delete_node("disk").await.unwrap();
        }
    });
}

#[test]
fn space_is_given_back_only_where_that_is_allowed() {
    with_graph(|graph, directory| async move {
        let path = directory.join("disk");
        let blocks = || std::fs::metadata(&path).unwrap().blocks() * 512;
        let discard = [
            (OpenFlags::UNMAP, json!({})),
            (OpenFlags::empty(), json!({"discard": "unmap"})),
        ];
        let ignore = [
            (OpenFlags::UNMAP, json!({"discard": "ignore"})),
            (OpenFlags::empty(), json!({})),
        ];
        let cases = discard.map(|case| (case, true)).into_iter();
        for ((flags, mut given), gives) in cases.chain(ignore.map(|case| (case, false))) {
            std::fs::write(&path, vec![7; 1 << 20]).unwrap();
            given["driver"] = "raw".into();
            given["node-name"] = "disk".into();
            let image = millpond_messages::graph::OpenImage {
                filename: Some(path.to_str().unwrap().to_owned()),
                options: options(given.clone()),
                flags: flags | OpenFlags::RDWR,
                ..Default::default()
            };
            graph.open(image).await.unwrap();
            let client = attach(&graph, "disk", READ_WRITE, Permissions::all()).await;
            let whole = blocks();
            // A zero write that does not allow it keeps the space, whatever the node allows.
            client.write_zeroes(0, 256 << 10, PLAIN).await.unwrap();
            assert!(blocks() >= whole, "{given}");
            client
                .write_zeroes(256 << 10, 256 << 10, RequestFlags::MAY_UNMAP)
                .await
                .unwrap();
            let after_zeroes = blocks();
            assert_eq!(after_zeroes + (256 << 10) <= whole, gives, "{given}");
            client.discard(512 << 10, 256 << 10).await.unwrap();
            assert_eq!(blocks() + (256 << 10) <= after_zeroes, gives, "{given}");
            let (result, found) = client.read(256 << 10, Buffers::zeroed(256 << 10)).await;
            result.unwrap();
            assert!(found.is_zero(), "a zero write is one in either case");
            let (result, found) = client.read(512 << 10, Buffers::zeroed(4096)).await;
            result.unwrap();
            assert_eq!(found.is_zero(), gives, "{given}");
            graph.detach(client.root()).await.unwrap();
            graph.delete_node("disk").await.unwrap();
        }
    });
}

#[test]
fn everything_that_was_written_is_in_the_image_when_all_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    img(directory, "create -q -f qcow2 disk 4M");
    with_graph(|graph, _| async move {
        let file = json!({"driver": "file", "filename": directory.join("disk")});
        add(
            &graph,
            json!({"driver": "qcow2", "node-name": "disk", "file": file}),
        )
        .await;
        let client = attach(&graph, "disk", READ_WRITE, Permissions::all()).await;
        let mut buffers = Buffers::zeroed(300_000);
        buffers.copy_from_slice(0, &[5; 300_000]);
        client.write(1_000_000, buffers, PLAIN).await.0.unwrap();
        // Nobody flushes: the tables are in memory only.
        graph.close_all().await.unwrap();
        let (result, _) = client.read(0, Buffers::zeroed(512)).await;
        assert_eq!(result, Err(IoError::NoMedium));
        img(directory, "check disk");
        let read = tool(
            directory,
            "qemu-io",
            &["-r", "-c", "read -P 5 1000000 300000", "disk"],
        );
        let text = String::from_utf8_lossy(&read.stdout).into_owned();
        assert!(read.status.success() && !text.contains("failed"), "{text}");
    });
}

#[test]
fn a_node_that_copies_on_read_does_not_become_read_only() {
    with_graph(|graph, directory| async move {
        img(&directory, "create -q -f qcow2 disk 1M");
        let file = json!({"driver": "file", "filename": directory.join("disk")});
        add(
            &graph,
            json!({"driver": "qcow2", "node-name": "disk", "file": file}),
        )
        .await;
        graph
            .ask(CopyOnRead {
                node_name: "disk".to_owned(),
                on: true,
            })
            .await
            .unwrap();
        let refused = graph
            .ask(SetReadOnly {
                node_name: "disk".to_owned(),
                read_only: true,
            })
            .await
            .unwrap_err();
        assert_eq!(
            refused.to_string(),
            "Can't set node 'disk' to r/o with copy-on-read enabled"
        );
        assert!(!graph.node("disk").await.unwrap().read_only);
        graph
            .ask(CopyOnRead {
                node_name: "disk".to_owned(),
                on: false,
            })
            .await
            .unwrap();
        graph
            .ask(SetReadOnly {
                node_name: "disk".to_owned(),
                read_only: true,
            })
            .await
            .unwrap();
        let facts = graph.node("disk").await.unwrap();
        assert!(facts.flags.is_read_only() && !facts.flags.is_writable());
        graph
            .ask(SetReadOnly {
                node_name: "disk".to_owned(),
                read_only: false,
            })
            .await
            .unwrap();
        graph
            .ask(SetActive {
                node_name: Some("disk".to_owned()),
                active: false,
            })
            .await
            .unwrap();
        let facts = graph.node("disk").await.unwrap();
        assert!(!facts.flags.is_read_only() && !facts.flags.is_writable());
    });
}
