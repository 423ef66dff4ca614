//! Edits of chains of real images: what QEMU's tools find in the files afterwards.

use std::future::Future;
use std::path::Path;
use std::process::Command;

use millpond::graph::{Graph, GraphConfig, GraphHandle, ImplicitOpens, system_iothreads};
use millpond::node::Client;
use millpond_drivers::builtin::builtin;
use millpond_messages::graph::{
    Amend, ChainContains, Commit, DropIntermediate, FindBackingImage, GraphFacts, IothreadOptions, MakeEmpty,
    Options, RecordBackingFile, RootRequest, RootUser,
};
use millpond_messages::{ErrorKind, Permissions, RequestFlags};
use millpond_ring::Engine;
use millpond_ring::buffer::Buffers;
use serde_json::{Value, json};

/// What stands behind every expectation of the helpers: the tests' own input is well-formed, and tools print what they should.
const WELL_FORMED: &str = "the test's own input and what tools print are well-formed";
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const READ_WRITE: Permissions = Permissions::CONSISTENT_READ.union(Permissions::WRITE);

/// Runs a test against a graph of its own, which is closed afterwards.
fn with_graph<F: Future<Output = ()>>(test: impl FnOnce(GraphHandle) -> F) {
    actix_rt::System::new().block_on(async {
        let config = GraphConfig {
            registry: builtin(),
            implicit: ImplicitOpens::Allow,
            iothreads: system_iothreads(Engine::Auto),
            main: IothreadOptions::named("main"),
        };
        let (_, graph) = Graph::start(config).expect("an iothread can be started");
        test(graph.clone()).await;
        graph.close_all().await.expect("everything closes");
    });
}

/// Images in a directory of their own.
struct Images(tempfile::TempDir);

impl Images {
    fn new() -> Self {
        Self(tempfile::tempdir().expect(WELL_FORMED))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect(WELL_FORMED).to_owned()
    }

    /// Runs a tool of QEMU in the directory; answers what it printed.
    #[track_caller]
    fn tool(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program)
            .current_dir(self.0.path())
            .args(arguments)
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}: install the package qemu-utils"));
        let printed = String::from_utf8(output.stdout).expect(WELL_FORMED);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {printed}{errors}"
        );
        printed
    }

    #[track_caller]
    fn img(&self, line: &str) -> String {
        self.tool("qemu-img", &line.split_whitespace().collect::<Vec<_>>())
    }

    /// Fills a range of an image with a byte.
    #[track_caller]
    fn fill(&self, name: &str, pattern: u8, offset: u64, len: u64) {
        let write = format!("write -P {pattern} {offset} {len}");
        self.tool("qemu-io", &["-c", &write, name]);
    }

    /// What an image shows, its backing files included.
    #[track_caller]
    fn content(&self, name: &str) -> Vec<u8> {
        self.img(&format!("convert -O raw {name} content.raw"));
        std::fs::read(self.0.path().join("content.raw")).expect(WELL_FORMED)
    }

    #[track_caller]
    fn info(&self, name: &str) -> Value {
        serde_json::from_str(&self.img(&format!("info --output=json {name}"))).expect(WELL_FORMED)
    }

    /// `base.qcow2` <- `low.qcow2` <- `mid.qcow2` <- `top.qcow2`, each with data of its own over that of the one below.
    fn chain() -> Self {
        let images = Self::new();
        images.img("create -q -f qcow2 base.qcow2 4M");
        images.fill("base.qcow2", 1, 0, 4 * MIB);
        for (name, below, pattern) in [("low", "base", 2), ("mid", "low", 3), ("top", "mid", 4)] {
            images.img(&format!(
                "create -q -f qcow2 -F qcow2 -b {below}.qcow2 {name}.qcow2"
            ));
            let offset = u64::from(pattern) * 512 * KIB;
            images.fill(&format!("{name}.qcow2"), pattern, offset, 600 * KIB);
        }
        images
    }

    async fn add(&self, graph: &GraphHandle, name: &str, more: Value) {
        let file = json!({"driver": "file", "filename": self.path(&format!("{name}.qcow2"))});
        let mut node = object(json!({"driver": "qcow2", "node-name": name, "file": file}));
        node.extend(object(more));
        graph.add_node(node).await.expect(WELL_FORMED);
    }
}

fn object(json: Value) -> Options {
    match json {
        Value::Object(options) => options,
        other => panic!("not an object: {other}"),
    }
}

async fn attach(graph: &GraphHandle, node: &str, permissions: Permissions) -> Client {
    let request = RootRequest {
        node: node.to_owned(),
        user: RootUser::Export("e".to_owned()),
        permissions,
        shared: Permissions::all(),
        iothread: None,
        iothread_required: false,
        writethrough: false,
    };
    graph.attach(request).await.expect(WELL_FORMED)
}

async fn read(client: &Client, offset: u64, len: usize) -> Vec<u8> {
    let (result, buffers) = client.read(offset, Buffers::zeroed(len)).await;
    result.expect(WELL_FORMED);
    buffers.to_vec()
}

async fn write(client: &Client, offset: u64, pattern: u8, len: usize) {
    let mut buffers = Buffers::zeroed(len);
    buffers.copy_from_slice(0, &vec![pattern; len]);
    let (result, _) = client.write(offset, buffers, RequestFlags::empty()).await;
    result.expect(WELL_FORMED);
}

fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

#[test]
fn images_are_taken_out_of_a_chain_and_the_headers_say_so() {
    let images = Images::chain();
    let images = &images;
    with_graph(|graph| async move {
        for (name, more) in [
            ("base", json!({"read-only": true})),
            ("low", json!({"read-only": true, "backing": "base"})),
            ("mid", json!({"read-only": true, "backing": "low"})),
            ("top", json!({"backing": "mid"})),
        ] {
            images.add(&graph, name, more).await;
        }
        // What the images say that are taken out was copied into the top one by then.
        let client = attach(&graph, "top", READ_WRITE).await;
        write(&client, 0, 9, 4 * MIB as usize).await;
        // Read-only overlays are written to as well, and name the base as they are told.
        graph
            .ask(DropIntermediate {
                top: "low".to_owned(),
                base: "base".to_owned(),
                backing_file: Some("./base.qcow2".to_owned()),
            })
            .await
            .unwrap();
        assert!(graph.node("mid").await.unwrap().read_only);
        graph
            .ask(DropIntermediate {
                top: "mid".to_owned(),
                base: "base".to_owned(),
                backing_file: None,
            })
            .await
            .unwrap();
        assert!(
            graph
                .ask(ChainContains {
                    top: "top".to_owned(),
                    base: "base".to_owned()
                })
                .await
                .unwrap()
        );
        assert!(
            !graph
                .ask(ChainContains {
                    top: "top".to_owned(),
                    base: "mid".to_owned()
                })
                .await
                .unwrap()
        );
        assert_eq!(read(&client, 0, 4096).await, vec![9; 4096]);
        graph.detach(client.root()).await.unwrap();
    });
    assert!(images.content("top.qcow2").iter().all(|byte| *byte == 9));
    assert_eq!(
        images.info("top.qcow2")["backing-filename"],
        images.path("base.qcow2")
    );
    let mid = images.info("mid.qcow2");
    assert_eq!(
        (&mid["backing-filename"], &mid["backing-filename-format"]),
        (&json!("./base.qcow2"), &json!("qcow2"))
    );
    for name in ["base", "low", "mid", "top"] {
        images.img(&format!("check -q {name}.qcow2"));
    }
}

/// Images that hold nothing of their own can be taken out under a reader, who sees no difference.
#[test]
fn a_reader_sees_the_same_while_empty_images_are_taken_out() {
    let images = Images::chain();
    images.img("create -q -f qcow2 -F qcow2 -b top.qcow2 one.qcow2");
    images.img("create -q -f qcow2 -F qcow2 -b one.qcow2 two.qcow2");
    images.img("create -q -f qcow2 -F qcow2 -b two.qcow2 live.qcow2");
    let expected = &images.content("live.qcow2");
    let images = &images;
    with_graph(|graph| async move {
        images.add(&graph, "live", json!({})).await;
        let client = attach(&graph, "live", READ_WRITE).await;
        let chain = graph.facts().await.unwrap();
        let name = |filename: &str| {
            let top = "live".to_owned();
            let (graph, filename) = (graph.clone(), images.path(filename));
            async move {
                graph
                    .ask(FindBackingImage {
                        top: top.clone(),
                        filename: filename.clone(),
                    })
                    .await
                    .unwrap()
                    .unwrap()
                    .name
            }
        };
        let (two, top) = (name("two.qcow2").await, name("top.qcow2").await);
        graph
            .ask(DropIntermediate {
                top: two.clone(),
                base: top.clone(),
                backing_file: Some("top.qcow2".to_owned()),
            })
            .await
            .unwrap();
        // Two images went, each with its file: nobody else held them.
        assert_eq!(graph.facts().await.unwrap().nodes.len() + 4, chain.nodes.len());
        assert!(
            read(&client, 0, 4 * MIB as usize).await == *expected,
            "other data"
        );
        graph.detach(client.root()).await.unwrap();
    });
    assert_eq!(images.info("live.qcow2")["backing-filename"], "top.qcow2");
    images.img("check -q live.qcow2");
    assert!(images.content("live.qcow2") == *expected, "other data");
}

#[test]
fn a_renamed_backing_file_is_found_under_its_new_name() {
    let images = Images::chain();
    let expected = images.content("top.qcow2");
    let images = &images;
    with_graph(|graph| async move {
        images.add(&graph, "top", json!({})).await;
        let low = images.path("low.qcow2");
        let low = graph
            .ask(FindBackingImage {
                top: "top".to_owned(),
                filename: low.clone(),
            })
            .await
            .unwrap()
            .unwrap();
        let base = images.path("base.qcow2");
        std::fs::rename(&base, images.path("moved.qcow2")).unwrap();
        graph
            .ask(RecordBackingFile {
                device: "top".to_owned(),
                image_node_name: low.name.clone(),
                backing_file: "moved.qcow2".to_owned(),
            })
            .await
            .unwrap();
        assert!(graph.node(&low.name).await.unwrap().read_only);
        assert!(!exists(&base));
    });
    assert_eq!(images.info("low.qcow2")["backing-filename"], "moved.qcow2");
    assert!(images.content("top.qcow2") == expected, "other data");
    images.img("check -q low.qcow2");
}

#[test]
fn a_commit_moves_data_down_and_empties_the_overlay() {
    let images = Images::chain();
    images.tool("qemu-io", &["-c", "write -z 1M 1M", "top.qcow2"]);
    let expected = &images.content("top.qcow2");
    let base = images.content("base.qcow2");
    let images = &images;
    with_graph(|graph| async move {
        images.add(&graph, "top", json!({})).await;
        let client = attach(&graph, "top", READ_WRITE).await;
        let before = graph.facts().await.unwrap();
        graph
            .ask(Commit {
                node_name: "top".to_owned(),
            })
            .await
            .unwrap();
        let after = graph.facts().await.unwrap();
        assert_eq!(after.edges, before.edges);
        let access = |facts: &GraphFacts| {
            let nodes = facts.nodes.iter();
            nodes
                .map(|node| (node.name.clone(), node.flags))
                .collect::<Vec<_>>()
        };
        assert_eq!(access(&after), access(&before));
        assert!(
            read(&client, 0, 4 * MIB as usize).await == *expected,
            "other data"
        );
        write(&client, 3 * MIB, 8, 4096).await;
        graph.detach(client.root()).await.unwrap();
    });
    for name in ["base", "low", "mid", "top"] {
        images.img(&format!("check -q {name}.qcow2"));
    }
    assert!(images.content("mid.qcow2") == *expected, "what was committed");
    assert!(images.content("base.qcow2") == base, "what is further below");
    let mut after = expected.clone();
    after[3 * MIB as usize..][..4096].fill(8);
    assert!(
        images.content("top.qcow2") == after,
        "what was written afterwards"
    );
    // Only the cluster that was written afterwards is the overlay's own, and what was freed is used for it.
    let map: Value = serde_json::from_str(&images.img("map --output=json top.qcow2")).unwrap();
    let own: Vec<u64> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|range| range["depth"] == 0)
        .map(|range| range["length"].as_u64().unwrap())
        .collect();
    assert_eq!(own, [64 * KIB]);
}

#[test]
fn a_commit_makes_a_shorter_backing_image_longer() {
    for (format, name) in [("qcow2", "short.qcow2"), ("raw", "short.raw")] {
        let images = Images::new();
        images.img(&format!("create -q -f {format} {name} 1M"));
        images.tool("qemu-io", &["-f", format, "-c", "write -P 1 0 1M", name]);
        images.img(&format!("create -q -f qcow2 -F {format} -b {name} long.qcow2 3M"));
        images.fill("long.qcow2", 2, 2 * MIB + 100 * KIB, 700 * KIB);
        let expected = images.content("long.qcow2");
        let images = &images;
        with_graph(|graph| async move {
            images.add(&graph, "long", json!({})).await;
            graph
                .ask(Commit {
                    node_name: "long".to_owned(),
                })
                .await
                .unwrap();
        });
        images.img("check -q long.qcow2");
        images.img(&format!("compare -q -f qcow2 -F {format} long.qcow2 {name}"));
        assert_eq!(images.info(name)["virtual-size"], 3 * MIB);
        assert!(images.content("long.qcow2") == expected, "other data");
    }
}

#[test]
fn an_emptied_image_shows_what_is_below_it() {
    let images = Images::chain();
    let expected = images.content("mid.qcow2");
    let images = &images;
    with_graph(|graph| async move {
        images.add(&graph, "top", json!({})).await;
        graph
            .ask(MakeEmpty {
                node_name: "top".to_owned(),
            })
            .await
            .unwrap();
        let null = json!({"driver": "null-co", "node-name": "n", "size": 65536});
        graph.add_node(object(null)).await.unwrap();
        let error = graph
            .ask(MakeEmpty {
                node_name: "n".to_owned(),
            })
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    });
    images.img("check -q top.qcow2");
    assert!(images.content("top.qcow2") == expected, "what is below");
}

/// What `qemu-img info` says of an image's format, the place of the file left out.
#[track_caller]
fn format_of(images: &Images, name: &str) -> Value {
    let info = images.info(name);
    json!([
        info["virtual-size"],
        info["format-specific"],
        info["backing-filename"],
        info["backing-filename-format"],
        info["dirty-flag"]
    ])
}

#[test]
fn an_amended_image_is_what_qemu_img_makes_of_it() {
    let cases = [
        ("compat=0.10", "compat=1.1"),
        ("compat=0.10", "compat=v3,lazy_refcounts=on,size=9M"),
        ("compat=1.1", "lazy_refcounts=on"),
        ("compat=1.1,lazy_refcounts=on", "lazy_refcounts=off"),
        ("compat=1.1,lazy_refcounts=on", "lazy_refcounts=off,size=2M"),
        ("compat=1.1", "size=20M"),
        ("compat=1.1", "compat=1.1,refcount_bits=16,data_file_raw=off"),
        ("compat=1.1,lazy_refcounts=on", "compat=0.10"),
        ("compat=1.1", "refcount_bits=1"),
        ("compat=1.1,cluster_size=512", "refcount_bits=64"),
        ("compat=1.1,cluster_size=512,refcount_bits=64", "refcount_bits=2"),
        ("compat=1.1,lazy_refcounts=on", "refcount_bits=8"),
        ("compat=0.10", "compat=1.1,refcount_bits=32,size=20M"),
        (
            "compat=0.10,backing_file=base.raw,backing_fmt=raw",
            "compat=1.1,backing_file=base.raw,backing_fmt=raw",
        ),
        ("compat=1.1,backing_file=base.raw,backing_fmt=raw", "compat=v2"),
    ];
    for (made, amended) in cases {
        let images = Images::new();
        images.img("create -q -f raw base.raw 4M");
        for name in ["ours", "qemus"] {
            images.img(&format!("create -q -f qcow2 -o {made} {name}.qcow2 4M"));
            images.fill(&format!("{name}.qcow2"), 5, 512 * KIB, MIB);
        }
        images.img(&format!("amend -f qcow2 -o {amended} qemus.qcow2"));
        let options: Options = amended
            .split(',')
            .filter_map(|option| option.split_once('='))
            .map(|(name, value)| (name.to_owned(), json!(value)))
            .collect();
        let ours = &images;
        with_graph(|graph| async move {
            ours.add(&graph, "ours", json!({})).await;
            let client = attach(&graph, "ours", READ_WRITE).await;
            write(&client, 0, 6, 64 * KIB as usize).await;
            client.flush().await.expect(WELL_FORMED);
            graph
                .ask(Amend {
                    force: false,
                    node_name: "ours".to_owned(),
                    options,
                })
                .await
                .expect(amended);
            let size = ours.info("qemus.qcow2")["virtual-size"].as_u64();
            assert_eq!(Some(graph.node("ours").await.unwrap().size), size, "{amended}");
            // It goes on being written to as it is now.
            write(&client, MIB, 7, 64 * KIB as usize).await;
            let zeroed = client
                .write_zeroes(MIB + 64 * KIB, 64 * KIB, RequestFlags::MAY_UNMAP)
                .await;
            zeroed.expect(WELL_FORMED);
            client.flush().await.expect(WELL_FORMED);
            if !amended.contains("lazy_refcounts=on") {
                // No refcount lags behind, so a crash now would leave nothing to mend.
                ours.img("check -U -q ours.qcow2");
            }
            graph.detach(client.root()).await.unwrap();
        });
        images.fill("qemus.qcow2", 6, 0, 64 * KIB);
        images.fill("qemus.qcow2", 7, MIB, 64 * KIB);
        images.tool("qemu-io", &["-c", "write -z -u 1088k 64k", "qemus.qcow2"]);
        images.img("check -q ours.qcow2");
        let case = format!("{made}, then {amended}");
        assert_eq!(
            format_of(&images, "ours.qcow2"),
            format_of(&images, "qemus.qcow2"),
            "{case}"
        );
        assert!(
            images.content("ours.qcow2") == images.content("qemus.qcow2"),
            "other data: {case}"
        );
    }
}

#[test]
fn what_qemu_img_does_not_amend_is_refused_in_its_words_and_changes_nothing() {
    let cases = [
        ("compat=1.1", "cluster_size=32k"),
        ("compat=1.1", "preallocation=metadata"),
        ("compat=1.1", "encryption=on"),
        ("compat=1.1", "encrypt.state=active"),
        ("compat=1.1", "compression_type=zstd"),
        ("compat=1.1", "extended_l2=on"),
        ("compat=1.1", "nonsense=1"),
        ("compat=1.1", "compat=0.9"),
        ("compat=1.1", "refcount_bits=3"),
        ("compat=0.10", "refcount_bits=8"),
        ("compat=1.1", "lazy_refcounts=maybe"),
        ("compat=0.10", "lazy_refcounts=on"),
        ("compat=1.1", "compat=0.10,lazy_refcounts=on"),
        ("compat=1.1,refcount_bits=8", "compat=0.10"),
        ("compat=1.1", "size=1000"),
        ("compat=1.1", "lazy_refcounts=on,size=1000"),
        ("compat=1.1", "size=x"),
        ("compat=1.1", "data_file=x"),
        ("compat=1.1", "data_file_raw=on"),
        ("compat=1.1", "backing_file=base.raw"),
        ("compat=1.1", "backing_fmt=raw"),
    ];
    for (made, amended) in cases {
        let images = Images::new();
        images.img(&format!("create -q -f qcow2 -o {made} top.qcow2 4M"));
        let before = std::fs::read(images.path("top.qcow2")).unwrap();
        std::fs::write(images.path("theirs.qcow2"), &before).unwrap();
        let options: Options = amended
            .split(',')
            .filter_map(|option| option.split_once('='))
            .map(|(name, value)| (name.to_owned(), json!(value)))
            .collect();
        let output = Command::new("qemu-img")
            .args(["amend", "-f", "qcow2", "-o", amended])
            .arg(images.path("theirs.qcow2"))
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stderr).unwrap();
        let said = printed
            .lines()
            .next()
            .unwrap()
            .trim_start_matches("qemu-img: ")
            .to_owned();
        let top = &images;
        with_graph(|graph| async move {
            top.add(&graph, "top", json!({})).await;
            let error = graph
                .ask(Amend {
                    force: false,
                    node_name: "top".to_owned(),
                    options,
                })
                .await
                .unwrap_err();
            assert_eq!(error.to_string(), said, "{amended}");
        });
        assert!(
            std::fs::read(images.path("top.qcow2")).unwrap() == before,
            "{amended}"
        );
    }
}

#[test]
fn an_upgraded_images_snapshots_know_the_length_of_the_disk() {
    let images = &Images::new();
    images.img("create -q -f qcow2 -o compat=0.10 old.qcow2 4M");
    images.img("snapshot -c s old.qcow2");
    with_graph(|graph| async move {
        images.add(&graph, "old", json!({})).await;
        let amend = Amend {
            force: false,
            node_name: "old".to_owned(),
            options: object(json!({"compat": "1.1", "size": 8 * MIB})),
        };
        graph.ask(amend).await.unwrap();
    });
    images.img("check old.qcow2");
    let length = |images: &Images| images.info("old.qcow2")["virtual-size"].clone();
    assert_eq!(length(images), 8 * MIB);
    images.img("snapshot -a s old.qcow2");
    assert_eq!(length(images), 4 * MIB);
}

#[test]
fn what_version_2_cannot_express_stays_version_3() {
    let images = &Images::new();
    for (name, options) in [("snapshots", "compat=1.1"), ("zstd", "compression_type=zstd")] {
        images.img(&format!("create -q -f qcow2 -o {options} {name}.qcow2 4M"));
    }
    images.img("snapshot -c s snapshots.qcow2");
    with_graph(|graph| async move {
        for (name, compat, text) in [
            (
                "snapshots",
                "0.10",
                "Internal snapshots prevent downgrade of image",
            ),
            (
                "zstd",
                "0.10",
                "Cannot downgrade an image with incompatible features 0x8 set",
            ),
        ] {
            images.add(&graph, name, json!({})).await;
            let wanted = object(json!({"compat": compat, "size": 8 * MIB}));
            let error = graph
                .ask(Amend {
                    force: false,
                    node_name: name.to_owned(),
                    options: wanted,
                })
                .await
                .unwrap_err();
            assert_eq!(
                (error.kind(), &*error.to_string()),
                (ErrorKind::Unsupported, text)
            );
        }
        let name = "read-only";
        let file = json!({"driver": "file", "filename": images.path("zstd.qcow2")});
        let node = json!({"driver": "qcow2", "node-name": name, "read-only": true, "file": file});
        graph.delete_node("zstd").await.unwrap();
        graph.add_node(object(node)).await.unwrap();
        assert!(
            graph
                .ask(Amend {
                    force: false,
                    node_name: name.to_owned(),
                    options: object(json!({"size": 0}))
                })
                .await
                .is_err()
        );
        let error = graph
            .ask(Amend {
                force: false,
                node_name: "nothing".to_owned(),
                options: Options::new(),
            })
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    });
    for name in ["snapshots", "zstd"] {
        images.img(&format!("check -q {name}.qcow2"));
        assert_eq!(
            images.info(&format!("{name}.qcow2"))["virtual-size"],
            4 * MIB,
            "{name}"
        );
    }
}

#[test]
fn zero_clusters_become_what_version_2_has() {
    let images = &Images::new();
    images.img("create -q -f raw base.raw 4M");
    images.tool("qemu-io", &["-f", "raw", "-c", "write -P 9 0 4M", "base.raw"]);
    for (name, more) in [("alone", ""), ("over", "-b base.raw -F raw")] {
        images.img(&format!(
            "create -q -f qcow2 -o cluster_size=4k {more} {name}.qcow2 4M"
        ));
        let file = format!("{name}.qcow2");
        images.fill(&file, 5, 512 * KIB, MIB);
        for command in ["write -z 1M 64k", "write -z -u 512k 8k", "write -z 3M 100k"] {
            images.tool("qemu-io", &["-c", command, &file]);
        }
        let before = images.content(&file);
        with_graph(|graph| async move {
            images.add(&graph, name, json!({})).await;
            let amend = Amend {
                force: false,
                node_name: name.to_owned(),
                options: object(json!({"compat": "0.10"})),
            };
            graph.ask(amend).await.expect(name);
        });
        images.img(&format!("check -q {file}"));
        assert_eq!(images.info(&file)["format-specific"]["data"]["compat"], "0.10");
        assert!(images.content(&file) == before, "other data: {name}");
    }
}

#[test]
fn refcounts_that_are_too_large_keep_their_width() {
    let images = &Images::new();
    images.img("create -q -f qcow2 -o refcount_bits=8,cluster_size=4k many.qcow2 1M");
    images.fill("many.qcow2", 5, 0, MIB);
    images.img("snapshot -c one many.qcow2");
    images.img("snapshot -c two many.qcow2");
    let before = std::fs::read(images.path("many.qcow2")).unwrap();
    let run = Command::new("qemu-img")
        .args(["amend", "-f", "qcow2", "-o", "refcount_bits=1"])
        .arg(images.path("many.qcow2"))
        .output()
        .unwrap();
    let theirs = String::from_utf8(run.stderr).unwrap();
    std::fs::write(images.path("many.qcow2"), &before).unwrap();
    with_graph(|graph| async move {
        images.add(&graph, "many", json!({})).await;
        let amend = |bits: u64| Amend {
            force: false,
            node_name: "many".to_owned(),
            options: object(json!({ "refcount_bits": bits })),
        };
        let error = graph.ask(amend(1)).await.unwrap_err().to_string();
        assert!(theirs.contains(&error), "{error}; QEMU says {theirs}");
        graph.ask(amend(2)).await.unwrap();
    });
    images.img("check -q many.qcow2");
    let bits = images.info("many.qcow2")["format-specific"]["data"]["refcount-bits"].clone();
    assert_eq!(bits, 2);
    images.img("snapshot -d one many.qcow2");
    images.img("check -q many.qcow2");
}
