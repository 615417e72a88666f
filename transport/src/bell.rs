//! How a rank that sleeps is woken, at no cost while it is awake.
//!
//! # Invariant
//!
//! The sleeper publishes what it waits for, then looks once more, then sleeps. The other side
//! publishes what it did, then looks whether the sleeper waits for that. With a sequentially
//! consistent fence between the two steps on either side, at least one sees the other (Dekker's
//! argument), so no wake-up is lost; and the one who rings clears the word, so it rings once.
//!
//! A fence waits until every store before it has arrived, so messages would be sent no faster than a line
//! travels to and fro. So where the kernel can, the sleeper pays for both: `membarrier` has every
//! processor that runs a thread of a registered process fence itself, and a sender needs none of its own. Who
//! sleeps promises that beforehand, and who sends has registered itself; the models know only fences.

use std::{
    os::fd::AsFd,
    sync::{OnceLock, atomic::compiler_fence},
};

use crate::sync::{AtomicU32, Ordering, fence};

/// What a sleeper can wait for, in the bits of its bell.
pub(crate) type Reasons = u32;

/// A message arrived.
pub(crate) const MESSAGE: Reasons = 1;
/// Room came back: a loan was returned, or slots of a ring were handed back.
pub(crate) const ROOM: Reasons = 2;

/// The word in which a rank says that it sleeps. All zero: it is awake, and promises nothing.
#[repr(C, align(64))]
pub(crate) struct Bell {
    sleeps_until: AtomicU32,
    /// Whether the sleeper fences the others too.
    fences_all: AtomicU32,
}

/// Who fences a sender before it looks at a bell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FencedBy {
    Sender,
    Sleeper,
}

impl Bell {
    /// Promises to fence all who ring, if the system can, before anyone else has seen the bell; whether it was
    /// promised. It makes sleeping dearer, so it is for ranks that seldom sleep.
    pub(crate) fn promise(&self) -> bool {
        let promised = is_registered();
        self.fences_all
            .store(u32::from(promised), Ordering::Relaxed);
        promised
    }

    /// Who is to fence us when we ring.
    pub(crate) fn fenced_by(&self) -> FencedBy {
        if self.fences_all.load(Ordering::Relaxed) == 1 && is_registered() {
            FencedBy::Sleeper
        } else {
            FencedBy::Sender
        }
    }

    /// Says that we are about to sleep until one of `reasons`. Look for them once more after this. `promised` is
    /// what [`promise`](Self::promise) said; what stands in the bell itself, others may have written. False when
    /// the promise cannot be kept: then there is no sleeping now.
    pub(crate) fn arm(&self, reasons: Reasons, promised: bool) -> bool {
        self.sleeps_until.store(reasons, Ordering::Relaxed);
        fence(Ordering::SeqCst); // Between our word and our last look; pairs with `must_ring`.
        !promised || fence_all()
    }

    /// Says that we are awake.
    pub(crate) fn disarm(&self) {
        self.sleeps_until.store(0, Ordering::Relaxed);
    }

    /// Whether the owner sleeps until `reason`, which the caller has just brought about, and it is
    /// the caller who has to wake it.
    #[inline]
    pub(crate) fn must_ring(&self, reason: Reasons, fenced_by: FencedBy) -> bool {
        if fenced_by == FencedBy::Sender {
            fence(Ordering::SeqCst); // Between what we did and this look; pairs with `arm`.
        } else {
            // The processor is fenced from outside, at the latest before the sleeper's last look.
            compiler_fence(std::sync::atomic::Ordering::SeqCst);
        }
        let word = &self.sleeps_until;
        word.load(Ordering::Relaxed) & reason != 0 && word.swap(0, Ordering::Relaxed) != 0
    }
}

/// Whether the processors that run this process can be fenced by others, for which it registers once.
fn is_registered() -> bool {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    *REGISTERED.get_or_init(|| membarrier(libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED))
}

/// Has every processor that runs a thread of a registered process pass a fence before this returns.
fn fence_all() -> bool {
    membarrier(libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED)
}

/// See membarrier(2).
#[cfg(all(target_os = "linux", not(miri)))]
fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: the call takes numbers only, and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn membarrier(_: libc::c_int) -> bool {
    false
}

/// Wakes whoever waits for this eventfd.
pub(crate) fn wake(eventfd: impl AsFd) {
    // A full counter means that a wake-up is on its way already.
    let _ = nix::unistd::write(eventfd, &1u64.to_ne_bytes());
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        hint::spin_loop,
        sync::atomic::{AtomicU32, Ordering},
        thread,
    };

    use super::*;

    #[repr(align(128))]
    struct Word(AtomicU32);

    /// What the models cannot show, because the fence of the one who rings is made by the kernel: rounds in which
    /// both sides take their step at the same time.
    #[test]
    fn who_rings_without_a_fence_is_fenced_by_the_sleeper() {
        const ROUNDS: u32 = 50_000;
        let bell = Bell {
            sleeps_until: AtomicU32::new(0),
            fences_all: AtomicU32::new(0),
        };
        let promised = bell.promise();
        let fenced_by = bell.fenced_by();
        let [round, message, rung] = [0; 3].map(|start| Word(AtomicU32::new(start)));
        let mut lost = 0;
        thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..=ROUNDS {
                    while round.0.load(Ordering::Acquire) != number {
                        spin_loop();
                    }
                    message.0.store(number, Ordering::Release);
                    let rings = bell.must_ring(MESSAGE, fenced_by);
                    rung.0
                        .store(2 * number + u32::from(rings), Ordering::Release);
                }
            });
            for number in 1..=ROUNDS {
                bell.disarm();
                round.0.store(number, Ordering::Release);
                // Until the other has seen it, more or less.
                (0..number % 16).for_each(|_| spin_loop());
                let armed = bell.arm(MESSAGE, promised);
                let seen = message.0.load(Ordering::Acquire) == number;
                let rang = loop {
                    match rung.0.load(Ordering::Acquire) {
                        said if said / 2 == number => break said % 2 == 1,
                        _ => spin_loop(),
                    }
                };
                lost += u32::from(armed && !seen && !rang);
            }
        });
        assert_eq!(lost, 0, "wake-ups of {ROUNDS} were lost");
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{sync::Arc, thread};

    use super::*;

    fn bell() -> Bell {
        Bell {
            sleeps_until: AtomicU32::new(0),
            fences_all: AtomicU32::new(0),
        }
    }

    #[test]
    fn a_sleeper_is_woken_or_sees_the_message_itself() {
        loom::model(|| {
            let shared = Arc::new((bell(), AtomicU32::new(0)));
            let sender = {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.1.store(1, Ordering::Release);
                    shared.0.must_ring(MESSAGE, FencedBy::Sender)
                })
            };
            shared.0.arm(MESSAGE, false);
            let seen = shared.1.load(Ordering::Acquire) == 1;
            let rung = sender.join().unwrap();
            assert!(seen || rung, "the wake-up was lost");
        });
    }

    #[test]
    fn of_two_who_have_news_one_rings() {
        loom::model(|| {
            let bell = Arc::new(bell());
            bell.arm(MESSAGE | ROOM, false);
            let ringers = [MESSAGE, ROOM].map(|reason| {
                let bell = bell.clone();
                thread::spawn(move || bell.must_ring(reason, FencedBy::Sender))
            });
            let rung = ringers.map(|ringer| ringer.join().unwrap());
            assert_eq!(rung.iter().filter(|&&rang| rang).count(), 1);
        });
    }
}
