//! `millpond io` beside `qemu-io`.

use std::io::Write;
use std::process::{Command, Stdio};

use millpond_tests::tools::{Both, Said, Side};

/// What is told without what differs from run to run: how long a request took, and how fast that was.
fn without_times(text: String) -> String {
    let line = |line: &str| {
        // Names that nobody has chosen are counted.
        if let Some((before, _)) = line.split_once("'#block") {
            return format!("{before}\n");
        }
        if let Some((size, _)) = line.split_once(", 1 ops; ") {
            return format!("{size}, 1 ops\n");
        }
        match line.split(',').collect::<Vec<_>>().as_slice() {
            [bytes, "1", _, _, _] => format!("{bytes},1\n"),
            _ => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

/// Runs the same commands, with a semicolon between them, on the same image with both tools.
#[track_caller]
fn same(both: &Both, options: &str, commands: &str, image: &str) -> Said {
    let mut words = vec!["qemu-io"];
    words.extend(options.split_whitespace());
    for command in commands.split(';') {
        words.extend(["-c", command]);
    }
    words.extend(Some(image).filter(|image| !image.is_empty()));
    both.same_words(&words, without_times)
}

/// Runs a command line in a side's folder with this as its standard input; answers its output and exit code.
#[track_caller]
fn fed(both: &Both, side: Side, words: &[&str], input: &str) -> (String, String, Option<i32>) {
    let (program, arguments) = words.split_first().expect("a program");
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(both.folder(side))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program is there");
    let mut stdin = child.stdin.take().expect("it has a standard input");
    stdin.write_all(input.as_bytes()).expect("it is read");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: &[u8]| without_times(String::from_utf8_lossy(bytes).into_owned());
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

/// Images of both formats in both folders.
fn images() -> Both {
    let both = Both::new();
    both.prepare("qemu-img create -q -f qcow2 x 1M");
    both.prepare("qemu-img create -q -f raw r 1M");
    both
}

/// Each set of commands on both images, which must then be the same.
fn same_on_both(rows: &[&str]) {
    let both = images();
    for commands in rows {
        same(&both, "-f qcow2", commands, "x");
        same(&both, "-f raw", commands, "r");
        both.assert_same_image("qcow2", "x");
        both.assert_same_bytes("r");
    }
}

#[test]
fn reads_and_writes_are_reported_as_qemu_does() {
    same_on_both(&[
        "read 0 512; write 0 512; read -v 0 40; read -v 5 16; read -C 0 512; read -q 0 512",
        "write -P 65 100 1000; read -v 90 33; read -P 65 100 1000; read -P 65 0 512; read -P 0 0 100",
        "read -P 65 -s 100 -l 412 0 512; read -P 65 -s 99 -l 2 0 512; read -qP 1 -s 10k -l 1k 64k 64k",
        "write -z 0 64k; write -z -u 64k 64k; write -zn 128k 64k; write -f 0 512; write -zf 0 1; write -Cz 0 5",
        "readv 0 512 512; readv -v 0 16 3; writev 0 512 1k; writev -P 3 0 512 5; readv -P 3 0 512 5; readv -P 4 0 1",
        "discard 0 64k; discard -q 0 4k; discard -C 0 4k; discard 1 1; flush; length",
        "write 0 0; read 0 0; write -z 0 0; discard 0 0; readv 0 0; writev 0 0",
        "w 0x1000 010; r 1.5k 1; writev \t0 \t8k 1k; read 1K 1B; read +5 1; read .5k 1; read 1. 1; l; f; d 0 512",
        "write -r 0 512; read -r 0 512; read -p 0 1; write -p 0 1; read -- 0 1",
    ]);
}

#[test]
fn requests_that_cannot_be_are_refused_as_qemu_does() {
    same_on_both(&[
        "read; read 0; read 0 1 2 3; read x 1; read 0 x; read 0 1z; read -1 512; read 0 -512",
        "read 99999999999999999999 1; read 0 8E; read 0 4G; read 0 2G; read 1M 512; read 1023k 2k",
        "read -P; read -z 0 512; read -P 300 0 512; read -P x 0 512; read -s 4 0 512; read -l 4 0 512",
        "read -P 0 -s 500 -l 20 0 512; read -P 0 -s 600 0 512; read -P 0 -s x 0 512; read -P 0 -s -4 0 512",
        "write -z -P 1 0 512; write -b -z 0 512; write -c -f 0 64k; write -u 0 512; write -n 0 512",
        "write -z -s x 0 512; write -s x 0 512; write -z -r 0 512; write -b -f 0 512; write -b 1 512",
        "write -b 0 1; write -c 1 1; read -b 0 1; write -z 0 3G; write -P 0x10 0 4G; write 2M 1",
        "readv 0; readv -v 0; readv 0 3G 3G; readv 0 2147483136 1; writev 0 x; writev x 1; writev 0 -1",
        "writev 2M 5; readv 2M 5; discard x 1; discard 0; discard -x; discard 0 2147483136; discard 2M 4k",
        "foo; ;    ; help foo; help a b; length x; map x; alloc 0 512 3; read\t0 1; quit a; length",
        "sleep; sleep x; sleep -1; sleep 1 2; sleep 1; sigraise; sigraise x; sigraise 999; sigraise 0",
        "zone_report 0 1; zone_open 0 1; zone_close 0 1; zone_finish 0 1; zone_reset 0 1; zone_append 0 1",
        "zone_append 0 1 2; zone_append -r 0 512; zone_open x 1; zone_report 0 x; zone_report",
    ]);
}

#[test]
fn writes_come_from_files_too() {
    let both = images();
    both.write("pattern", &[65; 3000]);
    both.write("empty", b"");
    both.write("abc", b"abc");
    for commands in [
        "write -s pattern 0 8k; read -v 2990 20",
        "write -s abc 0 10; read -v 0 12",
        "write -s empty 0 1k; write -s . 0 1k; write -s nope 0 1k; writev -s pattern 0 1k",
    ] {
        same(&both, "-f qcow2", commands, "x");
        both.assert_same_image("qcow2", "x");
    }
}

#[test]
fn a_machine_s_state_and_compressed_data_are_written_as_qemu_does() {
    same_on_both(&[
        "write -b -P 7 0 512; read -b -P 7 0 512; write -b -c 512 512; read -b -v 512 512",
        "write -c -P 9 0 64k; read -P 9 0 64k; write -c 0 64k; write -c 64k 512; write -c 1M 64k",
    ]);
}

#[test]
fn requests_in_the_background_end_as_qemu_s_do() {
    same_on_both(&[
        "aio_write 0 64k; aio_flush; aio_read -v 0 32; aio_flush; aio_write -P 4 0 1k 2k; aio_flush",
        "aio_read -P 4 0 1k 1k; aio_flush; aio_read -P 5 0 1k 1k; aio_flush; aio_read -qP 5 0 1k; aio_flush",
        "aio_write -z 0 1k; aio_flush; aio_write -zu 0 64k; aio_flush; aio_write -f 0 1k; aio_flush",
        "aio_write -z 0 1k 1k; aio_write -u 0 1k; aio_write -z -r 0 64k; aio_write -n 0 1; aio_write -P x 0 1",
        "aio_read 0; aio_read x 1; aio_read 0 x; aio_read -l 0 1; aio_read -P 999 0 1; aio_flush 1",
        "aio_write 2M 1k; aio_flush; aio_read 2M 1k; aio_flush; aio_write -z 0 4G; aio_flush",
        "aio_write -q 0 1k; aio_flush; aio_write -C 0 1k; aio_flush; aio_write 0 0; aio_flush",
        "aio_write -i 0 1k; aio_read -i 0 1k; length",
        "aio_write 0 64k; quit; length",
        "aio_write 0 64k; close; length; close",
    ]);
}

#[test]
fn what_is_allocated_is_told_as_qemu_does() {
    same_on_both(&[
        "map; alloc 0; write 64k 1; write 256k 128k; map; alloc 0 1M; alloc 64k 1M; alloc 0 2M",
        "alloc 1 1; alloc 512 1; alloc x; alloc 0 x; alloc 2M; alloc -512; alloc 0 4G; alloc 0 8E; alloc 0 0",
        "write -z 64k 64k; discard 256k 64k; map; info; i",
        "truncate 2M; length; map; truncate x; truncate -m off 3M; length; truncate -m foo 4M",
        "truncate; truncate -x; truncate -5; truncate -m; truncate -m full 4M; length; truncate 3M; length",
    ]);
    let both = images();
    same(
        &both,
        "-f raw",
        "truncate 1000; length; map; alloc 512 512; read 1000 24",
        "r",
    );
    same(
        &both,
        "-f raw",
        "truncate -m metadata 5M; truncate -m falloc 6M; length",
        "r",
    );
    both.prepare("qemu-img create -q -f qcow2 -b x -F qcow2 y 10G");
    same(
        &both,
        "-f qcow2",
        "write 9G 3k; map; alloc 0 10G; length; info",
        "y",
    );
    same(&both, "-f file", "info; map", "r");
}

#[test]
fn images_are_opened_closed_and_reopened_as_qemu_does() {
    let both = images();
    for (options, commands, image) in [
        (
            "",
            "length; open -o driver=raw r; length; open -o driver=qcow2 x; close; length",
            "",
        ),
        (
            "",
            "open; open nope; open -x; open x; read 0 1; close; open -r x; write 0 1; close",
            "",
        ),
        ("", "open -t foo r; open -d foo r; open -i foo r; open a b", ""),
        (
            "",
            "open -n -o driver=raw r; length; close; open -o driver=raw,file.filename=r; open -s x; write 0 1",
            "",
        ),
        (
            "-r",
            "write 0 1; truncate 2M; discard 0 1; write -z 0 1; flush; aio_write 0 1; read 0 1",
            "x",
        ),
        (
            "-r",
            "reopen -w; write 0 1; reopen -r; write 0 1; reopen -r -w; reopen -c foo",
            "x",
        ),
        (
            "",
            "reopen; reopen x; reopen -x; reopen -o; reopen -c none; reopen -c writeback; read 0 1",
            "x",
        ),
        (
            "",
            "reopen -r -o read-only=on; reopen -c none -o cache.no-flush=on; reopen -o node-name=y",
            "x",
        ),
        (
            "",
            "reopen -o lazy-refcounts=on; reopen -o driver=raw; reopen -o read-only=on; write 0 1",
            "x",
        ),
        ("-f raw", "reopen -o driver=qcow2; length", "r"),
        ("-s", "write 0 1M; map", "x"),
        ("-U", "read 0 1", "x"),
        ("-U -r", "read 0 1", "x"),
        ("-C -r", "read 0 1", "x"),
        ("-n -t writeback -i io_uring", "read 0 1", "x"),
        ("-k", "read 0 1", "x"),
        ("-d foo", "read 0 1", "x"),
        ("-i foo", "read 0 1", "x"),
        ("-t foo", "read 0 1", "x"),
        ("-m -n", "read 0 512", "x"),
        ("-f foo", "read 0 1", "x"),
        ("", "read 0 1", "nope"),
        ("", "write 512 1", "r"),
        (
            "",
            "reopen -o file.node-name=y; reopen -o file.driver=qcow2; reopen -o file.driver=file",
            "x",
        ),
        (
            "",
            "reopen -o cache.direct=x; reopen -o file.cache.no-flush=x; reopen -o cache.no-flush=on",
            "x",
        ),
        (
            "",
            "open -o driver=blkdebug,image.driver=qcow2,align=4k blkdebug::x; write -P 7 1000 128k; read -P 7 1000 128k",
            "",
        ),
        ("--image-opts", "info; length", "driver=null-co"),
        ("--image-opts", "info; length", "driver=raw,file.driver=null-co"),
        ("--image-opts", "length", "driver=qcow2,file.filename=x"),
        ("--image-opts", "length", "driver=qcow2,file.filename=nope"),
        ("--image-opts", "length", "x"),
        ("--image-opts -f raw", "length", "x"),
    ] {
        same(&both, options, commands, image);
        both.assert_same_image("qcow2", "x");
        both.assert_same_bytes("r");
    }
}

#[test]
fn held_requests_are_let_go_as_qemu_does() {
    let both = images();
    for commands in [
        "break write_aio A; aio_write 0 512; wait_break A; resume A; aio_flush; resume A",
        "break write_aio A; aio_write 0 512; wait_break A; remove_break A; aio_flush",
        "remove_break B; break foo A; break write_aio; resume; wait_break",
    ] {
        same(&both, "-f qcow2", commands, "blkdebug::x");
    }
    same(
        &both,
        "-f qcow2",
        "break write_aio A; remove_break A; resume A",
        "x",
    );
}

#[test]
fn what_is_held_back_comes_before_a_signal_and_not_before_a_crash() {
    let both = images();
    for signal in ["15", "9", "6"] {
        let command = format!("sigraise {signal}");
        let commands = format!("length; {command}; length");
        let said = same(&both, "-f raw", &commands, "r");
        assert_eq!(said.stdout, "1 MiB\n");
    }
    same(&both, "-f raw", "length; abort", "r");
}

#[test]
fn commands_come_from_standard_input_after_a_prompt() {
    let both = images();
    for input in [
        "read 0 512\nfoo\n\nlength\nquit\nlength\n",
        "read 0 512\nlength",
        "aio_write 0 64k\naio_flush\nread -P 1 0 512\n",
        "open r\nclose\nopen -o driver=raw r\n",
        "",
    ] {
        for file in [&["-f", "raw", "r"][..], &[]] {
            let said = [Side::Ours, Side::Theirs].map(|side| {
                let program = both.program(side, "qemu-io").display().to_string();
                let words = [&[program.as_str()], file].concat();
                fed(&both, side, &words, input)
            });
            assert_eq!(
                said[0], said[1],
                "{input:?} {file:?}: left is ours, right is QEMU's"
            );
        }
    }
}

#[test]
fn names_are_completed_at_a_terminal() {
    let both = images();
    let line = format!("{} -f raw r", both.program(Side::Ours, "qemu-io").display());
    // What `script` shows the program is a terminal.
    let words = ["script", "-qec", &line, "/dev/null"];
    let (shown, _, code) = fed(&both, Side::Ours, &words, "leng\t\rquit\r");
    assert!(shown.contains("1 MiB"), "{shown}");
    assert_eq!(code, Some(0));
}

#[test]
fn options_of_nodes_are_text_where_numbers_and_switches_are_meant() {
    let both = images();
    let commands = "length; write 0 1k; write 0 1k; read -P 0 0 512";
    let blkdebug = "driver=raw,file.driver=blkdebug,file.image.filename=r,file.inject-error.0.event";
    for options in [
        "driver=raw,size=512,file.filename=r",
        "driver=raw,offset=512,size=1k,file.filename=r",
        "driver=null-co,size=1M",
        "driver=null-co,size=1M,read-zeroes=on",
        "driver=qcow2,file.filename=x,l2-cache-size=64k,lazy-refcounts=on",
        "driver=qcow2,file.filename=x,cache-size=1.25M,refcount-cache-size=.25M",
        &format!("{blkdebug}=pwritev,file.inject-error.0.errno=28,file.inject-error.0.once=on"),
    ] {
        same(&both, "--image-opts", commands, options);
    }
    both.assert_same_image("qcow2", "x");
    both.assert_same_bytes("r");
}
