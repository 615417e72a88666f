//! Whatever a worker says to its coordinator, or somebody in the place of that to a worker, it is refused or says one thing.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| updraft::coordinator::fuzzing::frames(bytes));
