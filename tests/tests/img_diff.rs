//! `millpond img diff`, `du` and `bench`: what is told of images that QEMU's tools have made.

use std::path::Path;

use millpond_tests::program::millpond;
use millpond_tests::tool::{Run, try_run};
use millpond_tests::tools::Both;
use serde_json::{Value, json};

/// A chain of three images of different lengths.
fn chain() -> Both {
    let both = Both::new();
    both.prepare("qemu-img create -q -f raw base 1M");
    both.write_image("raw", "base", &["write -P 1 0 64k", "write -P 9 640k 64k"]);
    both.prepare("qemu-img create -q -f qcow2 -b base -F raw mid");
    both.write_image("qcow2", "mid", &["write -P 3 128k 64k", "write -P 1 0 64k"]);
    both.prepare("qemu-img create -q -f qcow2 -b mid -F qcow2 top 2M");
    both.write_image(
        "qcow2",
        "top",
        &["write -P 4 128k 64k", "write -P 5 1536k 64k", "write -z 640k 64k"],
    );
    both.prepare("qemu-img snapshot -c one top");
    both.write_image("qcow2", "top", &["write -P 6 256k 64k"]);
    both
}

/// Our image tool with these words, which may have the names of images of a folder.
fn img(folder: &Path, line: &str) -> Run {
    let words = line.split_whitespace().map(|word| {
        let path = folder.join(word);
        if path.exists() {
            path.display().to_string()
        } else {
            word.to_owned()
        }
    });
    let words: Vec<String> = ["img".to_owned()].into_iter().chain(words).collect();
    try_run(&millpond().display().to_string(), &words)
}

fn changes(folder: &Path, line: &str) -> Vec<(u64, u64, bool)> {
    let run = img(folder, &format!("diff --output json {line}"));
    let list: Value = serde_json::from_str(&run.stdout).expect("JSON");
    let list = list.as_array().expect("a list");
    assert_eq!(
        run.code,
        Some(i32::from(!list.is_empty())),
        "{line}: {}",
        run.stderr
    );
    let number = |change: &Value, name: &str| change[name].as_u64().expect("a number") >> 10;
    let told = list.iter().map(|change| {
        let is_zero = change["zero"].as_bool().expect("a truth");
        (number(change, "start"), number(change, "length"), is_zero)
    });
    told.collect()
}

#[test]
fn an_overlay_differs_where_something_was_written_to_it() {
    let both = chain();
    let folder = both.ours();
    let written = [
        (128, 64, false),
        (256, 64, false),
        (640, 64, true),
        (1536, 64, false),
    ];
    assert_eq!(changes(&folder, "mid top"), written);
    // What was written to the image between, and did not change it, counts too, unless the data is looked at.
    let two = [
        (0, 64, false),
        (128, 64, false),
        (256, 64, false),
        (640, 64, true),
        (1536, 64, false),
    ];
    assert_eq!(changes(&folder, "base top"), two);
    assert_eq!(changes(&folder, "--exact base top"), written);
    assert_eq!(changes(&folder, "--exact base mid"), [(128, 64, false)]);
    assert_eq!(changes(&folder, "top top"), []);
}

#[test]
fn images_that_do_not_stand_on_each_other_are_read() {
    let both = chain();
    let folder = both.ours();
    both.prepare("qemu-img convert top flat");
    assert_eq!(changes(&folder, "top flat"), []);
    let shrunk = [
        (128, 64, true),
        (256, 64, true),
        (640, 64, false),
        (1536, 64, true),
    ];
    assert_eq!(changes(&folder, "flat base"), shrunk);
    assert_eq!(changes(&folder, "--a-snapshot one top top"), [(256, 64, false)]);
    assert_eq!(changes(&folder, "--b-snapshot 1 top top"), [(256, 64, true)]);
    let run = img(&folder, "diff base top");
    assert!(
        run.stdout.contains("0xa0000         0x10000         zero\n"),
        "{}",
        run.stdout
    );
    for line in [
        "base",
        "base nosuch",
        "--output x base top",
        "--a-snapshot x top top",
    ] {
        assert_eq!(
            img(&folder, &format!("diff {line}")).code,
            Some(if line.starts_with("--o") { 1 } else { 2 })
        );
    }
}

#[test]
fn each_image_of_a_chain_tells_what_it_holds() {
    let both = chain();
    let run = img(&both.ours(), "du --output json top");
    let mut layers: Value = serde_json::from_str(&run.stdout).expect("JSON");
    for layer in layers.as_array_mut().expect("a list") {
        let layer = layer.as_object_mut().expect("an object");
        assert!(layer.remove("on-host").expect("told").as_u64() > Some(0));
        layer.remove("filename").expect("told");
    }
    let kib = |held: u64, shown: u64, twice: u64, format: &str| json!({"format": format, "held": held << 10, "shown": shown << 10, "held-twice": twice << 10});
    let expected = json!([
        kib(192, 192, 64, "qcow2"),
        kib(128, 64, 64, "qcow2"),
        kib(128, 64, 0, "raw")
    ]);
    assert_eq!(layers, expected);
    let run = img(&both.ours(), "du top");
    assert_eq!(run.stdout.lines().count(), 4, "{}", run.stdout);
}

#[test]
fn a_benchmark_takes_qemus_options_and_writes_what_it_says() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f raw disk 1M");
    let untimed = |text: String| {
        let lines = text
            .lines()
            .map(|line| match line.strip_prefix("Run completed in ") {
                Some(_) => "Run completed",
                None => line,
            });
        lines.collect::<Vec<_>>().join("\n")
    };
    for line in [
        "",
        "disk disk",
        "nofile",
        "-c x disk",
        "-c 0 disk",
        "-d 0 disk",
        "-s 3G disk",
        "-S x disk",
        "-o x disk",
        "-i foo disk",
        "-t foo disk",
        "-n -c 10 disk",
        "-w --pattern 300 disk",
        "--flush-interval=2 disk",
        "-w -d 4 --flush-interval=2 disk",
        "-s 2M -c 1 disk",
        "-c 10 -d 2 -s 4k disk",
        "-q -c 10 --no-drain disk",
        "-f raw -c 100 -d 4 -w --pattern 7 -S 3k -o 1k disk",
        "-f raw -c 10 -d 2 -w --flush-interval=3 --no-drain disk",
        "-f raw -c 20 -d 2 -w --flush-interval=2 -t none -i io_uring disk",
    ] {
        both.same_but_for(&format!("qemu-img bench {line}"), untimed);
        both.assert_same_bytes("disk");
    }
}
