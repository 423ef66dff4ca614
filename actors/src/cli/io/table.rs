//! The table of commands: what each is called, what it takes and needs, and the line that help has on it.

use millpond_messages::Permissions;

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// End the process as a crash does.
    Abort,
    /// Wait for all requests in flight.
    AioFlush,
    /// Begin to read a range.
    AioRead,
    /// Begin to write a range.
    AioWrite,
    /// Count what is allocated in a range.
    Alloc,
    /// Have the next request that reaches an event held.
    Break,
    /// Close the open image.
    Close,
    /// Discard a range of bytes.
    Discard,
    /// Make durable what was written.
    Flush,
    /// Explain one command or all.
    Help,
    /// Describe the open image.
    Info,
    /// Tell the image's length.
    Length,
    /// Tell what is allocated.
    Map,
    /// Open an image by name.
    Open,
    /// End the whole tool.
    Quit,
    /// Read a range of bytes.
    Read,
    /// Read a range into several buffers.
    Readv,
    /// Forget breakpoints by tag.
    RemoveBreak,
    /// Change how the image is open.
    Reopen,
    /// Let go of a held request.
    Resume,
    /// Send a signal to this process.
    Sigraise,
    /// Wait for a while.
    Sleep,
    /// Change the image's length.
    Truncate,
    /// Wait until a request is held.
    WaitBreak,
    /// Write a range of bytes.
    Write,
    /// Write a range from several buffers.
    Writev,
    /// Do something to zones, which no image has here.
    Zone(Zone),
}

/// What would be done to zones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zone {
    /// Write at the end of a zone.
    Append,
    /// List zones from an offset.
    Report,
    /// Close, finish, open or reset zones: the word that is told.
    Change(&'static str),
}

/// A command of the tool.
pub struct CommandEntry {
    /// What it is called.
    pub name: &'static str,
    /// Its short name, where it has one.
    pub short: Option<&'static str>,
    /// What it takes, as its line shows it.
    pub takes: &'static str,
    /// What its line says of it.
    pub line: &'static str,
    /// The fewest words that it takes.
    pub least: usize,
    /// The most words that it takes; any number where there is none.
    pub most: Option<usize>,
    /// What it does to the image.
    pub needs: Permissions,
    /// It works without an image.
    pub without_image: bool,
    /// What the command does.
    pub verb: Act,
}

impl CommandEntry {
    const fn new(name: &'static str, takes: &'static str, line: &'static str, verb: Act) -> Self {
        Self {
            name,
            short: None,
            takes,
            line,
            least: 0,
            most: Some(0),
            needs: Permissions::empty(),
            without_image: false,
            verb,
        }
    }

    const fn short(mut self, short: &'static str) -> Self {
        self.short = Some(short);
        self
    }

    const fn words(mut self, least: usize, most: usize) -> Self {
        self.least = least;
        self.most = Some(most);
        self
    }

    const fn at_least(mut self, least: usize) -> Self {
        self.least = least;
        self.most = None;
        self
    }

    const fn writes(mut self) -> Self {
        self.needs = Permissions::WRITE;
        self
    }

    const fn resizes(mut self) -> Self {
        self.needs = Permissions::WRITE.union(Permissions::RESIZE);
        self
    }

    const fn without_image(mut self) -> Self {
        self.without_image = true;
        self
    }

    /// What is printed where so many words do not do.
    pub fn refuse_count(&self, called: &str, count: usize) -> String {
        let least = self.least;
        let expected = match self.most {
            None => format!("at least {least}"),
            Some(most) if most == least => least.to_string(),
            Some(most) => format!("between {least} and {most}"),
        };
        format!("bad argument count {count} to {called}, expected {expected} arguments")
    }

    /// The line that help has on it.
    pub fn usage(&self, called: &str) -> String {
        format!("{called} {} -- {}", self.takes, self.line)
    }
}

/// All commands, in the order in which help lists them.
pub static COMMANDS: &[CommandEntry] = &[
    CommandEntry::new("abort", "", "simulate a program crash using abort(3)", Act::Abort).without_image(),
    CommandEntry::new(
        "aio_flush",
        "",
        "completes all outstanding aio requests",
        Act::AioFlush,
    ),
    CommandEntry::new(
        "aio_read",
        "[-Ciqrv] [-P pattern] off len [len..]",
        "asynchronously reads a number of bytes",
        Act::AioRead,
    )
    .at_least(2),
    CommandEntry::new(
        "aio_write",
        "[-Cfiqruz] [-P pattern] off len [len..]",
        "asynchronously writes a number of bytes",
        Act::AioWrite,
    )
    .at_least(2)
    .writes(),
    CommandEntry::new(
        "alloc",
        "offset [count]",
        "checks if offset is allocated in the file",
        Act::Alloc,
    )
    .short("a")
    .words(1, 2),
    CommandEntry::new(
        "break",
        "event tag",
        "sets a breakpoint on event and tags the stopped request as tag",
        Act::Break,
    )
    .words(2, 2),
    CommandEntry::new("close", "", "close the current open file", Act::Close).short("c"),
    CommandEntry::new(
        "discard",
        "[-Cq] off len",
        "discards a number of bytes at a specified offset",
        Act::Discard,
    )
    .short("d")
    .at_least(2)
    .writes(),
    CommandEntry::new("flush", "", "flush all in-core file state to disk", Act::Flush).short("f"),
    CommandEntry::new("help", "[command]", "help for one or all commands", Act::Help)
        .short("?")
        .words(0, 1)
        .without_image(),
    CommandEntry::new("info", "", "prints information about the current file", Act::Info).short("i"),
    CommandEntry::new("length", "", "gets the length of the current file", Act::Length).short("l"),
    CommandEntry::new("map", "", "prints the allocated areas of a file", Act::Map),
    CommandEntry::new(
        "open",
        "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
        "open the file specified by path",
        Act::Open,
    )
    .short("o")
    .at_least(1)
    .without_image(),
    CommandEntry::new("quit", "", "exit the program", Act::Quit)
        .short("q")
        .at_least(0)
        .without_image(),
    CommandEntry::new(
        "read",
        "[-abCqrv] [-P pattern [-s off] [-l len]] off len",
        "reads a number of bytes at a specified offset",
        Act::Read,
    )
    .short("r")
    .at_least(2),
    CommandEntry::new(
        "readv",
        "[-Cqrv] [-P pattern] off len [len..]",
        "reads a number of bytes at a specified offset",
        Act::Readv,
    )
    .at_least(2),
    CommandEntry::new(
        "remove_break",
        "tag",
        "remove a breakpoint by tag",
        Act::RemoveBreak,
    )
    .words(1, 1),
    CommandEntry::new(
        "reopen",
        "[(-r|-w)] [-c cache] [-o options]",
        "reopens an image with new options",
        Act::Reopen,
    )
    .at_least(0),
    CommandEntry::new("resume", "tag", "resumes the request tagged as tag", Act::Resume).words(1, 1),
    CommandEntry::new("sigraise", "signal", "raises a signal", Act::Sigraise)
        .words(1, 1)
        .without_image(),
    CommandEntry::new(
        "sleep",
        "",
        "waits for the given value in milliseconds",
        Act::Sleep,
    )
    .words(1, 1)
    .without_image(),
    CommandEntry::new(
        "truncate",
        "[-m prealloc_mode] off",
        "truncates the current file at the given offset",
        Act::Truncate,
    )
    .short("t")
    .words(1, 3)
    .resizes(),
    CommandEntry::new(
        "wait_break",
        "tag",
        "waits for the suspension of a request",
        Act::WaitBreak,
    )
    .words(1, 1),
    CommandEntry::new(
        "write",
        "[-bcCfnqruz] [-P pattern | -s source_file] off len",
        "writes a number of bytes at a specified offset",
        Act::Write,
    )
    .short("w")
    .at_least(2)
    .writes(),
    CommandEntry::new(
        "writev",
        "[-Cfqr] [-P pattern] off len [len..]",
        "writes a number of bytes at a specified offset",
        Act::Writev,
    )
    .at_least(2)
    .writes(),
    CommandEntry::new(
        "zone_append",
        "offset len [len..]",
        "append write a number of bytes at a specified offset",
        Act::Zone(Zone::Append),
    )
    .words(3, 4),
    CommandEntry::new(
        "zone_close",
        "offset len",
        "close a range of zones in zone block device",
        Act::Zone(Zone::Change("close")),
    )
    .words(2, 2),
    CommandEntry::new(
        "zone_finish",
        "offset len",
        "finish a range of zones in zone block device",
        Act::Zone(Zone::Change("finish")),
    )
    .words(2, 2),
    CommandEntry::new(
        "zone_open",
        "offset len",
        "explicit open a range of zones in zone block device",
        Act::Zone(Zone::Change("open")),
    )
    .words(2, 2),
    CommandEntry::new(
        "zone_report",
        "offset number",
        "report zone information",
        Act::Zone(Zone::Report),
    )
    .words(2, 2),
    CommandEntry::new(
        "zone_reset",
        "offset len",
        "reset a zone write pointer in zone block device",
        Act::Zone(Zone::Change("reset")),
    )
    .words(2, 2),
];

/// The command that is called so.
pub fn find(name: &str) -> Option<&'static CommandEntry> {
    COMMANDS
        .iter()
        .find(|row| row.name == name || row.short == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_sorted_and_found_by_either_name() {
        assert!(COMMANDS.is_sorted_by_key(|row| row.name));
        for row in COMMANDS {
            for name in [Some(row.name), row.short].into_iter().flatten() {
                assert_eq!(find(name).map(|found| found.name), Some(row.name));
            }
        }
    }

    #[test]
    fn a_wrong_count_is_told_with_the_right_one() {
        let refused = |name: &str| find(name).unwrap().refuse_count(name, 9);
        assert_eq!(
            refused("map"),
            "bad argument count 9 to map, expected 0 arguments"
        );
        assert_eq!(
            refused("r"),
            "bad argument count 9 to r, expected at least 2 arguments"
        );
        assert_eq!(
            refused("truncate"),
            "bad argument count 9 to truncate, expected between 1 and 3 arguments"
        );
    }
}
