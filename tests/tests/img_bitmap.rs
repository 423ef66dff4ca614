//! `millpond img bitmap` beside `qemu-img bitmap`.

use millpond_tests::tools::Both;

/// Texts in which names that a program makes up are all the same.
fn without_names(text: String) -> String {
    let mut parts = text.split("#block");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        text + "#block" + part.trim_start_matches(|digit: char| digit.is_ascii_digit())
    })
}

/// Each line must be answered alike, and leave the same bitmaps.
fn same_bitmaps(both: &Both, lines: &[&str]) {
    for line in lines {
        both.same_but_for(&format!("qemu-img bitmap {line}"), without_names);
        let space = |text: String| {
            let lines = text.lines();
            let lines = lines.filter(|line| !line.contains("disk size") && !line.contains("file length"));
            lines.collect::<Vec<_>>().join("\n")
        };
        both.same_but_for("qemu-img info x", space);
        both.same("qemu-img check -q x");
    }
}

fn images() -> Both {
    let both = Both::new();
    both.prepare("qemu-img create -q -f qcow2 x 10M");
    both.prepare("qemu-img create -q -f qcow2 y 10M");
    both.prepare("qemu-img create -q -f raw raw 10M");
    both
}

#[test]
fn command_lines_are_read_and_refused_as_qemu_does() {
    same_bitmaps(
        &images(),
        &[
            "",
            "a b c",
            "--bogus",
            "--add x",
            "--add x a b",
            "--add -g x x a",
            "--add -g 1 x a",
            "--add -g 3 x a",
            "--add -g 0 x a",
            "--add -g 9E x a",
            "--add -g -1 x a",
            "--add -g 4G x a",
            "--remove -g 4k x a",
            "--merge a -F qcow2 x b",
            "--add -b y x b",
            "--merge a -b nosuch x b",
            "--add nosuch a",
            "--add -f foo x a",
            "--image-opts -f qcow2 --add driver=qcow2,file.filename=x a",
            "--add -f raw raw a",
            "--remove -f raw raw a",
        ],
    );
}

#[test]
fn bitmaps_are_changed_in_order_as_qemu_does() {
    same_bitmaps(
        &images(),
        &[
            "--add x a",
            "--add x a",
            "--add --disable x b",
            "--add -g 4k x c",
            "--remove x c",
            "--remove x c",
            "--clear x c",
            "--clear x a",
            "--enable x b",
            "--disable x a",
            "--merge b x a",
            "--merge b --merge c x a",
            "--remove --add x b",
            "--add --remove x b",
            "--add --disable --merge b x d",
            "--enable --clear x d",
            "--image-opts --add driver=qcow2,file.filename=x e",
        ],
    );
}

#[test]
fn bitmaps_are_merged_as_qemu_does() {
    let both = images();
    both.prepare("qemu-img bitmap --add x a");
    both.prepare("qemu-img bitmap --add y b");
    both.prepare_words(&["qemu-io", "-f", "qcow2", "-c", "write 1M 1M", "y"]);
    same_bitmaps(
        &both,
        &[
            "--merge b -b y -F qcow2 x a",
            "--merge z -b y -F qcow2 x a",
            "--merge b x a",
        ],
    );
    // What is dirty in the image of ours is what is dirty in QEMU's, as QEMU's own tool sees both.
    both.prepare("qemu-img create -q -f qcow2 z 10M");
    both.prepare("qemu-img bitmap --add z all");
    both.prepare("qemu-img bitmap --merge a -b x -F qcow2 z all");
}

#[test]
fn images_that_store_no_bitmaps_refuse_them_as_qemu_does() {
    let both = images();
    both.prepare("qemu-img create -q -f qcow2 -o compat=0.10 old 10M");
    both.prepare("qemu-img create -q -f qcow2 -u -b nosuch -F raw lost 10M");
    same_bitmaps(&both, &["--add old a", "--add lost a"]);
}

#[test]
fn all_bitmaps_can_be_removed_at_once() {
    let both = images();
    both.prepare("qemu-img bitmap --add x a");
    both.prepare("qemu-img bitmap --add x b");
    let run = std::process::Command::new(millpond_tests::program::millpond())
        .args(["img", "bitmap", "--remove-all", "x"])
        .current_dir(both.ours())
        .status()
        .expect("what a test needs");
    assert!(run.success());
    let info = std::process::Command::new("qemu-img")
        .args(["info", "x"])
        .current_dir(both.ours())
        .output()
        .expect("what a test needs");
    assert!(!String::from_utf8_lossy(&info.stdout).contains("bitmaps"));
}
