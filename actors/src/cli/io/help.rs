//! `help`: the lines on all commands, or what there is to be said of one.

use super::shell::{Ended, Shell};
use super::table::{self, Act, COMMANDS};

/// `help`: explains one command, or lists all.
pub fn help(shell: &mut Shell, words: &[String]) -> Ended {
    let Some(called) = words.get(1) else {
        for row in COMMANDS {
            shell.say(&row.usage(row.name));
        }
        shell.say("\nUse 'help commandname' for extended help.");
        return Ok(());
    };
    let Some(row) = table::find(called) else {
        shell.say(&format!("command {called} not found"));
        return Ok(());
    };
    shell.say(&row.usage(called));
    if let Some(text) = explained(row.verb) {
        shell.out.text(text);
    }
    Ok(())
}

/// What there is to be said of a command beyond its line.
fn explained(verb: Act) -> Option<&'static str> {
    Some(match verb {
        Act::Read | Act::Readv | Act::AioRead => READING,
        Act::Write | Act::Writev | Act::AioWrite => WRITING,
        Act::Discard => {
            "\n -C, -- report for programs: bytes, requests, time and rates\n -q, -- no report\n\n"
        }
        Act::Open => OPENING,
        Act::Reopen => REOPENING,
        Act::Sigraise => {
            "\n The argument is the signal's number: 'sigraise 15' sends SIGTERM to this process.\n\n"
        }
        _ => return None,
    })
}

/// The options of reads.
const READING: &str = "
 Each command takes those of these options that its line shows. An aio_read goes on in the background: its report comes
 while a later command is waited for, and aio_flush waits for all. It fails only if it cannot be begun.

 -b, -- read the state of a virtual machine that is stored beside the disk
 -C, -- report for programs: bytes, requests, time and rates
 -i, -- make no request, and count an invalid one
 -l, -- check so many bytes only (with -P)
 -p, -- without effect
 -P, -- check that each byte read is this one
 -q, -- no report
 -r, -- without effect: buffers need not be registered
 -s, -- check from this byte of what was read on (with -P)
 -v, -- show what was read

";

/// The options of writes.
const WRITING: &str = "
 Without -P, -s or -z each byte written is 0xcd. Each command takes those of these options that its line shows. An
 aio_write goes on in the background: its report comes while a later command is waited for, and aio_flush waits for all.
 It fails only if it cannot be begun.

 -b, -- write the state of a virtual machine that is stored beside the disk
 -c, -- store the data compressed
 -C, -- report for programs: bytes, requests, time and rates
 -f, -- have the data on stable storage before the report
 -i, -- make no request, and count an invalid one
 -n, -- with -z: fail rather than write buffers of zeroes
 -p, -- without effect
 -P, -- write this byte
 -q, -- no report
 -r, -- without effect: buffers need not be registered
 -s, -- write what this file has, again and again
 -u, -- with -z: space may be given back
 -z, -- write zeroes without data

";

/// The options of `open`.
const OPENING: &str = "
 -C, -- keep what is read from a backing image
 -d, -- what becomes of discards: ignore or unmap
 -i, -- how files are accessed: threads, native or io_uring
 -k, -- the same as -i native
 -n, -- the same as -t none
 -o, -- options of the node, such as driver=raw
 -r, -- read-only
 -s, -- write to a temporary image on top
 -t, -- the cache mode
 -U, -- others may use the image as they like
";

/// The options of `reopen`.
const REOPENING: &str = "
 -c, -- the cache mode from now on
 -o, -- options of the node, such as lazy-refcounts=on
 -r, -- read-only from now on
 -w, -- writable from now on

";
