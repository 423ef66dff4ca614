//! The rules that keep the house: each test holds all sources against one, and what it prints says how to mend it.
//!
//! What is beyond a limit already stands in `exceptions.txt`, with how far. Nothing may be added there, and what has become
//! smaller must be made smaller there too: `MILLPOND_TIDY=shrink cargo test -p millpond-tests --test tidy` does that.

mod circles;
mod dependencies;
mod docs;
mod layers;
mod lengths;
mod names;
mod ratchet;
mod rows;
mod source;
