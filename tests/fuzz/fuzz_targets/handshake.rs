//! Whatever a stranger says, it proves nothing; and whatever it does to a conversation that it carries, the
//! proof fails unless every message arrives as it was sent.
#![no_main]

use transport::{ANSWER_BYTES, Acceptor, Connector, FINISH_BYTES, HELLO_BYTES, Secret};

/// Damages a message as `noise` says: each byte is added to one of the message's.
fn carry<const N: usize>(message: &[u8; N], noise: &mut impl Iterator<Item = u8>) -> [u8; N] {
    message.map(|byte| byte.wrapping_add(noise.next().unwrap_or(0)))
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let secret = Secret::from([7; Secret::BYTES]);
    let mut noise = bytes.iter().copied();

    // A stranger's messages.
    if let (Some(hello), Some(finish)) = (bytes.first_chunk::<HELLO_BYTES>(), bytes.last_chunk()) {
        if let Ok(acceptor) = Acceptor::new(&secret, 1, hello).unwrap() {
            assert!(acceptor.check(finish).is_err());
        }
    }
    let connector = Connector::new(&secret, 0, 1).unwrap();
    if let Some(answer) = bytes.first_chunk::<ANSWER_BYTES>() {
        assert!(connector.finish(answer).is_err());
    }

    // A stranger between the two.
    let hello = carry(connector.hello(), &mut noise);
    let Ok(acceptor) = Acceptor::new(&secret, 1, &hello).unwrap() else {
        assert_ne!(&hello, connector.hello());
        return;
    };
    let answer = carry(acceptor.answer(), &mut noise);
    let Ok(finish) = connector.finish(&answer) else {
        assert!(&hello != connector.hello() || &answer != acceptor.answer());
        return;
    };
    assert_eq!((&hello, &answer), (connector.hello(), acceptor.answer()));
    let carried: [u8; FINISH_BYTES] = carry(&finish, &mut noise);
    assert_eq!(acceptor.check(&carried).is_ok(), carried == finish);
});
