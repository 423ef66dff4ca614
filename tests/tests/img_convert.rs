//! `millpond img convert` and `dd` beside `qemu-img`'s: the same words, and images with the same disk.

use millpond_tests::tool::run_json;
use millpond_tests::tools::Both;

/// Both folders with images of all sorts.
fn images() -> Both {
    let both = Both::new();
    both.prepare("qemu-img create -q -f raw a.raw 1M");
    both.write_image("raw", "a.raw", &["write -P 1 4k 4k", "write -P 9 600k 8k"]);
    both.prepare("qemu-img create -q -f raw z.raw 2M");
    both.write_image("raw", "z.raw", &["write -P 1 1536k 4k"]);
    both.prepare("qemu-img create -q -f raw s.raw 512k");
    both.prepare("qemu-img create -q -f qcow2 e.qcow2 1M");
    both.prepare("qemu-img create -q -f qcow2 -b a.raw -F raw o.qcow2");
    both.write_image("qcow2", "o.qcow2", &["write -P 3 128k 64k"]);
    both.prepare("qemu-img create -q -f qcow2 -b o.qcow2 -F qcow2 o2.qcow2 2M");
    both.write_image(
        "qcow2",
        "o2.qcow2",
        &["write -P 4 256k 64k", "write -P 5 1500k 64k"],
    );
    both.prepare("qemu-img create -q -f qcow2 sn.qcow2 1M");
    both.write_image("qcow2", "sn.qcow2", &["write -P 1 0 64k"]);
    both.prepare("qemu-img snapshot -c one sn.qcow2");
    both.write_image("qcow2", "sn.qcow2", &["write -P 2 0 128k"]);
    both.write("u.raw", &[7; 100_100]);
    both
}

#[test]
fn what_cannot_be_is_refused_as_qemu_does() {
    let both = images();
    for line in [
        "",
        "a.raw",
        "-O",
        "--foo a b",
        "--o a b",
        "-Z a b",
        "-S 3 a.raw b",
        "-S 1X a.raw b",
        "-S 1E a.raw b",
        "-m 0 a.raw b",
        "-m 17 a.raw b",
        "-r 1X a.raw b",
        "-C -c -O qcow2 a.raw b",
        "-C -S 4k a.raw b",
        "-O qcow2 -B a.raw a.raw a.raw b",
        "-C --salvage a.raw b",
        "--skip-broken-bitmaps a.raw b",
        "--target-image-opts a.raw driver=raw,file.filename=b",
        "--target-is-zero a.raw b",
        "-n -o size=3 a.raw b",
        "-o ,x a.raw b",
        "-o x, a.raw b",
        "-t foo a.raw b",
        "-T foo a.raw b",
        "-O foo a.raw b",
        "-f foo a.raw b",
        "nofile b",
        "-O luks a.raw b",
        "-c -O raw a.raw b",
        "-c -O qcow2 -o preallocation=full a.raw b",
        "-c -O qcow2 -o encrypt.format=luks a.raw b",
        "-O qcow2 -o foo=1 a.raw b",
        "-O qcow2 -B a.raw a.raw b",
        "-O qcow2 -B a.raw -F raw a.raw a.raw b",
        "-B a.raw -F raw a.raw b",
        "-F raw -O qcow2 e.qcow2 b",
        "-B nofile -F raw -O qcow2 e.qcow2 b",
        "-n a.raw nofile",
        "-n a.raw s.raw",
        "-n -c -O raw a.raw z.raw",
        "-n --target-is-zero -B a.raw -F raw -O qcow2 e.qcow2 o.qcow2",
        "-l snapshot.foo=1 e.qcow2 b",
        "-l snapshot.id=1 e.qcow2 b",
        "-l x e.qcow2 b",
        "-l x a.raw b",
        "-l x e.qcow2 e.qcow2 b",
        "--bitmaps e.qcow2 b",
        "--bitmaps e.qcow2 e.qcow2 b",
        "--bitmaps -O qcow2 a.raw b",
        "-O qcow2 a.raw /nodir/b",
        "--image-opts a.raw b",
        "--image-opts -f raw driver=raw,file.filename=a.raw b",
        "--image-opts driver=qcow2,file.filename=a.raw b",
        "a.raw foo:x",
        "a.raw a.raw",
        "sn.qcow2 sn.qcow2",
    ] {
        both.same(&format!("qemu-img convert {line}"));
        both.assert_same_bytes("a.raw");
        both.assert_same_image("qcow2", "sn.qcow2");
    }
}

#[test]
fn what_is_converted_has_the_same_disk() {
    let both = images();
    for line in [
        "-O qcow2 a.raw",
        "-p -O qcow2 a.raw",
        "-q -p -O qcow2 a.raw",
        "-O qcow2 -S 0 a.raw",
        "-S 0 o2.qcow2",
        "-S 64k a.raw",
        "-S 512 a.raw",
        "-p -S 0 a.raw",
        "-O qcow2 o2.qcow2",
        "o2.qcow2",
        "-c -O qcow2 o2.qcow2",
        "-c -m 1 -W -O qcow2 a.raw",
        "-c -S 0 -O qcow2 a.raw",
        "-O qcow2 -o compression_type=zstd -c o2.qcow2",
        "-O qcow2 -o extended_l2=on,cluster_size=32k o2.qcow2",
        "-O qcow2 -o cluster_size=2M o2.qcow2",
        "-O qcow2 -o size=2M a.raw",
        "-O qcow2 -B a.raw -F raw o.qcow2",
        "-O qcow2 -o backing_file=a.raw,backing_fmt=raw o.qcow2",
        "-O qcow2 -B o.qcow2 -F qcow2 o2.qcow2",
        "a.raw s.raw u.raw",
        "-O qcow2 u.raw e.qcow2 o2.qcow2",
        "-c -O qcow2 u.raw e.qcow2 o2.qcow2",
        "-l one sn.qcow2",
        "-l 1 sn.qcow2",
        "-l snapshot.name=one sn.qcow2",
        "-W -m 16 -O qcow2 a.raw",
        "-C a.raw",
        "-C u.raw a.raw",
        "-r 100M a.raw",
        "--salvage o2.qcow2",
        "-t none -T none -O qcow2 u.raw",
        "-U -O qcow2 -o preallocation=metadata a.raw",
        "-o preallocation=full a.raw",
    ] {
        let format = if line.contains("-O qcow2") { "qcow2" } else { "raw" };
        both.same(&format!("qemu-img convert {line} target"));
        both.assert_same_image(format, "target");
    }
}

#[test]
fn a_target_that_is_there_is_written_all_over() {
    let both = images();
    for (line, format, target) in [
        ("-n a.raw z.raw", "raw", "z.raw"),
        ("-n -O qcow2 a.raw sn.qcow2", "qcow2", "sn.qcow2"),
        ("-n -S 0 -O qcow2 a.raw sn.qcow2", "qcow2", "sn.qcow2"),
        (
            "-n -B a.raw -F raw -O qcow2 o.qcow2 o2.qcow2",
            "qcow2",
            "o2.qcow2",
        ),
        ("-n --target-is-zero a.raw z.raw", "raw", "z.raw"),
        (
            "-n --target-image-opts s.raw driver=raw,file.filename=z.raw",
            "raw",
            "z.raw",
        ),
    ] {
        both.same(&format!("qemu-img convert {line}"));
        both.assert_same_image(format, target);
    }
}

#[test]
fn persistent_bitmaps_are_copied_with_the_disk() {
    let both = images();
    both.prepare("qemu-img bitmap --add e.qcow2 x");
    both.prepare("qemu-img bitmap --add -g 32k --disable e.qcow2 y");
    both.write_image("qcow2", "e.qcow2", &["write 64k 64k"]);
    for line in [
        "qemu-img convert --bitmaps -O qcow2 e.qcow2 copy",
        "qemu-img convert --bitmaps -n -O qcow2 e.qcow2 copy",
        "qemu-img convert --bitmaps -O raw e.qcow2 b",
        "qemu-img convert --bitmaps -O qcow2 -o compat=0.10 e.qcow2 b",
    ] {
        both.same(line);
    }
    both.assert_same_image("qcow2", "copy");
    let info = |folder: std::path::PathBuf| {
        let image = folder.join("copy").display().to_string();
        run_json("qemu-img", &["info", "--output=json", &image])["format-specific"].take()
    };
    assert_eq!(info(both.ours()), info(both.theirs()));
}

#[test]
fn blocks_are_copied_as_dd_names_them() {
    let both = images();
    for line in [
        "",
        "if=a.raw",
        "of=a.raw",
        "foo",
        "if=a.raw of=d foo=1",
        "if=a.raw of=d bs=0",
        "if=a.raw of=d bs=-1",
        "if=a.raw of=d bs=1X",
        "if=a.raw of=d count=x",
        "if=a.raw of=d skip=x",
        "if= of=d",
        "if=nofile of=d",
        "if=a.raw of=/nodir/d",
        "-f foo if=a.raw of=d",
        "-O foo if=a.raw of=d",
        "-n if=a.raw of=d",
        "if=a.raw of=d",
        "if=a.raw of=d bs=1k count=3",
        "if=a.raw of=d bs=1k count=3 skip=1023",
        "if=a.raw of=d bs=1k count=3 skip=1025",
        "if=a.raw of=d bs=1k count=30 skip=3",
        "if=a.raw of=d bs=1 count=3",
        "if=a.raw of=d bs=3 skip=1400 count=3000",
        "if=u.raw of=d",
        "-U if=o2.qcow2 of=d bs=64k skip=1",
        "if=sn.qcow2 of=sn.qcow2",
    ] {
        both.same(&format!("qemu-img dd {line}"));
        both.assert_same_bytes("d");
    }
    both.same("qemu-img dd -O qcow2 if=o2.qcow2 of=q bs=3k");
    both.assert_same_image("qcow2", "q");
    both.assert_same_image("qcow2", "sn.qcow2");
}
