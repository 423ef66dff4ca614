//! Credentials and what says who may connect, beside QEMU's own: what makes them, what is refused and how.

use std::fs;

use millpond_tests::beside::{Command, same_answers};
use millpond_tests::daemon::daemon;
use millpond_tests::tls::{CLIENT, Certificates, SERVER};
use serde_json::{Value, json};

fn object(kind: &str, id: &str, mut options: Value) -> Command {
    options["qom-type"] = json!(kind);
    options["id"] = json!(id);
    ("object-add", options)
}

/// Credentials of a server by the certificates in a folder, with and without a look at them.
fn server(id: &str, dir: &str) -> [Command; 2] {
    let of = |id: String, check: bool| {
        object(
            "tls-creds-x509",
            &id,
            json!({"dir": dir, "endpoint": "server", "sanity-check": check}),
        )
    };
    [of(id.to_owned(), true), of(format!("{id}-unchecked"), false)]
}

#[test]
fn certificates_are_looked_at_as_qemu_does() {
    let made = Certificates::new();
    let without = |line: &str| SERVER.replace(line, "");
    let dated = |from: &str, to: &str| {
        let dates = format!("activation_date = \"{from}\"\nexpiration_date = \"{to}\"\n");
        without("expiration_days = 30\n") + &dates
    };
    made.certificate("good", SERVER, "ca")
        .certificate(
            "expired",
            &dated("2020-01-01 00:00:00", "2021-01-01 00:00:00"),
            "ca",
        )
        .certificate(
            "future",
            &dated("2090-01-01 00:00:00", "2091-01-01 00:00:00"),
            "ca",
        )
        .certificate("stranger", SERVER, "other")
        .certificate("authority", &format!("{SERVER}ca\ncert_signing_key\n"), "ca")
        .certificate("unsigned", &without("signing_key\n"), "ca")
        .certificate("unenciphered", &without("encryption_key\n"), "ca")
        .certificate("client", CLIENT, "ca")
        .certificate("plain", "cn = localhost\nexpiration_days = 30\n", "ca");
    fs::write(made.path("junk"), "junk\n").expect("a file is written");
    let mut commands: Vec<Command> = Vec::new();
    for name in [
        "good",
        "expired",
        "future",
        "stranger",
        "authority",
        "unsigned",
        "unenciphered",
        "client",
        "plain",
        "junk",
    ] {
        commands.extend(server(name, &made.server(&format!("{name}-dir"), name)));
    }
    let both = |name: &str, files: &[(&str, &str)]| {
        made.server(name, "good");
        server(name, &made.folder(name, files))
    };
    commands.extend(both("no-authority", &[("ca-cert.pem", "good")]));
    commands.extend(both("wrong-key", &[("server-key.pem", "other-key")]));
    commands.extend(both("junk-key", &[("server-key.pem", "junk")]));
    commands.extend(both("junk-list", &[("ca-crl.pem", "junk")]));
    commands.extend(both("junk-group", &[("dh-params.pem", "junk")]));
    commands.push(both("junk-authority", &[("ca-cert.pem", "junk")])[0].clone());
    commands.extend(server("nowhere", "/nonexistent"));
    commands.extend(server("lonely", &made.folder("lonely", &[("ca-cert.pem", "ca")])));
    let keyless = [("ca-cert.pem", "ca"), ("server-cert.pem", "good")];
    commands.extend(server("keyless", &made.folder("keyless", &keyless)));
    let client = |id: &str, dir: &str| object("tls-creds-x509", id, json!({ "dir": dir }));
    commands.push(client("as-client", &made.client("as-client", "client")));
    commands.push(client("anyone", &made.folder("anyone", &[("ca-cert.pem", "ca")])));
    commands.push(client(
        "expired-client",
        &made.client("expired-client", "expired"),
    ));
    same_answers(&commands);
}

#[test]
fn keys_are_opened_by_the_password_of_a_secret() {
    let made = Certificates::new();
    made.certificate("good", SERVER, "ca");
    let (key, sealed) = (made.path("key"), made.path("sealed"));
    millpond_tests::tool::run(
        "openssl",
        &[
            "pkcs8",
            "-topk8",
            "-passout",
            "pass:hello",
            "-in",
            &key.display().to_string(),
            "-out",
            &sealed.display().to_string(),
        ],
    );
    let dir = made.server("sealed-folder", "good");
    made.folder("sealed-folder", &[("server-key.pem", "sealed")]);
    let with = |id: &str, password: Option<&str>| {
        let mut options = json!({"dir": dir, "endpoint": "server"});
        if let Some(password) = password {
            options["passwordid"] = json!(password);
        }
        object("tls-creds-x509", id, options)
    };
    same_answers(&[
        with("none", None),
        with("by-nobody", Some("nobody")),
        object("secret", "wrong", json!({"data": "hellx"})),
        object("secret", "right", json!({"data": "hello"})),
        with("by-wrong", Some("wrong")),
        with("by-right", Some("right")),
        ("qom-get", json!({"path": "by-right", "property": "passwordid"})),
    ]);
}

#[test]
fn properties_and_mistakes_are_those_of_qemu() {
    let made = Certificates::new();
    made.certificate("good", SERVER, "ca");
    let dir = made.server("dir", "good");
    let keys = made.keys("keys", "alice:00112233\nqemu:44556677\n");
    let psk = |id: &str, options: Value| object("tls-creds-psk", id, options);
    let list = |id: &str, options: Value| object("authz-list", id, options);
    let mut commands = vec![
        object("tls-creds-x509", "x", json!({"dir": dir, "endpoint": "server"})),
        object("tls-creds-x509", "x", json!({"dir": dir, "endpoint": "server"})),
        object("tls-creds-x509", "n", json!({"endpoint": "server"})),
        object("tls-creds-x509", "n", json!({"dir": dir, "endpoint": "other"})),
        object("tls-creds-x509", "n", json!({"dir": 1})),
        object("tls-creds-x509", "n", json!({"dir": dir, "verify-peer": "yes"})),
        object("tls-creds-x509", "n", json!({"dir": dir, "username": "u"})),
        psk("p", json!({"dir": keys, "endpoint": "server"})),
        psk("n", json!({"endpoint": "server"})),
        psk(
            "n",
            json!({"dir": keys, "endpoint": "server", "username": "alice"}),
        ),
        psk("n", json!({"dir": dir, "endpoint": "server"})),
        psk("n", json!({"dir": keys, "username": "bob"})),
        psk("q", json!({"dir": keys})),
        psk("a", json!({"dir": keys, "username": "alice"})),
        object("tls-creds-anon", "n1", json!({})),
        object(
            "tls-creds-anon",
            "n2",
            json!({"endpoint": "server", "verify-peer": false}),
        ),
        object(
            "tls-creds-anon",
            "n3",
            json!({"endpoint": "server", "dir": "/nonexistent"}),
        ),
        object("authz-simple", "s", json!({"identity": "O=t"})),
        object("authz-simple", "n", json!({})),
        object("authz-simple", "n", json!({"identity": 1})),
        object("authz-pam", "n", json!({"service": "x"})),
        list("l0", json!({})),
        list(
            "l1",
            json!({"policy": "allow", "rules": [{"match": "a", "policy": "deny"}]}),
        ),
        list(
            "l2",
            json!({"rules": [{"match": "a*", "policy": "deny", "format": "glob"}]}),
        ),
        list("n", json!({"policy": "maybe"})),
        list("n", json!({"rules": "x"})),
        list("n", json!({"rules": [{"match": "a"}]})),
        list("n", json!({"rules": [{"policy": "deny"}]})),
        list(
            "n",
            json!({"rules": [{"match": "a", "policy": "deny", "format": "regex"}]}),
        ),
        list(
            "n",
            json!({"rules": [{"match": "a", "policy": "deny", "other": 1}]}),
        ),
        (
            "qom-set",
            json!({"path": "s", "property": "identity", "value": "O=u"}),
        ),
        (
            "qom-set",
            json!({"path": "s", "property": "identity", "value": 1}),
        ),
        ("qom-get", json!({"path": "s", "property": "identity"})),
        (
            "qom-set",
            json!({"path": "l1", "property": "policy", "value": "deny"}),
        ),
        (
            "qom-set",
            json!({"path": "l1", "property": "policy", "value": "x"}),
        ),
        ("qom-set", json!({"path": "l1", "property": "rules", "value": []})),
        (
            "qom-set",
            json!({"path": "l1", "property": "rules", "value": "x"}),
        ),
    ];
    for (object, properties) in [
        (
            "x",
            &[
                "dir",
                "endpoint",
                "verify-peer",
                "priority",
                "sanity-check",
                "passwordid",
                "username",
            ][..],
        ),
        ("p", &["dir", "endpoint", "verify-peer", "priority", "username"]),
        ("a", &["username"]),
        ("n2", &["dir", "endpoint", "verify-peer", "priority"]),
        ("l1", &["policy", "rules"]),
        ("l0", &["policy", "rules"]),
    ] {
        let get = |property| ("qom-get", json!({"path": object, "property": property}));
        commands.extend(properties.iter().map(get));
        commands.push(("qom-list", json!({ "path": format!("/objects/{object}") })));
    }
    for kind in [
        "tls-creds-x509",
        "tls-creds-psk",
        "tls-creds-anon",
        "authz-simple",
        "authz-list",
        "authz-list-file",
        "authz-pam",
    ] {
        commands.push(("qom-list-properties", json!({ "typename": kind })));
    }
    commands.extend(["x", "s", "x"].map(|id| ("object-del", json!({ "id": id }))));
    same_answers(&commands);
}

#[test]
fn a_server_takes_only_credentials_that_are_for_one() {
    let made = Certificates::new();
    let keys = made.keys("keys", "qemu:44556677\n");
    let socket = made.path("nbd.sock");
    let start = |options: Value| {
        let mut all = json!({"addr": {"type": "unix", "data": {"path": socket}}});
        for (name, value) in options.as_object().expect("options") {
            all[name] = value.clone();
        }
        ("nbd-server-start", all)
    };
    let stop = || ("nbd-server-stop", json!({}));
    same_answers(&[
        stop(),
        object("tls-creds-psk", "client", json!({ "dir": keys })),
        object(
            "tls-creds-psk",
            "server",
            json!({"dir": keys, "endpoint": "server"}),
        ),
        object("authz-simple", "authz", json!({"identity": "x"})),
        start(json!({"tls-creds": "nobody"})),
        start(json!({"tls-creds": "client"})),
        start(json!({"tls-creds": "authz"})),
        start(json!({"tls-authz": "authz"})),
        stop(),
        start(json!({"tls-creds": "server", "tls-authz": "nobody"})),
        ("object-del", json!({"id": "server"})),
        stop(),
        start(json!({"tls-creds": "server"})),
    ]);
}

#[test]
fn priorities_that_cannot_be_kept_are_refused_and_rules_may_be_in_a_file() {
    // QEMU takes any priority and then refuses every client, and makes no object of the type that it lists.
    let made = Certificates::new();
    let mut daemon = daemon().start();
    let anonymous = |priority: &str| {
        let options = json!({"endpoint": "server", "priority": priority});
        object("tls-creds-anon", "n", options).1
    };
    for (priority, why) in [
        ("JUNK", "'JUNK' is not supported"),
        ("NORMAL:+VERS-TLS1.1", "'+VERS-TLS1.1' is not supported"),
        ("NORMAL:-AES-128-GCX", "'-AES-128-GCX' is not supported"),
        (
            "NORMAL:%UNSAFE_RENEGOTIATION",
            "'%UNSAFE_RENEGOTIATION' is not supported",
        ),
        (
            "NORMAL:-VERS-ALL:+VERS-TLS1.3",
            "no protocol or no cipher is left",
        ),
        ("NORMAL:-CIPHER-ALL", "no protocol or no cipher is left"),
        ("NORMAL:-GROUP-ALL", "no group is left"),
    ] {
        let error = daemon.qmp.refused("object-add", anonymous(priority));
        let text = format!("Cannot set TLS session priority {priority}: {why}");
        assert_eq!(error.desc, text);
    }
    for priority in [
        "NORMAL",
        "@SYSTEM,NORMAL",
        "SECURE256:-VERS-TLS1.0:%SERVER_PRECEDENCE",
        "NONE:+VERS-TLS1.2:+AES-128-GCM:+AEAD:+GROUP-SECP256R1:+SIGN-ALL:+COMP-NULL",
    ] {
        daemon.qmp.ok("object-add", anonymous(priority));
        daemon.qmp.ok("object-del", json!({"id": "n"}));
    }
    let rules = made.path("rules").display().to_string();
    let file = |kind: &str| object(kind, "f", json!({"filename": rules, "refresh": false})).1;
    let error = daemon.qmp.refused("object-add", file("authz-list-file"));
    let text = format!("Unable to read authorization rules from {rules}: No such file or directory");
    assert_eq!(error.desc, text);
    fs::write(&rules, "[]").expect("a file is written");
    let error = daemon.qmp.refused("object-add", file("authz-list-file"));
    assert!(
        error.desc.starts_with("There are no authorization rules in "),
        "{}",
        error.desc
    );
    fs::write(&rules, r#"{"policy": "allow"}"#).expect("a file is written");
    for kind in ["authz-list-file", "authz-listfile"] {
        daemon.qmp.ok("object-add", file(kind));
        let refresh = json!({"path": "/objects/f", "property": "refresh"});
        assert_eq!(daemon.qmp.ok("qom-get", refresh), false);
        daemon.qmp.ok("object-del", json!({"id": "f"}));
    }
    daemon.quit();
}

#[test]
fn a_character_device_is_not_left_without_the_tls_that_was_asked_for() {
    let made = Certificates::new();
    let path = made.path("c");
    let objects = [
        object("tls-creds-anon", "t", json!({"endpoint": "server"})),
        object("tls-creds-anon", "client", json!({"endpoint": "client"})),
        object("authz-simple", "authz", json!({"identity": "x"})),
    ];
    let add = |id: &str, is_server: bool| {
        let address = json!({"type": "unix", "data": {"path": path}});
        let socket = json!({"addr": address, "tls-creds": id, "server": is_server});
        let backend = json!({"type": "socket", "data": socket});
        ("chardev-add", json!({"id": "c", "backend": backend}))
    };
    // What QEMU refuses is refused for the same reason.
    let refused = [
        ("client", true),
        ("t", false),
        ("authz", true),
        ("u", true),
        ("u", false),
    ];
    let refused = refused.map(|(id, is_server)| add(id, is_server));
    same_answers(&[&objects[..], &refused].concat());
    let mut daemon = daemon().start();
    for (command, options) in objects {
        daemon.qmp.ok(command, options);
    }
    for (id, why) in [
        ("t", "TLS is not supported for character devices"),
        ("u", "No TLS credentials with id 'u'"),
    ] {
        let (command, options) = add(id, true);
        let error = daemon.qmp.refused(command, options);
        assert_eq!(error.desc, format!("Failed to add chardev 'c': {why}"));
    }
    daemon.quit();
}
