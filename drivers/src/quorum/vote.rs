//! Votes: children grouped by what they gave, and the group that wins.

use messages::IoError;

use crate::buffer::Buffers;
use crate::driver::Transfer;

/// Children that gave the same, by index, in their order.
pub type Version = Vec<usize>;

/// Groups the children that were read by the contents they gave.
pub fn versions(reads: &[Transfer]) -> Vec<Version> {
    let mut versions: Vec<Version> = Vec::new();
    for (index, (result, data)) in reads.iter().enumerate() {
        if result.is_err() {
            continue;
        }
        let is_same = |version: &&mut Version| {
            let first = version.first().and_then(|first| reads.get(*first));
            first.is_some_and(|(_, other)| first_difference(other, data).is_none())
        };
        match versions.iter_mut().find(is_same) {
            Some(version) => version.push(index),
            None => versions.push(vec![index]),
        }
    }
    versions
}

/// The version with the most votes: of several, the one that came up last.
pub fn winner<T>(versions: &[Vec<T>]) -> Option<&Vec<T>> {
    versions.iter().max_by_key(|version| version.len())
}

/// The error that most failed children have, by the number that stands for it.
pub fn common_error(errors: impl IntoIterator<Item = IoError>) -> Option<IoError> {
    let mut groups: Vec<Vec<IoError>> = Vec::new();
    for error in errors {
        let is_same =
            |group: &&mut Vec<IoError>| group.first().map(|first| first.errno()) == Some(error.errno());
        match groups.iter_mut().find(is_same) {
            Some(group) => group.push(error),
            None => groups.push(vec![error]),
        }
    }
    winner(&groups)?.first().copied()
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Buffer;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Transfer {
        (Ok(()), Buffer::from_slice(bytes).into())
    }

    #[test]
    fn the_most_common_version_wins_and_the_last_of_equals() {
        let failed = (Err(IoError::NoSpace), Buffers::new());
        let reads = [read(b"a"), read(b"b"), failed, read(b"a"), read(b"c"), read(b"c")];
        let found = versions(&reads);
        assert_eq!(found, [vec![0, 3], vec![1], vec![4, 5]]);
        assert_eq!(winner(&found), Some(&vec![4, 5]));
        assert_eq!(winner(&versions(&reads[..4])), Some(&vec![0, 3]));
        assert_eq!(winner::<usize>(&[]), None);
    }

    #[test]
    fn the_most_common_error_wins_however_it_is_spelled() {
        let space = IoError::Os(IoError::NoSpace.errno());
        let errors = [IoError::NoSpace, IoError::Os(5), space];
        assert_eq!(common_error(errors), Some(IoError::NoSpace));
        assert_eq!(
            common_error([IoError::NoSpace, IoError::Os(5)]),
            Some(IoError::Os(5))
        );
        assert_eq!(common_error([]), None);
    }

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
