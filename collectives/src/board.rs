//! Memory that all members of a group on one node see: each writes its own operand and reads those of the others, which, for one
//! of a few lines, takes the time of one cache line's way from core to core. Larger ones go [in rounds](crate::rounds).
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

use std::{future::poll_fn, hint, ops::Range, rc::Rc, slice, task::Poll};

use transport::{Exposed, RemoteRegion, Stores, prefetch_read, prefetch_write};

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
/// The most bytes of an operand that is written and read as a whole.
pub(crate) const OPERAND_MAX: usize = PIECES_MIN - OPERAND * WORD;
/// Words of a slot: the stamp of the call, the writer's count, and from the third on the operand.
const OPERAND: usize = 2;
/// Where a larger operand is, a piece of it at a time: from the second line on. The first then says how far it is
/// [written](Progress::Given), and how far its writer is with those of [others](Progress::Taken).
const PIECES: usize = LINE;
/// Bytes for pieces in a slot, whatever room there is, and where there is more than enough.
const PIECES_MIN: usize = 4 << 10;
const PIECES_MAX: usize = 256 << 10;
/// An arena has room for so many slots.
const SLOTS_IN_ARENA: u64 = 4096;
/// The least bytes of a board.
pub(crate) const BOARD_BYTES_MIN: usize = board_bytes(PIECES_MIN);
/// The most members that have boards: each looks at those of all others.
pub(crate) const MEMBERS_MAX: usize = 64;
/// The most looks in a poll of a future, after which others go on.
const SPINS_A_POLL: u32 = 16;
/// Looks at a board before the first pause.
const QUICK_LOOKS: u32 = 64;
/// Words combined at a time, of operands of a line and of larger ones.
const LINE: usize = 8;
/// Bytes of an operand that are in the line of its stamp.
const FIRST_BYTES: usize = (LINE - OPERAND) * WORD;
/// Lines fetched ahead, of an operand that takes more than one.
const FETCHED: usize = 2;
const CHUNK: usize = 128;

/// The boards of a group.
pub(crate) struct Board {
    own: Exposed,
    /// Those of all members; our own among them.
    boards: Vec<Rc<RemoteRegion>>,
    /// Words of a slot of each.
    slot_words: Vec<usize>,
    turns: Turns,
}

/// What a member says in its slot about a call in rounds: a word with the number of the call and so many rounds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Progress {
    /// Pieces of its operand that are written.
    Given = OPERAND as isize,
    /// Rounds in which it needs nothing of others any more, and after which nobody waits for what it writes to theirs.
    Taken,
}

/// Bytes of a board with so many for pieces in a slot.
const fn board_bytes(pieces: usize) -> usize {
    (COUNT_WORDS + SLOTS * PIECES) * WORD + SLOTS * pieces
}

/// Bytes of the board of a member whose arena has so many.
pub(crate) fn bytes_in(arena: u64) -> usize {
    let share = usize::try_from(arena / SLOTS_IN_ARENA).unwrap_or(usize::MAX);
    board_bytes(1 << share.clamp(PIECES_MIN, PIECES_MAX).ilog2())
}

/// Words of a slot of a board of so many.
fn slot_words(board: usize) -> usize {
    board.saturating_sub(COUNT_WORDS) / SLOTS
}

impl Board {
    /// The boards of a group whose members have made `ended` calls.
    pub(crate) fn new(own: Exposed, boards: Vec<RemoteRegion>, ended: u32) -> Self {
        let words = |board: &RemoteRegion| board.words().unwrap_or_default().len();
        let board = Self {
            own,
            turns: Turns::new(boards.len(), FIRST_CALL),
            slot_words: boards
                .iter()
                .map(|board| slot_words(words(board)))
                .collect(),
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
        let slot = slot_words(words.len()).max(1);
        let stamps = words.iter().skip(COUNT_WORDS).step_by(slot).take(SLOTS);
        let before = u64::from(FIRST_CALL.wrapping_sub(1)) << 32;
        for (word, value) in first.chain(stamps.map(|word| (word, before))) {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn words(&self, member: usize) -> &[AtomicU64] {
        self.boards[member].words().unwrap_or_default()
    }

    /// The index, on the board of a member, of the word of call `number`'s slot that says whose it is.
    #[inline]
    fn slot(&self, member: usize, number: u32) -> usize {
        COUNT_WORDS + number as usize % SLOTS * self.slot_words[member]
    }

    /// The words of that slot.
    #[inline]
    fn slot_of(&self, member: usize, number: u32) -> &[AtomicU64] {
        let slot = self.slot(member, number);
        let words = self.words(member).get(slot..slot + self.slot_words[member]);
        words.unwrap_or_default()
    }

    /// Bytes of the pieces of larger operands that every member has room for.
    pub(crate) fn piece_bytes(&self) -> usize {
        let least = self.slot_words.iter().min().copied().unwrap_or(0);
        least.saturating_sub(PIECES) * WORD
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
        let slot = self.slot(call.me(), call.number);
        let bytes: &[u8] = bytemuck::cast_slice(operand);
        if let Some([stamp, count, rest @ ..]) = self.own.words().get(slot..) {
            count.store(u64::from(self.turns.ended()), Ordering::Relaxed);
            match bytes.as_chunks::<WORD>() {
                (elements, []) if elements.len() <= LINE => {
                    for (word, element) in rest.iter().zip(elements) {
                        word.store(u64::from_ne_bytes(*element), Ordering::Relaxed);
                    }
                }
                _ => self.own.write((slot + OPERAND) * WORD, bytes),
            }
            slots::publish(stamp, call.stamp);
        }
        self.fetch_next(call, bytes.len());
        self.ring_all(call);
    }

    /// Wakes those who wait for what we have just written.
    #[inline]
    fn ring_all(&self, call: &Call<'_>) {
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
    fn fetch_next(&self, call: &Call<'_>, bytes: usize) {
        let next = self.slot(call.me(), call.number.wrapping_add(1));
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
            self.slot(from, number),
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
        let [stamp, count, ..] = self.slot_of(from, call.number) else {
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
        self.slot_soon(call, from, bytes).is_some()
    }

    /// The slot of member `from`, if it has written its operand after a while of spinning.
    #[inline]
    fn slot_soon(&self, call: &Call<'_>, from: usize, bytes: usize) -> Option<&[AtomicU64]> {
        let slot = self.slot_of(from, call.number);
        let [stamp, count, ..] = slot else {
            return None;
        };
        let second = slot.get(LINE).filter(|_| bytes > FIRST_BYTES);
        for spin in 0..call.group.engine.0.spins.get() {
            if slots::look(stamp) == call.stamp {
                self.turns.note(from, count.load(Ordering::Relaxed) as u32);
                return Some(slot);
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
        None
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

    /// Reads into `data` as many elements from `first` on of the operand of member `from`, once it is there.
    pub(crate) async fn read<T: Element>(
        &self,
        call: &Call<'_>,
        from: usize,
        first: usize,
        data: &mut [T],
    ) -> Result<(), Error> {
        self.arrival(call, from).await?;
        self.read_arrived(call, from, first, data);
        Ok(())
    }

    /// The same now, if it is there soon.
    #[inline]
    pub(crate) fn read_now<T: Element>(
        &self,
        call: &Call<'_>,
        from: usize,
        first: usize,
        data: &mut [T],
    ) -> bool {
        let Some(slot) = self.slot_soon(call, from, size_of_val(data)) else {
            return false;
        };
        match few_of(slot, first, data.len()) {
            Some(found) => data
                .iter_mut()
                .zip(found)
                .for_each(|(to, found)| *to = found),
            None => self.read_arrived(call, from, first, data),
        }
        true
    }

    /// Copies into `all`, block by block in the order of the members, as much as `mine`, which is our own, of the operand of each from
    /// element `first` on, if they are there soon; if it is false, what is in `all` is of no use.
    #[inline]
    pub(crate) fn read_all_now<T: Element>(
        &self,
        call: &Call<'_>,
        first: usize,
        mine: &[T],
        all: &mut [T],
    ) -> bool {
        let (me, len) = (call.me(), mine.len());
        (0..call.size()).all(|from| {
            let block = &mut all[from * len..(from + 1) * len];
            if from != me {
                return self.read_now(call, from, first, block);
            }
            match (block, mine) {
                ([only], [ours]) => *only = *ours,
                (block, mine) => crate::copy(block, mine),
            }
            true
        })
    }

    #[inline]
    fn read_arrived<T: Element>(&self, call: &Call<'_>, from: usize, first: usize, data: &mut [T]) {
        let operand = self.slot(from, call.number) + OPERAND;
        let first = operand * WORD + first * size_of::<T>();
        self.load(from, first, bytemuck::cast_slice_mut(data));
    }

    /// Copies bytes of the board of a member, which is as long as it says.
    #[inline]
    fn load(&self, from: usize, first: usize, bytes: &mut [u8]) {
        let loaded = self.boards[from].read(first, bytes);
        debug_assert!(loaded, "a board has room for what is read there");
    }

    /// Has `op` combine, in place, `data` with as much from element `first` on of the operand of a member.
    #[inline]
    fn combine_with<T: Element, O: Op<T>, const N: usize>(
        &self,
        call: &Call<'_>,
        from: usize,
        first: usize,
        data: &mut [T],
        op: &O,
    ) {
        let mut piece = Piece::<N>::new();
        let most = Piece::<N>::most::<T>();
        for (index, data) in data.chunks_mut(most).enumerate() {
            let theirs = piece.of(data.len());
            self.read_arrived(call, from, first + index * most, theirs);
            op.combine(data, theirs);
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
        let mut members = members;
        if let Some(from) = members.next() {
            self.read_arrived(call, from, first, data);
        }
        self.combine_after(call, members, first, data, op);
    }

    /// Has `op` combine `data`, which stands for the members before these, with their operands from element `first` on.
    #[inline]
    fn combine_after<T: Element, O: Op<T>>(
        &self,
        call: &Call<'_>,
        members: Range<usize>,
        first: usize,
        data: &mut [T],
        op: &O,
    ) {
        for from in members {
            if let [only] = data
                && let Some(theirs) = word_of(self.slot_of(from, call.number), first)
            {
                op.combine(slice::from_mut(only), &[theirs]);
            } else if size_of_val(data) <= LINE * WORD {
                self.combine_with::<T, O, LINE>(call, from, first, data, op);
            } else {
                self.combine_with::<T, O, CHUNK>(call, from, first, data, op);
            }
        }
    }

    /// Leaves in `data`, which is our operand from element `first` on, what `op` makes of it and those of all others, in the
    /// order of the members, if they are there soon; false, and nothing is done, if they are not.
    #[inline]
    pub(crate) fn combine_all_now<T: Element, O: Op<T>>(
        &self,
        call: &Call<'_>,
        first: usize,
        data: &mut [T],
        op: &O,
    ) -> bool {
        let (me, bytes) = (call.me(), size_of_val(data));
        let mut others = (0..call.size()).filter(|&from| from != me);
        let arrive = others.all(|from| self.arrives_soon(call, from, bytes));
        if arrive {
            self.combine_before_arrived(call, first, data, op);
            self.combine_after(call, me + 1..call.size(), first, data, op);
        }
        arrive
    }

    /// Has `op` combine the operands of the members before us with `data`, which is ours, if they are there soon; false, and nothing
    /// is done, if they are not.
    #[inline]
    pub(crate) fn combine_before_now<T: Element, O: Op<T>>(
        &self,
        call: &Call<'_>,
        data: &mut [T],
        op: &O,
    ) -> bool {
        let bytes = size_of_val(data);
        let arrive = (0..call.me()).all(|from| self.arrives_soon(call, from, bytes));
        if arrive {
            self.combine_before_arrived(call, 0, data, op);
        }
        arrive
    }

    /// The same, once they are there.
    pub(crate) async fn combine_before<T: Element, O: Op<T>>(
        &self,
        call: &Call<'_>,
        data: &mut [T],
        op: &O,
    ) -> Result<(), Error> {
        for from in 0..call.me() {
            self.arrival(call, from).await?;
        }
        self.combine_before_arrived(call, 0, data, op);
        Ok(())
    }

    #[inline]
    fn combine_before_arrived<T: Element, O: Op<T>>(
        &self,
        call: &Call<'_>,
        first: usize,
        data: &mut [T],
        op: &O,
    ) {
        if call.me() == 0 {
            return;
        }
        if let [only] = data
            && let Some(left) = self.word_before(call, first, op)
        {
            op.combine_into_right(&[left], slice::from_mut(only));
        } else if size_of_val(data) <= LINE * WORD {
            self.combine_pieces_before::<T, O, LINE>(call, first, data, op);
        } else {
            self.combine_pieces_before::<T, O, CHUNK>(call, first, data, op);
        }
    }

    /// What `op` makes of an element of the operands of the members before us, if it takes a word.
    #[inline]
    fn word_before<T: Element, O: Op<T>>(
        &self,
        call: &Call<'_>,
        element: usize,
        op: &O,
    ) -> Option<T> {
        let word = |from| word_of(self.slot_of(from, call.number), element);
        let mut left = word(0)?;
        for from in 1..call.me() {
            op.combine(slice::from_mut(&mut left), &[word(from)?]);
        }
        Some(left)
    }

    #[inline]
    fn combine_pieces_before<T: Element, O: Op<T>, const N: usize>(
        &self,
        call: &Call<'_>,
        first: usize,
        data: &mut [T],
        op: &O,
    ) {
        let (mut left, mut right) = (Piece::<N>::new(), Piece::<N>::new());
        let most = Piece::<N>::most::<T>();
        for (index, data) in data.chunks_mut(most).enumerate() {
            let left = left.of(data.len());
            self.read_arrived(call, 0, first + index * most, left);
            for from in 1..call.me() {
                let right = right.of(data.len());
                self.read_arrived(call, from, first + index * most, right);
                op.combine(left, right);
            }
            op.combine_into_right(left, data);
        }
    }

    /// Whether the operands of the members before us are there at once.
    #[inline]
    pub(crate) fn are_ahead(&self, call: &Call<'_>) -> bool {
        let mut before = 0..call.me();
        !before.is_empty() && before.all(|from| self.has_arrived(call, from))
    }

    /// Has the processor fetch the slots of the members before us for the next call, in which they, who wait for nobody, may
    /// be by now.
    #[inline]
    pub(crate) fn fetch_from_ahead(&self, call: &Call<'_>, bytes: usize) {
        let lines = if bytes > FIRST_BYTES { FETCHED } else { 1 };
        for from in 0..call.me() {
            let next = self.slot(from, call.number.wrapping_add(1));
            for line in 0..lines {
                if let Some(word) = self.words(from).get(next + line * LINE) {
                    prefetch_read((&raw const *word).cast());
                }
            }
        }
    }

    /// Begins a call in rounds, in which nothing of ours is written yet: once nobody reads what was in its slot. Nobody is told
    /// before we [say how far we are](Self::tell).
    pub(crate) async fn open(&self, call: &Call<'_>) -> Result<(), Error> {
        if !self.turns.have_all_passed(call.me(), used_for(call.number)) {
            self.have_all_pass(call, used_for(call.number)).await?;
        }
        let slot = self.slot(call.me(), call.number);
        let words = self.own.words().get(slot..).unwrap_or_default();
        for progress in [Progress::Given, Progress::Taken] {
            if let Some(word) = words.get(progress as usize) {
                word.store(slots::rounds_of(call.number, 0), Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Says how far we are, and that we take part. What we wrote before, wherever it is, is seen by whoever learns of it.
    pub(crate) fn tell(&self, call: &Call<'_>, progress: Progress, rounds: u32) {
        let slot = self.slot(call.me(), call.number);
        if let Some([stamp, count, rest @ ..]) = self.own.words().get(slot..)
            && let Some(word) = rest.get(progress as usize - OPERAND)
        {
            slots::publish(word, slots::rounds_of(call.number, rounds));
            if stamp.load(Ordering::Relaxed) != call.stamp {
                count.store(u64::from(self.turns.ended()), Ordering::Relaxed);
                slots::publish(stamp, call.stamp);
            }
        }
        self.ring_all(call);
    }

    /// Waits until member `from`, which takes part, is so far.
    pub(crate) async fn reach(
        &self,
        call: &Call<'_>,
        from: usize,
        progress: Progress,
        rounds: u32,
    ) -> Result<(), Error> {
        let wanted = slots::rounds_of(call.number, rounds);
        let is_so_far = |found| slots::is_so_far(found, wanted);
        let word = self.slot(from, call.number) + progress as usize;
        let Some(there) = self.words(from).get(word) else {
            let reason = "the board of a member is too short".to_owned();
            return Err(Error::Transport(reason));
        };
        for spin in 0..call.group.engine.0.spins.get() {
            // Before the stamp is that of the call, the word beside it may be the operand of another.
            if self.has_arrived(call, from) && is_so_far(slots::look(there)) {
                return Ok(());
            }
            if spin > QUICK_LOOKS {
                hint::spin_loop();
            }
        }
        self.arrival(call, from).await?;
        self.look(call, from, word, is_so_far, |_| false).await?;
        Ok(())
    }

    /// Writes elements into the piece of an operand in the slot of a member, from byte `first` of the piece on. There has to
    /// be [room](Self::piece_bytes).
    #[inline]
    pub(crate) fn write_piece<T: Element>(
        &self,
        call: &Call<'_>,
        to: usize,
        first: usize,
        elements: &[T],
    ) {
        let first = (self.slot(to, call.number) + PIECES) * WORD + first;
        let written = self.boards[to].write(first, bytemuck::cast_slice(elements));
        debug_assert!(written, "a board has room for a piece");
    }

    /// Reads such elements, and stores them into the caches or past them.
    #[inline]
    pub(crate) fn read_piece<T: Element>(
        &self,
        call: &Call<'_>,
        from: usize,
        first: usize,
        elements: &mut [T],
        stores: Stores,
    ) {
        let first = (self.slot(from, call.number) + PIECES) * WORD + first;
        let bytes = bytemuck::cast_slice_mut(elements);
        match stores {
            Stores::Plain => self.load(from, first, bytes),
            Stores::Streaming => {
                let read = self.boards[from].read_streaming(first, bytes);
                debug_assert!(read, "a board has room for what is read there");
            }
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

/// So many elements of the operand in a slot, if they are few and each takes a word.
#[inline]
fn few_of<T: Element>(
    slot: &[AtomicU64],
    first: usize,
    len: usize,
) -> Option<impl Iterator<Item = T>> {
    let words = slot.get(OPERAND + first..OPERAND + first + len);
    let words = words.filter(|_| size_of::<T>() == WORD && len <= LINE)?;
    let element = |word: &AtomicU64| word.load(Ordering::Relaxed).to_ne_bytes();
    Some(
        words
            .iter()
            .map(move |word| bytemuck::pod_read_unaligned(&element(word))),
    )
}

/// One of them.
#[inline]
fn word_of<T: Element>(slot: &[AtomicU64], element: usize) -> Option<T> {
    few_of(slot, element, 1)?.next()
}

/// Room for a piece of an operand: on the stack, unless a single element is larger than that.
struct Piece<const N: usize> {
    few: [u64; N],
    many: Vec<u64>,
}

impl<const N: usize> Piece<N> {
    fn new() -> Self {
        Self {
            few: [0; N],
            many: Vec::new(),
        }
    }

    /// The most elements, which may be one that has no room on the stack.
    fn most<T: Element>() -> usize {
        (N * WORD / size_of::<T>()).max(1)
    }

    fn of<T: Element>(&mut self, len: usize) -> &mut [T] {
        let bytes = len * size_of::<T>();
        let words = if bytes <= N * WORD {
            &mut self.few[..]
        } else {
            self.many.resize(bytes.div_ceil(WORD), 0);
            &mut self.many[..]
        };
        bytemuck::cast_slice_mut(&mut bytemuck::cast_slice_mut::<_, u8>(words)[..bytes])
    }
}
