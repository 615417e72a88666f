//! Which operator of a stage it was that panicked.
//!
//! A [`Blame`] stands around each call of an operator and is forgotten after it, so that only a panic finds it there:
//! records cost nothing. The innermost says who it was, the others are around those who called it.

use std::{cell::Cell, panic::Location};

use crate::tset::BETWEEN;

/// A part of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Culprit {
    /// The narrow operator of this place in the names of the stage, and where in the program it is written.
    Operator {
        place: usize,
        written_at: &'static Location<'static>,
    },
    /// What it begins with, unless that is none of the others, which it calls.
    Input,
    /// What it ends in.
    Output,
}

thread_local! {
    static CULPRIT: Cell<Option<Culprit>> = const { Cell::new(None) };
}

/// Blames a part of a stage if it is dropped by a panic.
struct Blame(Culprit);

impl Drop for Blame {
    #[cold]
    fn drop(&mut self) {
        CULPRIT.with(|culprit| culprit.set(culprit.get().or(Some(self.0))));
    }
}

impl Culprit {
    /// Calls a function of this part.
    #[inline(always)]
    pub(crate) fn calls<R>(self, function: impl FnOnce() -> R) -> R {
        let blame = Blame(self);
        let result = function();
        std::mem::forget(blame);
        result
    }

    /// What it is called among the operators of a task, which are one string there.
    pub(crate) fn name(self, operators: &str) -> String {
        let (name, written_at) = match self {
            Self::Input => (operators.split(BETWEEN).next(), None),
            Self::Output => (operators.rsplit(BETWEEN).next(), None),
            Self::Operator { place, written_at } => {
                (operators.split(BETWEEN).nth(place), Some(written_at))
            }
        };
        let name = name.unwrap_or(operators);
        match written_at {
            Some(written_at) => format!("{name} at {written_at}"),
            None => name.to_owned(),
        }
    }

    /// Who panicked on this thread since this was last asked, if it was one of these.
    pub(crate) fn take() -> Option<Self> {
        CULPRIT.take()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn panics() {
        std::panic::resume_unwind(Box::new(()));
    }

    #[test]
    fn the_innermost_is_to_blame_and_nobody_without_a_panic() {
        let operator = |place| Culprit::Operator {
            place,
            written_at: Location::caller(),
        };
        let (first, second) = (operator(1), operator(2));
        first.calls(|| second.calls(|| ()));
        assert_eq!(Culprit::take(), None);
        let nested = || first.calls(|| second.calls(panics));
        assert!(catch_unwind(AssertUnwindSafe(nested)).is_err());
        assert_eq!(Culprit::take(), Some(second));
        assert_eq!(Culprit::take(), None);
        assert!(
            second
                .name("lines > map > short > collect")
                .starts_with("short at dataflow/src/blame.rs:")
        );
        assert_eq!(Culprit::Input.name("lines > collect"), "lines");
        assert_eq!(Culprit::Output.name("lines > collect"), "collect");
    }
}
