//! The options of the tool: what the command line asks for, and what of it cannot go together.

use super::help::HELP;
use crate::cli::getopt::{self, Row};
use crate::cli::texts::TOOL_VERSION;
use crate::cli::tool::{Failure, Program, ShownSnapshot, print, read_cache};
use millpond_messages::OpenFlags;
use millpond_messages::qapi::parse_unsigned;
use std::process::ExitCode;

/// Where the server listens, unless it is told otherwise.
pub const DEFAULT_PORT: &str = "10809";
/// The interface on which it does.
pub const DEFAULT_HOST: &str = "0.0.0.0";
/// Seconds that a client has for its handshake.
const DEFAULT_HANDSHAKE: u32 = 10;

/// The options of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Help,
    Version,
    Bind,
    Port,
    Socket,
    Offset,
    ReadOnly,
    Snapshot,
    LoadSnapshot,
    NoCache,
    Cache,
    Aio,
    Discard,
    DetectZeroes,
    Connect,
    Disconnect,
    Shared,
    Format,
    Persistent,
    Verbose,
    Object,
    Export,
    Description,
    TlsCreds,
    TlsHostname,
    TlsAuthz,
    ImageOptions,
    Trace,
    Fork,
    PidFile,
    SelinuxLabel,
    List,
    AllocationDepth,
    Bitmap,
    HandshakeLimit,
}

/// The table of the program's options.
const ROWS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::flag("version", Some('V'), Name::Version),
    Row::value("bind", Some('b'), Name::Bind),
    Row::value("port", Some('p'), Name::Port),
    Row::value("socket", Some('k'), Name::Socket),
    Row::value("offset", Some('o'), Name::Offset),
    Row::flag("read-only", Some('r'), Name::ReadOnly),
    Row::flag("allocation-depth", Some('A'), Name::AllocationDepth),
    Row::value("bitmap", Some('B'), Name::Bitmap),
    Row::value("connect", Some('c'), Name::Connect),
    Row::flag("disconnect", Some('d'), Name::Disconnect),
    Row::flag("list", Some('L'), Name::List),
    Row::flag("snapshot", Some('s'), Name::Snapshot),
    Row::value("load-snapshot", Some('l'), Name::LoadSnapshot),
    Row::flag("nocache", Some('n'), Name::NoCache),
    Row::value("cache", None, Name::Cache),
    Row::value("aio", None, Name::Aio),
    Row::value("discard", None, Name::Discard),
    Row::value("detect-zeroes", None, Name::DetectZeroes),
    Row::value("shared", Some('e'), Name::Shared),
    Row::value("format", Some('f'), Name::Format),
    Row::flag("persistent", Some('t'), Name::Persistent),
    Row::flag("verbose", Some('v'), Name::Verbose),
    Row::value("object", None, Name::Object),
    Row::value("export-name", Some('x'), Name::Export),
    Row::value("description", Some('D'), Name::Description),
    Row::value("tls-creds", None, Name::TlsCreds),
    Row::value("tls-hostname", None, Name::TlsHostname),
    Row::value("tls-authz", None, Name::TlsAuthz),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::value("trace", Some('T'), Name::Trace),
    Row::flag("fork", None, Name::Fork),
    Row::value("pid-file", None, Name::PidFile),
    Row::value("selinux-label", None, Name::SelinuxLabel),
    Row::value("handshake-limit", None, Name::HandshakeLimit),
];

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The interface to listen on, or the host to connect to.
    pub bind: Option<String>,
    /// The port there, or its service.
    pub port: Option<String>,
    /// The path of a socket in place of both.
    pub socket: Option<String>,
    /// Bytes at the start of the image that are not shown.
    pub offset: u64,
    /// The flags of the image's node.
    pub flags: OpenFlags,
    /// Writes are durable when they are answered.
    pub writethrough: bool,
    /// The mode of detection of zeroes, by its name.
    pub detect_zeroes: Option<String>,
    /// The snapshot inside the image that is shown.
    pub snapshot: Option<ShownSnapshot>,
    /// How many clients there may be at once; any number where it is 0.
    pub shared: u32,
    /// The format of the image.
    pub format: Option<String>,
    /// The server stays when its last client has gone.
    pub persistent: bool,
    /// The objects to be made.
    pub objects: Vec<String>,
    /// The name of the export.
    pub export_name: String,
    /// A text for people.
    pub description: Option<String>,
    /// The object with the credentials.
    pub tls_creds: Option<String>,
    /// The name that the server's certificate must have.
    pub tls_hostname: Option<String>,
    /// The object that says who may connect.
    pub tls_authz: Option<String>,
    /// The name of the image is a list of options.
    pub is_options: bool,
    /// The server is a process in the background.
    pub forks: bool,
    /// The file for its process id.
    pub pid_file: Option<String>,
    /// `qemu:allocation-depth` may be chosen.
    pub allocation_depth: bool,
    /// The dirty bitmap that may be chosen.
    pub bitmap: Option<String>,
    /// Seconds that a client has for its handshake.
    pub handshake_limit: u32,
    /// What is to be done.
    pub task: Task,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Serve the image of this name.
    Serve(String),
    /// List the exports of a server.
    List,
    /// Take the image away from a device of the kernel.
    Disconnect(String),
    /// Serve the image of the first name to the device of the kernel that has the second.
    Connect(String, String),
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            bind: None,
            port: None,
            socket: None,
            offset: 0,
            flags: OpenFlags::RDWR,
            writethrough: false,
            detect_zeroes: None,
            snapshot: None,
            shared: 1,
            format: None,
            persistent: false,
            objects: Vec::new(),
            export_name: String::new(),
            description: None,
            tls_creds: None,
            tls_hostname: None,
            tls_authz: None,
            is_options: false,
            forks: false,
            pid_file: None,
            allocation_depth: false,
            bitmap: None,
            handshake_limit: DEFAULT_HANDSHAKE,
            task: Task::List,
        }
    }
}

/// What was given besides the plan, to tell what does not go together.
#[derive(Default)]
struct Given {
    cache: bool,
    aio: bool,
    discard: bool,
    export_name: bool,
    list: bool,
    disconnect: bool,
    device: Option<String>,
    selinux_label: bool,
    files: Vec<String>,
}

/// Reads the command line; an exit code where it was a question that was answered.
///
/// # Errors
/// It cannot be understood, or asks for what does not go together.
pub fn read(program: Program<'_>, arguments: &[String]) -> Result<Result<Plan, ExitCode>, Failure> {
    let (mut plan, mut given) = (Plan::default(), Given::default());
    let cut = getopt::parse(ROWS, arguments);
    for argument in cut.arguments {
        let argument = argument.map_err(|why| {
            program.tell(&why);
            Failure::new(try_help(program))
        })?;
        let text = match argument.name {
            Some(Name::Help) => format!(
                "Usage: {0} [OPTIONS] FILE\n  or:  {0} -L [OPTIONS]\n{HELP}",
                program.0
            ),
            Some(Name::Version) => format!("{} {}\n", program.0, TOOL_VERSION.trim_start_matches("version ")),
            Some(name) => {
                take(program, &mut plan, &mut given, name, argument.value)?;
                continue;
            }
            None => {
                given.files.push(argument.value);
                continue;
            }
        };
        print(&text);
        return Ok(Err(ExitCode::SUCCESS));
    }
    given.files.extend(cut.rest);
    plan.task = task(program, &plan, given)?;
    Ok(Ok(plan))
}

/// Takes an option of the command line.
fn take(
    program: Program<'_>,
    plan: &mut Plan,
    given: &mut Given,
    name: Name,
    value: String,
) -> Result<(), Failure> {
    match name {
        Name::Bind => plan.bind = Some(value),
        Name::Port => plan.port = Some(value),
        Name::Socket if !value.starts_with('/') => return Err(Failure::new("socket path must be absolute")),
        Name::Socket => plan.socket = Some(value),
        Name::Offset => plan.offset = number("offset", &value)?,
        Name::ReadOnly => plan.flags -= OpenFlags::RDWR,
        Name::Snapshot => plan.flags |= OpenFlags::SNAPSHOT,
        Name::LoadSnapshot => {
            plan.snapshot = Some(ShownSnapshot::read(program, value, '`')?);
            plan.flags -= OpenFlags::RDWR;
        }
        Name::NoCache | Name::Cache | Name::Aio | Name::Discard | Name::DetectZeroes => {
            return take_of_node(plan, given, name, &value);
        }
        Name::Connect => given.device = Some(value),
        Name::Disconnect => given.disconnect = true,
        Name::Shared => plan.shared = number::<i32>("shared device number", &value)?.unsigned_abs(),
        Name::Format => plan.format = Some(value),
        Name::Persistent => plan.persistent = true,
        Name::Object => plan.objects.push(value),
        Name::Export => {
            plan.export_name = checked_length("export name", value)?;
            given.export_name = true;
        }
        Name::Description => plan.description = Some(checked_length("export description", value)?),
        Name::TlsCreds => plan.tls_creds = Some(value),
        Name::TlsHostname => plan.tls_hostname = Some(value),
        Name::TlsAuthz => plan.tls_authz = Some(value),
        Name::ImageOptions => plan.is_options = true,
        Name::Fork => plan.forks = true,
        Name::PidFile => plan.pid_file = Some(value),
        Name::SelinuxLabel => given.selinux_label = true,
        Name::List => given.list = true,
        Name::AllocationDepth => plan.allocation_depth = true,
        Name::Bitmap => plan.bitmap = Some(value),
        Name::HandshakeLimit => plan.handshake_limit = number("handshake limit", &value)?,
        // Nothing more is told than always, and there are no such traces.
        Name::Verbose | Name::Trace | Name::Help | Name::Version => {}
    }
    Ok(())
}

fn number<T: TryFrom<u64>>(what: &str, value: &str) -> Result<T, Failure> {
    let number = parse_unsigned(value).and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| Failure::new(format!("Invalid {what} '{value}'")))
}

/// Takes an option of the image's node.
fn take_of_node(plan: &mut Plan, given: &mut Given, name: Name, value: &str) -> Result<(), Failure> {
    match name {
        Name::Cache | Name::NoCache => {
            if std::mem::replace(&mut given.cache, true) {
                return Err(Failure::new("-n and --cache can only be specified once"));
            }
            let mode = if name == Name::NoCache { "none" } else { value };
            let (flags, writethrough) =
                read_cache(mode).ok_or_else(|| Failure::new(format!("Invalid cache mode `{mode}'")))?;
            plan.flags |= flags;
            plan.writethrough = writethrough;
        }
        Name::Aio => {
            if std::mem::replace(&mut given.aio, true) {
                return Err(Failure::new("--aio can only be specified once"));
            }
            match value {
                "threads" => {}
                "native" => plan.flags |= OpenFlags::NATIVE_AIO,
                "io_uring" => plan.flags |= OpenFlags::IO_URING,
                _ => return Err(Failure::new(format!("Invalid aio mode '{value}'"))),
            }
        }
        Name::Discard => {
            if std::mem::replace(&mut given.discard, true) {
                return Err(Failure::new("--discard can only be specified once"));
            }
            match value {
                "ignore" | "off" => plan.flags -= OpenFlags::UNMAP,
                "unmap" | "on" => plan.flags |= OpenFlags::UNMAP,
                _ => return Err(Failure::new(format!("Invalid discard mode `{value}'"))),
            }
        }
        _ => {
            if !["off", "on", "unmap"].contains(&value) {
                let why = format!("Failed to parse detect_zeroes mode: invalid parameter value: {value}");
                return Err(Failure::new(why));
            }
            if value == "unmap" && !plan.flags.contains(OpenFlags::UNMAP) {
                return Err(Failure::new(
                    "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
                ));
            }
            plan.detect_zeroes = Some(value.to_owned());
        }
    }
    Ok(())
}

fn try_help(program: Program<'_>) -> String {
    format!("Try `{} --help' for more information.", program.0)
}

/// What is to be done, if all that is asked for goes together.
fn task(program: Program<'_>, plan: &Plan, given: Given) -> Result<Task, Failure> {
    let task = if given.list {
        check_list(plan, &given)?;
        Task::List
    } else {
        let mut files = given.files.into_iter();
        let (Some(file), None) = (files.next(), files.next()) else {
            let why = Failure::new("Invalid number of arguments");
            return Err(why.with_hint(try_help(program)));
        };
        match given.device {
            _ if given.disconnect => Task::Disconnect(file),
            Some(device) => Task::Connect(file, device),
            None => Task::Serve(file),
        }
    };
    check_tls(plan, &task)?;
    if given.selinux_label {
        return Err(Failure::new("SELinux support not enabled in this binary"));
    }
    let is_served = matches!(task, Task::Serve(_) | Task::Connect(..));
    if is_served && plan.is_options && plan.format.is_some() {
        return Err(Failure::new("--image-opts and -f are mutually exclusive"));
    }
    Ok(task)
}

fn check_list(plan: &Plan, given: &Given) -> Result<(), Failure> {
    if !given.files.is_empty() {
        return Err(Failure::new("List mode is incompatible with a file name"));
    }
    let is_of_device = given.export_name
        || given.device.is_some()
        || given.disconnect
        || given.aio
        || given.discard
        || given.cache
        || plan.description.is_some()
        || plan.offset != 0
        || plan.format.is_some()
        || plan.snapshot.is_some()
        || plan.bitmap.is_some()
        || plan.allocation_depth;
    if is_of_device {
        return Err(Failure::new("List mode is incompatible with per-device settings"));
    }
    if plan.forks {
        return Err(Failure::new("List mode is incompatible with forking"));
    }
    Ok(())
}

fn check_tls(plan: &Plan, task: &Task) -> Result<(), Failure> {
    let has_credentials = plan.tls_creds.is_some();
    let why = match task {
        Task::Connect(..) if has_credentials => "TLS is not supported with a host device",
        Task::List if has_credentials && plan.tls_authz.is_some() => {
            "TLS authorization is incompatible with export list"
        }
        Task::Serve(_) if has_credentials && plan.tls_hostname.is_some() => {
            "TLS hostname is only supported with export list"
        }
        _ if !has_credentials && plan.tls_authz.is_some() => {
            "--tls-authz is not permitted without --tls-creds"
        }
        _ if !has_credentials && plan.tls_hostname.is_some() => {
            "--tls-hostname is not permitted without --tls-creds"
        }
        _ => return Ok(()),
    };
    Err(Failure::new(why))
}

/// The longest text that the protocol takes.
const LONGEST: usize = 4096;

fn checked_length(what: &str, text: String) -> Result<String, Failure> {
    if text.len() > LONGEST {
        return Err(Failure::new(format!("{what} '{text}' too long")));
    }
    Ok(text)
}
