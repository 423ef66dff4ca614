//! `millpond img resize` beside `qemu-img resize`.

use millpond_tests::tools::Both;

#[test]
fn sizes_are_read_and_refused_as_qemu_does() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f qcow2 x 1M");
    for line in [
        "",
        "x",
        "-f qcow2 x 2M",
        "-f qcow2 x 1M",
        "-f qcow2 x +1z",
        "-f qcow2 x +-1M",
        "-f qcow2 x 1.5M",
        "-f qcow2 --shrink x -512k",
        "-f qcow2 --shrink x -9M",
        "-f qcow2 x 8E",
        "-f qcow2 x +8E",
        "-f qcow2 -q x 0",
        "-f qcow2 x 2M -q",
        "-f qcow2 x -- -2M",
        "x y 2M",
        "-f qcow2 x -512k --shrink",
        "-f qcow2 --shrink -- x -512k",
        "-f qcow2 x --shrink -512k",
        "-f qcow2 --shrink -- -512k x",
        "--shrink x -f qcow2 -512k",
        "-f qcow2 --shrink x -512k -512k",
        "-f qcow2 --shrink x -512k 1",
        "-f qcow2 --shrink x -x",
        "x -",
        "x 99E",
        "-1M",
        "-f qcow2 x -0",
    ] {
        both.same(&format!("qemu-img resize {line}"));
        both.assert_same_image("qcow2", "x");
    }
}

#[test]
fn options_are_taken_and_refused_as_qemu_does() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f qcow2 x 1M");
    both.prepare("qemu-img create -q -f raw r 1M");
    for line in [
        "-f qcow2 --preallocation zz x 3M",
        "-f qcow2 --preallocation falloc --shrink x 1M",
        "-f qcow2 --preallocation metadata x 4M",
        "-f raw --preallocation falloc r 2M",
        "--foo x 2M",
        "-f",
        "--image-opts -f qcow2 x 2M",
        "--image-opts driver=qcow2,file.filename=x 5M",
        "--image-opts driver=qcow2,file.filename=y 4M",
        "--image-opts a=b=c,,=d 4M",
        "--image-opts ,, 4M",
        "--object secret,id=x r 4M",
        "nosuch 2M",
        "-f zz x 2M",
        "r 3M",
    ] {
        both.same(&format!("qemu-img resize {line}"));
        both.assert_same_image("qcow2", "x");
        both.assert_same_bytes("r");
    }
}
