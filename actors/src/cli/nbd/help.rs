//! What `--help` prints.

/// What is below the lines on how the program is used.
pub const HELP: &str = "Serves a disk image by the NBD protocol

  -h, --help                print this
  -V, --version             print the version

Where it listens:
  -p, --port=PORT           the TCP port (default 10809)
  -b, --bind=HOST           the interface (default 0.0.0.0)
  -k, --socket=PATH         a unix socket instead
  -e, --shared=NUM          so many clients at once (default 1; 0: any number)
  -t, --persistent          stay when the last client has gone
  -x, --export-name=NAME    the name of the export (default: empty)
  -D, --description=TEXT    a text about it
      --handshake-limit=N   seconds for a client's handshake (default 10; 0: any)
      --tls-creds=ID        serve inside TLS, by the credentials of an --object
      --tls-authz=ID        who may connect, by an --object
      --tls-hostname=NAME   with -L: the name that the certificate must have

What it shows:
  -o, --offset=OFFSET       the image from this byte on
  -A, --allocation-depth    also how deep in the chain data is
  -B, --bitmap=NAME         also what a dirty bitmap of the image has
  -f, --format=FORMAT       the format of the image
      --image-opts          FILE is a list of options
  -r, --read-only           clients cannot write
  -s, --snapshot            writes go to a temporary image, which is lost at the end
  -l, --load-snapshot=NAME  a snapshot inside the image, by id or name, or as
                            snapshot.id=ID,snapshot.name=NAME
  -n, --nocache             the same as --cache=none
      --cache=MODE          none, writeback, writethrough, directsync or unsafe
      --aio=MODE            threads, native or io_uring
      --discard=MODE        ignore (default) or unmap
      --detect-zeroes=MODE  off, on or unmap
      --object=OBJECT       make an object, such as a secret

The process:
      --fork                go to the background once clients can connect
      --pid-file=PATH       write the process id to a file
  -L, --list                list the exports of another server
  -v, --verbose             accepted
  -T, --trace=SPEC          accepted; there are no such traces
";
