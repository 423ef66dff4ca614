//! What the help options print.

use crate::object::{self, KINDS};
use millpond_drivers::builtin::builtin;
use millpond_messages::qapi::schema::{
    BlockExportOptions, BlockdevOptions, Int, Member, StructType, Structure, Type,
};
use std::fmt::Write;

/// The options of `millpond serve`.
pub const SERVE: &str = "\
Millpond: a storage daemon whose block graph can change while it serves

  -h, --help             show this help
  -T, --trace [[enable=]FILTER][,events=FILE][,file=FILE]
                         log more, or log to a file; see `-T help`
  -V, --version          show the version

  --blockdev [driver=]DRIVER[,node-name=N][,discard=ignore|unmap]
             [,cache.direct=on|off][,cache.no-flush=on|off]
             [,read-only=on|off][,auto-read-only=on|off]
             [,force-share=on|off][,detect-zeroes=on|off|unmap][,...]
                         add a node; `--blockdev help` lists drivers,
                         `--blockdev DRIVER,help` the options of one

  --chardev [backend=]socket,id=ID,path=PATH[,server=on|off][,wait=on|off]
  --chardev [backend=]socket,id=ID,host=HOST,port=PORT[,server=on|off]...
            [,telnet=on|off][,websocket=on|off]
  --chardev [backend=]stdio,id=ID
  --chardev [backend=]file,id=ID,path=PATH[,input-path=PATH][,append=on|off]
  --chardev [backend=]pipe,id=ID,path=PATH
  --chardev [backend=]pty,id=ID[,path=LINK]
  --chardev [backend=]udp,id=ID,port=PORT[,host=HOST]
            [,localaddr=HOST][,localport=PORT]
  --chardev [backend=]ringbuf,id=ID[,size=BYTES]
  --chardev [backend=]mux,id=ID,chardev=ID
            [,mux=on|off][,logfile=PATH][,logappend=on|off]
                         a character device for a monitor; `--chardev help`
                         lists kinds

  --daemonize            go to the background once everything is set up

  --export [type=]nbd,id=ID,node-name=N[,name=NAME][,description=TEXT]
           [,writable=on|off][,allocation-depth=on|off]
           [,iothread=ID][,fixed-iothread=on|off]
           [,iothread.0=ID,iothread.1=ID...]
                         export a node to NBD clients; needs --nbd-server;
                         `--export help` lists kinds, `--export nbd,help`
                         the options of one
  --export [type=]vhost-user-blk,id=ID,node-name=N,addr.type=unix,addr.path=PATH
           [,num-queues=Q][,logical-block-size=BYTES][,writable=on]
           [,iothread=ID][,iothread.0=ID,iothread.1=ID...]
                         a virtio block device for a virtual machine, whose
                         queues take turns on the iothreads of a list
  --export [type=]fuse,id=ID,node-name=N,mountpoint=FILE
           [,writable=on|off][,growable=on|off][,allow-other=off|on|auto]
           [,iothread=ID][,fixed-iothread=on|off]
           [,x-millpond-io-uring=on|off|auto]
                         export a node as the contents of a file that exists
  --export [type=]vduse-blk,id=ID,node-name=N,name=DEVICE
           [,num-queues=Q][,queue-size=S][,logical-block-size=BYTES]
           [,serial=TEXT][,writable=on|off]
                         a virtio block device of this host's kernel, to be
                         attached by `vdpa dev add name DEVICE mgmtdev vduse`

  --log [target=]stderr|syslog|journald|file=PATH[,format=text|json]
                         where to log; see `--log help`

  --monitor [chardev=]ID[,mode=control][,pretty=on|off]
                         accept QMP commands on a character device

  --nbd-server addr.type=inet,addr.host=HOST,addr.port=PORT
  --nbd-server addr.type=unix,addr.path=PATH
  --nbd-server addr.type=fd,addr.str=NUMBER-OR-NAME
               [,max-connections=N][,handshake-max-seconds=N]
                         listen for NBD clients; NAME is what the service
                         manager calls a socket it passes (LISTEN_FDNAMES)

  --object TYPE[,PROPERTY=VALUE...]
                         create an object; `--object help` lists types,
                         `--object TYPE,help` the properties of one

  --pidfile PATH         write the process ID to PATH once everything is set up

  --x-millpond-control-priority normal|nice|realtime
                         how the scheduler treats the thread that carries out
                         commands and changes of the graph: as any other, with
                         niceness -10, or as SCHED_FIFO; the default is nice,
                         where the daemon may have that

  --x-millpond-shutdown-grace SECONDS
                         when shutting down, give up on storage that has not
                         responded after so many seconds; the default is 30

SIGTERM, SIGINT and SIGHUP shut the daemon down cleanly, as the QMP command quit
does; if that takes more than a second, the log says what it is waiting for. A
second signal ends the daemon at once.

All options except --daemonize, --log and --pidfile also accept JSON. They take
effect in the order in which they are given.";

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
        Type::Alternate(find) if find().name == "BlockExportIothreads" => "str, or list".into(),
        Type::List(_) => "list".into(),
        Type::Null | Type::Any | Type::Struct(_) | Type::Alternate(_) => "options".into(),
    }
}
