//! The order in which QEMU prints the members of a JSON object.
//!
//! QEMU's objects are hash tables of 512 buckets, printed bucket by bucket, and within a bucket the
//! newest member first. Programs match on that text, and `json:{...}` file names are written into
//! image headers in it.

use crate::qapi::Object;
use serde_json::Value;

const BUCKETS: u32 = 512;

/// The bucket of `key`, below 512.
pub fn bucket(key: &str) -> u32 {
    let length = u32::try_from(key.len()).unwrap_or(u32::MAX);
    let mut hash = 0x238F_13AF_u32.wrapping_mul(length);
    let mut shift = 0;
    for byte in key.bytes() {
        hash = hash.wrapping_add(u32::from(byte).wrapping_shl(shift));
        shift = (shift + 5) % 24;
    }
    1_103_515_243_u32.wrapping_mul(hash).wrapping_add(12345) % BUCKETS
}

/// The members of `object` in the order QEMU prints them.
pub fn in_qdict_order(object: &Object) -> impl Iterator<Item = (&String, &Value)> {
    let newest_first = object.iter().rev();
    let mut members: Vec<_> = newest_first
        .map(|(key, value)| (bucket(key), key, value))
        .collect();
    members.sort_by_key(|(bucket, ..)| *bucket);
    members.into_iter().map(|(_, key, value)| (key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_order_seen_in_qemu_output() {
        let seen =
            "auto-finalize,io-status,device,auto-dismiss,busy,len,offset,status,paused,speed,ready,type";
        let mut keys: Vec<&str> = seen.split(',').collect();
        keys.sort_unstable();
        let object: Object = keys.iter().map(|key| (key.to_string(), Value::Null)).collect();
        let ordered: Vec<_> = in_qdict_order(&object).map(|(key, _)| key.as_str()).collect();
        assert_eq!(ordered.join(","), seen);
    }

    #[test]
    fn newest_first_within_a_bucket() {
        let mut seen = std::collections::HashMap::new();
        let (old, new) = (0..)
            .find_map(|i| {
                let key = format!("k{i}");
                seen.insert(bucket(&key), key.clone()).map(|old| (old, key))
            })
            .unwrap();
        let object: Object = [(old.clone(), Value::Null), (new.clone(), Value::Null)]
            .into_iter()
            .collect();
        let ordered: Vec<_> = in_qdict_order(&object).map(|(key, _)| key.clone()).collect();
        assert_eq!(ordered, [new, old]);
    }
}
