//! Options as command lines, QMP and image headers write them. A size that is understood is understood again as a plain
//! number; options that pass validation pass again unchanged.

use millpond_drivers::builtin::builtin;
use millpond_messages::path::{
    full_backing_filename, path_clean, path_combine, path_has_protocol, path_is_absolute,
};
use millpond_messages::qapi::schema::{
    BlockExportOptions, BlockdevOptions, MonitorOptions, NbdServerOptions, ObjectOptions, StructType,
    Structure,
};
use millpond_messages::qapi::{Form, Options, Validator, parse_size, take_pair};

/// What options are of, and the key that a first value without one is for.
type Kind = (fn() -> &'static StructType, Option<&'static str>);

const KINDS: [Kind; 5] = [
    (BlockdevOptions::schema, Some("driver")),
    (BlockExportOptions::schema, Some("type")),
    (ObjectOptions::schema, Some("qom-type")),
    (NbdServerOptions::schema, None),
    (MonitorOptions::schema, Some("chardev")),
];

pub(super) fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(size) = parse_size(&text) {
        assert_eq!(parse_size(&size.to_string()), Some(size), "{text:?}");
    }
    let (name, value, rest) = take_pair(&text);
    assert!(name.map_or(0, str::len) + value.len() + rest.len() <= text.len());
    for (kind, implied) in KINDS {
        if let Ok(options) = Options::parse(&text, implied)
            && let Ok(checked) = Validator::new(options.form, &[]).check(kind(), options.values)
        {
            let again = Validator::new(Form::Json, &[]).check(kind(), checked.clone());
            assert_eq!(again.as_ref(), Ok(&checked), "{text:?}");
        }
    }
    filename(&text);
}

/// The text as a filename: of a command line, or that of a backing file.
fn filename(text: &str) {
    let registry = builtin();
    if let Ok(kind) = registry.find_protocol(text) {
        let _ = kind.parse_filename(text);
    }
    let _ = (path_has_protocol(text), path_is_absolute(text), path_clean(text));
    for (base, name) in [
        (text, "name"),
        ("/folder/base", text),
        ("json:{}", text),
        (text, text),
    ] {
        let _ = path_combine(base, name);
        let _ = full_backing_filename(base, name);
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    [
        "driver=qcow2,node-name=a,file.driver=file,file.filename=x,,y,backing.driver=null-co,read-only=on",
        "quorum,vote-threshold=2,children.0.driver=raw,children.0.file=x,children.1=y,node-name=q",
        "nbd,id=x,node-name=a,name=b,writable=on,bitmaps.0=c,bitmaps.1.node=d,bitmaps.1.name=e",
        "iothread,id=io,poll-max-ns=32768,aio-max-batch=0x10",
        "addr.type=inet,addr.host=localhost,addr.port=10809,max-connections=4",
        "qmp0,mode=control,pretty=on",
        "blkdebug,image=x,inject-error.0.event=read_aio,inject-error.0.errno=5,align=512",
        "{\"driver\": \"blkdebug\", \"image\": \"x\", \"set-state\": [{\"event\": \"l2_load\", \"new_state\": 2}]}",
        "help",
        "1.5G",
        "0x7fffffffffffffff",
        "9223372036854774784",
        "1E",
        "nbd:unix:/a/socket:exportname=x",
        "nbd://host:10809/name",
        "json:{\"driver\": \"file\", \"filename\": \"/a/./../b\"}",
        "blkdebug:config:image",
        "file:../x/y",
        "blkverify:raw:image",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
