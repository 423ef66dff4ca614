//! Where the data and the file end: known while no other node can change that.

/// The ends of a file that only this node writes to.
///
/// ```text
///   0 ........... zero_start ........ data ............. file
///     anything               zeroes        set aside,
///                                          zeroes
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    /// The end of what was written: the length that the node shows.
    pub data: u64,
    /// Where the zeroes begin that fill the file up to its end.
    pub zero_start: u64,
    /// The end of the file; none if a failure left it unknown.
    pub file: Option<u64>,
}

/// What a write needs before it can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Nothing,
    /// Nothing, nor is the write itself needed: it wants zeroes where there are zeroes already.
    Covered,
    /// The file must be made longer first.
    Room,
}

impl Ends {
    /// The ends of a file to which nothing was added yet.
    pub const fn of(length: u64) -> Self {
        Self {
            data: length,
            zero_start: length,
            file: Some(length),
        }
    }

    /// Notes a write. `zeroes` says that it may be left out where zeroes are already.
    pub fn written(&mut self, offset: u64, end: u64, zeroes: bool) -> Need {
        if !zeroes {
            self.zero_start = self.zero_start.max(end);
        }
        if end <= self.data {
            return Need::Nothing;
        }
        self.data = end;
        self.need(offset, end, zeroes)
    }

    /// What a write beyond the data's old end needs.
    pub fn need(&self, offset: u64, end: u64, zeroes: bool) -> Need {
        match self.file {
            Some(file) if end <= file && zeroes && offset >= self.zero_start => Need::Covered,
            Some(file) if end <= file => Need::Nothing,
            Some(_) | None => Need::Room,
        }
    }

    /// Whether a write to `end` may make the file longer.
    pub fn grows(&self, end: u64) -> bool {
        self.file.is_none_or(|file| end > file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_covered_only_where_nothing_else_was_written() {
        let mut ends = Ends::of(100);
        assert_eq!(ends.written(0, 100, false), Need::Nothing);
        assert_eq!(ends.written(100, 200, false), Need::Room);
        ends.file = Some(1000);
        assert_eq!(ends.written(200, 300, true), Need::Covered);
        assert_eq!(ends.written(250, 260, false), Need::Nothing);
        assert_eq!(
            ends.written(255, 400, true),
            Need::Nothing,
            "there is data from 255 to 260"
        );
        assert_eq!(ends.written(260, 500, true), Need::Covered);
        assert_eq!(ends.written(500, 1001, true), Need::Room);
        assert_eq!(ends.data, 1001);
    }

    #[test]
    fn an_unknown_end_may_be_anywhere() {
        let mut ends = Ends::of(100);
        ends.file = None;
        assert!(ends.grows(1));
        assert_eq!(ends.written(0, 50, false), Need::Nothing);
        assert_eq!(ends.written(0, 150, true), Need::Room);
    }
}
