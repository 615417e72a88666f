//! The vectors of all members become one, of which each gets a part.

use std::ops::Range;

use crate::{
    Algorithm, Element, Error, Group, Operation, Operator,
    board::{self, Board},
    call::Call,
    copy,
    fate::Signature,
    op::Op,
    reduce::combine_all,
    rounds,
};

impl Group {
    /// Leaves in `mine` of each member its block of what `op` makes of the `data` of all, element by element in the order
    /// of the members. All blocks are as long as `mine`, and `data` has as many as there are members.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when `data` has another length; see [`Error`].
    pub fn reduce_scatter<T: Element, O: Op<T>>(
        &self,
        data: &[T],
        mine: &mut [T],
        op: O,
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        let len = mine.len();
        self.scatter_reduced(
            data,
            mine,
            op,
            move |member| member * len..(member + 1) * len,
            Some(len),
        )
    }

    /// The same with a block of `lens[m]` elements for each member *m*: all members have to give the same lengths.
    ///
    /// # Errors
    ///
    /// As [`reduce_scatter`](Self::reduce_scatter).
    pub fn reduce_scatter_v<T: Element, O: Op<T>>(
        &self,
        data: &[T],
        lens: &[usize],
        mine: &mut [T],
        op: O,
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        let ends: Vec<usize> = lens
            .iter()
            .scan(0, |end, len| {
                *end += len;
                Some(*end)
            })
            .collect();
        let block = move |member: usize| {
            let start = member.checked_sub(1).map_or(0, |before| ends[before]);
            start..ends[member]
        };
        let fits = lens.len() == self.size();
        self.operation(async move {
            if !fits {
                let reason = "there is to be one length for each member";
                return Err(self.argument("reduce_scatter", reason));
            }
            self.scatter_reduced(data, mine, op, block, None).await
        })
    }

    fn scatter_reduced<T: Element, O: Op<T>>(
        &self,
        data: &[T],
        mine: &mut [T],
        op: O,
        block: impl Fn(usize) -> Range<usize>,
        block_len: Option<usize>,
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async move {
            if block(self.rank()).len() != mine.len() || block(self.size() - 1).end != data.len() {
                let reason = format!(
                    "{} elements are not the blocks of {} members, of which ours has {}",
                    data.len(),
                    self.size(),
                    mine.len()
                );
                return Err(self.argument("reduce_scatter", reason));
            }
            let signature = Signature::of::<T>("reduce_scatter", Some(data.len()));
            let signature = signature.with_op(op.name());
            let mean = block_len.unwrap_or(data.len() / self.size()) * size_of::<T>();
            let commutes = op.is_commutative();
            let mut algorithm = self.choose(Operator::ReduceScatter, mean, commutes);
            // The mean of different blocks may be that of what fits, and the sum not.
            if algorithm == Algorithm::Board && size_of_val(data) > board::OPERAND_MAX {
                algorithm = Algorithm::Flat;
            }
            if algorithm == Algorithm::Board {
                let (call, board) = self.begin_now(signature)?;
                let first = block(self.rank()).start;
                let wrote = board.write_now(&call, data);
                crate::copy(mine, &data[first..first + mine.len()]);
                if wrote && board.combine_all_now(&call, first, mine, &op) {
                    return call.end(Ok(()));
                }
                return Box::pin(async move {
                    let result = on_board(&call, board, wrote, data, first, mine, &op).await;
                    call.end(result)
                })
                .await;
            }
            Box::pin(async move {
                let call = self.begin(signature.by(algorithm)).await?;
                let result = by_messages(&call, algorithm, data, mine, &op, &block).await;
                call.end(result)
            })
            .await
        })
    }
}

pub(crate) async fn on_board<T: Element, O: Op<T>>(
    call: &Call<'_>,
    board: &Board,
    wrote: bool,
    data: &[T],
    first: usize,
    mine: &mut [T],
    op: &O,
) -> Result<(), Error> {
    if !wrote {
        board.write(call, data).await?;
    }
    board.combine(call, 0..call.size(), first, mine, op).await
}

pub(crate) async fn by_messages<T: Element, O: Op<T>>(
    call: &Call<'_>,
    algorithm: Algorithm,
    data: &[T],
    mine: &mut [T],
    op: &O,
    block: &impl Fn(usize) -> Range<usize>,
) -> Result<(), Error> {
    if call.size() == 1 {
        copy(mine, data);
        return Ok(());
    }
    match algorithm {
        Algorithm::Ring => {
            let own = block(call.me());
            let mut all = call.scratch_copy(data);
            around(call, &mut all, block, op).await?;
            copy(mine, &all[own]);
            Ok(())
        }
        Algorithm::Rounds if rounds::fits::<T>(call, call.size() - 1) => {
            rounds::reduce_scatter(call, data, mine, op, block).await
        }
        Algorithm::Pairwise => pairwise(call, data, mine, op, block).await,
        _ => flat(call, data, mine, op, block).await,
    }
}

/// Each member sends every other its block at once, and combines what it gets in the order of the members.
async fn flat<T: Element, O: Op<T>>(
    call: &Call<'_>,
    data: &[T],
    mine: &mut [T],
    op: &O,
    block: &impl Fn(usize) -> Range<usize>,
) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    copy(mine, &data[block(me)]);
    let longest = (0..size)
        .map(|member| block(member).len())
        .max()
        .unwrap_or(0);
    for (step, segment) in call.segments::<T>(longest).enumerate() {
        let within = |block: Range<usize>| {
            let end = block.len();
            block.start + segment.start.min(end)..block.start + segment.end.min(end)
        };
        for to in (me + 1..size).chain(0..me) {
            call.send(to, step as u32, &data[within(block(to))]).await?;
        }
        let end = mine.len();
        combine_all(
            call,
            &mut mine[segment.start.min(end)..segment.end.min(end)],
            op,
        )
        .await?;
    }
    Ok(())
}

/// One partner after another. The order is kept by combining what comes from lower members apart from the rest.
async fn pairwise<T: Element, O: Op<T>>(
    call: &Call<'_>,
    data: &[T],
    mine: &mut [T],
    op: &O,
    block: &impl Fn(usize) -> Range<usize>,
) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    copy(mine, &data[block(me)]);
    let longest = (0..size).map(|member| block(member).len()).max();
    // What those after us make. From the one before us downwards, and then from the last.
    let mut right = call.scratch::<T>(if me + 1 < size { mine.len() } else { 0 });
    for distance in 1..size {
        let (to, from) = ((me + distance) % size, (me + size - distance) % size);
        let theirs = block(to);
        for segment in call.segments::<T>(longest.unwrap_or(0)) {
            let within = |len: usize| segment.start.min(len)..segment.end.min(len);
            let given = &data[theirs.clone()][within(theirs.len())];
            call.send(to, distance as u32, given).await?;
            let part = within(mine.len());
            let taken = call.receive_exactly::<T>(from, part.len()).await?;
            if from < me {
                op.combine_into_right(&taken, &mut mine[part]);
            } else if from + 1 == size {
                copy(&mut right[part], &taken);
            } else {
                op.combine_into_right(&taken, &mut right[part]);
            }
        }
    }
    if me + 1 < size {
        op.combine(mine, &right);
    }
    Ok(())
}

/// The parts of `data` go round, and each member combines its own last: then that part is of all.
pub(crate) async fn around<T: Element, O: Op<T>>(
    call: &Call<'_>,
    data: &mut [T],
    part: impl Fn(usize) -> Range<usize>,
    op: &O,
) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    let (before, after) = ((me + size - 1) % size, (me + 1) % size);
    let longest = (0..size)
        .map(|member| part(member).len())
        .max()
        .unwrap_or(0);
    for step in 1..size {
        let give = part((me + size - step) % size);
        let take = part((me + 2 * size - step - 1) % size);
        // In segments, each of which is combined while the next is on its way. All members count them alike.
        for segment in call.segments::<T>(longest) {
            let within = |part: &Range<usize>| {
                let end = part.len();
                part.start + segment.start.min(end)..part.start + segment.end.min(end)
            };
            call.send(after, step as u32, &data[within(&give)]).await?;
            let take = within(&take);
            let theirs = call.receive_exactly::<T>(before, take.len()).await?;
            op.combine_into_right(&theirs, &mut data[take]);
        }
    }
    Ok(())
}
