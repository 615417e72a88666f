//! Whatever a peer sends by RDMA, it is no packet or means what it says.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| transport::fuzzing::packets(bytes));
