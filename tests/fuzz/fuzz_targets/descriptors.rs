//! Whatever a peer puts in its ring, it points into its arena or is the end of the link.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    transport::fuzzing::descriptors(bytes).expect("there is memory");
});
