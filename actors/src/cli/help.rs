//! What the help options print.

use crate::object::{self, KINDS};
use millpond_drivers::builtin::builtin;
use millpond_messages::qapi::schema::{
    BlockExportOptions, BlockdevOptions, Int, Member, StructType, Structure, Type,
};
use std::fmt::Write;

/// The options of `millpond serve`.
pub const SERVE: &str = "\
Millpond: a storage daemon whose graph changes while it serves

  -h, --help             explain the options
  -T, --trace [[enable=]FILTER][,events=FILE][,file=FILE]
                         log more, or to a file; `-T help` tells what
  -V, --version          tell the version

  --blockdev [driver=]DRIVER[,node-name=N][,discard=ignore|unmap]
             [,cache.direct=on|off][,cache.no-flush=on|off]
             [,read-only=on|off][,auto-read-only=on|off]
             [,force-share=on|off][,detect-zeroes=on|off|unmap][,...]
                         add a node; `--blockdev help` lists drivers,
                         `--blockdev DRIVER,help` the options of one

  --chardev [backend=]socket,id=ID,path=PATH[,server=on|off][,wait=on|off]
  --chardev [backend=]socket,id=ID,host=HOST,port=PORT[,server=on|off]...
  --chardev [backend=]stdio,id=ID
                         a place for a monitor; `--chardev help` lists kinds

  --daemonize            go to the background when everything is set up

  --export [type=]nbd,id=ID,node-name=N[,name=NAME][,description=TEXT]
           [,writable=on|off][,allocation-depth=on|off]
           [,iothread=ID][,fixed-iothread=on|off]
                         show a node to NBD clients; needs --nbd-server;
                         `--export help` lists kinds, `--export nbd,help`
                         the options of one

  --log [target=]stderr|syslog|journald|file=PATH[,format=text|json]
                         where the log goes; `--log help` tells more

  --monitor [chardev=]ID[,mode=control][,pretty=on|off]
                         take QMP commands

  --nbd-server addr.type=inet,addr.host=HOST,addr.port=PORT
  --nbd-server addr.type=unix,addr.path=PATH
  --nbd-server addr.type=fd,addr.str=NUMBER-OR-NAME
               [,max-connections=N][,handshake-max-seconds=N]
                         listen for NBD clients; a NAME is one that a service
                         manager gave a socket (LISTEN_FDNAMES)

  --object TYPE[,PROPERTY=VALUE...]
                         make an object; `--object help` lists types,
                         `--object TYPE,help` the properties of one

  --pidfile PATH         write the process's id there when all is set up

  --x-millpond-shutdown-grace SECONDS
                         end without waiting any longer for storage that
                         does not answer; 30 if it is not given

SIGTERM, SIGINT and SIGHUP end it in order, as the QMP command quit does; the
log says after a second what that waits for. A second signal ends it at once.

Each option but --daemonize, --log and --pidfile takes JSON as well. They are
carried out in the order in which they are given.";

/// What `--object help` prints.
pub fn object_types() -> String {
    let mut lines: Vec<String> = KINDS.iter().map(|kind| format!("  {}\n", kind.name)).collect();
    lines.sort_unstable();
    format!("List of user creatable objects:\n{}", lines.concat())
}

/// What `--object TYPE,help` prints; the list of types if there is none of that name.
pub fn object_help(kind: Option<&str>) -> String {
    let Some(kind) = kind.and_then(object::find_kind) else {
        return object_types();
    };
    if let Some(help) = kind.help {
        return help.to_owned();
    }
    let properties = kind.properties.iter();
    let mut lines: Vec<String> = properties
        .map(|(name, of)| format!("  {name}=<{of}>\n"))
        .collect();
    lines.sort_unstable();
    format!("{} options:\n{}", kind.name, lines.concat())
}

/// What `--blockdev help` prints.
pub fn drivers() -> String {
    let names = builtin();
    let lines: Vec<String> = names.names(true).map(|name| format!("  {name}\n")).collect();
    format!("Block drivers:\n{}", lines.concat())
}

/// What `--blockdev DRIVER,help` prints; the list of drivers if there is none of that name.
pub fn driver_options(driver: Option<&str>) -> String {
    union_help(BlockdevOptions::schema(), driver).unwrap_or_else(drivers)
}

/// What `--export TYPE,help` prints; the list of types if there is none of that name.
pub fn export_options(kind: Option<&str>) -> String {
    union_help(BlockExportOptions::schema(), kind).unwrap_or_else(|| {
        let kinds = BlockExportOptions::schema().branches.iter();
        let lines: Vec<String> = kinds.map(|(name, _)| format!("  {name}\n")).collect();
        format!("Export types:\n{}", lines.concat())
    })
}

/// The options of one branch of a union, those of its own first.
fn union_help(of: &StructType, branch: Option<&str>) -> Option<String> {
    let branch = branch?;
    let own = of.branch(branch)?;
    let mut text = format!("{branch} options:\n");
    for member in own.members.iter().chain(of.members) {
        if Some(member.name) == of.tag {
            continue;
        }
        let needed = if member.optional { "" } else { "  (required)" };
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {}=<{}>{needed}", member.name, kind_of(member));
    }
    Some(text)
}

fn kind_of(member: &Member) -> String {
    match member.of {
        Type::Str => "str".into(),
        Type::Int(Int::Size) => "size".into(),
        Type::Int(_) | Type::Number => "num".into(),
        Type::Bool => "bool (on/off)".into(),
        Type::Enum(find) => find().values.join("|"),
        Type::Alternate(find) if find().name.starts_with("BlockdevRef") => "node name, or options".into(),
        Type::List(_) => "list".into(),
        Type::Null | Type::Any | Type::Struct(_) | Type::Alternate(_) => "options".into(),
    }
}
