//! Certificates and keys for tests of TLS, made by GnuTLS's own tools, and clients that use them.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::json;
use tempfile::TempDir;

use crate::daemon::{Builder, Daemon, scratch};
use crate::nbd::wire::{FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, OPT_STARTTLS, OPTION_MAGIC};
use crate::tool::{Run, run, try_run};

/// What certificates for a server and a client say.
pub const SERVER: &str = "organization = t\ncn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\n\
    tls_www_server\nencryption_key\nsigning_key\nexpiration_days = 30\n";
/// What the certificate of the client says that tests let in.
pub const CLIENT: &str =
    "organization = t\ncn = client\ntls_www_client\nencryption_key\nsigning_key\nexpiration_days = 30\n";
const AUTHORITY: &str = "cn = \"Test CA\"\nca\ncert_signing_key\ncrl_signing_key\nexpiration_days = 30\n";

/// Bytes of the image that [`serve`] serves.
pub const SIZE: u64 = 64 << 20;

/// Has a daemon serve the export `disk`, an image of nothing but zeroes, to clients that agree on these credentials, the object
/// `t`. The server has further options.
pub fn serve(builder: Builder, credentials: &str, options: &str) -> Builder {
    let builder = builder.option("--object", format!("{credentials},id=t,endpoint=server"));
    let image = builder.dir().join("disk.raw");
    let file = fs::File::create(&image).expect("an image can be made");
    file.set_len(SIZE).expect("it has a length");
    builder
        .blockdev(json!({"driver": "file", "node-name": "file", "filename": image}))
        .blockdev(json!({"driver": "raw", "node-name": "disk", "file": "file"}))
        .nbd_unix_with(&format!(",tls-creds=t{options}"))
        .export("disk")
}

/// The socket of such a server.
pub fn socket(daemon: &Daemon) -> PathBuf {
    daemon.path("nbd.sock").into()
}

/// The key of an authority.
fn key_of(authority: &str) -> &'static str {
    if authority == "other" { "other-key" } else { "key" }
}

/// A folder in which certificates are made. All but the authority `other` have one key, which takes long to make.
#[derive(Debug)]
pub struct Certificates(TempDir);

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

impl Certificates {
    /// A folder with the authorities `ca`, whose key is `key`, and `other` of the same name, whose key is `other-key`.
    pub fn new() -> Self {
        let new = Self(scratch());
        let keys = [
            ("key", "--key-type=rsa", "--bits=2048"),
            ("other-key", "--key-type=ecdsa", "--curve=secp256r1"),
        ];
        for (name, kind, size) in keys {
            run(
                "certtool",
                &["--generate-privkey", kind, size, "--outfile", &new.text(name)],
            );
        }
        for authority in ["ca", "other"] {
            new.make(
                authority,
                key_of(authority),
                AUTHORITY,
                &["--generate-self-signed"],
            );
        }
        new
    }

    /// The path of a file or folder in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn make(&self, name: &str, key: &str, template: &str, how: &[&str]) {
        let info = self.text("template");
        fs::write(&info, template).expect("a template is written");
        let (key, file) = (self.text(key), self.text(name));
        let common = ["--load-privkey", &key, "--template", &info, "--outfile", &file];
        run("certtool", &[how, &common].concat());
    }

    /// Makes a certificate that `authority` signs.
    pub fn certificate(&self, name: &str, template: &str, authority: &str) -> &Self {
        let (key, authority) = (self.text(key_of(authority)), self.text(authority));
        let signed = [
            "--generate-certificate",
            "--load-ca-privkey",
            &key,
            "--load-ca-certificate",
            &authority,
        ];
        self.make(name, "key", template, &signed);
        self
    }

    /// Makes a list by which the authority `ca` revokes a certificate.
    pub fn revoked(&self, name: &str, certificate: &str) -> &Self {
        let (key, authority, certificate) = (self.text("key"), self.text("ca"), self.text(certificate));
        let how = [
            "--generate-crl",
            "--load-ca-privkey",
            &key,
            "--load-ca-certificate",
            &authority,
        ];
        self.make(
            name,
            "key",
            "expiration_days = 30\n",
            &[&how[..], &["--load-certificate", &certificate]].concat(),
        );
        self
    }

    /// Makes a folder of copies: the name of each, and of what it is a copy of.
    pub fn folder(&self, name: &str, files: &[(&str, &str)]) -> String {
        let folder = self.path(name);
        fs::create_dir_all(&folder).expect("a folder can be made");
        for (copy, of) in files {
            fs::copy(self.path(of), folder.join(copy)).expect("a file can be copied");
        }
        folder.display().to_string()
    }

    /// A folder with the credentials of a server whose certificate is `certificate`.
    pub fn server(&self, name: &str, certificate: &str) -> String {
        let files = [
            ("ca-cert.pem", "ca"),
            ("server-cert.pem", certificate),
            ("server-key.pem", "key"),
        ];
        self.folder(name, &files)
    }

    /// The same of a client.
    pub fn client(&self, name: &str, certificate: &str) -> String {
        let files = [
            ("ca-cert.pem", "ca"),
            ("client-cert.pem", certificate),
            ("client-key.pem", "key"),
        ];
        self.folder(name, &files)
    }

    /// The server's credentials and those of a client that it lets in, by kind.
    pub fn kinds(&self) -> [(String, String); 3] {
        self.certificate("server", SERVER, "ca")
            .certificate("client", CLIENT, "ca");
        let (server, client) = (
            self.server("server-dir", "server"),
            self.client("client-dir", "client"),
        );
        let keys = self.keys("keys", "alice:00112233445566778899aabbccddeeff\n");
        [
            (
                format!("tls-creds-x509,dir={server}"),
                format!("tls-creds-x509,dir={client}"),
            ),
            (
                format!("tls-creds-psk,dir={keys}"),
                format!("tls-creds-psk,dir={keys},username=alice"),
            ),
            ("tls-creds-anon".to_owned(), "tls-creds-anon".to_owned()),
        ]
    }

    /// A folder with keys that both sides have.
    pub fn keys(&self, name: &str, lines: &str) -> String {
        let folder = self.folder(name, &[]);
        fs::write(self.path(name).join("keys.psk"), lines).expect("keys are written");
        folder
    }
}

/// The arguments by which a program of QEMU's connects inside TLS: to the export `disk` on this socket, with the object `c`
/// of these properties.
pub fn qemu_client(socket: &Path, credentials: &str) -> Vec<String> {
    let hostname = if credentials.starts_with("tls-creds-x509") {
        ",tls-hostname=localhost"
    } else {
        ""
    };
    let socket = socket.display();
    [
        "--object",
        &format!("{credentials},id=c,endpoint=client"),
        "--image-opts",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain([format!(
        "driver=nbd,path={socket},export=disk,tls-creds=c{hostname}"
    )])
    .collect()
}

/// `qemu-io` inside TLS with each command in turn.
pub fn qemu_io_inside(socket: &Path, credentials: &str, commands: &[&str]) -> Run {
    let mut args = qemu_client(socket, credentials);
    for command in commands {
        args.extend(["-c".to_owned(), (*command).to_owned()]);
    }
    try_run("qemu-io", &args)
}

/// Goes up to where TLS begins, as a client on this connection.
pub fn begin_tls(stream: &mut (impl Read + Write)) {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("a greeting");
    let mut bytes = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)
        .to_be_bytes()
        .to_vec();
    bytes.extend(OPTION_MAGIC.to_be_bytes());
    bytes.extend(OPT_STARTTLS.to_be_bytes());
    bytes.extend([0; 4]);
    stream.write_all(&bytes).expect("the server takes an option");
    let mut answer = [0; 20];
    stream.read_exact(&mut answer).expect("STARTTLS is answered");
    assert_eq!(&answer[12..16], &1_u32.to_be_bytes(), "STARTTLS is acknowledged");
}

/// Passes one client's bytes on to a server, but no more than `most`: then both sides are cut. Whatever the client has said
/// by then is all that the server ever hears of it.
pub fn cut_after(proxy: &Path, server: &Path, most: usize) -> thread::JoinHandle<()> {
    let listener = UnixListener::bind(proxy).expect("a proxy listens");
    let server = server.to_owned();
    thread::spawn(move || {
        let (client, _) = listener.accept().expect("a client comes");
        pass_on(client, &server, most);
    })
}

fn pass_on(client: UnixStream, server: &Path, most: usize) {
    let server = UnixStream::connect(server).expect("the server listens");
    let (mut from, mut to) = (
        server.try_clone().expect("a socket has a second handle"),
        client.try_clone().expect("a socket has a second handle"),
    );
    // Ends when the server does, or the client is cut.
    let back = thread::spawn(move || drop(std::io::copy(&mut from, &mut to)));
    let (mut reader, mut writer) = (client.try_clone().expect("a socket has a second handle"), &server);
    let most = u64::try_from(most).expect("a length");
    let _ = std::io::copy(&mut (&mut reader).take(most), &mut writer);
    // Either may have gone by itself.
    let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
    back.join().expect("the way back ends");
}
