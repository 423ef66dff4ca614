//! `millpond img amend` beside `qemu-img amend`.

use millpond_tests::tools::Both;

fn same_amendments(both: &Both, lines: &[&str]) {
    for line in lines {
        both.same(&format!("qemu-img amend {line}"));
        let space = |text: String| {
            let lines = text.lines();
            let lines = lines.filter(|line| {
                !["disk size", "file length", "iters", "uuid"]
                    .iter()
                    .any(|part| line.contains(part))
            });
            lines.collect::<Vec<_>>().join("\n")
        };
        both.same_but_for("qemu-img info x", space);
    }
}

#[test]
fn command_lines_are_read_and_refused_as_qemu_does() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f qcow2 x 10M");
    both.prepare("qemu-img create -q -f raw raw 1M");
    same_amendments(
        &both,
        &[
            "",
            "a b c",
            "--bogus",
            "-o size=20M",
            "-o size=2M a b",
            "-o help",
            "-o help x",
            "-f qcow2 -o help",
            "-f luks -o help",
            "-f raw -o help",
            "-f foo -o help",
            "-f raw -o help raw",
            "-f raw -o size=1M raw",
            "-t foo -o size=2M x",
            "-o a, x",
            "-o size=1x x",
            "-o foo=bar x",
            "-o cluster_size=4k x",
            "-o preallocation=full x",
            "-o state=active x",
            "-o size=3M,help x",
            "-o size=1 nosuch",
            "-f raw --image-opts -o size=1 x",
        ],
    );
}

#[test]
fn qcow2_images_are_amended_as_qemu_does() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f qcow2 x 10M");
    both.prepare("qemu-img create -q -f qcow2 base 10M");
    same_amendments(
        &both,
        &[
            "-o compat=0.10 x",
            "-o lazy_refcounts=on x",
            "-o refcount_bits=8 x",
            "-o compat=1.1 x",
            "-p -o compat=v2 x",
            "-q -p -o compat=v3 x",
            "-o compat=foo x",
            "-o size=20M x",
            "-o size=2M x",
            "-o lazy_refcounts=on x",
            "-o refcount_bits=7 x",
            "-o refcount_bits=8 x",
            "-o backing_file=base x",
            "-o backing_file=base,backing_fmt=qcow2 x",
            "-o data_file=z x",
            "-o data_file_raw=on x",
            "--image-opts -o size=100M driver=qcow2,file.filename=x",
            "--force -o size=30M x",
        ],
    );
    both.assert_same_image("qcow2", "x");
}

#[test]
fn keys_are_changed_as_qemu_does() {
    let both = Both::new();
    let secrets = "--object secret,id=s,data=x --object secret,id=t,data=y";
    both.prepare(&format!(
        "qemu-img create -q {secrets} -f luks -o key-secret=s,iter-time=10 x 1M"
    ));
    let image = "--image-opts driver=luks,file.filename=x,key-secret=s";
    let change = |options: &str| format!("{secrets} -o {options} {image}");
    same_amendments(
        &both,
        &[
            &change("state=active,new-secret=t,iter-time=10"),
            &change("state=inactive,old-secret=t"),
            &change("state=inactive,keyslot=0"),
            &change("state=active"),
            &change("state=foo"),
            &change("iter-time=10"),
        ],
    );
}

#[test]
fn keys_of_qcow2_images_are_changed_as_qemu_does() {
    let both = Both::new();
    let secrets = "--object secret,id=s,data=x --object secret,id=t,data=y";
    both.prepare(&format!(
        "qemu-img create -q {secrets} -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 x 1M"
    ));
    let image = "--image-opts driver=qcow2,file.filename=x,encrypt.key-secret=s";
    same_amendments(
        &both,
        &[
            &format!("{secrets} -o encrypt.state=active,encrypt.new-secret=t,encrypt.iter-time=10 {image}"),
            &format!("{secrets} -o encrypt.state=inactive,encrypt.old-secret=t {image}"),
            &format!("{secrets} -o encrypt.state=inactive,encrypt.keyslot=0 {image}"),
        ],
    );
}
