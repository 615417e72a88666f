//! Memory that all members of a group on one node see, for operands of a few lines: each writes its own and reads those
//! of the others, which takes the time of one cache line's way from core to core.
//!
//! # How
//!
//! Each member exposes a board: a word that counts the calls it has left behind, and [`SLOTS`] slots. In call *c* a
//! member writes slot *c* mod [`SLOTS`] of its own board: its count, the operand, and then, with release order, a word
//! with the number and the signature of the call. Readers look for that word with acquire order. A slot is written again
//! only when all members are known to have left behind the call it was used for: by the counts beside the
//! operands, or, where a call brings none, by the counting words.
//!
//! This is how MPI libraries exchange small operands within a node (Graham, Shipman: "MPI support for multi-core
//! architectures: optimized shared memory collectives", EuroPVM/MPI 2008), with the operand beside the flag.

use std::{future::poll_fn, hint, ops::Range, rc::Rc, task::Poll};

use transport::{Exposed, RemoteRegion, prefetch_read, prefetch_write};

use crate::{
    Element, Error,
    call::{Call, Waiting},
    group::FIRST_CALL,
    op::Op,
    slots::{self, SLOTS, Turns, is_before, used_for},
    sync::{AtomicU64, Ordering},
};

/// Bytes of a word.
const WORD: usize = size_of::<u64>();
/// Words of the line that counts.
const COUNT_WORDS: usize = 8;
/// The most bytes of an operand.
pub(crate) const OPERAND_MAX: usize = 4096 - OPERAND * WORD;
/// Words of a slot: the stamp of the call, the writer's count, and from the third on the operand.
const SLOT_WORDS: usize = 4096 / WORD;
const OPERAND: usize = 2;
/// Bytes of a board.
pub(crate) const BOARD_BYTES: usize = (COUNT_WORDS + SLOTS * SLOT_WORDS) * WORD;
/// The most members that have boards: each looks at those of all others.
pub(crate) const MEMBERS_MAX: usize = 64;
/// The most looks in a poll of a future, after which others go on.
const SPINS_A_POLL: u32 = 16;
/// Looks at a board before the first pause.
const QUICK_LOOKS: u32 = 64;
/// Words read at a time, of operands of a line and of larger ones.
const LINE: usize = 8;
/// Bytes of an operand that are in the line of its stamp.
const FIRST_BYTES: usize = (LINE - OPERAND) * WORD;
/// Lines fetched ahead, of an operand that takes more than one.
const FETCHED: usize = 2;
const CHUNK: usize = 64;

/// The boards of a group.
pub(crate) struct Board {
    own: Exposed,
    /// Those of all members; our own among them.
    boards: Vec<Rc<RemoteRegion>>,
    turns: Turns,
}

impl Board {
    /// The boards of a group whose members have made `ended` calls.
    pub(crate) fn new(own: Exposed, boards: Vec<RemoteRegion>, ended: u32) -> Self {
        let board = Self {
            own,
            turns: Turns::new(boards.len(), FIRST_CALL),
            boards: boards.into_iter().map(Rc::new).collect(),
        };
        board.turns.set_ended(ended);
        board.tell_ended(ended);
        board
    }

    /// Writes what a board says before any call.
    pub(crate) fn clear(own: &Exposed) {
        let words = own.words();
        let first = words
            .iter()
            .take(1)
            .map(|word| (word, u64::from(FIRST_CALL)));
        let stamps = words.iter().skip(COUNT_WORDS).step_by(SLOT_WORDS);
        let before = u64::from(FIRST_CALL.wrapping_sub(1)) << 32;
        for (word, value) in first.chain(stamps.map(|word| (word, before))) {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn words(&self, member: usize) -> &[AtomicU64] {
        self.boards[member].words().unwrap_or_default()
    }

    /// The index of the word of call `number`'s slot that says whose it is.
    #[inline]
    fn slot(number: u32) -> usize {
        COUNT_WORDS + number as usize % SLOTS * SLOT_WORDS
    }

    /// Writes our operand of a call, once nobody reads what was in its slot.
    pub(crate) async fn write<T: Element>(
        &self,
        call: &Call<'_>,
        operand: &[T],
    ) -> Result<(), Error> {
        if !self.turns.have_all_passed(call.me(), used_for(call.number)) {
            self.have_all_pass(call, used_for(call.number)).await?;
        }
        self.put(call, operand);
        Ok(())
    }

    /// The same now; false, and nothing is written, if somebody may still read it.
    #[inline]
    pub(crate) fn write_now<T: Element>(&self, call: &Call<'_>, operand: &[T]) -> bool {
        let is_free = self.turns.have_all_passed(call.me(), used_for(call.number));
        if is_free {
            self.put(call, operand);
        }
        is_free
    }

    #[inline]
    fn put<T: Element>(&self, call: &Call<'_>, operand: &[T]) {
        let slot = Self::slot(call.number);
        let bytes: &[u8] = bytemuck::cast_slice(operand);
        if let Some([stamp, count, rest @ ..]) = self.own.words().get(slot..slot + SLOT_WORDS) {
            count.store(u64::from(self.turns.ended()), Ordering::Relaxed);
            if bytes.len() == WORD {
                if let (Some(word), Some(&bytes)) = (rest.first(), bytes.first_chunk()) {
                    word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
                }
            } else if !bytes.is_empty() {
                self.own.write((slot + OPERAND) * WORD, bytes);
            }
            slots::publish(stamp, call.stamp);
        }
        self.fetch_next(call.number, bytes.len());
        let fabric = call.group.engine.fabric().borrow();
        for (member, &rank) in call.group.fate.members.iter().enumerate() {
            if member != call.me() {
                fabric.ring(rank);
            }
        }
    }

    /// Has the processor fetch the first lines of the slot that the next call will use, which are with those who read
    /// them last.
    #[inline]
    fn fetch_next(&self, number: u32, bytes: usize) {
        let next = Self::slot(number.wrapping_add(1));
        let lines = if bytes > FIRST_BYTES { FETCHED } else { 1 };
        for line in 0..lines {
            if let Some(word) = self.own.words().get(next + line * LINE) {
                prefetch_write((&raw const *word).cast());
            }
        }
    }

    /// Has the processor fetch this word of the members after `from`, which are mostly asked for next: lines that are asked for
    /// at once arrive as soon as one.
    #[inline]
    fn fetch_others(&self, call: &Call<'_>, from: usize, word: usize) {
        for other in (from + 1..self.boards.len()).filter(|&other| other != call.me()) {
            if let Some(word) = self.words(other).get(word) {
                prefetch_read((&raw const *word).cast());
            }
        }
    }

    /// Waits until all members have left behind the first `calls` calls.
    async fn have_all_pass(&self, call: &Call<'_>, calls: u32) -> Result<(), Error> {
        // We are one of them: an earlier call of ours that is still under way reads our own slot as well.
        self.turns.note(call.me(), self.turns.ended());
        for from in 0..call.size() {
            if !self.turns.has_passed(from, calls) {
                let enough = |ended: u64| !is_before(ended as u32, calls);
                let found = self.look(call, from, 0, enough, |_| false).await?;
                self.turns.note(from, found as u32);
            }
        }
        Ok(())
    }

    /// Waits until member `from` has written its operand.
    pub(crate) async fn arrival(&self, call: &Call<'_>, from: usize) -> Result<(), Error> {
        if self.has_arrived(call, from) {
            return Ok(());
        }
        let number = call.number;
        let there = move |stamp: u64| !is_before((stamp >> 32) as u32, number);
        let ours = call.stamp;
        let is_other = move |stamp| stamp != ours && there(stamp);
        self.look(
            call,
            from,
            Self::slot(number),
            |stamp| stamp == ours,
            is_other,
        )
        .await?;
        self.has_arrived(call, from); // For the count beside it.
        Ok(())
    }

    /// Whether member `from` has written its operand.
    #[inline]
    fn has_arrived(&self, call: &Call<'_>, from: usize) -> bool {
        let slot = Self::slot(call.number);
        let Some([stamp, count, ..]) = self.words(from).get(slot..slot + OPERAND) else {
            return false;
        };
        let here = slots::look(stamp) == call.stamp;
        if here {
            let ended = count.load(Ordering::Relaxed);
            self.turns.note(from, ended as u32);
        }
        here
    }

    /// The same, after a while of spinning. The operand has so many bytes.
    #[inline]
    pub(crate) fn arrives_soon(&self, call: &Call<'_>, from: usize, bytes: usize) -> bool {
        let spins = call.group.engine.0.spins.get();
        let second = Self::slot(call.number) + LINE;
        let second = self.words(from).get(second).filter(|_| bytes > FIRST_BYTES);
        for spin in 0..spins {
            if self.has_arrived(call, from) {
                return true;
            }
            // Two lines that are asked for at once arrive as soon as one.
            if let Some(word) = second {
                prefetch_read((&raw const *word).cast());
            }
            // The first looks are without a pause, which is longer than the line's way.
            if spin > QUICK_LOOKS {
                hint::spin_loop();
            }
        }
        false
    }

    /// Waits until `wanted` holds of a word of member `from`. If `is_other` does, the member is in another call.
    async fn look(
        &self,
        call: &Call<'_>,
        from: usize,
        word: usize,
        wanted: impl Fn(u64) -> bool,
        is_other: impl Fn(u64) -> bool,
    ) -> Result<u64, Error> {
        let engine = &call.group.engine;
        let mut waiting = Waiting::default();
        poll_fn(|_| {
            let Some(there) = self.words(from).get(word) else {
                let reason = "the board of a member is too short".to_owned();
                return Poll::Ready(Err(Error::Transport(reason)));
            };
            for _ in 0..engine.0.spins.get().min(SPINS_A_POLL) {
                let found = slots::look(there);
                if wanted(found) {
                    return Poll::Ready(Ok(found));
                }
                hint::spin_loop();
            }
            if engine.0.glances.get() {
                self.fetch_others(call, from, word);
                return Poll::Pending;
            }
            let told = engine
                .turn()
                .and_then(|()| call.waits_for(from, &mut waiting));
            // After what has arrived, because a member that wrote and then went has written.
            let found = slots::look(there);
            if wanted(found) {
                return Poll::Ready(Ok(found));
            }
            if let Err(error) = told {
                return Poll::Ready(Err(error));
            }
            if is_other(found) {
                call.suspects(from);
            }
            engine.watch(&self.boards[from], word, found);
            Poll::Pending
        })
        .await
    }

    /// Reads `len` elements from `first` on of the operand of member `from`, once it is there, and gives them to
    /// `take` in pieces, each with its place.
    pub(crate) async fn read<T: Element>(
        &self,
        call: &Call<'_>,
        from: usize,
        first: usize,
        len: usize,
        take: impl FnMut(usize, &[T]),
    ) -> Result<(), Error> {
        self.arrival(call, from).await?;
        self.read_arrived(call, from, first, len, take);
        Ok(())
    }

    /// The same now, if it is there soon.
    #[inline]
    pub(crate) fn read_now<T: Element>(
        &self,
        call: &Call<'_>,
        from: usize,
        first: usize,
        len: usize,
        take: impl FnMut(usize, &[T]),
    ) -> bool {
        let arrives = self.arrives_soon(call, from, len * size_of::<T>());
        if arrives {
            self.read_arrived(call, from, first, len, take);
        }
        arrives
    }

    #[inline]
    fn read_arrived<T: Element>(
        &self,
        call: &Call<'_>,
        from: usize,
        first: usize,
        len: usize,
        mut take: impl FnMut(usize, &[T]),
    ) {
        let slot = Self::slot(call.number);
        let operand = self.words(from).get(slot + OPERAND..slot + SLOT_WORDS);
        let operand = operand.unwrap_or_default();
        let size = size_of::<T>();
        if len == 1
            && size == WORD
            && let Some(word) = operand.get(first)
            && let Ok(element) = bytemuck::try_cast_slice(&[word.load(Ordering::Relaxed)])
        {
            take(0, element);
            return;
        }
        if (first * size) % WORD + len * size <= LINE * WORD {
            read_at_once::<T, LINE>(operand, first, len, |elements| take(0, elements));
            return;
        }
        // Elements at any byte of a word still fit, when there is a word to spare.
        let most = ((CHUNK - 1) * WORD / size).max(1);
        for done in (0..len).step_by(most) {
            let count = (len - done).min(most);
            read_at_once::<T, CHUNK>(operand, first + done, count, |elements| {
                take(done, elements);
            });
        }
    }

    /// Leaves in `data` what `op` makes of the operands of some members, from element `first` of each on, in the order of
    /// the members.
    pub(crate) async fn combine<T: Element, O: Op<T>>(
        &self,
        call: &Call<'_>,
        members: Range<usize>,
        first: usize,
        data: &mut [T],
        op: &O,
    ) -> Result<(), Error> {
        for from in members.clone() {
            self.arrival(call, from).await?;
        }
        self.combine_arrived(call, members, first, data, op);
        Ok(())
    }

    /// The same now, if all are there soon.
    #[inline]
    pub(crate) fn combine_now<T: Element, O: Op<T>>(
        &self,
        call: &Call<'_>,
        mut members: Range<usize>,
        first: usize,
        data: &mut [T],
        op: &O,
    ) -> bool {
        let all = members.clone();
        let bytes = size_of_val(data);
        let arrive = members.all(|from| self.arrives_soon(call, from, bytes));
        if arrive {
            self.combine_arrived(call, all, first, data, op);
        }
        arrive
    }

    #[inline]
    fn combine_arrived<T: Element, O: Op<T>>(
        &self,
        call: &Call<'_>,
        members: Range<usize>,
        first: usize,
        data: &mut [T],
        op: &O,
    ) {
        let (start, len) = (members.start, data.len());
        for from in members {
            self.read_arrived::<T>(call, from, first, len, |at, elements| {
                let data = &mut data[at..at + elements.len()];
                if from == start {
                    data.copy_from_slice(elements);
                } else {
                    op.combine(data, elements);
                }
            });
        }
    }

    /// This member leaves a call behind.
    #[inline]
    pub(crate) fn leave(&self, number: u32) {
        if let Some(ended) = self.turns.leave(number) {
            self.tell_ended(ended);
        }
    }

    #[inline]
    fn tell_ended(&self, ended: u32) {
        if let Some(count) = self.own.words().first() {
            slots::hand_back(count, ended);
        }
    }
}

/// Reads elements out of `words` and gives them to `take`. They have to fit in `N` words, unless they are of a type that
/// never does.
#[inline]
fn read_at_once<T: Element, const N: usize>(
    words: &[AtomicU64],
    first: usize,
    len: usize,
    take: impl FnOnce(&[T]),
) {
    let (start, bytes) = (first * size_of::<T>(), len * size_of::<T>());
    let skip = start % WORD;
    let words = &words[start / WORD..(start + bytes).div_ceil(WORD)];
    let mut few = [0u64; N];
    let many: Vec<u64>;
    let copy: &[u64] = if words.len() <= N {
        for (copy, word) in few.iter_mut().zip(words) {
            *copy = word.load(Ordering::Relaxed);
        }
        &few
    } else {
        many = words
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
            .collect();
        &many
    };
    let bytes = &bytemuck::cast_slice::<u64, u8>(copy)[skip..skip + bytes];
    match bytemuck::try_cast_slice(bytes) {
        Ok(elements) => take(elements),
        Err(_) => take(&bytemuck::pod_collect_to_vec(bytes)),
    }
}
