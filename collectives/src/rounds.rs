//! Operands that are larger than a few lines, through the [boards](crate::board) of members that share memory, in rounds.
//!
//! # How
//!
//! A member writes its operand piece by piece into its slot, and those who need it read it there: the next piece is written while
//! others read the one before, and what is read has just been written, so that it comes from the caches of the writer. The slot says
//! how many pieces are written, and for how many rounds its owner is through with those of others: a piece is written over
//! another once all who need that one have read it.
//!
//! To combine, members do not read all operands. Each combines a slice of all, where they lie, and writes the result over the
//! same slice in the slots of all others, which find it in their own. A line then goes to who combines it and back, and no more.
//! These are the two halves of Rabenseifner's algorithm ("Optimization of collective reduction operations", 2004), a
//! reduce-scatter and an all-gather, without messages.
//!
//! Where the members touch more memory than caches hold, results are stored past the caches: their lines are not fetched to be
//! written over, and do not drive out the pieces.

use std::ops::Range;

use transport::{Stores, copy_streaming};

use crate::{
    Element, Error,
    board::{Board, Progress},
    caches,
    call::Call,
    copy,
    op::Op,
    scratch::Scratch,
};

/// Bytes of a piece where one member writes and others read, so that these begin early.
pub(crate) const PIECE: usize = 16 << 10;
/// The same where all write and read: whoever waits for others does so seldom.
pub(crate) const LARGE_PIECE: usize = 64 << 10;
/// Bytes that are combined at a time, which stay in the cache of a core meanwhile.
const COMBINED: usize = 2 << 10;
/// Bytes of a line, at whose ends slices end, so that no two members write to one.
const LINE: usize = 64;

/// A call in rounds.
struct Rounds<'c> {
    call: &'c Call<'c>,
    board: &'c Board,
    /// Bytes of a piece, and how many there is room for in a slot.
    piece: usize,
    pieces: u32,
    /// How results are stored.
    stores: Stores,
}

impl<'c> Rounds<'c> {
    /// Takes part, with pieces of at most `most` bytes.
    async fn open(call: &'c Call<'c>, most: usize) -> Result<Self, Error> {
        let missing = || Error::Transport("the members share no memory".to_owned());
        let board = call.group.board().ok_or_else(missing)?;
        board.open(call).await?;
        let room = board.piece_bytes();
        let piece = most.min(room);
        Ok(Self {
            call,
            board,
            piece,
            pieces: (room / piece) as u32,
            stores: Stores::Plain,
        })
    }

    /// The same for a call in which all members together touch so many elements.
    fn touching<T: Element>(self, elements: usize) -> Self {
        let outgrows = elements.saturating_mul(size_of::<T>()) >= caches::outgrown_by();
        let stores = if outgrows {
            Stores::Streaming
        } else {
            Stores::Plain
        };
        Self { stores, ..self }
    }

    /// Copies what is ours to our result.
    fn keep<T: Element>(&self, into: &mut [T], from: &[T]) {
        match self.stores {
            Stores::Plain => copy(into, from),
            Stores::Streaming => {
                copy_streaming(bytemuck::cast_slice_mut(into), bytemuck::cast_slice(from));
            }
        }
    }

    /// The ranges of a vector of `len` elements that are given round by round, when a piece has one for each of `parts`
    /// members.
    fn ranges<T: Element>(
        &self,
        len: usize,
        parts: usize,
    ) -> impl Iterator<Item = (u32, Range<usize>)> + use<T> {
        (0..).zip(crate::segments::<T>(len, self.piece / parts.max(1)))
    }

    /// Where the piece of a round is.
    fn place(&self, round: u32) -> usize {
        (round % self.pieces) as usize * self.piece
    }

    /// Waits until `readers` have read what was where the piece of a round will be.
    async fn room(&self, round: u32, readers: impl Iterator<Item = usize>) -> Result<(), Error> {
        if let Some(before) = (round + 1)
            .checked_sub(self.pieces)
            .filter(|&before| before > 0)
        {
            for reader in readers {
                self.until(reader, Progress::Taken, before).await?;
            }
        }
        Ok(())
    }

    /// Writes the piece of a round for `readers`.
    async fn give<T: Element>(
        &self,
        round: u32,
        elements: &[T],
        readers: impl Iterator<Item = usize>,
    ) -> Result<(), Error> {
        self.room(round, readers).await?;
        let (call, board) = (self.call, self.board);
        board.write_piece(call, call.me(), self.place(round), elements);
        board.tell(call, Progress::Given, round + 1);
        Ok(())
    }

    /// Waits until the piece of a round of member `from` is there.
    async fn arrival(&self, round: u32, from: usize) -> Result<(), Error> {
        self.until(from, Progress::Given, round + 1).await
    }

    /// The same, and has elements of it, from byte `first` on, in our result.
    async fn take<T: Element>(
        &self,
        round: u32,
        from: usize,
        first: usize,
        elements: &mut [T],
    ) -> Result<(), Error> {
        self.arrival(round, from).await?;
        let first = self.place(round) + first;
        self.board
            .read_piece(self.call, from, first, elements, self.stores);
        Ok(())
    }

    fn read<T: Element>(&self, round: u32, from: usize, first: usize, elements: &mut [T]) {
        let first = self.place(round) + first;
        self.board
            .read_piece(self.call, from, first, elements, Stores::Plain);
    }

    /// Nothing is needed any more of the pieces of a round and those before.
    fn took(&self, round: u32) {
        self.board.tell(self.call, Progress::Taken, round + 1);
    }

    async fn until(&self, member: usize, progress: Progress, rounds: u32) -> Result<(), Error> {
        self.board.reach(self.call, member, progress, rounds).await
    }

    /// Leaves in `data` what `op` makes of it and of as many elements of the pieces of other members, in the order of the members.
    /// All are there; `first` says at which byte of the piece of a member.
    fn combine<T: Element, O: Op<T>>(
        &self,
        round: u32,
        members: Range<usize>,
        first: impl Fn(usize) -> usize,
        data: &mut [T],
        op: &O,
    ) {
        let me = self.call.me();
        let most = (COMBINED / size_of::<T>()).max(1);
        let mut left = self.call.scratch::<T>(most.min(data.len()));
        let mut right = self.call.scratch::<T>(most.min(data.len()));
        for (index, data) in data.chunks_mut(most).enumerate() {
            let first = |from| first(from) + index * most * size_of::<T>();
            let (left, right) = (&mut left[..data.len()], &mut right[..data.len()]);
            let mut before = members.start..members.end.min(me);
            if let Some(from) = before.next() {
                self.read(round, from, first(from), left);
                for from in before {
                    self.read(round, from, first(from), right);
                    op.combine(left, right);
                }
                op.combine_into_right(left, data);
            }
            for from in (me + 1).max(members.start)..members.end {
                self.read(round, from, first(from), right);
                op.combine(data, right);
            }
        }
    }
}

/// Whether there is room for an element for each of `parts` members in a piece.
pub(crate) fn fits<T: Element>(call: &Call<'_>, parts: usize) -> bool {
    let room = call.group.board().map_or(0, Board::piece_bytes);
    size_of::<T>() <= room.min(PIECE) / parts.max(1)
}

/// The other members, beginning with the one after us, so that not all begin with the same.
fn others(call: &Call<'_>) -> impl Iterator<Item = usize> + use<> {
    let (me, size) = (call.me(), call.size());
    (me + 1..size).chain(0..me)
}

/// What member `of` combines of `len` elements. Slices end at the ends of lines, where elements do.
fn slice<T: Element>(len: usize, size: usize, of: usize) -> Range<usize> {
    let unit = if LINE.is_multiple_of(size_of::<T>()) {
        LINE / size_of::<T>()
    } else {
        1
    };
    let units = crate::parts_of(len.div_ceil(unit), size, of);
    (units.start * unit).min(len)..(units.end * unit).min(len)
}

pub(crate) async fn all_reduce<T: Element, O: Op<T>>(
    call: &Call<'_>,
    data: &mut [T],
    op: &O,
) -> Result<(), Error> {
    let rounds = Rounds::open(call, LARGE_PIECE).await?;
    let (me, size) = (call.me(), call.size());
    let rounds = Rounds {
        pieces: 1,
        ..rounds
    };
    for (round, range) in rounds.ranges::<T>(data.len(), 1) {
        let data = &mut data[range];
        let len = data.len();
        let slice = |of| slice::<T>(len, size, of);
        let mine = slice(me);
        // All others are through with the round before, and with it our slot.
        for part in [0..mine.start, mine.end..data.len()] {
            let first = part.start * size_of::<T>();
            rounds.board.write_piece(call, me, first, &data[part]);
        }
        rounds.board.tell(call, Progress::Given, round + 1);
        for from in others(call) {
            rounds.arrival(round, from).await?;
        }
        let most = (COMBINED / size_of::<T>()).max(1);
        for start in mine.clone().step_by(most) {
            let part = start..mine.end.min(start + most);
            let first = start * size_of::<T>();
            rounds.combine(round, 0..size, |_| first, &mut data[part.clone()], op);
            for to in others(call) {
                rounds
                    .board
                    .write_piece(call, to, first, &data[part.clone()]);
            }
        }
        rounds.took(round);
        for from in others(call) {
            rounds.until(from, Progress::Taken, round + 1).await?;
            let part = slice(from);
            rounds.read(round, me, part.start * size_of::<T>(), &mut data[part]);
        }
    }
    Ok(())
}

pub(crate) async fn broadcast<T: Element>(
    call: &Call<'_>,
    root: usize,
    data: &mut [T],
) -> Result<(), Error> {
    let rounds = Rounds::open(call, PIECE)
        .await?
        .touching::<T>(data.len() * call.size());
    for (round, range) in rounds.ranges::<T>(data.len(), 1) {
        if call.me() == root {
            rounds.give(round, &data[range], others(call)).await?;
        } else {
            rounds.take(round, root, 0, &mut data[range]).await?;
            rounds.took(round);
        }
    }
    Ok(())
}

pub(crate) async fn reduce<T: Element, O: Op<T>>(
    call: &Call<'_>,
    root: usize,
    data: &mut [T],
    op: &O,
) -> Result<(), Error> {
    let rounds = Rounds::open(call, PIECE).await?;
    for (round, range) in rounds.ranges::<T>(data.len(), 1) {
        if call.me() != root {
            rounds.give(round, &data[range], [root].into_iter()).await?;
            continue;
        }
        for from in others(call) {
            rounds.arrival(round, from).await?;
        }
        rounds.combine(round, 0..call.size(), |_| 0, &mut data[range], op);
        rounds.took(round);
    }
    Ok(())
}

/// Each member reads what those before it have, and has given its own before.
pub(crate) async fn scan<T: Element, O: Op<T>>(
    call: &Call<'_>,
    data: &mut [T],
    op: &O,
    with_own: bool,
) -> Result<(), Error> {
    let rounds = Rounds::open(call, PIECE).await?;
    let (me, size) = (call.me(), call.size());
    for (round, range) in rounds.ranges::<T>(data.len(), 1) {
        let data = &mut data[range];
        if me + 1 < size {
            rounds.give(round, data, me + 1..size).await?;
        }
        if me == 0 {
            continue;
        }
        for from in 0..me {
            rounds.arrival(round, from).await?;
        }
        if with_own {
            rounds.combine(round, 0..me, |_| 0, data, op);
        } else {
            rounds.read(round, 0, 0, data);
            let mut right: Scratch<'_, T> = call.scratch(data.len());
            for from in 1..me {
                rounds.read(round, from, 0, &mut right);
                op.combine(data, &right);
            }
        }
        rounds.took(round);
    }
    Ok(())
}

/// Leaves in `mine` our block of what `op` makes of all, where `block` says which elements of `data` are whose.
pub(crate) async fn reduce_scatter<T: Element, O: Op<T>>(
    call: &Call<'_>,
    data: &[T],
    mine: &mut [T],
    op: &O,
    block: &impl Fn(usize) -> Range<usize>,
) -> Result<(), Error> {
    let longest = (0..call.size()).map(|member| block(member).len()).max();
    let rounds = Rounds::open(call, LARGE_PIECE).await?;
    let own = &data[block(call.me())];
    blocks(
        &rounds,
        data,
        longest.unwrap_or(0),
        block,
        async |rounds, round, range| {
            for from in others(call) {
                rounds.arrival(round, from).await?;
            }
            let first = |from| place::<T>(call, from, call.me(), range.len());
            let part = within(&range, mine.len());
            copy(&mut mine[part.clone()], &own[part.clone()]);
            rounds.combine(round, 0..call.size(), first, &mut mine[part], op);
            Ok(())
        },
    )
    .await
}

/// Gives `into` our blocks of all members' `data`, each of `len` elements.
pub(crate) async fn all_to_all<T: Element>(
    call: &Call<'_>,
    data: &[T],
    into: &mut [T],
) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    let len = data.len() / size;
    let block = |member: usize| member * len..(member + 1) * len;
    let rounds = Rounds::open(call, LARGE_PIECE)
        .await?
        .touching::<T>(2 * data.len() * size);
    blocks(&rounds, data, len, &block, async |rounds, round, range| {
        let (mine, own) = (&mut into[block(me)], &data[block(me)]);
        rounds.keep(&mut mine[range.clone()], &own[range.clone()]);
        for from in others(call) {
            let first = place::<T>(call, from, call.me(), range.len());
            let into = &mut into[block(from)];
            rounds
                .take(round, from, first, &mut into[range.clone()])
                .await?;
        }
        Ok(())
    })
    .await
}

/// At which byte of a piece of member `from` its part of the block of member `of` is, when it has one of `len` elements for each other
/// member.
fn place<T: Element>(call: &Call<'_>, from: usize, of: usize, len: usize) -> usize {
    (of + call.size() - from - 1) % call.size() * len * size_of::<T>()
}

/// Gives each other member its block of `data`, none longer than `longest`, a part of each block in a round. In each, `take` takes
/// what others gave us: the range of our block in this round.
async fn blocks<T: Element>(
    rounds: &Rounds<'_>,
    data: &[T],
    longest: usize,
    block: &impl Fn(usize) -> Range<usize>,
    mut take: impl AsyncFnMut(&Rounds<'_>, u32, Range<usize>) -> Result<(), Error>,
) -> Result<(), Error> {
    let call = rounds.call;
    let (me, size) = (call.me(), call.size());
    for (round, range) in rounds.ranges::<T>(longest, size - 1) {
        rounds.room(round, others(call)).await?;
        for to in others(call) {
            let block = &data[block(to)];
            let part = &block[within(&range, block.len())];
            let first = rounds.place(round) + place::<T>(call, me, to, range.len());
            rounds.board.write_piece(call, me, first, part);
        }
        rounds.board.tell(call, Progress::Given, round + 1);
        take(rounds, round, range).await?;
        rounds.took(round);
    }
    Ok(())
}

/// The part of a range that a vector of `len` elements has.
fn within(range: &Range<usize>, len: usize) -> Range<usize> {
    range.start.min(len)..range.end.min(len)
}

pub(crate) async fn gather<T: Element>(
    call: &Call<'_>,
    root: usize,
    mine: &[T],
    all: &mut [T],
) -> Result<(), Error> {
    let len = mine.len();
    let rounds = Rounds::open(call, PIECE)
        .await?
        .touching::<T>(2 * len * call.size());
    for (round, range) in rounds.ranges::<T>(len, 1) {
        if call.me() != root {
            rounds.give(round, &mine[range], [root].into_iter()).await?;
            continue;
        }
        let own = &mut all[root * len..(root + 1) * len];
        rounds.keep(&mut own[range.clone()], &mine[range.clone()]);
        for from in others(call) {
            let block = &mut all[from * len..(from + 1) * len];
            rounds
                .take(round, from, 0, &mut block[range.clone()])
                .await?;
        }
        rounds.took(round);
    }
    Ok(())
}

pub(crate) async fn scatter<T: Element>(
    call: &Call<'_>,
    root: usize,
    all: &[T],
    mine: &mut [T],
) -> Result<(), Error> {
    let (me, size, len) = (call.me(), call.size(), mine.len());
    let rounds = Rounds::open(call, PIECE)
        .await?
        .touching::<T>(2 * len * size);
    for (round, range) in rounds.ranges::<T>(len, size - 1) {
        let place = |of| place::<T>(call, root, of, range.len());
        if me != root {
            let first = place(me);
            rounds.take(round, root, first, &mut mine[range]).await?;
            rounds.took(round);
            continue;
        }
        rounds.room(round, others(call)).await?;
        for to in others(call) {
            let first = rounds.place(round) + place(to);
            let block = &all[to * len..(to + 1) * len];
            rounds
                .board
                .write_piece(call, me, first, &block[range.clone()]);
        }
        rounds.board.tell(call, Progress::Given, round + 1);
        let own = &all[root * len..(root + 1) * len];
        rounds.keep(&mut mine[range.clone()], &own[range]);
    }
    Ok(())
}

pub(crate) async fn all_gather<T: Element>(
    call: &Call<'_>,
    mine: &[T],
    all: &mut [T],
) -> Result<(), Error> {
    let (me, size, len) = (call.me(), call.size(), mine.len());
    let rounds = Rounds::open(call, LARGE_PIECE)
        .await?
        .touching::<T>(len * size * (size + 1));
    for (round, range) in rounds.ranges::<T>(len, 1) {
        rounds
            .give(round, &mine[range.clone()], others(call))
            .await?;
        let own = &mut all[me * len..(me + 1) * len];
        rounds.keep(&mut own[range.clone()], &mine[range.clone()]);
        for from in others(call) {
            let block = &mut all[from * len..(from + 1) * len];
            rounds
                .take(round, from, 0, &mut block[range.clone()])
                .await?;
        }
        rounds.took(round);
    }
    Ok(())
}
