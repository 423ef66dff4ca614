//! What the help options print.

use crate::daemon::type_of;

/// The options of `millpond serve`.
pub const SERVE: &str = "\
Millpond: a storage daemon whose graph changes while it serves

  -h, --help             explain the options
  -T, --trace FILTER     log more; `-T help` tells what
  -V, --version          tell the version

  --blockdev [driver=]DRIVER[,node-name=N][,discard=ignore|unmap]
             [,cache.direct=on|off][,cache.no-flush=on|off]
             [,read-only=on|off][,auto-read-only=on|off]
             [,force-share=on|off][,detect-zeroes=on|off|unmap][,...]
                         add a node; the rest are the driver's options

  --chardev [backend=]socket,id=ID,path=PATH[,server=on|off][,wait=on|off]
  --chardev [backend=]socket,id=ID,host=HOST,port=PORT[,server=on|off]...
  --chardev [backend=]stdio,id=ID
                         a place for a monitor; `--chardev help` lists kinds

  --daemonize            go to the background when everything is set up

  --export [type=]nbd,id=ID,node-name=N[,name=NAME][,description=TEXT]
           [,writable=on|off][,allocation-depth=on|off]
           [,iothread=ID][,fixed-iothread=on|off]
                         show a node to NBD clients; needs --nbd-server

  --monitor [chardev=]ID[,mode=control][,pretty=on|off]
                         take QMP commands

  --nbd-server addr.type=inet,addr.host=HOST,addr.port=PORT
  --nbd-server addr.type=unix,addr.path=PATH
  --nbd-server addr.type=fd,addr.str=NUMBER
               [,max-connections=N][,handshake-max-seconds=N]
                         listen for NBD clients

  --object TYPE[,PROPERTY=VALUE...]
                         make an object; `--object help` lists types,
                         `--object TYPE,help` the properties of one

  --pidfile PATH         write the process's id there when all is set up

  --x-millpond-shutdown-grace SECONDS
                         end without waiting any longer for storage that
                         does not answer; 30 if it is not given

SIGTERM, SIGINT and SIGHUP end it in order, as the QMP command quit does; the
log says after a second what that waits for. A second signal ends it at once.

Each option but --daemonize and --pidfile takes JSON as well. They are
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
