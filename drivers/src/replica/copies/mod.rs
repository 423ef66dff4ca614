//! What drivers share that keep the same data in several children.

mod ranges;

pub use ranges::{Held, Ranges, Use};

use millpond_ring::buffer::{Buffer, Buffers};

/// The offset of the first byte in which two lists differ, the longer one's excess included.
pub fn first_difference(a: &Buffers, b: &Buffers) -> Option<usize> {
    let (mut left, mut right) = (a.iter().map(|part| &part[..]), b.iter().map(|part| &part[..]));
    let (mut x, mut y): (&[u8], &[u8]) = (&[], &[]);
    let mut offset = 0;
    loop {
        while x.is_empty() {
            let Some(part) = left.next() else {
                let rest = y.len() + right.map(<[u8]>::len).sum::<usize>();
                return (rest > 0).then_some(offset);
            };
            x = part;
        }
        while y.is_empty() {
            let Some(part) = right.next() else {
                return Some(offset);
            };
            y = part;
        }
        let (same_x, rest_x) = x.split_at(x.len().min(y.len()));
        let (same_y, rest_y) = y.split_at(same_x.len());
        if same_x != same_y {
            let equal = same_x.iter().zip(same_y).take_while(|(a, b)| a == b).count();
            return Some(offset + equal);
        }
        offset += same_x.len();
        (x, y) = (rest_x, rest_y);
    }
}

/// Copies what one list holds into another of the same length.
pub fn copy(from: &Buffers, to: &mut Buffers) {
    let mut offset = 0;
    for part in from.iter() {
        offset += to.copy_from_slice(offset, part);
    }
}

/// The same bytes in a buffer of their own, if there is memory.
pub fn copy_of(buffers: &Buffers) -> Option<Buffers> {
    let mut copied = Buffers::from(Buffer::try_alloc(buffers.len())?);
    copy(buffers, &mut copied);
    Some(copied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(bytes: &[u8], cuts: &[usize]) -> Buffers {
        let mut list = Buffers::new();
        let mut rest = bytes;
        for at in cuts {
            let (part, tail) = rest.split_at(at % (rest.len() + 1));
            list.push(Buffer::from_slice(part));
            rest = tail;
        }
        list.push(Buffer::from_slice(rest));
        list
    }

    proptest! {
        #[test]
        fn lists_are_compared_and_copied_as_their_bytes(
            a in prop::collection::vec(0_u8..2, 0..40),
            b in prop::collection::vec(0_u8..2, 0..40),
            cuts in prop::collection::vec(any::<usize>(), 4),
        ) {
            let (x, y) = (cut(&a, &cuts[..2]), cut(&b, &cuts[2..]));
            let equal = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
            let expected = (a != b).then_some(equal);
            prop_assert_eq!(first_difference(&x, &y), expected);
            prop_assert_eq!(first_difference(&x, &cut(&a, &cuts[2..])), None);
            let mut target = cut(&vec![9; a.len()], &cuts[2..]);
            copy(&x, &mut target);
            prop_assert_eq!(target.to_vec(), a);
        }
    }
}
