//! `millpond img snapshot` beside `qemu-img snapshot`.

use millpond_tests::tools::Both;

/// A list of snapshots without when they were made.
fn without_dates(text: String) -> String {
    let lines = text.lines().map(|line| match line.find(" 20") {
        Some(at) => format!("{}{}\n", &line[..at], &line[at + 20..]),
        None => format!("{line}\n"),
    });
    lines.collect()
}

#[test]
fn command_lines_are_read_and_refused_as_qemu_does() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f raw raw 1M");
    both.prepare("qemu-img create -q -f qcow2 x 1M");
    for line in [
        "",
        "a b",
        "--bogus x",
        "-c one -d two x",
        "-l -l x",
        "-d 1 -d 2 x",
        "-l raw",
        "-c one -f raw raw",
        "-d one -f raw raw",
        "-a one -f raw raw",
        "-U -c one x",
        "-U -l x",
        "nosuch",
        "-f raw --image-opts x",
        "--image-opts driver=qcow2,file.filename=x",
    ] {
        both.same(&format!("qemu-img snapshot {line}"));
    }
}

#[test]
fn snapshots_are_made_listed_applied_and_deleted_as_qemu_does() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f qcow2 x 10M");
    let long = "a".repeat(70);
    for line in [
        "x",
        "-c one x",
        "-l x",
        "-q -c two x",
        "-c one x",
        "x",
        "-a one x",
        "-a 2 x",
        "-a nosuch x",
        "-d nosuch x",
        "-d 1 x",
        "-d one x",
        "-l x",
        &format!("-c {long} x"),
        "-l x",
        "-d one x",
        "-q -l x",
    ] {
        both.same_but_for(&format!("qemu-img snapshot {line}"), without_dates);
        both.assert_same_image("qcow2", "x");
    }
    both.same_words(&["qemu-img", "snapshot", "-c", "", "x"], |text| text);
    both.same_but_for("qemu-img snapshot x", without_dates);
}

#[test]
fn a_snapshot_keeps_what_the_disk_was() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f qcow2 x 10M");
    let write = |pattern| {
        let command = format!("write -P {pattern} 64k 200k");
        both.prepare_words(&["qemu-io", "-f", "qcow2", "-c", &command, "x"]);
    };
    write(1);
    both.same("qemu-img snapshot -c one x");
    write(2);
    both.same("qemu-img snapshot -a one x");
    both.assert_same_image("qcow2", "x");
    both.prepare_words(&["qemu-io", "-f", "qcow2", "-c", "read -P 1 64k 200k", "x"]);
}

#[test]
fn images_that_forbid_snapshots_refuse_them_as_qemu_does() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f qcow2 -o data_file=data x 1M");
    both.prepare("qemu-img create -q -f qcow2 marked 1M");
    both.prepare("qemu-img snapshot -c one marked");
    both.prepare("qemu-img bitmap --add marked bitmap");
    for line in [
        "-c one x",
        "-a one x",
        "-d one x",
        "-l x",
        "-a one marked",
        "-d one marked",
    ] {
        both.same(&format!("qemu-img snapshot {line}"));
    }
}
