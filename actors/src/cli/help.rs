//! What the help options print.

use crate::daemon::type_of;
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
pub const OBJECT_TYPES: &str =
    "List of user creatable objects:\n  chaos\n  iothread\n  main-loop\n  throttle-group\n";

/// What `--object chaos,help` prints.
const CHAOS: &str = "\
chaos options:
  seed=<int>             what all decisions come from; by chance if it is not
                         given, and told in the log
  rules.N.OPTION=<str>   a rule; N counts from 0. Delays of all rules that apply
                         to a message add up.

Which messages a rule applies to; what is left out applies to any:
  sender=<str>           user, graph, client, node, connection or session
  receiver=<str>         the same
  kind=<str>             request (or read, write, write-zeroes, discard, flush,
                         truncate, block-status, query), reply, order (or open,
                         close, quiesce, resume, connect, attach-root,
                         move-root, detach-root, depart, other-order), event
                         (or ended, quiesced, noticed), job, command, answer,
                         nbd (or nbd-request, nbd-reply)
  node=<str>             the node's name; of an NBD connection the export's
  iothread=<str>         the iothread where it is held, main for the first

What becomes of them (a TIME is a whole number with ns, us, ms or s):
  delay=<str>            each is held: none, fixed:TIME, uniform:TIME:TIME, or
                         exponential:TIME (the mean; at most ten times that)
  burst=<str>            LENGTH/INTERVAL, as in 20ms/1s: now and then all of a
                         pair (sender, receiver) are held, then delivered at once
  stall=<str>            LENGTH/INTERVAL: now and then all of an iothread are
  slow-client=<str>      a delay of what an NBD client sends and is sent
  dying-client=<str>     after:NUMBER or probability:P: an NBD client's connection
                         is cut after so many requests, or with each by chance

Messages of one pair stay in order. What to read by qom-get besides:
  delayed, held, longest-ns, cut-connections
Removing the object lets all that is held go at once, in order.
";

/// What `--object TYPE,help` prints.
pub fn object_help(kind: &str, properties: &[&str]) -> String {
    if kind == "chaos" {
        return CHAOS.to_owned();
    }
    let line = |name: &&str| format!("  {name}=<{}>\n", type_of(name));
    let mut lines: Vec<String> = properties.iter().map(line).collect();
    lines.sort_unstable();
    format!("{kind} options:\n{}", lines.concat())
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
