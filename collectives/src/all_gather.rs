//! All members learn what each has.

use std::ops::Range;

use crate::{
    Algorithm, Element, Error, Group, Operation, Operator, Parts, board::Board, call::Call, copy,
    fate::Signature, rounds,
};

impl Group {
    /// Gives all members the vectors `mine` of all, in the order of the members. All are as long as `mine`, and `all` has
    /// room for as many as there are members.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when `all` has another length; see [`Error`].
    pub fn all_gather<T: Element>(
        &self,
        mine: &[T],
        all: &mut [T],
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async move {
            self.check_blocks("all_gather", mine.len(), all.len())?;
            let signature = Signature::of::<T>("all_gather", Some(mine.len()));
            let algorithm = self.choose(Operator::AllGather, size_of_val(mine), true);
            if algorithm == Algorithm::Board {
                let (call, board) = self.begin_now(signature)?;
                let wrote = board.write_now(&call, mine);
                if wrote && board.read_all_now(&call, 0, mine, all) {
                    return call.end(Ok(()));
                }
                return Box::pin(async move {
                    let result = on_board(&call, board, wrote, mine, all).await;
                    call.end(result)
                })
                .await;
            }
            Box::pin(async move {
                let call = self.begin(signature.by(algorithm)).await?;
                let result = by_messages(&call, algorithm, mine, all).await;
                call.end(result)
            })
            .await
        })
    }

    /// The same, where each member may have as many elements as it likes.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn all_gather_v<T: Element>(
        &self,
        mine: &[T],
    ) -> Operation<'_, impl Future<Output = Result<Parts<T>, Error>>> {
        self.operation(async move {
            let call = self.begin(Signature::of::<T>("all_gather_v", None)).await?;
            let result = varied(&call, mine).await;
            call.end(result)
        })
    }

    pub(crate) fn check_blocks(
        &self,
        call: &'static str,
        block: usize,
        all: usize,
    ) -> Result<(), Error> {
        if all == block * self.size() {
            return Ok(());
        }
        let reason = format!("{all} elements are not {} blocks of {block}", self.size());
        Err(self.argument(call, reason))
    }
}

pub(crate) async fn by_messages<T: Element>(
    call: &Call<'_>,
    algorithm: Algorithm,
    mine: &[T],
    all: &mut [T],
) -> Result<(), Error> {
    let (me, len) = (call.me(), mine.len());
    if call.size() == 1 {
        copy(all, mine);
        return Ok(());
    }
    match algorithm {
        Algorithm::Ring => {
            copy(&mut all[me * len..(me + 1) * len], mine);
            ring(call, all, |member| member * len..(member + 1) * len).await
        }
        Algorithm::Rounds if rounds::fits::<T>(call, 1) => {
            rounds::all_gather(call, mine, all).await
        }
        Algorithm::Bruck => bruck(call, mine, all).await,
        _ => flat(call, mine, all).await,
    }
}

pub(crate) async fn on_board<T: Element>(
    call: &Call<'_>,
    board: &Board,
    wrote: bool,
    mine: &[T],
    all: &mut [T],
) -> Result<(), Error> {
    if !wrote {
        board.write(call, mine).await?;
    }
    let len = mine.len();
    for from in 0..call.size() {
        let block = &mut all[from * len..(from + 1) * len];
        board.read(call, from, 0, block).await?;
    }
    Ok(())
}

/// Each member sends each segment to all. On shared memory that is one copy, which all read.
async fn flat<T: Element>(call: &Call<'_>, mine: &[T], all: &mut [T]) -> Result<(), Error> {
    let (me, size, len) = (call.me(), call.size(), mine.len());
    copy(&mut all[me * len..(me + 1) * len], mine);
    for (step, segment) in call.segments::<T>(len).enumerate() {
        let message = call.message(step as u32, &mine[segment.clone()]).await?;
        for to in (me + 1..size).chain(0..me) {
            call.give_in_turn(to, message.clone()).await?;
        }
        for from in (me + 1..size).chain(0..me) {
            let place = from * len + segment.start..from * len + segment.end;
            call.receive_into(from, &mut all[place]).await?;
        }
    }
    Ok(())
}

/// What every member has, however few members there are and whatever they could use otherwise.
pub(crate) async fn exchange<const N: usize>(
    call: &Call<'_>,
    mine: &[u8; N],
    all: &mut [[u8; N]],
) -> Result<(), Error> {
    bruck(call, std::slice::from_ref(mine), all).await
}

/// The parts go round, each from one member to the next. Ours is in its place already.
pub(crate) async fn ring<T: Element>(
    call: &Call<'_>,
    data: &mut [T],
    part: impl Fn(usize) -> Range<usize>,
) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    let (before, after) = ((me + size - 1) % size, (me + 1) % size);
    let longest = (0..size)
        .map(|member| part(member).len())
        .max()
        .unwrap_or(0);
    for step in 1..size {
        let give = part((me + size - step + 1) % size);
        let take = part((me + size - step) % size);
        for segment in call.segments::<T>(longest) {
            let within = |part: &Range<usize>| {
                let end = part.len();
                part.start + segment.start.min(end)..part.start + segment.end.min(end)
            };
            call.send(after, step as u32, &data[within(&give)]).await?;
            call.receive_into(before, &mut data[within(&take)]).await?;
        }
    }
    Ok(())
}

/// In round *k* each member gets the blocks that the one 2^*k* further on has gathered.
async fn bruck<T: Element>(call: &Call<'_>, mine: &[T], all: &mut [T]) -> Result<(), Error> {
    let (me, size, len) = (call.me(), call.size(), mine.len());
    // Counted from our own block.
    let mut blocks = call.scratch::<T>(all.len());
    copy(&mut blocks[..len], mine);
    let mut have = 1;
    while have < size {
        let more = have.min(size - have);
        let (known, rest) = blocks.split_at_mut(have * len);
        let (to, from) = ((me + size - have) % size, (me + have) % size);
        for segment in call.segments::<T>(more * len) {
            call.send(to, have as u32, &known[segment.clone()]).await?;
            call.receive_into(from, &mut rest[segment]).await?;
        }
        have += more;
    }
    for (index, block) in (0..size).map(|index| (index, index * len..(index + 1) * len)) {
        let member = (me + index) % size;
        copy(&mut all[member * len..(member + 1) * len], &blocks[block]);
    }
    Ok(())
}

/// Each sends all it has to every other, after its length.
async fn varied<T: Element>(call: &Call<'_>, mine: &[T]) -> Result<Parts<T>, Error> {
    let (me, size) = (call.me(), call.size());
    let own = [mine.len() as u64];
    let mut lens = vec![0u64; size];
    match call.group.board() {
        Some(board) => {
            board.write(call, &own).await?;
            for (from, len) in lens.iter_mut().enumerate() {
                board.read(call, from, 0, std::slice::from_mut(len)).await?;
            }
        }
        None => bruck(call, &own, &mut lens).await?,
    }
    let mut parts = Parts::with_lens(lens.iter().map(|&len| len as usize));
    copy(parts.part_mut(me), mine);
    let longest = lens.iter().max().map_or(0, |&len| len as usize);
    for (step, segment) in call.segments::<T>(longest).enumerate() {
        let within = |len: usize| segment.start.min(len)..segment.end.min(len);
        let own = within(mine.len());
        if !own.is_empty() {
            let message = call.message(step as u32, &mine[own]).await?;
            for to in (me + 1..size).chain(0..me) {
                call.give_in_turn(to, message.clone()).await?;
            }
        }
        for from in (me + 1..size).chain(0..me) {
            let part = parts.part_mut(from);
            let place = within(part.len());
            if !place.is_empty() {
                call.receive_into(from, &mut part[place]).await?;
            }
        }
    }
    Ok(parts)
}
