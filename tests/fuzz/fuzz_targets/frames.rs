//! Whatever a peer says over TCP, its messages are bytes and its nonsense is the end of the link.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    transport::fuzzing::frames(bytes).expect("there are sockets and memory");
});
