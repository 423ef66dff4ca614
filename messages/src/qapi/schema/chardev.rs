//! Character devices, and the monitors on them.

use crate::qapi::row::qapi;

qapi! {
    /// A character device as it is shown.
    struct ChardevInfo {
        /// The id of the device.
        label: String,
        /// What it is connected to.
        filename: String,
        /// Whether a monitor uses it.
        frontend_open: bool,
    }

    /// Shows the character devices.
    command QueryChardev = "query-chardev" {} -> Vec<ChardevInfo>;

    /// A kind of character device.
    struct ChardevBackendInfo {
        /// The name of the kind.
        name: String,
    }

    /// Lists the kinds of character device.
    command QueryChardevBackends = "query-chardev-backends" {} -> Vec<ChardevBackendInfo>;

    /// The languages of monitors.
    enum MonitorMode {
        /// For people; not served.
        Readline = "readline",
        /// QMP, for programs.
        Control = "control",
    }

    /// What the option `--monitor` takes.
    struct MonitorOptions {
        /// The monitor's id, which nothing refers to.
        id: Option<String>,
        /// The monitor's language; QMP if nothing is said.
        mode: Option<MonitorMode>,
        /// Spread each reply over several lines; default false.
        pretty: bool = default,
        /// The character device that it is on.
        chardev: String,
    }
}

impl MonitorOptions {
    /// A monitor on a character device, with all else at its default.
    pub fn on(chardev: &str) -> Self {
        Self {
            id: None,
            mode: None,
            pretty: false,
            chardev: chardev.to_owned(),
        }
    }
}
