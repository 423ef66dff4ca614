//! QAPI as text: JSON as QEMU reads and writes it, and `key=value` options.

mod double;
mod draft;
mod json;
mod keyval;
mod number;
mod order;
mod spread;
mod write;

pub use draft::push_string;
pub use json::{JsonStream, parse_json};
pub use keyval::{Form, Options, take_pair};
pub use number::{SIZE_HINT, is_size_out_of_range, parse_size, signed, unsigned};
pub use order::{bucket, in_qdict_order};
pub use spread::spread;
pub use write::{WriteError, to_compact, to_pretty, to_text};
