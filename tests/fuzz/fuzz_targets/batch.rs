//! Whatever bytes a peer sends as a batch, they are refused or can be read.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dataflow::fuzzing::batch(bytes));
