//! Objects that a command line asks for (`--object`).

use super::help;
use crate::daemon::Daemon;
use crate::qmp;
use millpond_messages::qapi::{Options, QmpError, Validator};
use serde_json::Value;

/// What came of an option that asks for an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// The object is there.
    Made,
    /// It asked for help, which was printed.
    Explained,
}

/// Makes the object that `text` describes, or prints the help that it asks for.
///
/// # Errors
/// QEMU's text: it is no such object, or a property is wrong.
pub async fn add(daemon: &Daemon, text: &str) -> Result<Added, QmpError> {
    let options = Options::parse(text, Some("qom-type"))?;
    if options.help {
        let kind = options.values.get("qom-type").and_then(Value::as_str);
        print!("{}", help::object_help(kind));
        return Ok(Added::Explained);
    }
    let options = Validator::new(options.form, &[]).check_as(options.values)?;
    qmp::object::add(daemon.clone(), options).await?;
    Ok(Added::Made)
}
