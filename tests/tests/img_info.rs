//! `millpond img info` beside `qemu-img info`.

use millpond_tests::tools::Both;

/// Both forms of the answer are the same, but for how much space files take.
fn same_info(both: &Both, arguments: &str) {
    let space = |text: String| {
        let lines = text.lines();
        let lines = lines.filter(|line| !line.contains("disk size:") && !line.contains("\"actual-size\""));
        lines.collect::<Vec<_>>().join("\n")
    };
    both.same_but_for(&format!("qemu-img info {arguments}"), space);
    both.same_but_for(&format!("qemu-img info --output=json {arguments}"), space);
}

#[test]
fn command_lines_are_read_and_refused_as_qemu_does() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f raw raw 1M");
    both.prepare("qemu-img create -q -f qcow2 x 1M");
    for line in [
        "",
        "a b c",
        "--bogus x",
        "-Z",
        "--output foo x",
        "--output foo --bogus",
        "nosuch",
        "-f foo x",
        "-f qcow2 raw",
        "-f raw x",
        "-f file x",
        "--image-opts raw",
        "--image-opts driver=foo,file.filename=x",
        "--image-opts a=b,",
        "--image-opts -f raw driver=raw,file.filename=raw",
        "-U --image-opts driver=raw,file.filename=raw,force-share=off",
        "json:{foo",
        "json:",
        "json:{\"driver\":\"raw\"}",
        "foo:x",
        ".",
    ] {
        both.same(&format!("qemu-img info {line}"));
    }
}

#[test]
fn images_of_all_kinds_are_shown_as_qemu_does() {
    let both = Both::new();
    both.write("odd", &[7; 1234]);
    both.write("empty", &[]);
    both.write("e:f", &[7; 5]);
    both.prepare("qemu-img create -q -f raw raw 1M");
    for line in [
        "raw",
        "-f raw raw",
        "-f file raw",
        "file:raw",
        "odd",
        "empty",
        "./e:f",
        "file:e:f",
        "-U raw",
    ] {
        same_info(&both, line);
    }
    for (number, options) in [
        "cluster_size=64k",
        "compat=0.10",
        "extended_l2=on,lazy_refcounts=on,compression_type=zstd,refcount_bits=1,cluster_size=2M",
        "data_file=data,data_file_raw=on",
        "preallocation=metadata,cluster_size=512",
        "preallocation=full",
    ]
    .iter()
    .enumerate()
    {
        both.prepare(&format!("qemu-img create -q -f qcow2 -o {options} x{number} 10M"));
        same_info(&both, &format!("x{number}"));
    }
}

#[test]
fn nodes_are_shown_as_qemu_does_whatever_they_stand_on() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f raw raw 1M");
    both.prepare("qemu-img create -q -f qcow2 x 1M");
    both.prepare("qemu-img create -q -f qcow2 -b raw -F raw over");
    for options in [
        "driver=null-co",
        "driver=null-co,size=1M,read-zeroes=on",
        "driver=raw,file.filename=raw",
        "driver=raw,file.filename=raw,offset=512",
        "driver=raw,file.filename=raw,size=1024",
        "driver=compress,file.driver=qcow2,file.file.filename=x",
        "driver=compress,file.driver=qcow2,file.file.filename=over",
        "driver=raw,file.driver=compress,file.file.driver=qcow2,file.file.file.filename=x",
        "driver=blkdebug,image.driver=qcow2,image.file.filename=x",
        "driver=quorum,children.0.driver=null-co,children.1.driver=null-co,vote-threshold=1",
        "driver=quorum,children.0.driver=raw,children.0.file.filename=raw,vote-threshold=1",
    ] {
        same_info(&both, &format!("--image-opts {options}"));
    }
}

#[test]
fn chains_are_shown_as_qemu_does_and_only_when_asked_for() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f raw base 1M");
    both.prepare("qemu-img create -q -f qcow2 -b base -F raw middle");
    both.prepare("qemu-img create -q -f qcow2 -b middle -F qcow2 top 3M");
    both.prepare("qemu-img create -q -f qcow2 -u -b nosuch -F raw lost 1M");
    both.prepare("qemu-img create -q -f qcow2 -u -b circle2 -F qcow2 circle1 1M");
    both.prepare("qemu-img create -q -f qcow2 -u -b circle1 -F qcow2 circle2 1M");
    for name in ["top", "middle", "lost", "circle1", "./top", "file:top"] {
        same_info(&both, name);
        same_info(&both, &format!("--backing-chain {name}"));
    }
    // From another folder the names of backing files are no paths.
    let nested = Both::new();
    for folder in [nested.ours(), nested.theirs()] {
        std::fs::create_dir(folder.join("sub")).expect("what a test needs");
    }
    nested.prepare("qemu-img create -q -f raw sub/base 1M");
    nested.prepare("qemu-img create -q -f qcow2 -b base -F raw sub/top");
    same_info(&nested, "sub/top");
    same_info(&nested, "-b sub/top");
}

#[test]
fn snapshots_bitmaps_and_marks_are_shown_as_qemu_does() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f qcow2 x 10M");
    both.prepare("qemu-img bitmap --add x one");
    both.prepare("qemu-img bitmap --add -g 4k --disable x two");
    both.prepare("qemu-img create -q -f qcow2 -o lazy_refcounts=on dirty 1M");
    // The bit of an image that was not closed.
    for folder in [both.ours(), both.theirs()] {
        let path = folder.join("dirty");
        let mut bytes = std::fs::read(&path).expect("what a test needs");
        bytes[79] |= 1;
        std::fs::write(path, bytes).expect("what a test needs");
    }
    same_info(&both, "x");
    same_info(&both, "dirty");
    // One image for both, so that its snapshot was made at one moment.
    both.prepare("qemu-img create -q -f qcow2 y 10M");
    let run = std::process::Command::new("qemu-img")
        .args(["snapshot", "-c", "one"])
        .arg(both.theirs().join("y"))
        .status()
        .expect("what a test needs");
    assert!(run.success());
    std::fs::copy(both.theirs().join("y"), both.ours().join("y")).expect("what a test needs");
    same_info(&both, "y");
    same_info(
        &both,
        "--image-opts driver=compress,file.driver=qcow2,file.file.filename=y",
    );
}

#[test]
fn encrypted_images_are_shown_as_qemu_does_without_their_keys() {
    let both = Both::new();
    let made = |line: &str, name: &str| {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let path = both.theirs().join(name);
        words.extend([path.to_str().expect("what a test needs"), "1M"]);
        let run = std::process::Command::new("qemu-img")
            .args(&words)
            .status()
            .expect("what a test needs");
        assert!(run.success(), "{line}");
        std::fs::copy(&path, both.ours().join(name)).expect("what a test needs");
        same_info(&both, name);
        same_info(&both, &format!("-U {name}"));
    };
    let secret = "create -q --object secret,id=s,data=x";
    made(&format!("{secret} -f luks -o key-secret=s,iter-time=10"), "luks");
    made(
        &format!("{secret} -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"),
        "qcow2",
    );
    made(
        &format!("{secret} -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s"),
        "aes",
    );
}

#[test]
fn what_an_image_asks_of_requests_is_shown_when_asked_for() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f qcow2 x 10M");
    let run = std::process::Command::new(millpond_tests::program::millpond())
        .args(["img", "info", "--limits", "--output=json", "x"])
        .current_dir(both.ours())
        .output()
        .expect("what a test needs");
    let info: serde_json::Value = serde_json::from_slice(&run.stdout).expect("what a test needs");
    assert_eq!(info["limits"]["request-alignment"], 1);
    assert_eq!(info["children"][0]["info"]["limits"]["request-alignment"], 1);
}
