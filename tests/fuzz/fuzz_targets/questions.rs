//! Whatever a peer says about memory, it writes nothing but what is exposed.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    transport::fuzzing::questions(bytes).expect("there is memory");
});
