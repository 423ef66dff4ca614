//! The ends of the file, which a later daemon could not tell from its length.

use millpond_messages::saved::{DriverRecord, Saved, SavedError};
use serde::{Deserialize, Serialize};

use super::ends::Ends;
use super::node::Preallocate;
use crate::api::SavesState;

/// The state of a `preallocate` node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedPreallocate {
    /// The ends, while nobody but the node can change them.
    ends: Option<SavedEnds>,
}

/// Where the data and the file end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct SavedEnds {
    /// The end of what was written.
    data: u64,
    /// From here on there are only zeroes.
    zero_start: u64,
    /// The end of the file, if it is known.
    file: Option<u64>,
}

impl Saved for SavedPreallocate {
    const KIND: &'static str = "driver/preallocate";
    const VERSION: u32 = 1;
}

impl SavesState for Preallocate {
    fn save(&self) -> Result<DriverRecord, SavedError> {
        let ends = self.ends.get().map(|ends| SavedEnds {
            data: ends.data,
            zero_start: ends.zero_start,
            file: ends.file,
        });
        DriverRecord::of(&SavedPreallocate { ends })
    }

    fn restore(&self, record: &DriverRecord) -> Result<(), SavedError> {
        let SavedPreallocate { ends } = record.state()?;
        if ends.is_some_and(|ends| ends.file.is_some_and(|file| ends.data > file)) {
            let text = "preallocate: the data ends behind the file".to_owned();
            return Err(SavedError::Impossible(text));
        }
        self.ends.set(ends.map(|ends| Ends {
            data: ends.data,
            zero_start: ends.zero_start,
            file: ends.file,
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_version_1_stay() {
        let ends = SavedEnds {
            data: 7,
            zero_start: 5,
            file: Some(9),
        };
        let state = SavedPreallocate { ends: Some(ends) };
        let record = DriverRecord::of(&state).unwrap();
        assert_eq!(
            record.bytes(),
            b"MILLPOND\x12driver/preallocate\x01\0\0\0\x05\0\0\0\x01\x07\x05\x01\x09"
        );
        assert_eq!(record.state::<SavedPreallocate>().unwrap(), state);
    }
}
