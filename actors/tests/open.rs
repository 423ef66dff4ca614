//! Images opened by name, with every flag that an opener can give.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;

use millpond::graph::{Graph, GraphConfig, GraphHandle, ImplicitOpens, system_iothreads};
use millpond::node::Client;
use millpond_drivers::builtin::builtin;
use millpond_messages::graph::{
    FindDirectory, InvalidateCache, IothreadOptions, Open, OpenImage, Options, Probing, RootRequest,
    RootUser, SetReadOnly,
};
use millpond_messages::io::{Operation, Preallocation};
use millpond_messages::{ErrorKind, IoError, OpenFlags, Permissions, RequestFlags};
use millpond_ring::Engine;
use millpond_ring::buffer::Buffers;
use serde_json::{Value, json};

/// What stands behind every expectation of a helper.
const WELL: &str = "the test's own doing works";

/// Runs a test against a graph of its own, with a directory of its own.
fn with_graph<F: Future<Output = ()>>(test: impl FnOnce(GraphHandle, PathBuf) -> F) {
    with_policy(ImplicitOpens::Allow, test);
}

fn with_policy<F: Future<Output = ()>>(
    implicit: ImplicitOpens,
    test: impl FnOnce(GraphHandle, PathBuf) -> F,
) {
    let directory = tempfile::tempdir().expect(WELL);
    actix_rt::System::new().block_on(async {
        let config = GraphConfig {
            registry: builtin(),
            implicit,
            iothreads: system_iothreads(Engine::Auto),
            main: IothreadOptions::named("main"),
        };
        let (_, graph) = Graph::start(config).expect("an iothread can be started");
        test(graph.clone(), directory.path().to_owned()).await;
        graph.close_all().await.expect("everything closes");
    });
}

fn options(json: Value) -> Options {
    let Value::Object(options) = json else {
        panic!("not an object: {json}")
    };
    options
}

fn image(path: &Path, flags: OpenFlags) -> OpenImage {
    named(path.to_str().expect(WELL), flags)
}

fn named(filename: &str, flags: OpenFlags) -> OpenImage {
    OpenImage {
        filename: Some(filename.to_owned()),
        flags,
        ..OpenImage::default()
    }
}

fn with_options(image: OpenImage, json: Value) -> OpenImage {
    OpenImage {
        options: options(json),
        ..image
    }
}

fn holder() -> RootUser {
    RootUser::Embedder("test".to_owned())
}

fn user(node: &str, permissions: Permissions, shared: Permissions) -> RootRequest {
    RootRequest {
        node: node.to_owned(),
        user: holder(),
        permissions,
        shared,
        iothread: None,
        iothread_required: false,
        writethrough: false,
    }
}

fn qemu_img(arguments: &[&str]) {
    let status = Command::new("qemu-img").args(arguments).status();
    let status = status.unwrap_or_else(|error| panic!("qemu-img: {error}: install the package qemu-utils"));
    assert!(status.success(), "qemu-img {arguments:?}");
}

fn raw(directory: &Path, name: &str, byte: u8) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, vec![byte; 1 << 20]).expect(WELL);
    path
}

fn qcow2(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().expect(WELL), "1M"]);
    path
}

async fn read(client: &Client, offset: u64) -> u8 {
    let (result, buffers) = client.read(offset, Buffers::zeroed(1)).await;
    result.expect("the read succeeds");
    buffers.to_vec()[0]
}

async fn write(client: &Client, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
    let mut buffers = Buffers::zeroed(bytes.len());
    buffers.copy_from_slice(0, bytes);
    client.write(offset, buffers, RequestFlags::empty()).await.0
}

async fn refused(graph: &GraphHandle, request: RootRequest) -> millpond_messages::Error {
    match graph.attach(request).await {
        Ok(_) => panic!("the user is let in"),
        Err(error) => error,
    }
}

async fn error(graph: &GraphHandle, image: OpenImage) -> String {
    graph.open(image).await.expect_err("the open fails").to_string()
}

/// Opens read-only and reads the first byte.
async fn first_byte(graph: &GraphHandle, image: OpenImage) -> u8 {
    let client = graph.open_held(image, holder()).await.expect("the open succeeds");
    let byte = read(&client, 0).await;
    graph.detach(client.root()).await.expect(WELL);
    byte
}

const READ: OpenFlags = OpenFlags::empty();
const RDWR: OpenFlags = OpenFlags::RDWR;

#[test]
fn an_image_is_found_by_whatever_name_it_has() {
    with_graph(|graph, directory| async move {
        let path = raw(&directory, "a:b.img", 7);
        let path = path.to_str().unwrap();
        let forms = [
            path.to_owned(),
            format!("file:{path}"),
            format!(
                "json:{}",
                json!({"driver": "raw", "file": {"driver": "file", "filename": path}})
            ),
            format!(
                "json:{}",
                json!({"driver": "raw", "file.driver": "file", "file.filename": path})
            ),
            format!("json:{}", json!({"file.filename": path})),
            format!("json:{}", json!({"driver": "file", "filename": path})),
        ];
        for form in forms {
            assert_eq!(first_byte(&graph, named(&form, READ)).await, 7, "{form}");
        }
        let by_options = with_options(
            OpenImage::default(),
            json!({"driver": "raw", "file.filename": path}),
        );
        assert_eq!(first_byte(&graph, by_options).await, 7);
        let both = with_options(
            named(path, READ),
            json!({"driver": "raw", "offset": 512, "node-name": "w"}),
        );
        let client = graph.open_held(both, holder()).await.unwrap();
        assert_eq!(graph.node("w").await.unwrap().size, (1 << 20) - 512);
        graph.detach(client.root()).await.unwrap();
        // What is said beside a json: name wins over what is in it.
        let name = format!(
            "json:{}",
            json!({"driver": "qcow2", "file.filename": "/nowhere", "node-name": "x"})
        );
        let wins = json!({"driver": "raw", "file": {"filename": path}});
        assert_eq!(
            first_byte(&graph, with_options(named(&name, READ), wins)).await,
            7
        );
        assert_eq!(
            graph.facts().await.unwrap().nodes,
            [],
            "a holder's node goes with it"
        );
        let null = named("null-co://", READ);
        assert_eq!(
            graph.open(null).await.unwrap(),
            graph.facts().await.unwrap().nodes[1].name
        );
    });
}

#[test]
fn names_that_open_nothing_are_told_in_qemus_words() {
    with_graph(|graph, directory| async move {
        let path = raw(&directory, "disk", 1);
        let path = path.to_str().unwrap();
        let cases = [
            (named("json:{}", READ), "Must specify either driver or file"),
            (
                named(r#"json:{"filename": "x"}"#, READ),
                "Must specify either driver or file",
            ),
            (named("json:[1]", READ), "Invalid JSON object given"),
            (OpenImage::default(), "Must specify either driver or file"),
            (
                OpenImage {
                    flags: OpenFlags::PROTOCOL,
                    ..OpenImage::default()
                },
                "Must specify either driver or file",
            ),
            (named("gopher:x", READ), "Unknown protocol 'gopher'"),
            (
                named("null-co://x", READ),
                "The only allowed filename for this driver is 'null-co://'",
            ),
            (named(r#"json:{"driver": "foo"}"#, READ), "Unknown driver 'foo'"),
            (
                with_options(named(path, READ), json!({"driver": "foo"})),
                "Unknown driver 'foo'",
            ),
            (
                with_options(named(path, READ), json!({"driver": "file", "filename": "x"})),
                "Can't specify 'file' and 'filename' options at the same time",
            ),
            (
                with_options(named(path, READ), json!({"driver": "raw", "file": "x"})),
                "Cannot reference an existing block device with additional options or a new filename",
            ),
            (
                OpenImage {
                    reference: Some("x".to_owned()),
                    ..named(path, READ)
                },
                "Cannot reference an existing block device with additional options or a new filename",
            ),
            (
                OpenImage {
                    reference: Some("x".to_owned()),
                    ..OpenImage::default()
                },
                "Cannot find device='x' nor node-name='x'",
            ),
            (
                with_options(named(path, READ), json!({"cache.writeback": false})),
                "Parameter 'cache.writeback' is unexpected",
            ),
        ];
        for (image, text) in cases {
            let shown = format!("{image:?}");
            assert_eq!(error(&graph, image).await, text, "{shown}");
        }
        let text = error(&graph, named("json:{", READ)).await;
        assert!(text.starts_with("Could not parse the JSON options: "), "{text}");
        let absent = directory.join("absent");
        let text = error(&graph, image(&absent, READ)).await;
        assert_eq!(
            text,
            format!("Could not open '{}': No such file or directory", absent.display())
        );
        assert_eq!(graph.facts().await.unwrap().nodes, []);
    });
}

#[test]
fn a_node_that_exists_is_taken_by_reference() {
    with_graph(|graph, _| async move {
        let null = json!({"driver": "null-co", "node-name": "n", "read-zeroes": true});
        graph.add_node(options(null)).await.unwrap();
        let reference = || OpenImage {
            reference: Some("n".to_owned()),
            ..OpenImage::default()
        };
        assert_eq!(graph.open(reference()).await.unwrap(), "n");
        let client = graph.open_held(reference(), holder()).await.unwrap();
        assert_eq!(read(&client, 0).await, 0);
        graph.detach(client.root()).await.unwrap();
        graph.delete_node("n").await.unwrap();
    });
}

#[test]
fn formats_are_guessed_for_writing_only_where_that_was_asked_for() {
    with_graph(|graph, directory| async move {
        let (plain, format) = (raw(&directory, "raw", 1), qcow2(&directory, "qcow2"));
        let probing = |image, probing| OpenImage { probing, ..image };
        for path in [&plain, &format] {
            let refused = graph.open(image(path, RDWR)).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Permission);
            assert!(refused.to_string().contains("opened for writing"), "{refused}");
            let refused = graph
                .open(probing(image(path, READ), Probing::Off))
                .await
                .unwrap_err();
            assert!(refused.to_string().contains("may not be guessed"), "{refused}");
        }
        let text = error(&graph, probing(image(&plain, RDWR), Probing::Formats)).await;
        assert!(text.contains("begins with no known format"), "{text}");
        let guessed = probing(image(&format, RDWR), Probing::Formats);
        let name = graph.open(guessed).await.unwrap();
        assert_eq!(graph.node(name.clone()).await.unwrap().driver, "qcow2");
        graph.delete_node(name).await.unwrap();
        // A protocol needs no format.
        let name = graph
            .open(image(&plain, RDWR | OpenFlags::PROTOCOL))
            .await
            .unwrap();
        let facts = graph.node(name).await.unwrap();
        assert_eq!((facts.driver.as_str(), facts.read_only), ("file", false));
    });
}

/// The magic of qcow2 and the text of a VMDK descriptor, whole, in parts, and from the end to the start.
#[test]
fn nobody_makes_an_image_that_was_guessed_to_be_raw_into_another_format() {
    with_graph(|graph, directory| async move {
        let path = raw(&directory, "disk", 0);
        let guessed = OpenImage {
            probing: Probing::Always,
            ..image(&path, RDWR)
        };
        let client = graph.open_held(guessed, holder()).await.unwrap();
        let refused = Err(IoError::NotPermitted);
        assert_eq!(write(&client, 0, b"QFI\xfb\0\0\0\x03").await, refused);
        assert_eq!(
            write(&client, 0, &[b"QFI\xfb".as_slice(), &[0; 4092]].concat()).await,
            refused
        );
        assert_eq!(write(&client, 0, b"QF").await, Ok(()));
        assert_eq!(write(&client, 2, b"I\xfb").await, refused);
        assert_eq!(write(&client, 0, &[0; 512]).await, Ok(()));
        assert_eq!(write(&client, 1, b"FI\xfb").await, Ok(()));
        assert_eq!(write(&client, 0, b"Q").await, refused);
        // Zeroes may be what a magic number lacks.
        assert_eq!(write(&client, 0, b"QEDx").await, Ok(()));
        assert_eq!(client.write_zeroes(3, 1, RequestFlags::empty()).await, refused);
        assert_eq!(client.write_zeroes(0, 4096, RequestFlags::empty()).await, Ok(()));
        assert_eq!(
            write(&client, 0, b"# Disk DescriptorFile\nversion=1\n").await,
            refused
        );
        // Elsewhere anything goes, and what was refused has left nothing behind.
        assert_eq!(write(&client, 512, b"QFI\xfb").await, Ok(()));
        let flags = RequestFlags::SERIALISING;
        let (result, _) = client.write(100, Buffers::zeroed(5000), flags).await;
        result.unwrap();
        assert_eq!(read(&client, 0).await, 0);
        graph.detach(client.root()).await.unwrap();
        let named = with_options(image(&path, RDWR), json!({"driver": "raw"}));
        let client = graph.open_held(named, holder()).await.unwrap();
        assert_eq!(
            write(&client, 0, b"QFI\xfb").await,
            Ok(()),
            "a format that was named is believed"
        );
    });
}

#[test]
fn a_guessed_image_is_guarded_below_other_nodes_too() {
    with_graph(|graph, directory| async move {
        let path = raw(&directory, "disk", 0);
        let nested = json!({"driver": "raw", "file": "guessed"});
        let guessed = with_options(image(&path, RDWR), json!({"node-name": "guessed"}));
        graph
            .open(OpenImage {
                probing: Probing::Always,
                ..guessed
            })
            .await
            .unwrap();
        let above = OpenImage {
            flags: RDWR,
            ..OpenImage::default()
        };
        let client = graph
            .open_held(with_options(above, nested), holder())
            .await
            .unwrap();
        assert_eq!(write(&client, 0, b"QFI\xfb").await, Err(IoError::NotPermitted));
        assert_eq!(write(&client, 0, b"ok").await, Ok(()));
    });
}

#[test]
fn backing_files_are_opened_by_the_names_and_options_there_are() {
    with_graph(|graph, directory| async move {
        let sub = directory.join("sub");
        std::fs::create_dir(&sub).unwrap();
        raw(&sub, "base", 9);
        raw(&directory, "other", 8);
        let top = sub.join("top");
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-u",
            "-b",
            "base",
            "-F",
            "raw",
            top.to_str().unwrap(),
            "1M",
        ]);
        assert_eq!(
            first_byte(&graph, image(&top, READ)).await,
            9,
            "relative to the overlay"
        );
        let other = directory.join("other");
        let other = json!({"backing.driver": "raw", "backing.file.filename": other});
        assert_eq!(
            first_byte(&graph, with_options(image(&top, READ), other)).await,
            8
        );
        // How to open it, but not which: that is what the image says.
        let how = with_options(
            image(&top, READ),
            json!({"backing.node-name": "b", "node-name": "t"}),
        );
        assert_eq!(graph.open(how).await.unwrap(), "t");
        assert_eq!(graph.node("b").await.unwrap().driver, "raw");
        let directory = format!("{}/", sub.display());
        assert_eq!(
            graph
                .ask(FindDirectory {
                    node_name: "t".to_owned()
                })
                .await
                .unwrap(),
            directory
        );
        assert_eq!(
            graph
                .ask(FindDirectory {
                    node_name: "b".to_owned()
                })
                .await
                .unwrap(),
            directory
        );
        let null = with_options(
            OpenImage::default(),
            json!({"driver": "null-co", "node-name": "n", "size": 512}),
        );
        graph.open(null).await.unwrap();
        let none = graph
            .ask(FindDirectory {
                node_name: "n".to_owned(),
            })
            .await
            .unwrap_err()
            .to_string();
        assert_eq!(none, "Cannot generate a base directory for null-co nodes");
    });
}

#[test]
fn names_in_images_are_followed_only_where_that_is_allowed() {
    with_policy(ImplicitOpens::Deny, |graph, directory| async move {
        raw(&directory, "base", 9);
        let top = directory.join("top");
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-u",
            "-b",
            "base",
            "-F",
            "raw",
            top.to_str().unwrap(),
            "1M",
        ]);
        let text = error(&graph, image(&top, READ)).await;
        assert!(text.contains("is not allowed"), "{text}");
        let how = with_options(image(&top, READ), json!({"backing.read-only": true}));
        assert!(error(&graph, how).await.contains("is not allowed"));
        assert_eq!(first_byte(&graph, image(&top, OpenFlags::NO_BACKING)).await, 0);
        let (split, data) = split_image(&directory);
        let text = error(&graph, image(&split, READ)).await;
        assert!(text.contains("is not allowed"), "{text}");
        let given = json!({"data-file": {"driver": "file", "filename": data}});
        assert_eq!(
            first_byte(&graph, with_options(image(&split, READ), given)).await,
            0
        );
    });
}

#[test]
fn an_opener_without_no_share_lets_others_write() {
    with_graph(|graph, directory| async move {
        let path = raw(&directory, "disk", 1);
        let open = |flags| with_options(image(&path, flags), json!({"driver": "raw", "node-name": "d"}));
        let write = Permissions::WRITE;
        let client = graph.open_held(open(RDWR), holder()).await.unwrap();
        let second = graph.attach(user("d", write, Permissions::all())).await.unwrap();
        graph.detach(second.root()).await.unwrap();
        graph.detach(client.root()).await.unwrap();
        let client = graph
            .open_held(open(RDWR | OpenFlags::NO_SHARE), holder())
            .await
            .unwrap();
        for taken in [write, Permissions::RESIZE] {
            let refused = refused(&graph, user("d", taken, Permissions::all())).await;
            assert_eq!(refused.kind(), ErrorKind::Permission, "{refused}");
        }
        let reader = graph
            .attach(user("d", Permissions::CONSISTENT_READ, Permissions::all()))
            .await
            .unwrap();
        graph.detach(reader.root()).await.unwrap();
        graph.detach(client.root()).await.unwrap();
    });
}

#[test]
fn an_opener_may_write_with_rdwr_and_resize_with_resize() {
    with_graph(|graph, directory| async move {
        let path = raw(&directory, "disk", 1);
        let open = |flags| with_options(image(&path, flags), json!({"driver": "raw", "node-name": "d"}));
        let resize = async |client: &Client| {
            let (size, exact) = (2 << 20, true);
            let (preallocation, flags) = (Preallocation::Off, RequestFlags::empty());
            let resize = Operation::Truncate {
                size,
                exact,
                preallocation,
                flags,
            };
            client.request(resize).await.result.map(drop)
        };
        let client = graph.open_held(open(READ), holder()).await.unwrap();
        assert_eq!(write(&client, 0, b"x").await, Err(IoError::NotPermitted));
        graph.detach(client.root()).await.unwrap();
        let client = graph.open_held(open(RDWR), holder()).await.unwrap();
        assert_eq!(write(&client, 0, b"x").await, Ok(()));
        assert!(resize(&client).await.is_err(), "nobody said that it would resize");
        graph.detach(client.root()).await.unwrap();
        let client = graph
            .open_held(open(RDWR | OpenFlags::RESIZE), holder())
            .await
            .unwrap();
        resize(&client).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 << 20);
    });
}

fn temporaries() -> Vec<String> {
    let links = std::fs::read_dir("/proc/self/fd").expect(WELL);
    let names = links.filter_map(|link| std::fs::read_link(link.expect(WELL).path()).ok());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name.contains("/vl."))
        .collect()
}

#[test]
fn a_snapshot_takes_the_writes_and_goes() {
    with_graph(|graph, directory| async move {
        let path = raw(&directory, "disk", 1);
        let flags = RDWR | OpenFlags::SNAPSHOT;
        let open = with_options(image(&path, flags), json!({"node-name": "disk"}));
        let client = graph.open_held(open, holder()).await.unwrap();
        assert_eq!(write(&client, 0, b"x").await, Ok(()));
        assert_eq!((read(&client, 0).await, read(&client, 1).await), (b'x', 1));
        assert!(graph.node("disk").await.unwrap().read_only);
        let open_files = temporaries();
        assert_eq!(open_files.len(), 1);
        assert!(open_files[0].ends_with(" (deleted)"), "{open_files:?}");
        let overlay = graph.facts().await.unwrap();
        let overlay = overlay.nodes.iter().find(|node| node.driver == "qcow2").unwrap();
        assert!(overlay.flags.contains(OpenFlags::TEMPORARY | OpenFlags::NO_FLUSH));
        graph.detach(client.root()).await.unwrap();
        assert_eq!(graph.facts().await.unwrap().nodes, []);
        assert_eq!(temporaries(), [""; 0]);
        assert_eq!(std::fs::read(&path).unwrap(), vec![1; 1 << 20]);
        let open = image(&path, OpenFlags::SNAPSHOT);
        let client = graph.open_held(open, holder()).await.unwrap();
        assert_eq!(
            write(&client, 0, b"x").await,
            Err(IoError::NotPermitted),
            "a reader's overlay is read-only"
        );
    });
}

#[test]
fn a_temporary_file_is_deleted_as_it_is_opened() {
    with_graph(|graph, directory| async move {
        let (disk, base) = (directory.join("top"), raw(&directory, "base", 3));
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            base.to_str().unwrap(),
            "-F",
            "raw",
            disk.to_str().unwrap(),
        ]);
        let open = image(&disk, OpenFlags::TEMPORARY);
        let client = graph.open_held(open, holder()).await.unwrap();
        assert!(!disk.exists());
        assert!(base.exists(), "only the image itself is temporary");
        assert_eq!(read(&client, 0).await, 3);
    });
}

#[test]
fn no_backing_leaves_the_backing_file_alone() {
    with_graph(|graph, directory| async move {
        let top = directory.join("top");
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-u",
            "-b",
            "/nowhere",
            "-F",
            "raw",
            top.to_str().unwrap(),
            "1M",
        ]);
        assert!(
            error(&graph, image(&top, READ))
                .await
                .starts_with("Could not open backing file")
        );
        assert_eq!(first_byte(&graph, image(&top, OpenFlags::NO_BACKING)).await, 0);
    });
}

#[test]
fn cache_flags_reach_the_file_whatever_option_or_flag_says_so() {
    with_graph(|graph, directory| async move {
        let path = qcow2(&directory, "disk");
        let cases = [
            (OpenFlags::NO_FLUSH, json!({}), OpenFlags::NO_FLUSH),
            (READ, json!({"cache.no-flush": true}), OpenFlags::NO_FLUSH),
            (OpenFlags::NO_FLUSH, json!({"cache": {"no-flush": false}}), READ),
            (OpenFlags::NOCACHE, json!({}), OpenFlags::NOCACHE),
            (OpenFlags::NOCACHE, json!({"cache.direct": "off"}), READ),
        ];
        for (flags, json, expected) in cases {
            let mut json = options(json);
            json.insert("driver".to_owned(), "qcow2".into());
            json.insert("file.node-name".to_owned(), "f".into());
            let open = OpenImage {
                options: json,
                ..image(&path, flags)
            };
            let name = graph.open(open).await.unwrap();
            for node in [&name, "f"] {
                let found = graph.node(node).await.unwrap().flags;
                assert_eq!(
                    found & (OpenFlags::NO_FLUSH | OpenFlags::NOCACHE),
                    expected,
                    "{node}"
                );
            }
            graph.delete_node(name).await.unwrap();
        }
    });
}

#[test]
fn an_inactive_image_is_not_written_to_nor_locked() {
    with_graph(|graph, directory| async move {
        let path = qcow2(&directory, "disk");
        let open = with_options(
            image(&path, RDWR | OpenFlags::INACTIVE),
            json!({"driver": "qcow2"}),
        );
        let name = graph.open(open).await.unwrap();
        let facts = graph.node(name.clone()).await.unwrap();
        assert!(facts.flags.contains(OpenFlags::INACTIVE) && !facts.read_only);
        // Whoever has the image now can use it.
        let path = path.to_str().unwrap();
        let status = Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", "write 0 4k", path])
            .output()
            .unwrap();
        assert!(status.status.success(), "{status:?}");
        let refused = refused(&graph, user(&name, Permissions::WRITE, Permissions::all())).await;
        assert_eq!(
            refused.to_string(),
            "Permission 'write' unavailable on inactive node"
        );
    });
}

#[test]
fn a_corrupt_image_is_opened_for_writing_only_to_be_checked() {
    use std::os::unix::fs::FileExt;
    with_graph(|graph, directory| async move {
        let path = qcow2(&directory, "disk");
        // The bit that marks an image as corrupt.
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all_at(&[2], 79)
            .unwrap();
        let open = |flags| with_options(image(&path, flags), json!({"driver": "qcow2", "node-name": "d"}));
        let text = error(&graph, open(RDWR)).await;
        assert_eq!(text, "qcow2: Image is corrupt; cannot be opened read/write");
        graph.open(open(RDWR | OpenFlags::CHECK)).await.unwrap();
        assert!(graph.node("d").await.unwrap().flags.contains(OpenFlags::CHECK));
    });
}

/// An image with its data in another file.
fn split_image(directory: &Path) -> (PathBuf, PathBuf) {
    let (split, data) = (directory.join("split"), directory.join("data"));
    let option = format!("data_file={}", data.display());
    let path = split.to_str().expect("it is text");
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &option, path, "1M"]);
    (split, data)
}

#[test]
fn a_node_without_io_leaves_the_data_file_alone() {
    with_graph(|graph, directory| async move {
        let (split, data) = split_image(&directory);
        std::fs::remove_file(&data).unwrap();
        let text = error(&graph, image(&split, READ)).await;
        assert!(text.ends_with("No such file or directory"), "{text}");
        let open = with_options(image(&split, OpenFlags::NO_IO), json!({"node-name": "d"}));
        graph.open_held(open, holder()).await.unwrap();
        assert_eq!(graph.node("d").await.unwrap().size, 1 << 20);
    });
}

#[test]
fn a_node_without_io_has_no_users() {
    with_graph(|graph, directory| async move {
        let path = qcow2(&directory, "disk");
        let open = with_options(
            image(&path, OpenFlags::NO_IO),
            json!({"node-name": "d", "file.node-name": "f"}),
        );
        let client = graph.open_held(open, holder()).await.unwrap();
        let (result, _) = client.read(0, Buffers::zeroed(512)).await;
        assert_eq!(result, Err(IoError::NotPermitted));
        assert_eq!(
            graph.node("d").await.unwrap().size,
            1 << 20,
            "metadata is read all the same"
        );
        assert!(!graph.node("f").await.unwrap().flags.contains(OpenFlags::NO_IO));
        let taken = Permissions::CONSISTENT_READ;
        let refused = refused(&graph, user("d", taken, Permissions::all())).await;
        assert_eq!(refused.to_string(), "Node 'd' was opened without I/O");
    });
}

#[test]
fn a_reopen_for_writing_needs_allow_rdwr() {
    with_graph(|graph, directory| async move {
        let path = raw(&directory, "disk", 1);
        let open = |name: &str, flags| {
            with_options(image(&path, flags), json!({"driver": "raw", "node-name": name}))
        };
        graph.open(open("fixed", READ)).await.unwrap();
        let refused = graph
            .ask(SetReadOnly {
                node_name: "fixed".to_owned(),
                read_only: false,
            })
            .await
            .unwrap_err();
        assert_eq!(
            (refused.kind(), refused.to_string().as_str()),
            (ErrorKind::ReadOnly, "Node 'fixed' is read only")
        );
        graph.delete_node("fixed").await.unwrap();
        for flags in [OpenFlags::ALLOW_RDWR, RDWR] {
            graph.open(open("free", flags)).await.unwrap();
            graph
                .ask(SetReadOnly {
                    node_name: "free".to_owned(),
                    read_only: true,
                })
                .await
                .unwrap();
            assert!(graph.node("free").await.unwrap().read_only);
            graph
                .ask(SetReadOnly {
                    node_name: "free".to_owned(),
                    read_only: false,
                })
                .await
                .unwrap();
            assert!(!graph.node("free").await.unwrap().read_only);
            graph.delete_node("free").await.unwrap();
        }
    });
}

#[test]
fn requests_reach_the_graph_actor_as_messages_too() {
    with_graph(|graph, directory| async move {
        let path = raw(&directory, "disk", 1);
        let request = Open(Box::new(image(&path, READ)));
        let name: String = graph.ask(request).await.unwrap();
        assert!(graph.find(&name).is_some());
    });
}

fn qemu_io(arguments: &[&str]) {
    let output = Command::new("qemu-io").args(arguments).output().expect(WELL);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn flush_all_brings_to_the_file_what_was_only_cached() {
    with_graph(|graph, directory| async move {
        let path = qcow2(&directory, "disk");
        let client = graph
            .open_held(
                with_options(image(&path, RDWR), json!({"driver": "qcow2"})),
                holder(),
            )
            .await
            .unwrap();
        write(&client, 0, &[7; 512]).await.unwrap();
        let path = path.to_str().unwrap();
        qemu_io(&["-U", "-r", "-f", "qcow2", "-c", "read -P 0 0 512", path]);
        graph.flush_all().await.unwrap();
        qemu_io(&["-U", "-r", "-f", "qcow2", "-c", "read -P 7 0 512", path]);
    });
}

#[test]
fn metadata_that_was_invalidated_is_read_again() {
    with_graph(|graph, directory| async move {
        let path = qcow2(&directory, "disk");
        let shared = json!({"driver": "qcow2", "node-name": "d", "force-share": true, "file.locking": "off"});
        let client = graph
            .open_held(with_options(image(&path, READ), shared), holder())
            .await
            .unwrap();
        assert_eq!(read(&client, 0).await, 0);
        qemu_io(&["-f", "qcow2", "-c", "write -P 7 0 512", path.to_str().unwrap()]);
        assert_eq!(read(&client, 0).await, 0, "the table that says so is cached");
        graph
            .ask(InvalidateCache {
                node_name: "d".to_owned(),
            })
            .await
            .unwrap();
        graph
            .ask(InvalidateCache {
                node_name: "nope".to_owned(),
            })
            .await
            .unwrap_err();
        assert_eq!(graph.node("d").await.unwrap().size, 1 << 20);
        assert_eq!(read(&client, 0).await, 7);
    });
}

#[test]
fn what_reads_as_zeroes_from_the_start_is_known_through_raw_and_not_below_an_overlay() {
    with_graph(|graph, directory| async move {
        let (plain, format) = (raw(&directory, "raw", 0), qcow2(&directory, "qcow2"));
        let top = directory.join("top");
        let back = format!("{}", format.display());
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            &back,
            "-F",
            "qcow2",
            top.to_str().unwrap(),
        ]);
        let file = json!({"driver": "file"});
        for (path, json, expected) in [
            (&plain, file, true),
            (&plain, json!({"driver": "raw"}), true),
            (&plain, json!({"driver": "raw", "offset": 512}), true),
            (&format, json!({}), true),
            (&top, json!({}), false),
            (&top, json!({"backing": null}), true),
        ] {
            let name = graph.open(with_options(image(path, READ), json)).await.unwrap();
            assert_eq!(
                graph.node(name).await.unwrap().has_zero_init,
                expected,
                "{}",
                path.display()
            );
        }
    });
}
