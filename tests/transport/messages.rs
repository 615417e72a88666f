//! What is promised of messages: that they arrive, whole and in order, and how those are told whose peer ends.

use std::time::{Duration, Instant};

use transport::Error;

use crate::{
    SMALL_ARENA,
    end::{End, pattern},
};

pub(crate) mod delivers_in_order {
    use super::*;

    const MESSAGES: usize = 3_000;

    /// Empty, inline, just past inline, and large ones.
    fn length(number: usize) -> usize {
        [0, 1, 48, 49, 1_000, 104, 105, 40_000][number * 7 % 8]
    }

    pub(crate) async fn here(end: End) {
        for number in 0..MESSAGES {
            end.send(&pattern(number, length(number))).await;
        }
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
    }

    pub(crate) async fn there(end: End) {
        for number in 0..MESSAGES {
            let message = end.receive().await.unwrap();
            assert!(
                message.as_slice() == pattern(number, length(number)),
                "message {number} differs"
            );
        }
        end.send(b"all").await;
        end.flush().await;
    }
}

pub(crate) mod delivers_empty_and_huge_messages {
    use super::*;

    const HUGE: usize = 64 << 20;

    pub(crate) async fn here(end: End) {
        for number in 0..3 {
            end.send(b"").await;
            let mut loan = end.loan(HUGE).await;
            loan.chunks_mut(4096)
                .enumerate()
                .for_each(|(page, bytes)| bytes.fill((page + number) as u8));
            loan.set_tag(u64::MAX - number as u64);
            end.fabric.borrow_mut().send(end.peer, loan).unwrap();
        }
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
    }

    pub(crate) async fn there(end: End) {
        for number in 0..3 {
            assert!(end.receive().await.unwrap().is_empty());
            let huge = end.receive().await.unwrap();
            assert_eq!((huge.len(), huge.tag()), (HUGE, u64::MAX - number as u64));
            for (page, bytes) in huge.chunks(4096).enumerate() {
                assert!(
                    bytes.iter().all(|&byte| byte == (page + number) as u8),
                    "page {page} differs"
                );
            }
        }
        end.send(b"all").await;
        end.flush().await;
    }
}

pub(crate) mod aligns_what_it_delivers {
    use super::*;

    pub(crate) async fn here(end: End) {
        for len in (0..500).step_by(7) {
            let loan = end.loan(len).await;
            assert_eq!(loan.as_ptr() as usize % 64, 0);
            end.fabric.borrow_mut().send(end.peer, loan).unwrap();
        }
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
    }

    pub(crate) async fn there(end: End) {
        for len in (0..500).step_by(7) {
            let message = end.receive().await.unwrap();
            assert_eq!(message.len(), len);
            let align = if len > 104 { 64 } else { 16 };
            assert_eq!(message.as_ptr() as usize % align, 0);
        }
        end.send(b"all").await;
        end.flush().await;
    }
}

pub(crate) mod makes_a_fast_sender_wait_for_a_slow_receiver {
    use super::*;

    const LEN: usize = 60_000;

    pub(crate) async fn here(end: End) {
        // The receiver reads nothing until it hears "go": only so much can be lent meanwhile.
        let mut sent = 0;
        let lent_out = Instant::now() + Duration::from_secs(10);
        loop {
            let loan = end.fabric.borrow().loan(LEN).unwrap();
            match loan {
                Some(loan) => {
                    end.fabric.borrow_mut().send(end.peer, loan).unwrap();
                    sent += 1;
                    end.fabric.borrow_mut().flush().unwrap();
                }
                None => break,
            }
            assert!(
                sent <= SMALL_ARENA as usize / LEN,
                "more is lent than there is"
            );
            assert!(Instant::now() < lent_out);
        }
        end.send(format!("go {sent}").as_bytes()).await;
        // As it reads, there is room again.
        for _ in 0..sent {
            end.send(&pattern(1, LEN)).await;
        }
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
    }

    pub(crate) async fn there(end: End) {
        let mut held = Vec::new();
        let sent = loop {
            let message = end.receive().await.unwrap();
            if let Some(sent) = message.strip_prefix(b"go ") {
                break std::str::from_utf8(sent).unwrap().parse().unwrap();
            }
            held.push(message);
        };
        assert_eq!(held.len(), sent);
        drop(held);
        for _ in 0..sent {
            assert!(end.receive().await.unwrap().as_slice() == pattern(1, LEN));
        }
        end.send(b"all").await;
        end.flush().await;
    }
}

pub(crate) mod returns_every_loan {
    use super::*;

    pub(crate) async fn here(end: End) {
        for round in 0..200 {
            end.send(&pattern(round, 1 + round * 997 % 100_000)).await;
        }
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
        drop(end.loan(SMALL_ARENA as usize / 2).await);
    }

    pub(crate) async fn there(end: End) {
        for round in 0..200 {
            let message = end.receive().await.unwrap();
            let clone = message.clone();
            drop(message);
            assert!(clone.as_slice() == pattern(round, 1 + round * 997 % 100_000));
        }
        end.send(b"all").await;
        end.flush().await;
        // The other end needs us to hear that its loans came back.
        let _ = end.receive().await;
    }
}

pub(crate) mod passes_on_what_another_lent {
    use super::*;

    pub(crate) async fn here(end: End) {
        end.send(&pattern(5, 100_000)).await;
        assert!(end.receive().await.unwrap().as_slice() == pattern(5, 100_000));
    }

    pub(crate) async fn there(end: End) {
        let message = end.receive().await.unwrap();
        end.fabric.borrow_mut().send(end.peer, message).unwrap();
        end.flush().await;
        let _ = end.receive().await;
    }
}

pub(crate) mod tells_of_an_orderly_end_after_the_last_message {
    use super::*;

    pub(crate) async fn here(end: End) {
        for number in 0..5 {
            end.send(&pattern(number, 1000)).await;
        }
        end.flush().await;
    }

    pub(crate) async fn there(end: End) {
        for number in 0..5 {
            assert!(end.receive().await.unwrap().as_slice() == pattern(number, 1000));
        }
        assert!(matches!(end.receive().await, Err(Error::Closed { peer }) if peer == end.peer));
        let refused = end.fabric.borrow_mut().send_copy(end.peer, 0, b"late");
        assert!(matches!(refused, Err(Error::Closed { .. })), "{refused:?}");
    }
}

pub(crate) mod tells_of_a_death_after_the_last_message {
    use super::*;

    pub(crate) async fn here(end: End) {
        for number in 0..5 {
            assert!(end.receive().await.unwrap().as_slice() == pattern(number, 1000));
        }
        match end.receive().await {
            Err(Error::PeerLost { peer, .. }) => assert_eq!(peer, end.peer),
            other => panic!("{other:?}"),
        }
        let refused = end.fabric.borrow_mut().send_copy(end.peer, 0, b"late");
        assert!(
            matches!(refused, Err(Error::PeerLost { .. })),
            "{refused:?}"
        );
    }

    pub(crate) async fn there(end: End) {
        for number in 0..5 {
            end.send(&pattern(number, 1000)).await;
        }
        end.flush().await;
        (end.die)();
    }
}

pub(crate) mod takes_back_what_the_dead_had_not_read {
    use super::*;

    pub(crate) async fn here(end: End) {
        for number in 0..6 {
            end.send(&pattern(number, 100_000)).await;
        }
        let died = loop {
            match end.receive().await {
                Ok(_) => {}
                Err(died) => break died,
            }
        };
        assert!(matches!(died, Error::PeerLost { .. }), "{died:?}");
        drop(end.loan(SMALL_ARENA as usize / 2).await);
    }

    pub(crate) async fn there(end: End) {
        // One is held and the rest unread at death.
        let _held = end.receive().await.unwrap();
        end.send(b"dying").await;
        end.flush().await;
        (end.die)();
    }
}

pub(crate) mod connects_once_when_both_connect_at_the_same_time {
    use super::*;

    pub(crate) async fn here(end: End) {
        for number in 0..100 {
            end.send(&pattern(number, 100)).await;
        }
        for number in 0..100 {
            assert!(end.receive().await.unwrap().as_slice() == pattern(number, 100));
        }
        end.send(b"bye").await;
        assert_eq!(end.receive().await.unwrap().as_slice(), b"bye");
        end.flush().await;
    }

    pub(crate) async fn there(end: End) {
        here(end).await;
    }
}
