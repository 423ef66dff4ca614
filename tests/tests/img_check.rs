//! `millpond img check` beside `qemu-img check`.

use millpond_tests::tools::Both;
use std::os::unix::fs::FileExt;
use std::path::Path;

fn same_check(both: &Both, arguments: &str) {
    both.same(&format!("qemu-img check {arguments}"));
    both.same(&format!("qemu-img check --output=json {arguments}"));
}

/// The offset of the refcount of a cluster of 64 KiB.
fn refcount(path: &Path, cluster: u64) -> u64 {
    let file = std::fs::File::open(path).expect("what a test needs");
    let read = |offset| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset).expect("what a test needs");
        u64::from_be_bytes(bytes)
    };
    read(read(48)) + 2 * cluster
}

/// Writes a refcount of the image `x` in both folders.
fn set_refcount(both: &Both, cluster: u64, count: u16) {
    for folder in [both.ours(), both.theirs()] {
        let path = folder.join("x");
        let offset = refcount(&path, cluster);
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .expect("what a test needs");
        file.write_all_at(&count.to_be_bytes(), offset)
            .expect("what a test needs");
    }
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
        "-Z x",
        "--output foo x",
        "-r foo x",
        "-r all -U x",
        "-T foo x",
        "-T none x",
        "-U x",
        "-q x",
        "-q --output=json x",
        "nosuch",
        "-f foo x",
        "-f raw x",
        "raw",
        "--output=json raw",
        "-r all -f raw raw",
        "--image-opts driver=qcow2,file.filename=x",
        "--image-opts -f qcow2 driver=qcow2,file.filename=x",
        "--image-opts driver=null-co",
        "--image-opts driver=compress,file.driver=qcow2,file.file.filename=x",
    ] {
        both.same(&format!("qemu-img check {line}"));
    }
}

#[test]
fn sound_images_are_found_sound_as_qemu_does() {
    for options in [
        "cluster_size=64k",
        "compat=0.10",
        "extended_l2=on",
        "cluster_size=512",
        "refcount_bits=1",
    ] {
        let both = Both::new();
        both.prepare(&format!("qemu-img create -q -f qcow2 -o {options} x 10M"));
        same_check(&both, "x");
        both.prepare_words(&["qemu-io", "-f", "qcow2", "-c", "write 0 1M", "x"]);
        same_check(&both, "x");
        same_check(&both, "-r all x");
    }
    let both = Both::new();
    both.prepare("qemu-img create -q -f qcow2 x 10M");
    both.prepare("qemu-img snapshot -c one x");
    both.prepare("qemu-img bitmap --add x bitmap");
    same_check(&both, "x");
    for secret in ["", "--object secret,id=s,data=x"] {
        both.same(&format!(
            "qemu-img check {secret} --image-opts driver=luks,key-secret=s,file.filename=x"
        ));
    }
}

#[test]
fn leaks_are_found_and_repaired_as_qemu_does() {
    for repair in ["", "-r leaks", "-r all", "-q", "-q -r leaks"] {
        let both = Both::new();
        both.prepare("qemu-img create -q -f qcow2 x 10M");
        set_refcount(&both, 9, 1);
        set_refcount(&both, 11, 3);
        same_check(&both, &format!("{repair} x"));
        both.same("qemu-img check x");
    }
}

#[test]
fn flags_of_features_that_a_change_does_not_keep_are_cleared_by_a_repair_alone() {
    for repair in ["", "-r leaks", "-r all"] {
        let both = Both::new();
        both.prepare("qemu-img create -q -f qcow2 x 1M");
        for folder in [both.ours(), both.theirs()] {
            // The highest of the header's autoclear flags, which no program knows.
            millpond_tests::image::poke(&folder.join("x"), 88, &[0x80]);
        }
        same_check(&both, &format!("{repair} x"));
        both.assert_same_bytes("x");
    }
}

#[test]
fn damage_is_found_and_repaired_as_qemu_does() {
    for repair in ["", "-r leaks", "-r all"] {
        let both = Both::new();
        both.prepare("qemu-img create -q -f qcow2 -o preallocation=metadata x 1M");
        // A cluster of the guest that is counted twice: a leak, and a flag that is wrong.
        set_refcount(&both, 8, 2);
        set_refcount(&both, 20, 1);
        same_check(&both, &format!("{repair} x"));
        both.same("qemu-img check x");
    }
}
