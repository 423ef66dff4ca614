//! NBD inside TLS: other people's clients by each kind of credentials, who is let in and who is not, and what a client may do
//! to the server meanwhile.

use std::fs;
use std::path::{Path, PathBuf};

use millpond_tests::daemon::{Builder, Daemon, daemon, daemon_in, scratch};
use millpond_tests::program::{Program, oracle, under_test};
use millpond_tests::tls::{CLIENT, Certificates, SIZE, qemu_client, qemu_io_inside, serve, socket};
use millpond_tests::tool::{run, try_run};

/// A daemon whose server has these credentials, and the export `disk`.
fn serving(credentials: &str) -> Builder {
    serve(daemon(), credentials, "")
}

/// A client that must be served.
#[track_caller]
fn served(daemon: &Daemon, client: &str, commands: &[&str]) {
    let run = qemu_io_inside(&socket(daemon), client, commands);
    let failed = run.code != Some(0) || run.stdout.contains("failed");
    assert!(
        !failed,
        "{}:\n{}{}\n{}",
        run.line,
        run.stdout,
        run.stderr,
        daemon.log()
    );
}

#[test]
fn data_is_the_same_by_each_kind_of_credentials() {
    let made = Certificates::new();
    for (server, client) in made.kinds() {
        let daemon = serving(&server).start();
        served(
            &daemon,
            &client,
            &[
                "write -P 0x11 0 32M",
                "write -P 0x22 1048577 12345",
                "write -z 2M 1M",
                "flush",
                "read -P 0x11 0 1M",
                "read -P 0x22 1048577 12345",
                "read -P 0 2M 1M",
                "read -P 0x11 3M 29M",
            ],
        );
        // Another process reads it as it is.
        let copy = made.path("copy.raw");
        let mut args = qemu_client(&socket(&daemon), &client);
        args.insert(0, "convert".to_owned());
        args.extend(
            ["-O", "raw"]
                .map(str::to_owned)
                .into_iter()
                .chain([copy.display().to_string()]),
        );
        run("qemu-img", &args);
        let image = daemon.path("disk.raw");
        assert!(
            fs::read(copy).expect("a copy") == fs::read(&image).expect("an image"),
            "{server}"
        );
        daemon.quit();
    }
}

#[test]
fn libnbd_copies_inside_tls() {
    let made = Certificates::new();
    let [(x509, _), (psk, _), (anonymous, _)] = made.kinds();
    let certificates = made.path("client-dir").display().to_string();
    let keys = made.path("keys/keys.psk").display().to_string();
    let data = made.path("data.raw");
    let bytes: Vec<u8> = (0..SIZE).map(|at| (at / 4096 * 7 + at % 251) as u8).collect();
    fs::write(&data, &bytes).expect("data is written");
    for (server, uri) in [
        (
            x509,
            format!("nbds+unix:///disk?tls-certificates={certificates}&socket="),
        ),
        (
            psk,
            format!("nbds+unix://alice@/disk?tls-psk-file={keys}&socket="),
        ),
    ] {
        let daemon = serving(&server).start();
        let uri = uri + &daemon.path("nbd.sock");
        let told = run("nbdinfo", &[&uri]);
        assert!(told.contains("protocol: newstyle-fixed with TLS"), "{told}");
        run("nbdcopy", &[data.display().to_string(), uri.clone()]);
        assert!(fs::read(daemon.path("disk.raw")).expect("an image") == bytes);
        let back = made.path("back.raw").display().to_string();
        run("nbdcopy", &[uri, back.clone()]);
        assert!(fs::read(back).expect("a copy") == bytes);
        daemon.quit();
    }
    // libnbd insists on knowing somebody.
    let daemon = serving(&anonymous).start();
    let uri = format!("nbds+unix:///disk?socket={}", daemon.path("nbd.sock"));
    assert_ne!(try_run("nbdinfo", &[uri]).code, Some(0));
    daemon.quit();
}

/// Who comes, and what the server's log says of it: nothing if the client is let in, or leaves by itself.
struct Case<'a> {
    server: String,
    options: &'a str,
    objects: &'a [&'a str],
    client: String,
    log: Option<&'a str>,
}

fn cases(made: &Certificates) -> Vec<Case<'static>> {
    let dated = CLIENT.replace("expiration_days = 30\n", "")
        + "activation_date = \"2020-01-01 00:00:00\"\nexpiration_date = \"2021-01-01 00:00:00\"\n";
    let kinds = made.kinds();
    made.certificate("stranger", CLIENT, "other")
        .certificate("expired", &dated, "ca")
        .certificate("lost", &CLIENT.replace("cn = client", "cn = lost"), "ca")
        .revoked("list", "lost");
    let revoking = made.server("revoking", "server");
    made.folder("revoking", &[("ca-crl.pem", "list")]);
    let x509 = |dir: String| format!("tls-creds-x509,sanity-check=off,dir={dir}");
    let [(server, client), (keys, _), (anonymous, _)] = kinds;
    let lax = format!("{server},verify-peer=off");
    let case = |server: &str, client: String, log| Case {
        server: server.to_owned(),
        options: "",
        objects: &[],
        client,
        log,
    };
    let nameless = || x509(made.folder("nameless", &[("ca-cert.pem", "ca")]));
    let stranger = || x509(made.client("stranger-dir", "stranger"));
    let other_key = made.keys(
        "other-keys",
        "alice:ffeeddccbbaa99887766554433221100\nbob:ffeeddccbbaa99887766554433221100\n",
    );
    let unknown = Some("The certificate hasn't got a known issuer");
    let authorized = |objects, log| Case {
        options: ",tls-authz=a",
        objects,
        ..case(&server, client.clone(), log)
    };
    let denied = Some("TLS x509 authz check for O=t,CN=client is denied");
    vec![
        case(&server, client.clone(), None),
        case(
            &server,
            nameless(),
            Some("Verify failed: No certificate was found."),
        ),
        case(&server, stranger(), unknown),
        case(
            &server,
            x509(made.client("expired-dir", "expired")),
            Some("The certificate is not trusted"),
        ),
        case(&server, x509(made.client("lost-dir", "lost")), None),
        case(
            &x509(revoking.clone()),
            x509(made.client("lost-dir", "lost")),
            Some("The certificate has been revoked"),
        ),
        case(&x509(revoking), client.clone(), None),
        case(&lax, nameless(), None),
        case(&lax, stranger(), None),
        case(
            &keys,
            format!("tls-creds-psk,dir={other_key},username=alice"),
            Some("TLS handshake failed: "),
        ),
        case(
            &keys,
            format!("tls-creds-psk,dir={other_key},username=bob"),
            Some("TLS handshake failed: "),
        ),
        case(&keys, client.clone(), Some("TLS handshake failed: ")),
        case(&anonymous, client.clone(), Some("TLS handshake failed: ")),
        authorized(&["authz-simple,id=a,identity=O=t,,CN=client"], None),
        authorized(&["authz-simple,id=a,identity=CN=client,,O=t"], denied),
        authorized(
            &["authz-simple,id=b,identity=x"],
            Some("Cannot find QAuthZ object ID a"),
        ),
        authorized(&["authz-list,id=a"], denied),
        authorized(&["authz-list,id=a,policy=allow"], None),
        authorized(
            &["authz-list,id=a,rules.0.match=O=t*,rules.0.policy=allow,rules.0.format=glob"],
            None,
        ),
        authorized(
            &["authz-list,id=a,rules.0.match=O=t*,rules.0.policy=allow"],
            denied,
        ),
        // What proves nothing about a client is not asked about it.
        Case {
            options: ",tls-authz=a",
            objects: &["authz-list,id=a"],
            ..case(&lax, nameless(), None)
        },
    ]
}

/// What the one daemon of a folder has logged.
fn log_in(dir: &Path) -> String {
    let mut files = fs::read_dir(dir)
        .expect("a folder")
        .map(|entry| entry.expect("a file").path());
    let is_log = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("log-"))
    };
    fs::read_to_string(files.find(is_log).expect("a log")).expect("text")
}

/// Whether the client is served; if not, what the server has logged by its end.
fn outcome(program: Program, case: &Case<'_>) -> Result<(), String> {
    let dir = scratch();
    let builder = daemon_in(dir.path()).program(program);
    let mut builder = serve(builder, &case.server, case.options);
    for object in case.objects {
        builder = builder.option("--object", *object);
    }
    let daemon = builder.start();
    let run = qemu_io_inside(
        &socket(&daemon),
        &case.client,
        &["write -P 1 0 64k", "read -P 1 0 64k"],
    );
    // The server is as it was for whoever comes next. A plain client is told what it lacks.
    let plain = try_run("qemu-img", &["info", &daemon.uri("disk")]);
    let told = "Option 0x7 not permitted before TLS";
    assert!(plain.stderr.contains(told), "{}", plain.stderr);
    daemon.quit();
    match run.code {
        Some(0) => Ok(()),
        _ => Err(log_in(dir.path())),
    }
}

#[test]
fn who_is_let_in_and_who_is_not_is_as_qemu_has_it() {
    let made = Certificates::new();
    for (number, case) in cases(&made).iter().enumerate() {
        for program in [oracle(), under_test().clone()] {
            let name = program.path().display().to_string();
            let outcome = outcome(program, case);
            match (case.log, &outcome) {
                (None, Ok(())) => {}
                (Some(text), Err(log)) => {
                    assert!(log.contains(text), "case {number}, {name}: no '{text}' in\n{log}");
                }
                _ => panic!(
                    "case {number}, {name}, {} by {}: {outcome:?}",
                    case.client, case.server
                ),
            }
        }
    }
}
