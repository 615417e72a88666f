//! How the slots of [boards](crate::board) are handed from hand to hand: when an operand is there to be read, and when
//! its slot may be written again.
//!
//! # Invariant
//!
//! A member writes a slot of its own board for call *c* only when every member has left behind all calls up to the one
//! that the slot was used for before; and it reads the slot of another only between having found the stamp of *c* there
//! and leaving *c* behind. So nobody writes what another reads.
//!
//! That a member has left calls behind is told by the word that counts them, and by the count beside its next operand.
//!
//! In a call in rounds, a slot also says how many pieces of its owner's operand are written, and for how many rounds the owner is
//! through with the slots of others, by words that are set before the stamp. A piece is written over another only when all who
//! read that one, or wrote to it, have said so.

use std::cell::{Cell, RefCell};

use crate::sync::{AtomicU64, Ordering};

/// Slots of a board: calls that may be under way, or not yet left behind by all.
pub(crate) const SLOTS: usize = if cfg!(loom) { 2 } else { 8 };

/// Whether call `one` is before call `other`: numbers wrap around after four thousand million calls.
#[inline]
pub(crate) fn is_before(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() < 0
}

/// Calls that all members have to have left behind, before the slot of call `number` is written.
#[inline]
pub(crate) fn used_for(number: u32) -> u32 {
    number.wrapping_sub(SLOTS as u32 - 1)
}

/// Hands over what was written into the slot of a call.
#[inline]
pub(crate) fn publish(stamp: &AtomicU64, call: u64) {
    stamp.store(call, Ordering::Release); // Pairs with the acquire in `look`.
}

/// Takes over what whoever wrote this word has handed over: an operand, or all slots that it has read.
#[inline]
pub(crate) fn look(word: &AtomicU64) -> u64 {
    word.load(Ordering::Acquire) // Pairs with the releases of `publish` and `hand_back`.
}

/// Hands the slots of others back that were read in the first `ended` calls.
#[inline]
pub(crate) fn hand_back(count: &AtomicU64, ended: u32) {
    count.store(u64::from(ended), Ordering::Release); // Pairs with the acquire in `look`.
}

/// The word that says so many rounds of a call.
#[inline]
pub(crate) fn rounds_of(call: u32, rounds: u32) -> u64 {
    u64::from(call) << 32 | u64::from(rounds)
}

/// Whether a word of a slot with the stamp of a call says as many rounds of it as `wanted`, or more.
#[inline]
pub(crate) fn is_so_far(found: u64, wanted: u64) -> bool {
    found >> 32 == wanted >> 32 && found >= wanted
}

/// Who has left which calls behind, as one member knows.
pub(crate) struct Turns {
    /// Calls that each member is known to have left behind.
    seen: Vec<Cell<u32>>,
    /// The least of these.
    passed: Cell<u32>,
    /// Calls that this member has left behind, without a gap, and those after a gap.
    ended: Cell<u32>,
    has_early: Cell<bool>,
    ended_early: RefCell<Vec<u32>>,
}

impl Turns {
    /// Those of one of `members` members, of which nothing is known after call `first`.
    pub(crate) fn new(members: usize, first: u32) -> Self {
        Self {
            seen: (0..members).map(|_| Cell::new(first)).collect(),
            passed: Cell::new(first),
            ended: Cell::new(first),
            has_early: Cell::new(false),
            ended_early: RefCell::default(),
        }
    }

    /// Calls that this member has left behind, without a gap.
    #[inline]
    pub(crate) fn ended(&self) -> u32 {
        self.ended.get()
    }

    /// This member has left the first `ended` calls behind.
    #[inline]
    pub(crate) fn set_ended(&self, ended: u32) {
        self.ended.set(ended);
    }

    /// Member `from` is known to have left `ended` calls behind.
    #[inline]
    pub(crate) fn note(&self, from: usize, ended: u32) {
        self.seen[from].set(ended);
    }

    /// Whether member `from` is known to have left the first `calls` calls behind.
    #[inline]
    pub(crate) fn has_passed(&self, from: usize, calls: u32) -> bool {
        !is_before(self.seen[from].get(), calls)
    }

    /// Whether all members are known to have left the first `calls` calls behind. `me` is this one.
    #[inline]
    pub(crate) fn have_all_passed(&self, me: usize, calls: u32) -> bool {
        !is_before(self.passed.get(), calls) || !is_before(self.count_passed(me), calls)
    }

    fn count_passed(&self, me: usize) -> u32 {
        self.seen[me].set(self.ended.get());
        let seen = self.seen.iter().map(Cell::get);
        let passed = seen.reduce(|one, other| if is_before(other, one) { other } else { one });
        let passed = passed.unwrap_or(self.ended.get());
        self.passed.set(passed);
        passed
    }

    /// This member leaves a call behind. How many it has, without a gap, if that is more than before.
    #[inline]
    pub(crate) fn leave(&self, number: u32) -> Option<u32> {
        if number != self.ended.get() || self.has_early.get() {
            return self.leave_out_of_turn(number);
        }
        self.ended.set(number.wrapping_add(1));
        Some(self.ended.get())
    }

    /// The same, when several calls are under way.
    #[cold]
    fn leave_out_of_turn(&self, number: u32) -> Option<u32> {
        let mut early = self.ended_early.borrow_mut();
        if number != self.ended.get() {
            early.push(number);
            self.has_early.set(true);
            return None;
        }
        let mut ended = number.wrapping_add(1);
        while let Some(index) = early.iter().position(|&call| call == ended) {
            early.swap_remove(index);
            ended = ended.wrapping_add(1);
        }
        self.has_early.set(!early.is_empty());
        self.ended.set(ended);
        Some(ended)
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{cell, sync::Arc, thread};

    use super::*;

    const MEMBERS: usize = 2;
    const CALLS: u32 = 3;

    /// The board of a member, with a cell for the operand of each slot: loom tells of cells, and not of relaxed atomics,
    /// when an access is not ordered after another.
    struct Board {
        count: AtomicU64,
        slots: [Slot; SLOTS],
    }

    struct Slot {
        stamp: AtomicU64,
        given: AtomicU64,
        taken: AtomicU64,
        /// The count beside the operand, which is relaxed.
        count: AtomicU64,
        operand: cell::Cell<u32>,
    }

    /// All boards, and what one member knows.
    struct Member {
        me: usize,
        boards: Arc<[Board; MEMBERS]>,
        turns: Turns,
    }

    impl Member {
        fn slot(&self, member: usize, number: u32) -> &Slot {
            &self.boards[member].slots[number as usize % SLOTS]
        }

        fn wait_for_slot(&self, number: u32) {
            let used_for = used_for(number);
            if !self.turns.have_all_passed(self.me, used_for) {
                for from in (0..MEMBERS).filter(|&from| from != self.me) {
                    while !self.turns.has_passed(from, used_for) {
                        self.turns.note(from, look(&self.boards[from].count) as u32);
                        thread::yield_now();
                    }
                }
                assert!(self.turns.have_all_passed(self.me, used_for));
            }
        }

        /// Writes an operand, once nobody reads what was in its slot.
        fn write(&self, number: u32) {
            self.wait_for_slot(number);
            let slot = self.slot(self.me, number);
            slot.operand.set(value(self.me, number));
            let ended = u64::from(self.turns.ended());
            slot.count.store(ended, Ordering::Relaxed);
            publish(&slot.stamp, stamp(number));
        }

        /// Reads the operand of another member, once it is there.
        fn read(&self, from: usize, number: u32) {
            let slot = self.slot(from, number);
            while look(&slot.stamp) != stamp(number) {
                thread::yield_now();
            }
            self.turns
                .note(from, slot.count.load(Ordering::Relaxed) as u32);
            assert_eq!(slot.operand.get(), value(from, number));
        }

        /// Begins a call in rounds, and says that it has written nothing yet.
        fn open(&self, number: u32) {
            self.wait_for_slot(number);
            let slot = self.slot(self.me, number);
            for word in [&slot.given, &slot.taken] {
                word.store(rounds_of(number, 0), Ordering::Relaxed);
            }
        }

        /// Says how far it is, by one of the words of its slot.
        fn tell(&self, word: fn(&Slot) -> &AtomicU64, number: u32, rounds: u32) {
            let slot = self.slot(self.me, number);
            publish(word(slot), rounds_of(number, rounds));
            if slot.stamp.load(Ordering::Relaxed) != stamp(number) {
                let ended = u64::from(self.turns.ended());
                slot.count.store(ended, Ordering::Relaxed);
                publish(&slot.stamp, stamp(number));
            }
        }

        /// Waits until the other member is so far.
        fn reach(&self, word: fn(&Slot) -> &AtomicU64, number: u32, rounds: u32) {
            let slot = self.slot(1 - self.me, number);
            let wanted = rounds_of(number, rounds);
            while look(&slot.stamp) != stamp(number) || !is_so_far(look(word(slot)), wanted) {
                thread::yield_now();
            }
            let ended = slot.count.load(Ordering::Relaxed);
            self.turns.note(1 - self.me, ended as u32);
        }

        fn leave(&self, number: u32) {
            if let Some(ended) = self.turns.leave(number) {
                hand_back(&self.boards[self.me].count, ended);
            }
        }
    }

    /// No stamp of a call is zero, as the words are at first.
    fn stamp(number: u32) -> u64 {
        u64::from(number) + 1
    }

    fn value(member: usize, number: u32) -> u32 {
        number * MEMBERS as u32 + member as u32
    }

    /// Has two members do the same, under every schedule.
    fn explore(program: fn(&Member)) {
        explore_within(None, program);
    }

    /// The same, under every schedule in which members are interrupted at most so often.
    fn explore_within(interruptions: Option<usize>, program: fn(&Member)) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = interruptions;
        builder.check(move || {
            let slot = |_| Slot {
                stamp: AtomicU64::new(0),
                given: AtomicU64::new(0),
                taken: AtomicU64::new(0),
                count: AtomicU64::new(0),
                operand: cell::Cell::new(0),
            };
            let board = |_| Board {
                count: AtomicU64::new(0),
                slots: std::array::from_fn(slot),
            };
            let boards = Arc::new(std::array::from_fn(board));
            let member = |me| Member {
                me,
                boards: boards.clone(),
                turns: Turns::new(MEMBERS, 0),
            };
            let other = member(1);
            let other = thread::spawn(move || program(&other));
            program(&member(0));
            other.join().unwrap();
        });
    }

    /// As a barrier or an all-reduce: what all bring says how far they are.
    #[test]
    fn operands_that_all_read_are_those_of_their_call() {
        explore(|member| {
            for number in 0..CALLS {
                member.write(number);
                member.read(1 - member.me, number);
                member.leave(number);
            }
        });
    }

    /// As a broadcast: who only writes learns from the counting words when its slots are free.
    #[test]
    fn operands_that_one_writes_and_the_other_reads_are_those_of_their_call() {
        explore(|member| {
            for number in 0..CALLS {
                if member.me == 0 {
                    member.write(number);
                } else {
                    member.read(0, number);
                }
                member.leave(number);
            }
        });
    }

    /// As two operations under way at a time, of which the second is over first.
    #[test]
    fn operands_of_calls_that_end_in_another_order_are_those_of_their_call() {
        explore(|member| {
            for number in 0..SLOTS as u32 {
                member.write(number);
            }
            for number in (0..SLOTS as u32).rev() {
                member.read(1 - member.me, number);
                member.leave(number);
            }
            member.write(SLOTS as u32);
            member.read(1 - member.me, SLOTS as u32);
        });
    }

    const ROUNDS: u32 = 2;
    /// Without a bound the models of rounds take minutes. Whatever was broken there was found with two.
    const INTERRUPTIONS: usize = 3;

    /// As an all-reduce in rounds: each writes its piece, then over that of the other, and finds in its own what the other wrote.
    #[test]
    fn pieces_that_others_write_over_are_those_of_their_round() {
        explore_within(Some(INTERRUPTIONS), |member| {
            let (me, other) = (member.me, 1 - member.me);
            member.open(0);
            for round in 0..ROUNDS {
                let own = &member.slot(me, 0).operand;
                own.set(value(me, round));
                member.tell(|slot| &slot.given, 0, round + 1);
                member.reach(|slot| &slot.given, 0, round + 1);
                let theirs = &member.slot(other, 0).operand;
                theirs.set(theirs.get() + 100);
                member.tell(|slot| &slot.taken, 0, round + 1);
                member.reach(|slot| &slot.taken, 0, round + 1);
                assert_eq!(own.get(), value(me, round) + 100);
            }
            member.leave(0);
        });
    }

    /// As a broadcast in rounds, through a slot with room for one piece.
    #[test]
    fn pieces_are_written_over_when_they_are_read() {
        explore(|member| {
            member.open(0);
            for round in 0..ROUNDS {
                let operand = &member.slot(0, 0).operand;
                if member.me == 0 {
                    if round > 0 {
                        member.reach(|slot| &slot.taken, 0, round);
                    }
                    operand.set(value(0, round));
                    member.tell(|slot| &slot.given, 0, round + 1);
                } else {
                    member.reach(|slot| &slot.given, 0, round + 1);
                    assert_eq!(operand.get(), value(0, round));
                    member.tell(|slot| &slot.taken, 0, round + 1);
                }
            }
            member.leave(0);
        });
    }
}
