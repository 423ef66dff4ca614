//! The parsers on input that nobody wrote by hand.

use millpond_messages::qapi::schema::{BlockdevOptions, COMMANDS, Structure};
use millpond_messages::qapi::{Form, JsonStream, Options, Validator, parse_json, to_compact, to_pretty};
use proptest::prelude::*;
use serde_json::{Number, Value};

/// Text made of what the grammars are made of, so that it gets deep into them.
fn likely_text() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "{", "}", "[", "]", ":", ",", "\"", "'", "\\", "\\u00e9", "\\ud83d", "\\ude00", "true", "nul", "1",
        "-", "0", ".5", "e", "+", "\n", " ", "driver", "=", ".", "file", "raw", "help", "x", "é", "\u{1}",
        "null-co", "size",
    ]);
    prop::collection::vec(pieces, 0..40).prop_map(|pieces| pieces.concat())
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter_map("finite", |d| Number::from_f64(d).map(Value::Number)),
        "[ -~é😀\\n\\t]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map("[a-z]{1,4}", inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Equal as numbers: a double without fraction is written as a whole number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_json_stream_fail(pieces in prop::collection::vec(any::<Vec<u8>>(), 0..8)) {
        let mut stream = JsonStream::default();
        for piece in &pieces {
            stream.feed(piece);
        }
        stream.finish();
    }

    #[test]
    fn json_does_not_depend_on_how_it_is_cut(text in likely_text(), cut in any::<prop::sample::Index>()) {
        let mut whole = JsonStream::default();
        let mut expected = whole.feed(text.as_bytes());
        expected.extend(whole.finish());
        let (head, tail) = text.as_bytes().split_at(cut.index(text.len() + 1));
        let mut stream = JsonStream::default();
        let mut values = stream.feed(head);
        values.extend(stream.feed(tail));
        values.extend(stream.finish());
        prop_assert_eq!(values, expected);
    }

    #[test]
    fn the_stream_recovers_at_a_line_end(junk in likely_text()) {
        let mut stream = JsonStream::default();
        // A byte that is never part of JSON ends whatever went before.
        stream.feed(junk.as_bytes());
        stream.feed(b"\xff\n");
        prop_assert_eq!(stream.feed(b"{'a':1}"), vec![Ok(serde_json::json!({"a": 1}))]);
    }

    #[test]
    fn what_is_written_reads_back(value in any_json()) {
        prop_assert!(same(&parse_json(&to_compact(&value)).unwrap(), &value));
        prop_assert!(same(&parse_json(&to_pretty(&value)).unwrap(), &value));
    }

    #[test]
    fn no_text_makes_options_fail(text in prop_oneof![any::<String>(), likely_text()]) {
        for implied in [None, Some("driver")] {
            if let Ok(options) = Options::parse(&text, implied) {
                let validator = Validator::new(options.form, &[]);
                let _ = validator.check(BlockdevOptions::schema(), options.values);
            }
        }
    }

    #[test]
    fn no_arguments_make_the_validator_fail(value in any_json(), index in any::<prop::sample::Index>()) {
        if let Value::Object(arguments) = value {
            let command = index.get(COMMANDS);
            if let Ok(checked) = Validator::new(Form::Json, &[]).check((command.arguments)(), arguments) {
                (command.accepts)(checked).unwrap();
            }
        }
    }
}

#[test]
fn limits_are_told_and_survived() {
    let mut stream = JsonStream::default();
    let told = stream.feed("[".repeat(1025).as_bytes());
    assert_eq!(told, [Err("JSON nesting depth limit exceeded".into())]);
    stream.feed(b"\xff\n");
    let deep = format!("{}{}", "[".repeat(1024), "]".repeat(1024));
    assert!(matches!(stream.feed(deep.as_bytes()).as_slice(), [Ok(_)]));
    let mut told = stream.feed(b"\"");
    for _ in 0..65 {
        told.extend(stream.feed(&vec![b'a'; 1 << 20]));
    }
    assert_eq!(told, [Err("JSON token size limit exceeded".into())]);
}
