//! `millpond img map` beside `qemu-img map`.

use millpond_tests::tools::Both;
use std::time::{Duration, Instant};

fn same_map(both: &Both, arguments: &str) {
    both.same(&format!("qemu-img map {arguments}"));
    both.same(&format!("qemu-img map --output=json {arguments}"));
}

fn write(both: &Both, name: &str, format: &str, commands: &[&str]) {
    for command in commands {
        both.prepare_words(&["qemu-io", "-f", format, "-c", command, name]);
    }
}

#[test]
fn command_lines_are_read_and_refused_as_qemu_does() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f raw raw 1M");
    for line in [
        "",
        "a b",
        "--bogus x",
        "--output foo raw",
        "-s x raw",
        "-l x raw",
        "-s -1 raw",
        "-l 8E raw",
        "nosuch",
        "-f foo raw",
        "-f qcow2 raw",
        "--image-opts -f raw driver=raw,file.filename=raw",
    ] {
        both.same(&format!("qemu-img map {line}"));
    }
}

#[test]
fn files_are_mapped_as_qemu_does() {
    let both = Both::new();
    let mut odd = vec![7; 5000];
    odd.resize(9000, 0);
    both.write("odd", &odd);
    both.write("short", &[7; 1234]);
    both.write("empty", &[]);
    both.prepare("qemu-img create -q -f raw raw 1M");
    write(&both, "raw", "raw", &["write 64k 64k", "write 512k 4k"]);
    for name in ["raw", "odd", "short", "empty", "-U raw", "-f file raw"] {
        same_map(&both, name);
    }
    for range in [
        "-s 1M",
        "-s 2M",
        "-l 0",
        "-s 70000 -l 100",
        "-s 65535 -l 2",
        "-s 60k -l 1E",
    ] {
        same_map(&both, &format!("{range} raw"));
    }
    for start in [0, 1234, 1300, 1535, 1536, 2000] {
        same_map(&both, &format!("-s {start} short"));
    }
}

#[test]
fn qcow2_images_are_mapped_as_qemu_does() {
    for options in [
        "cluster_size=64k",
        "cluster_size=4k",
        "preallocation=metadata",
        "preallocation=falloc",
        "data_file=data",
        "data_file=data,data_file_raw=on",
    ] {
        let both = Both::new();
        both.prepare(&format!("qemu-img create -q -f qcow2 -o {options} x 10M"));
        same_map(&both, "x");
        write(
            &both,
            "x",
            "qcow2",
            &[
                "write 0 64k",
                "write 1M 256k",
                "write -z 1100k 64k",
                "discard 3M 64k",
            ],
        );
        if !options.contains("data_file") && !options.contains("preallocation") {
            same_map(&both, "x");
            write(&both, "x", "qcow2", &["write -c 4M 64k"]);
        }
        same_map(&both, "x");
        same_map(&both, "-s 1000 -l 2M x");
    }
}

#[test]
fn chains_are_mapped_as_qemu_does() {
    let both = Both::new();
    both.write("short", &[7; 1234]);
    both.prepare("qemu-img create -q -f qcow2 base 4M");
    write(&both, "base", "qcow2", &["write 0 1M", "write 2M 64k"]);
    both.prepare("qemu-img create -q -f qcow2 -b base -F qcow2 middle 3M");
    write(&both, "middle", "qcow2", &["write 512k 64k", "write -z 640k 64k"]);
    both.prepare("qemu-img create -q -f qcow2 -b middle -F qcow2 top 6M");
    write(&both, "top", "qcow2", &["write 576k 64k", "write 5M 64k"]);
    both.prepare("qemu-img create -q -f qcow2 -b short -F raw over 1M");
    both.prepare("qemu-img create -q -f qcow2 -b over -F qcow2 over2 2M");
    both.prepare("qemu-img create -q -f qcow2 -u -b nosuch -F raw lost 1M");
    for name in ["base", "middle", "top", "over", "over2", "lost"] {
        same_map(&both, name);
    }
    same_map(
        &both,
        "--image-opts driver=compress,file.driver=qcow2,file.file.filename=top",
    );
}

#[test]
fn nodes_without_a_file_are_mapped_as_qemu_does() {
    let both = Both::new();
    for options in ["driver=null-co,read-zeroes=on", "driver=null-co,size=0"] {
        same_map(&both, &format!("--image-opts {options}"));
    }
}

#[test]
fn encrypted_images_are_mapped_as_qemu_does() {
    let both = Both::new();
    let secret = "--object secret,id=s,data=x";
    both.prepare(&format!(
        "qemu-img create -q {secret} -f luks -o key-secret=s,iter-time=10 luks 1M"
    ));
    both.prepare(&format!(
        "qemu-img create -q {secret} -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 qcow2 1M"
    ));
    same_map(&both, "luks");
    same_map(&both, "qcow2");
    same_map(
        &both,
        &format!("{secret} --image-opts driver=luks,key-secret=s,file.filename=luks"),
    );
    same_map(
        &both,
        &format!("{secret} --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=qcow2"),
    );
}

#[test]
fn images_of_sixteen_tebibytes_are_looked_at_at_once() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f raw raw 8T");
    both.prepare("qemu-img create -q -f qcow2 -o cluster_size=2M x 16T");
    let start = Instant::now();
    for line in [
        "map raw",
        "map x",
        "map --output=json x",
        "info x",
        "check x",
        "info raw",
    ] {
        both.same(&format!("qemu-img {line}"));
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}
