//! Images of VirtualBox beside QEMU: made, read, written, looked at, checked; and those that lie.

use millpond_tests::image::poke;
use millpond_tests::tool::run;
use millpond_tests::tools::{Both, Side};
use std::fs;
use std::path::Path;

/// Where a header has the numbers that differ from image to image.
const UUIDS: std::ops::Range<usize> = 392..424;

fn bytes(path: &Path) -> Vec<u8> {
    let mut bytes = fs::read(path).expect("an image");
    bytes[UUIDS].fill(0);
    bytes
}

/// The file is the same in both folders, but for the numbers of the image.
#[track_caller]
fn assert_same_file(both: &Both, name: &str) {
    let [ours, theirs] = [both.ours(), both.theirs()].map(|folder| bytes(&folder.join(name)));
    assert_eq!(ours.len(), theirs.len(), "{name}");
    assert_eq!(
        ours.iter().zip(&theirs).position(|(one, other)| one != other),
        None,
        "{name}"
    );
}

/// A report without the space that the host's filesystem took.
fn without_space(text: String) -> String {
    let lines = text
        .lines()
        .filter(|line| !line.contains("disk size") && !line.contains("actual-size"));
    lines.map(|line| format!("{line}\n")).collect()
}

#[track_caller]
fn same_reports(both: &Both, name: &str) {
    for line in [
        "info",
        "info --output=json",
        "check",
        "check --output=json",
        "check -r all",
    ] {
        both.same_but_for(&format!("qemu-img {line} {name}"), without_space);
    }
    both.same(&format!("qemu-img map --output=json {name}"));
}

#[test]
fn images_are_made_as_qemu_makes_them() {
    let both = Both::new();
    for options in [
        "x 5M",
        "x 0",
        "x 1000",
        "x 1025k",
        "x 130M",
        "x 1T",
        "-o static=on x 3M",
        "-o static=on x 3584",
        "-o static=off x 3M",
        "-o preallocation=full x 3M",
    ] {
        both.same(&format!("qemu-img create -f vdi {options}"));
        assert_same_file(&both, "x");
        same_reports(&both, "x");
    }
    for options in [
        "-o help x",
        "-o bogus=1 x 1M",
        "-o static=maybe x 1M",
        "-o preallocation=metadata x 1M",
        "-o preallocation=maybe x 1M",
        "-b y -F raw x 1M",
        "y 600P",
        "x",
    ] {
        both.same(&format!("qemu-img create -f vdi {options}"));
    }
    for line in [
        "resize x 6M",
        "measure -O vdi --size 10M",
        "amend -f vdi -o size=1 x",
    ] {
        both.prepare("qemu-img create -q -f vdi x 5M");
        both.same(&format!("qemu-img {line}"));
    }
}

/// Requests of all sizes at all places, the same for both: numbers that look random.
fn requests(count: u64, size: u64) -> Vec<String> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let request = |n: u64| {
        let start = next(size / 512) * 512;
        let longest = if n.is_multiple_of(5) { 3 << 20 } else { 8192 };
        let len = (512 + next(longest / 512) * 512).min(size - start);
        match next(8) {
            0 => format!("write -z {start} {len}"),
            1 => format!("discard {start} {len}"),
            2 => "flush".to_owned(),
            3 => format!("read -P 0 {start} 0"),
            _ => format!("write -P {} {start} {len}", 1 + n % 255),
        }
    };
    (0..count).map(request).collect()
}

#[test]
fn what_either_writes_the_other_reads_and_both_write_the_same_bytes() {
    for options in ["x 12345k", "-o static=on x 9M"] {
        let both = Both::new();
        both.prepare(&format!("qemu-img create -q -f vdi {options}"));
        // The same numbers for both, so that all bytes must be the same.
        let [theirs, ours] =
            [both.theirs(), both.ours()].map(|folder| folder.join("x").display().to_string());
        // With its holes, which a map shows.
        run("cp", &["--sparse=auto", &theirs, &ours]);
        for part in requests(120, 9 << 20).chunks(40) {
            let mut words = vec!["qemu-io", "-f", "vdi"];
            part.iter().for_each(|request| words.extend(["-c", request]));
            words.push("x");
            for side in [Side::Ours, Side::Theirs] {
                let run = both.run(side, &words);
                assert_eq!(run.code, Some(0), "{side:?}: {}{}", run.stdout, run.stderr);
            }
            both.assert_same_bytes("x");
            both.assert_same_image("vdi", "x");
            same_reports(&both, "x");
            both.same("qemu-img convert -f vdi -O raw x raw");
            both.assert_same_bytes("raw");
        }
        both.same("qemu-img convert -f raw -O vdi raw again");
        // Several pieces are copied at a time, so blocks may be in another order.
        both.assert_same_image("vdi", "again");
    }
}

#[test]
fn an_image_that_is_not_as_it_has_to_be_is_told_as_by_qemu() {
    let both = Both::new();
    let full = [0, 1 << 20, 3 << 20].map(|start| format!("write -P 7 {start} 1M"));
    let rows: [(u64, &[u8]); 24] = [
        (64, &[1]),
        (68, &[3, 0, 2, 0]),
        (72, &[7]),
        (76, &[7]),
        (340, &[1]),
        (340, &[0, 0, 0, 0x70]),
        (344, &[1]),
        (344, &[0, 0, 0, 0x70]),
        (360, &[1]),
        (368, &[0, 0, 0x60]),
        (368, &[100, 0, 0x40]),
        (368, &[0; 8]),
        (375, &[0xff]),
        (376, &[0; 4]),
        (384, &[0; 4]),
        (384, &[0, 0, 0, 0x20]),
        (384, &[0xff, 0xff, 0xff, 0x1f]),
        (388, &[9]),
        (388, &[0xff; 4]),
        (424, &[1]),
        (455, &[1]),
        (512, &[2]),
        (516, &[0xfe, 0xff, 0xff, 0xff]),
        (516, &[0xfd, 0xff, 0xff, 0xff]),
    ];
    for (offset, change) in rows {
        both.prepare("qemu-img create -q -f vdi x 5M");
        fs::copy(both.theirs().join("x"), both.ours().join("x")).expect("a copy");
        both.write_image("vdi", "x", &full.each_ref().map(String::as_str));
        for folder in [both.ours(), both.theirs()] {
            poke(&folder.join("x"), offset, change);
        }
        for line in ["info -f vdi x", "check -f vdi x", "map --output=json -f vdi x"] {
            both.same_but_for(&format!("qemu-img {line}"), without_space);
        }
    }
    for len in [0, 64, 68, 100, 511, 512, 600] {
        for folder in [both.ours(), both.theirs()] {
            let file = fs::OpenOptions::new().write(true).open(folder.join("x"));
            file.and_then(|file| file.set_len(len)).expect("it is cut");
        }
        both.same_but_for("qemu-img info -f vdi x", without_space);
    }
}
