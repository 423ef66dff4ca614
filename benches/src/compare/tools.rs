//! The programs that are compared with: which of them this machine has, their versions, and what to install for the
//! rest.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A program of somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// `qemu-storage-daemon`, the peer of the table.
    Peer,
    /// `qemu-nbd`.
    QemuNbd,
    /// `nbdkit`.
    Nbdkit,
    /// `fio`, which is the limit.
    Fio,
    /// `qemu-img`, which makes images.
    QemuImg,
    /// `nbdcopy`, the client inside TLS.
    Nbdcopy,
}

/// All of them.
pub const TOOLS: [Tool; 6] = [
    Tool::Peer,
    Tool::QemuNbd,
    Tool::Nbdkit,
    Tool::Fio,
    Tool::QemuImg,
    Tool::Nbdcopy,
];

impl Tool {
    /// Its name on the command line.
    pub fn program(self) -> &'static str {
        match self {
            Tool::Peer => "qemu-storage-daemon",
            Tool::QemuNbd => "qemu-nbd",
            Tool::Nbdkit => "nbdkit",
            Tool::Fio => "fio",
            Tool::QemuImg => "qemu-img",
            Tool::Nbdcopy => "nbdcopy",
        }
    }

    /// What to install, and what is left out without it.
    fn remedy(self) -> &'static str {
        match self {
            Tool::Peer => "install the Debian package qemu-utils: no ratio can be told without it",
            Tool::QemuNbd => "install the Debian package qemu-utils: its figures are left out",
            Tool::Nbdkit => "install the Debian package nbdkit: its figures are left out",
            Tool::Fio => {
                "install the Debian package fio: the rows on a disk have no limit to be held against"
            }
            Tool::QemuImg => "install the Debian package qemu-utils: rows with qcow2 images are left out",
            Tool::Nbdcopy => "install the Debian package libnbd-bin: rows inside TLS are left out",
        }
    }

    /// Where it is, by the PATH.
    pub fn find(self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|folder| folder.join(self.program()))
            .find(|file| file.is_file())
    }

    /// An error for work that cannot be done without it.
    pub fn missing(self) -> String {
        format!("{} is not here: {}", self.program(), self.remedy())
    }

    /// The first line of what it says of its version.
    fn version(self) -> String {
        let argument = if self == Tool::Fio { "-v" } else { "--version" };
        first_line(Command::new(self.program()).arg(argument))
    }
}

/// The first line that a command prints, or that it cannot be run.
pub fn first_line(command: &mut Command) -> String {
    match command.stdin(Stdio::null()).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout)
            .lines()
            .next()
            .unwrap_or("says nothing of its version")
            .to_owned(),
        Err(error) => error.to_string(),
    }
}

/// A line for each tool: its version, or what to install.
pub fn report() -> Vec<String> {
    let line = |tool: Tool| match tool.find() {
        Some(_) => format!("- {}: {}", tool.program(), tool.version()),
        None => format!("- **missing**: {}", tool.missing()),
    };
    TOOLS.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        for tool in TOOLS {
            let text = tool.missing();
            assert!(text.starts_with(tool.program()), "{text}");
            assert!(text.contains("Debian package"), "{text}");
        }
    }
}
