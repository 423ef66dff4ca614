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

Each option but --daemonize and --pidfile takes JSON as well. They are
carried out in the order in which they are given.";

/// What `--object help` prints.
pub const OBJECT_TYPES: &str = "List of user creatable objects:\n  iothread\n  main-loop\n  throttle-group\n";

/// What `--object TYPE,help` prints.
pub fn object_help(kind: &str, properties: &[&str]) -> String {
    let line = |name: &&str| format!("  {name}=<{}>\n", type_of(name));
    let mut lines: Vec<String> = properties.iter().map(line).collect();
    lines.sort_unstable();
    format!("{kind} options:\n{}", lines.concat())
}
