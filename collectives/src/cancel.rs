//! Ending what a job does, from any of its ranks, or from another thread of one of its processes.

use std::{
    cell::OnceCell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{Engine, Error, notice::Notice, tag};

/// What a rank knows of it.
#[derive(Default)]
pub(crate) struct Cancelling {
    /// Who has ended it all, and why, as an error.
    told: OnceCell<Error>,
    /// How other threads of the process say so.
    by_threads: OnceCell<Canceller>,
}

struct Canceller {
    is_set: Arc<AtomicBool>,
    why: Box<dyn Fn() -> (String, String)>,
}

impl Engine {
    /// Ends what the job does, on all ranks: their operations fail with [`Error::Cancelled`], those under way and those to
    /// come, of all groups. What said so first counts on each rank.
    pub fn cancel(&self, by: &str, reason: &str) {
        if self.0.cancelling.told.get().is_some() {
            return;
        }
        let (by, reason) = (by.to_owned(), reason.to_owned());
        let notice = Notice::Cancelled { by, reason };
        let bytes = notice.encode();
        if let Notice::Cancelled { by, reason } = notice {
            self.note_cancelled(by, reason);
        }
        for rank in (0..self.size()).filter(|&rank| rank != self.rank()) {
            self.post(rank, tag::notice(tag::ALL_GROUPS), &bytes);
        }
    }

    /// Has other threads of the process [cancel](Self::cancel): once `is_set` is, which is looked at when an operation begins and
    /// while it waits, `why` gives who did and why. Who sets it has to wake this rank. It can be said once.
    pub fn cancelled_by(
        &self,
        is_set: Arc<AtomicBool>,
        why: impl Fn() -> (String, String) + 'static,
    ) {
        let why = Box::new(why);
        let by_threads = &self.0.cancelling.by_threads;
        let _ = by_threads.set(Canceller { is_set, why }); // The first stays.
    }

    /// Who has ended what the job does, and why, if this rank has heard of it: an [`Error::Cancelled`].
    pub fn cancelled(&self) -> Option<Error> {
        self.check().err()
    }

    /// An error if all was cancelled.
    #[inline(always)]
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Cancelling { told, by_threads } = &self.0.cancelling;
        if let Some(canceller) = by_threads.get()
            && canceller.is_set.load(Ordering::Acquire)
        // Then `why` is there.
        {
            self.cancel_for(canceller);
        }
        match told.get() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Cancels all, if that has not been done, because a thread of the process said so.
    #[cold]
    fn cancel_for(&self, canceller: &Canceller) {
        if self.0.cancelling.told.get().is_none() {
            let (by, reason) = (canceller.why)();
            self.cancel(&by, &reason);
        }
    }

    /// This rank has heard who cancelled, and why.
    pub(crate) fn note_cancelled(&self, by: String, reason: String) {
        let told = &self.0.cancelling.told;
        let _ = told.set(Error::Cancelled { by, reason }); // The first counts.
    }
}
