//! Whatever a peer says its end of an RDMA link is, it is refused or is that and nothing else.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| transport::fuzzing::endpoints(bytes));
