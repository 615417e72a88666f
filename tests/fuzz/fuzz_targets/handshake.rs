//! Whatever a stranger says, it proves nothing; and whatever it does to a conversation that it carries, the
//! proof fails unless every message arrives as it was sent.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    transport::fuzzing::handshake(bytes).expect("there are random bytes");
});
