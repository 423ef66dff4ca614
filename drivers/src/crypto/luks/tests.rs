//! Headers: stored and read again, and any bytes taken for one.

use proptest::prelude::*;

use super::{HEADER_LEN, LuksHeader, NewVolume, is_luks};
use crate::api::parse_options;

fn volume(options: serde_json::Value) -> NewVolume {
    let serde_json::Value::Object(options) = options else {
        panic!("options are an object")
    };
    parse_options(options).unwrap()
}

/// A header, and the stripes of its key.
fn made() -> (LuksHeader, Vec<u8>) {
    let options = serde_json::json!({"size": 0, "iter-time": 0, "cipher-alg": "aes-128"});
    let (header, key) = volume(options).build(b"password", false).unwrap();
    (header, key.material)
}

#[test]
fn a_header_is_read_as_it_was_stored_and_only_its_password_opens_it() {
    let (header, stripes) = made();
    let bytes = header.encode().unwrap();
    assert_eq!(bytes.len(), HEADER_LEN);
    assert!(is_luks(&bytes) && !is_luks(&bytes[..7]));
    let read = LuksHeader::parse(&bytes).unwrap();
    assert_eq!(read.encode().unwrap(), bytes);
    let slot = &read.slots[0];
    let found = slot.unlock(&read, b"password", stripes.clone()).unwrap();
    assert!(found.is_some());
    assert!(!format!("{found:?}").contains("0x"), "a key is not shown");
    assert!(
        slot.unlock(&read, b"passwort", stripes.clone())
            .unwrap()
            .is_none()
    );
    assert!(
        read.slots[1]
            .unlock(&read, b"password", vec![0; stripes.len()])
            .unwrap()
            .is_none()
    );
    slot.unlock(&read, b"password", stripes[1..].to_vec())
        .unwrap_err();
}

#[test]
fn times_that_cannot_be_are_refused() {
    let new = |time: i64| volume(serde_json::json!({"size": 0, "iter-time": time}));
    for (time, expected) in [
        (-1, "too large to scale"),
        (1_000_000_000_000, "larger than 1073741824"),
    ] {
        let error = new(time).build(b"password", false).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_header_or_an_error(edits in prop::collection::vec((0..HEADER_LEN, any::<u8>()), 1..8), len in 0..=HEADER_LEN) {
        use std::sync::LazyLock;
        static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| made().0.encode().unwrap());
        let mut bytes = GOOD.clone();
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        if let Ok(header) = LuksHeader::parse(&bytes) {
            // What is accepted lies in order, and can be stored again.
            prop_assert!(header.encode().is_ok());
            prop_assert!(header.material_len() as u64 <= header.end());
            header.info();
        }
        let cut = &bytes[..len];
        prop_assert!(len == HEADER_LEN || LuksHeader::parse(cut).is_err());
    }
}
