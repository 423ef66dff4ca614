//! Command line values refused by us and by `qemu-storage-daemon` for the same reason, in the same words.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it must be"
)]

use millpond_messages::qapi::schema::{
    BlockExportOptions, BlockdevOptions, MonitorOptions, NbdServerOptions, ObjectOptions, StructType,
    Structure,
};
use millpond_messages::qapi::{Object, Options, QmpError, Validator};
use std::process::{Command, Stdio};

/// What the oracle says of `option value`, without the program's and the option's name.
fn oracle(option: &str, value: &str) -> String {
    let output = Command::new("qemu-storage-daemon")
        .args([option, value])
        .stdin(Stdio::null())
        .output()
        .expect("qemu-storage-daemon must be installed: package qemu-utils");
    assert_eq!(output.status.code(), Some(1), "{option} {value}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let prefix = format!("qemu-storage-daemon: {option} {value}: ");
    text.strip_prefix(&prefix)
        .unwrap_or_else(|| panic!("{text}"))
        .trim_end_matches('\n')
        .into()
}

fn ours(of: &StructType, implied: Option<&str>, value: &str) -> Result<Object, QmpError> {
    let options = Options::parse_without_help(value, implied)?;
    Validator::new(options.form, &[]).check(of, options.values)
}

fn compare(option: &str, of: &StructType, implied: Option<&str>, values: &[&str]) {
    for value in values {
        let said = ours(of, implied, value).expect_err(value).to_string();
        assert_eq!(said, oracle(option, value), "{option} {value}");
    }
}

#[test]
fn blockdev() {
    let long = format!("null-co,{}=1", "a".repeat(128));
    let long_fragment = format!("null-co,x.{}=1", "a".repeat(128));
    let values = [
        "",
        "driver",
        "driver=",
        "=file",
        "a=b,,",
        "file,",
        "file,filename",
        "file,filename,x=1",
        "file,filename=x,aio=foo",
        "foo",
        "file,filename=x,node-name=a,cache.direct=",
        "file,filename=x,node-name=a,cache=1",
        "file,filename=x,node-name=a,cache.direct=on,cache=1",
        "file,filename=x,node-name=a,cache=1,cache.direct=on",
        "file,filename=x,node-name=a,cache.direct.x=on",
        "file,filename=x,node-name=a,cache.dirct=on",
        "file,filename=x,node-name=a,foo=on",
        "null-co,node-name=a,size=x",
        "null-co,node-name=a,size=1K",
        "null-co,node-name=a,size=99999999999999999999",
        "null-co,node-name=a,size=9223372036854775808",
        "null-co,node-name=a,size=08",
        "null-co,node-name=a,size=5 ",
        "null-co,node-name=a,latency-ns=-1x",
        "null-co,node-name=a,latency-ns=18446744073709551616",
        "null-co,node-name=a,size=0x10,read-zeroes=off,x=",
        "null-co,.x=1",
        "null-co,x..y=1",
        "null-co,1x=1",
        "null-co,x.1y=1",
        "null-co,x.-y=1",
        "null-co,_x=1",
        "null-co,node-name=a,x.0=1,x.2=1",
        "null-co,node-name=a,x.0=1,x.y=1",
        "null-co,node-name=a,x.y.0=1,x.y.z=1",
        "null-co,node-name=a,x.y.1=1",
        "null-co,node-name=a,x.99999999999=1",
        "null-co,node-name=a,__foo.bar_x=1",
        "null-co,node-name=a,__1.x-y=1",
        "null-co,node-name=a,foo.",
        "null-co,node-name=a,x y=1",
        "null-co,node-name=a,x=1,,y",
        &long,
        &long_fragment,
        "help",
        "file,help",
        "?",
        ",",
        "raw,,foo",
        "raw,node-name=a,,b=c",
        "raw,node-name=a,file.driver=null-co,file=b",
        "raw,node-name=a,file.driver=null-co,file.size=z",
        "raw,node-name=a,file.0=b",
        "raw,node-name=a,file.x=b",
        "raw,node-name=a,file.01=b",
        "raw,node-name=a,file.driver=raw,file.file.driver=file",
        "driver=raw,driver=qcow2",
        "qcow2,node-name=a,file=b,backing.x=5",
        "qcow2,node-name=a,file=b,overlap-check=5",
        "qcow2,node-name=a,file=b,overlap-check.template=foo",
        "qcow2,node-name=a,file=b,overlap-check.main-header=foo",
        "{",
        "{}",
        "[]",
        r#"{"driver":"null-co""#,
        r#"{"driver":"null-co"} x"#,
        r#"{"driver":"x"#,
        r#"{"a":1-"#,
        r#"{"a":%d}"#,
        r#"{"driver":"null-co","node-name":5}"#,
        r#" {"driver":"null-co","node-name":"a"}"#,
    ];
    compare("--blockdev", BlockdevOptions::schema(), Some("driver"), &values);
}

#[test]
fn export_server_object_and_monitor() {
    let values = [
        "nbd",
        "nbd,id=a,node-name=b,writable=1",
        "nbd,id=a,node-name=b,writable=ON",
        "nbd,id=a,node-name=b,bitmaps.0=x,bitmaps.1.node=z",
        "nbd,id=a,node-name=b,bitmaps=x",
        "nbd,id=a,node-name=b,bitmaps.0.0=x",
        "nbd,id=a,node-name=b,bitmaps.0=x,bitmaps.foo=y",
        "nbd,id=a,node-name=b,name.x=5",
        "foo,id=a",
        r#"{"type":"nbd"}"#,
    ];
    compare("--export", BlockExportOptions::schema(), Some("type"), &values);
    let values = [
        "addr.type=inet",
        "addr.type=inet,addr.host=localhost",
        "addr.type=inet,addr.host=localhost,addr.port=1,addr.to=70000",
        "addr.type=foo",
        "addr=foo",
        "foo",
        "addr.type=unix,addr.path=/nonexistent/nbd,max-connections=-1",
        "addr.type=unix,addr.path=/nonexistent/nbd,max-connections=x",
        "addr.type=unix,addr.path=/nonexistent/nbd,foo=x",
    ];
    compare("--nbd-server", NbdServerOptions::schema(), None, &values);
    let values = [
        "",
        "id=x",
        "iothread",
        "iothread,id=a,poll-max-ns=x",
        "iothread,id=a,foo=1",
        "foo,id=a",
        r#"{"qom-type":"iothread","id":"x","poll-max-ns":"5"}"#,
    ];
    compare("--object", ObjectOptions::schema(), Some("qom-type"), &values);
    let values = [
        "mode=control",
        "chardev=foo,mode=bar",
        "chardev=foo,pretty=ON",
        "c,foo=1",
    ];
    compare("--monitor", MonitorOptions::schema(), Some("chardev"), &values);
}

#[test]
fn what_is_accepted_has_its_types() {
    let text = "driver=null-co,node-name=a,,b,size=0x10,latency-ns=-1,read-zeroes=yes,cache.direct=n";
    let typed = ours(BlockdevOptions::schema(), None, text).unwrap();
    let expected = serde_json::json!({
        "driver": "null-co", "node-name": "a,b", "size": 16, "latency-ns": u64::MAX, "read-zeroes": true,
        "cache": {"direct": false},
    });
    assert_eq!(serde_json::Value::Object(typed), expected);
    let text = "nbd,id=a,node-name=b,bitmaps.0=x,bitmaps.1.node=n,bitmaps.1.name=y";
    let typed = ours(BlockExportOptions::schema(), Some("type"), text).unwrap();
    assert_eq!(
        typed["bitmaps"],
        serde_json::json!(["x", {"node": "n", "name": "y"}])
    );
}

#[test]
fn an_embedders_driver_is_let_through_with_its_options() {
    let options = Options::parse("mine,node-name=a,speed.x=5,size=1K", Some("driver")).unwrap();
    let drivers = ["mine".to_owned()];
    let validator = Validator::new(options.form, &drivers);
    let typed = validator
        .check(BlockdevOptions::schema(), options.values.clone())
        .unwrap();
    assert_eq!(typed["speed"], serde_json::json!({"x": "5"}));
    Validator::new(options.form, &[])
        .check(BlockdevOptions::schema(), options.values)
        .unwrap_err();
}
