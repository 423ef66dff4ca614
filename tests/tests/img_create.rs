//! `millpond img create` beside `qemu-img create`.

use millpond_tests::tools::Both;

/// What `info` shows of an image, but for how much space it takes.
fn same_info(both: &Both, format: &str, name: &str) {
    // Half an image is left by QEMU, and by ours is not.
    if !both.ours().join(name).exists() {
        return;
    }
    if !both.theirs().join(name).exists() {
        assert!(!both.ours().join(name).exists(), "{name} is left");
        return;
    }
    both.same_but_for(&format!("qemu-img info -f {format} {name}"), |text| {
        let is_of_space = |line: &&str| !line.contains("disk size:") && !line.contains("file length:");
        let lines = text.lines().filter(is_of_space);
        let lines = lines.filter(|line| !line.contains("uuid:") && !line.contains("iters:"));
        lines.collect::<Vec<_>>().join("\n")
    });
}

/// Each line makes the image `x`, or is refused, alike; what was there before is gone.
fn same_images(format: &str, lines: &[&str]) {
    for line in lines {
        let both = Both::new();
        both.prepare("qemu-img create -q -f raw raw 1M");
        both.prepare("qemu-img create -q -f qcow2 base 2M");
        both.write("odd", &[7; 1234]);
        both.same(&format!("qemu-img create -f {format} {line}"));
        same_info(&both, format, "x");
    }
}

#[test]
fn command_lines_are_read_and_refused_as_qemu_does() {
    for line in [
        "",
        "-f",
        "-z x",
        "--bogus x",
        "--quiet=x x",
        "--backing x x",
        "--b x",
        "x",
        "-f qcow2 x",
        "-f foo x 1M",
        "-f throttle x 1M",
        "-q x 1M",
        "x 1M -q -f qcow2",
        "-f qcow2 -- x 1M",
        "-fqcow2 x 1M",
        "x b c",
        "x 1M 2",
        "x 1M 2 3",
        "x 1Y",
        "x 1.5",
        "x .5k",
        "x 1.k",
        "x +1k",
        "x 0x10",
        "x 0x10k",
        "x 010",
        "x 8E",
        "x 1e",
        "x 18446744073709551616",
        "x -- -1",
        "-o size=1M x",
        "-o size=1M x 1M",
        "-o size=-1 x",
        "-o size=1Y x",
        "-o size=99E x",
        "--object foo x 1M",
        "--object secret,id=s x 1M",
        "foo:bar 1M",
        "file:x 1M",
        "nosuch/x 1M",
        ". 1M",
        "json:{} 1M",
    ] {
        let both = Both::new();
        both.same(&format!("qemu-img create {line}"));
    }
}

#[test]
fn options_are_listed_as_qemu_lists_them() {
    let both = Both::new();
    for line in [
        "-o help",
        "-f qcow2 -o help",
        "-f qcow2 -o ?",
        "-f luks -o help",
        "-f raw -o help",
        "-f file -o help",
        "-f qcow2 -o help x",
        "-f luks -o help x",
        "-f raw -o help x 1M",
        "-f qcow2 -o cluster_size=4k,help x 1M",
        "-f foo -o help",
        "-f throttle -o help",
        "-f qcow2 -o help foo:x",
        "-f qcow2 -o help=x x 1M",
    ] {
        both.same(&format!("qemu-img create {line}"));
    }
}

#[test]
fn qcow2_images_are_made_and_refused_as_qemu_does() {
    same_images(
        "qcow2",
        &[
            "x 1M",
            "x 0",
            "x 511",
            "x 1E",
            "-o cluster_size=512 x 1T",
            "-o cluster_size=512 x 1M",
            "-o cluster_size=2M x 1G",
            "-o cluster_size=3 x 1M",
            "-o cluster_size=4M x 1M",
            "-o cluster_size=x x 1M",
            "-o cluster_size x 1M",
            "-o cluster_size=-1 x 1M",
            "-o compat=0.10 x 1M",
            "-o compat=v2 x 1M",
            "-o compat=1.1 x 1M",
            "-o compat=2 x 1M",
            "-o compat= x 1M",
            "-o lazy_refcounts=on x 1M",
            "-o lazy_refcounts=yes x 1M",
            "-o lazy_refcounts x 1M",
            "-o nolazy_refcounts x 1M",
            "-o lazy_refcounts=maybe x 1M",
            "-o lazy_refcounts=on,compat=0.10 x 1M",
            "-o refcount_bits=1 x 1M",
            "-o refcount_bits=0x10 x 1M",
            "-o refcount_bits=3 x 1M",
            "-o refcount_bits=-1 x 1M",
            "-o refcount_bits=x x 1M",
            "-o refcount_bits=8,compat=0.10 x 1M",
            "-o compression_type=zstd x 1M",
            "-o compression_type=lzo x 1M",
            "-o compression_type=zstd,compat=0.10 x 1M",
            "-o extended_l2=on x 1M",
            "-o extended_l2=on,cluster_size=4k x 1M",
            "-o extended_l2=on,compat=0.10 x 1M",
            "-o preallocation=metadata x 1M",
            "-o preallocation=falloc x 1M",
            "-o preallocation=full x 1M",
            "-o preallocation=foo x 1M",
            "-o data_file=data x 1M",
            "-o data_file=data,data_file_raw=on x 1M",
            "-o data_file_raw=on x 1M",
            "-o data_file=data,compat=0.10 x 1M",
            "-o data_file=data,data_file_raw=on -b raw -F raw x 1M",
            "-o nocow=off,extent_size_hint=2M x 1M",
            "-o extent_size_hint=5G x 1M",
            "-o foo=bar x 1M",
            "-o cluster_size=4k -o lazy_refcounts=on x 1M",
            "-o cluster_size=4k, x 1M",
            "-o ,cluster_size=4k x 1M",
            "-o ,, x 1M",
            "-o encryption=off x 1M",
            "-o encryption=on x 1M",
            "-o encrypt.format=foo x 1M",
            "-o encrypt.format=luks x 1M",
            "-o encrypt.format=luks,encryption=on x 1M",
            "-o encrypt.key-secret=s x 1M",
        ],
    );
}

#[test]
fn overlays_are_made_and_refused_as_qemu_does() {
    same_images(
        "qcow2",
        &[
            "-b base -F qcow2 x",
            "-b raw -F raw x",
            "-b raw -F raw x 5M",
            "-b odd -F raw x",
            "-b base x",
            "-b raw x",
            "-b raw -F foo x",
            "-b raw -F qcow2 x",
            "-b nosuch -F raw x",
            "-b nosuch -F raw x 1M",
            "-u -b nosuch -F raw x 1M",
            "-u -b nosuch -F raw x",
            "-u -b nosuch x 1M",
            "-u -b nosuch -F foo x 1M",
            "-F raw x 1M",
            "-b x -F qcow2 x 1M",
            "-b file:raw -F raw x",
            "-b foo:raw -F raw x",
            "-o backing_file=raw,backing_fmt=raw x",
            "-o backing_file=base,backing_file=raw,backing_fmt=raw x",
            "-o backing_file=,backing_fmt=raw x 1M",
            "-o backing_file=a,,b x 1M",
            "-u -o backing_file=a,,b,backing_fmt=raw x 1M",
            "-o preallocation=falloc -b raw -F raw x",
        ],
    );
}

#[test]
fn raw_images_are_made_and_refused_as_qemu_does() {
    same_images(
        "raw",
        &[
            "x 511",
            "-o preallocation=falloc x 1M",
            "-o preallocation=full x 1M",
            "-o preallocation=metadata x 1M",
            "-o preallocation=foo x 1M",
            "-o nocow=on x 1M",
            "-o nocow=maybe x 1M",
            "-o extent_size_hint=0 x 1M",
            "-o cluster_size=4k x 1M",
            "-b raw x 1M",
            "-F raw x 1M",
        ],
    );
}

#[test]
fn encrypted_images_are_made_and_refused_as_qemu_does() {
    let secret = "--object secret,id=s,data=x";
    let luks = [
        "-o key-secret=s,iter-time=10",
        "-o key-secret=s,iter-time=10,cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha1",
        "-o key-secret=s,iter-time=10,preallocation=falloc",
        "-o key-secret=s,iter-time=10,cipher-alg=foo",
        "-o key-secret=s,iter-time=x",
        "-o key-secret=s,detached-header=maybe",
        "-o key-secret=zz",
        "",
    ];
    for options in luks {
        same_images("luks", &[&format!("{secret} {options} x 1M")]);
    }
    let qcow2 = [
        "-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        "-o encrypt.format=aes,encrypt.key-secret=s",
        "-o encryption=on,encrypt.key-secret=s",
        "-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-alg=foo",
        "-o encrypt.foo=luks",
    ];
    for options in qcow2 {
        same_images("qcow2", &[&format!("{secret} {options} x 1M")]);
    }
}

#[test]
fn space_is_reserved_for_all_of_the_disk_whatever_size_clusters_have() {
    let both = Both::new();
    for cluster in ["512", "4k", "64k"] {
        for mode in ["falloc", "full"] {
            let line =
                format!("qemu-img create -q -f qcow2 -o preallocation={mode},cluster_size={cluster} x 3M");
            both.same(&line);
            let taken = |folder: std::path::PathBuf| {
                let image = std::fs::metadata(folder.join("x")).expect("an image");
                512 * std::os::unix::fs::MetadataExt::blocks(&image)
            };
            let (ours, theirs) = (taken(both.ours()), taken(both.theirs()));
            assert!(
                ours >= 3 << 20,
                "{mode}, clusters of {cluster}: {ours} bytes, QEMU's has {theirs}"
            );
            both.assert_same_image("qcow2", "x");
        }
    }
}
