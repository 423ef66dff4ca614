//! The target of the same name.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let target = millpond_tests::fuzz::target("virtio").expect("there is such a target");
    (target.run)(input);
});
