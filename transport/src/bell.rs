//! How a rank that sleeps is woken, at no cost while it is awake.
//!
//! # Invariant
//!
//! The sleeper publishes what it waits for, then looks once more, then sleeps. The other side
//! publishes what it did, then looks whether the sleeper waits for that. With a sequentially
//! consistent fence between the two steps on either side, at least one sees the other (Dekker's
//! argument), so no wake-up is lost; and the one who rings clears the word, so it rings once.

use std::os::fd::AsFd;

use crate::sync::{AtomicU32, Ordering, fence};

/// What a sleeper can wait for, in the bits of its bell.
pub(crate) type Reasons = u32;

/// A message arrived.
pub(crate) const MESSAGE: Reasons = 1;
/// Room came back: a loan was returned, or slots of a ring were handed back.
pub(crate) const ROOM: Reasons = 2;

/// The word in which a rank says that it sleeps. All zero: it is awake.
#[repr(C, align(64))]
pub(crate) struct Bell(AtomicU32);

impl Bell {
    /// Says that we are about to sleep until one of `reasons`. Look for them once more after this.
    pub(crate) fn arm(&self, reasons: Reasons) {
        self.0.store(reasons, Ordering::Relaxed);
        fence(Ordering::SeqCst); // Between our word and our last look; pairs with `must_ring`.
    }

    /// Says that we are awake.
    pub(crate) fn disarm(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Whether the owner sleeps until `reason`, which the caller has just brought about, and it is
    /// the caller who has to wake it.
    pub(crate) fn must_ring(&self, reason: Reasons) -> bool {
        fence(Ordering::SeqCst); // Between what we did and this look; pairs with `arm`.
        self.0.load(Ordering::Relaxed) & reason != 0 && self.0.swap(0, Ordering::Relaxed) != 0
    }
}

/// Wakes whoever waits for this eventfd.
pub(crate) fn wake(eventfd: impl AsFd) {
    // A full counter means that a wake-up is on its way already.
    let _ = nix::unistd::write(eventfd, &1u64.to_ne_bytes());
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{sync::Arc, thread};

    use super::*;

    #[test]
    fn a_sleeper_is_woken_or_sees_the_message_itself() {
        loom::model(|| {
            let shared = Arc::new((Bell(AtomicU32::new(0)), AtomicU32::new(0)));
            let sender = {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.1.store(1, Ordering::Release);
                    shared.0.must_ring(MESSAGE)
                })
            };
            shared.0.arm(MESSAGE);
            let seen = shared.1.load(Ordering::Acquire) == 1;
            let rung = sender.join().unwrap();
            assert!(seen || rung, "the wake-up was lost");
        });
    }

    #[test]
    fn of_two_who_have_news_one_rings() {
        loom::model(|| {
            let bell = Arc::new(Bell(AtomicU32::new(0)));
            bell.arm(MESSAGE | ROOM);
            let ringers = [MESSAGE, ROOM].map(|reason| {
                let bell = bell.clone();
                thread::spawn(move || bell.must_ring(reason))
            });
            let rung = ringers.map(|ringer| ringer.join().unwrap());
            assert_eq!(rung.iter().filter(|&&rang| rang).count(), 1);
        });
    }
}
