//! `millpond img measure` beside `qemu-img measure`.

use millpond_tests::tools::Both;

fn same_measure(both: &Both, arguments: &str) {
    both.same(&format!("qemu-img measure {arguments}"));
    both.same(&format!("qemu-img measure --output=json {arguments}"));
}

#[test]
fn command_lines_are_read_and_refused_as_qemu_does() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f raw raw 1M");
    for line in [
        "",
        "a b",
        "--bogus",
        "--size x",
        "--size -1",
        "--size 8E",
        "--size 1G raw",
        "-f raw --size 1G",
        "--image-opts --size 1G",
        "-l one --size 1",
        "--output foo --size 1",
        "-O foo --size 1",
        "-O throttle --size 1",
        "-O file --size 1",
        "-o help --size 1 -O qcow2",
        "-o help -O qcow2",
        "-o a, --size 1",
        "-O qcow2 -o foo=1 --size 1G",
        "-O raw -o foo=1 --size 1G",
        "-O qcow2 -o cluster_size=x --size 1",
        "-O qcow2 -o cluster_size=3 --size 1G",
        "-O qcow2 -o refcount_bits=3 --size 1",
        "nosuch",
        "-l snapshot.foo=2 raw",
        "-l one raw",
        "--image-opts -f raw driver=raw,file.filename=raw",
    ] {
        both.same(&format!("qemu-img measure {line}"));
    }
}

#[test]
fn images_that_are_to_be_made_are_measured_as_qemu_does() {
    let both = Both::new();
    for line in [
        "--size 0",
        "--size 1",
        "--size 1G",
        "-U --size 1",
        "--size 7E",
        "-O qcow2 --size 0",
        "-O qcow2 --size 1G",
        "-O qcow2 --size 7E",
        "-O qcow2 --size 1T",
        "-O qcow2 -o size=5 --size 1G",
        "-O qcow2 -o cluster_size=512 --size 1G",
        "-O qcow2 -o extended_l2=on --size 1G",
        "-O qcow2 -o refcount_bits=64 --size 1G",
        "-O qcow2 -o preallocation=full --size 1G",
        "-O qcow2 -o preallocation=metadata --size 1G",
        "-O qcow2 -o compat=0.10 --size 1G",
        "-O qcow2 -o data_file=x --size 1G",
        "-O luks --size 1G",
        "--object secret,id=s,data=x -O luks -o key-secret=s,iter-time=10 --size 1G",
        "--object secret,id=s,data=x -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 --size 1G",
    ] {
        same_measure(&both, line);
    }
}

#[test]
fn copies_of_images_are_measured_as_qemu_does() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f raw raw 1M");
    both.prepare("qemu-img create -q -f qcow2 x 10M");
    both.prepare_words(&["qemu-io", "-f", "qcow2", "-c", "write 1M 1M", "x"]);
    both.prepare("qemu-img snapshot -c one x");
    both.prepare_words(&["qemu-io", "-f", "qcow2", "-c", "write 4M 1M", "x"]);
    both.prepare("qemu-img snapshot -c two x");
    both.prepare("qemu-img bitmap --add x bitmap");
    both.prepare("qemu-img create -q -f qcow2 -b x -F qcow2 over");
    for line in [
        "raw",
        "-O qcow2 raw",
        "-O qcow2 x",
        "-f raw -O qcow2 x",
        "-O qcow2 over",
        "-O qcow2 -o backing_file=x,backing_fmt=qcow2 over",
        "-O qcow2 -l one x",
        "-O qcow2 -l 2 x",
        "-O qcow2 -l snapshot.name=one x",
        "-O qcow2 -l snapshot.id=1,snapshot.name=two x",
        "-l nosuch x",
        "--image-opts driver=qcow2,file.filename=x",
        "-U x",
    ] {
        same_measure(&both, line);
    }
}
