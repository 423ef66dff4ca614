//! `millpond img commit`, `rebase` and `compare` beside `qemu-img`'s: the same words, and images with the same disk.

use std::fs::{self, File};
use std::process::Command;

use millpond_tests::tools::{Both, Side};

/// Both folders with a chain of three images of different lengths, and what it can be put on.
fn chain() -> Both {
    let both = Both::new();
    both.prepare("qemu-img create -q -f raw base 1M");
    both.write_image("raw", "base", &["write -P 1 4k 4k", "write -P 9 600k 8k"]);
    both.prepare("qemu-img create -q -f qcow2 -b base -F raw mid");
    both.write_image("qcow2", "mid", &["write -P 3 128k 64k", "write -z 576k 64k"]);
    both.prepare("qemu-img create -q -f qcow2 -b mid -F qcow2 top 2M");
    both.write_image("qcow2", "top", &["write -P 4 256k 64k", "write -P 5 1500k 64k"]);
    both.prepare("qemu-img create -q -f raw short 512k");
    both.write_image("raw", "short", &["write -P 2 4k 4k"]);
    both.prepare("qemu-img create -q -f raw long 3M");
    both.write_image("raw", "long", &["write -P 1 1536k 4k"]);
    both.prepare("qemu-img create -q -f qcow2 empty 1M");
    both.write("odd", &[7; 100_100]);
    both
}

fn assert_same_chain(both: &Both) {
    both.assert_same_image("raw", "base");
    both.assert_same_image("qcow2", "mid");
    both.assert_same_image("qcow2", "top");
}

/// The lines of `qemu-img info` about an image but for the room that it takes.
fn told(both: &Both, name: &str) {
    let without = |text: String| {
        let lines = text.lines().map(str::to_owned);
        let lines = lines.filter(|line| !line.contains("disk size") && !line.contains("file length"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let info = |folder: std::path::PathBuf| {
        let image = folder.join(name).display().to_string();
        let text = millpond_tests::tool::run("qemu-img", &["info", &image]);
        without(text).replace(&folder.display().to_string(), "")
    };
    assert_eq!(info(both.ours()), info(both.theirs()), "{name}");
}

#[test]
fn an_overlay_is_committed_as_qemu_does() {
    let both = chain();
    for line in [
        "",
        "a b",
        "-f raw base",
        "base",
        "nofile",
        "empty",
        "-b foo top",
        "-t foo top",
        "-r x top",
        "--foo top",
        "-r 100M top",
        "top",
        "-q mid",
        "--image-opts driver=qcow2,file.filename=mid",
    ] {
        both.same(&format!("qemu-img commit {line}"));
        assert_same_chain(&both);
        told(&both, "top");
    }
}

#[test]
fn an_overlay_that_is_dropped_keeps_what_it_has() {
    for line in [
        "-d top",
        "-b mid top",
        "-b base top",
        "-b base -d top",
        "-d -b top top",
    ] {
        let both = chain();
        both.same(&format!("qemu-img commit {line}"));
        assert_same_chain(&both);
        let map = |folder: std::path::PathBuf| {
            let image = folder.join("top").display().to_string();
            millpond_tests::tool::run_json("qemu-img", &["map", "--output=json", &image])
                .as_array()
                .map(|extents| {
                    let kept = extents.iter().filter(|extent| extent["depth"] == 0);
                    kept.map(|extent| extent["start"].clone()).collect::<Vec<_>>()
                })
        };
        assert_eq!(map(both.ours()), map(both.theirs()), "{line}");
    }
}

#[test]
fn an_overlay_shows_the_same_on_another_backing_image() {
    let both = chain();
    for line in [
        "",
        "top",
        "-b long mid",
        "-b long -F raw mid",
        "-p -b base -F raw mid",
        "-p -b long -F raw top",
        "-u -b mid -F qcow2 top",
        "-b base -F raw top",
        "-b base -F raw base",
        "-u -b base mid",
        "-u -b nofile -F raw mid",
        "-b base -F raw mid",
        "-u -b base -F foo mid",
        "-u -b base -F raw mid",
        "-b nofile -F raw mid",
        "-b base -F foo mid",
        "-b base -f foo mid",
        "-t foo -b base mid",
        "-T foo -b base mid",
        "-c -u -b base -F raw mid",
        "-c -b short -F raw mid",
        "-B x mid",
        "nofile -b x",
        "-b short -F raw top",
        "-u top",
        "-q -p -u -b mid -F qcow2 top",
    ] {
        both.same(&format!("qemu-img rebase {line}"));
        both.assert_same_image("raw", "base");
        told(&both, "top");
        told(&both, "mid");
    }
    assert_same_chain(&both);
    both.same_words(&["qemu-img", "rebase", "-b", "", "top"], |text| text);
    assert_same_chain(&both);
    told(&both, "top");
}

#[test]
fn images_of_any_length_are_compared_as_qemu_does() {
    let both = chain();
    for line in [
        "",
        "base",
        "base mid top",
        "base base",
        "-p base base",
        "-q base short",
        "base short",
        "-p short base",
        "-f raw -F raw base mid",
        "-f raw -F qcow2 base mid",
        "-s -f raw -F qcow2 base mid",
        "empty base",
        "short long",
        "-s short long",
        "-p short long",
        "-p long short",
        "-p long base",
        "nofile base",
        "base nofile",
        "-T foo base base",
        "-f foo base base",
        "-x base base",
        "--object foo base base",
        "--image-opts -f raw base base",
        "--image-opts driver=raw,file.filename=base driver=qcow2,file.filename=mid",
        "mid base",
        "-s mid top",
        "-p mid top",
        "odd base",
        "-s odd odd",
        "-U -s top top",
    ] {
        both.same(&format!("qemu-img compare {line}"));
    }
}

/// What is told of a range comes before the failure of a read in it, and, for whoever reads both outputs as one, after it.
#[test]
fn what_is_compared_is_told_in_the_order_in_which_qemu_tells_it() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f qcow2 a 1M");
    both.prepare("qemu-img create -q -f qcow2 b 0");
    both.write_image("qcow2", "a", &["write -P 1 0 4k"]);
    both.write(
        "config",
        b"[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nonce = \"off\"\n",
    );
    both.same("qemu-img compare blkdebug:config:a b");
    let told = [Side::Ours, Side::Theirs].map(|side| {
        let path = both.folder(side).join("told");
        let file = File::create(&path).expect("a file");
        let status = Command::new(both.program(side, "qemu-img"))
            .args(["compare", "blkdebug:config:a", "b"])
            .current_dir(both.folder(side))
            .stdout(file.try_clone().expect("a second descriptor"))
            .stderr(file)
            .status();
        let code = status.expect("the program is there").code();
        (fs::read_to_string(path).expect("what was told"), code)
    });
    assert_eq!(told[0], told[1], "left is ours, right is QEMU's");
}
