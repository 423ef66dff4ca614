//! Votes: children grouped by what they gave, and the group that wins.

use millpond_messages::IoError;

use crate::api::Transfer;
use crate::replica::copies::first_difference;

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

#[cfg(test)]
mod tests {
    use super::*;
    use millpond_ring::buffer::{Buffer, Buffers};

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
}
