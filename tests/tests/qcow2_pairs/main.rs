//! Every two features of qcow2 together, in images that QEMU's tools make and Millpond changes, and the other way round.
//!
//! What goes together with what is a table here, which QEMU's own refusals are held against. After each story `qemu-img check`
//! finds nothing, and both programs read the same bytes, maps, snapshots and bitmaps, which are those of a model.

mod image;
mod ours;
mod story;
mod theirs;

use millpond_tests::pairwise::cover;

use image::{COUNTS, FORBIDDEN, Image, Kind};

/// The tests that share the combinations, so that they run side by side.
const SHARES: usize = 4;

fn tell_share(share: usize) {
    let rows = cover(&COUNTS, FORBIDDEN);
    for row in rows.iter().skip(share).step_by(SHARES) {
        let kind = Kind::of(row);
        println!("{kind:?}");
        story::tell(kind);
    }
}

#[test]
fn first_share() {
    tell_share(0);
}

#[test]
fn second_share() {
    tell_share(1);
}

#[test]
fn third_share() {
    tell_share(2);
}

#[test]
fn fourth_share() {
    tell_share(3);
}

/// What is left out is what QEMU refuses; that it refuses nothing else is shown by the combinations that are not.
#[test]
fn qemu_refuses_what_does_not_go_together() {
    for (one, other) in FORBIDDEN {
        let mut row = vec![0; COUNTS.len()];
        (row[one.0], row[other.0]) = (one.1, other.1);
        let kind = Kind::of(&row);
        let image = Image::new(kind);
        let told = theirs::try_tell(&image, &story::beginning(kind));
        assert!(told.is_err(), "QEMU makes {kind:?}");
    }
}
