//! The vectors of all members become one, which all get.

use std::ops::Range;

use crate::{
    Algorithm, Element, Error, Group, Operation, Operator, board::Board, call::Call,
    fate::Signature, op::Op, parts_of, reduce::combine_all, rounds,
};

impl Group {
    /// Leaves in the `data` of all members what `op` makes of the `data` of all, element by element in the order of the
    /// members. All have to have as much, and get the same bits.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn all_reduce<T: Element, O: Op<T>>(
        &self,
        data: &mut [T],
        op: O,
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async move {
            let signature = Signature::of::<T>("all_reduce", Some(data.len())).with_op(op.name());
            let bytes = size_of_val(data);
            let algorithm = self.choose(Operator::AllReduce, bytes, op.is_commutative());
            if algorithm == Algorithm::Board {
                let (call, board) = self.begin_now(signature)?;
                let wrote = board.write_now(&call, data);
                if wrote && board.combine_all_now(&call, 0, data, &op) {
                    return call.end(Ok(()));
                }
                return Box::pin(async move {
                    let result = on_board(&call, board, wrote, data, &op).await;
                    call.end(result)
                })
                .await;
            }
            Box::pin(async move {
                let call = self.begin(signature.by(algorithm)).await?;
                let result = by_messages(&call, algorithm, data, &op).await;
                call.end(result)
            })
            .await
        })
    }
}

pub(crate) async fn by_messages<T: Element, O: Op<T>>(
    call: &Call<'_>,
    algorithm: Algorithm,
    data: &mut [T],
    op: &O,
) -> Result<(), Error> {
    if call.size() == 1 {
        return Ok(());
    }
    match algorithm {
        Algorithm::Rounds if rounds::fits::<T>(call, 1) => rounds::all_reduce(call, data, op).await,
        Algorithm::Slices => slices(call, data, op).await,
        Algorithm::RecursiveDoubling => recursive_doubling(call, data, op).await,
        Algorithm::Rabenseifner => rabenseifner(call, data, op).await,
        Algorithm::Ring => ring(call, data, op).await,
        Algorithm::Hierarchical => {
            let levels = call.group.levels().await?;
            levels.all_reduce(data, op).await
        }
        _ => flat(call, data, op).await,
    }
}

pub(crate) async fn on_board<T: Element, O: Op<T>>(
    call: &Call<'_>,
    board: &Board,
    wrote: bool,
    data: &mut [T],
    op: &O,
) -> Result<(), Error> {
    if !wrote {
        board.write(call, data).await?;
    }
    board.combine(call, 0..call.size(), 0, data, op).await
}

/// All send to all, and each combines all.
async fn flat<T: Element, O: Op<T>>(call: &Call<'_>, data: &mut [T], op: &O) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    for (step, segment) in call.segments::<T>(data.len()).enumerate() {
        let data = &mut data[segment];
        let message = call.message(step as u32, data).await?;
        for to in (me + 1..size).chain(0..me) {
            call.give_in_turn(to, message.clone()).await?;
        }
        combine_all(call, data, op).await?;
    }
    Ok(())
}

/// Each member combines a slice, and sends it to all.
async fn slices<T: Element, O: Op<T>>(
    call: &Call<'_>,
    data: &mut [T],
    op: &O,
) -> Result<(), Error> {
    let (me, size, len) = (call.me(), call.size(), data.len());
    // In rounds, so that what is copied is still in the caches when it is read.
    for round in call.rounds::<T>(len) {
        let data = &mut data[round];
        let part = |member: usize| parts_of(data.len(), size, member);
        for to in (me + 1..size).chain(0..me) {
            call.send(to, 0, &data[part(to)]).await?;
        }
        let mine = part(me);
        combine_all(call, &mut data[mine.clone()], op).await?;
        let message = call.message(1, &data[mine]).await?;
        for to in (me + 1..size).chain(0..me) {
            call.give_in_turn(to, message.clone()).await?;
        }
        for from in (me + 1..size).chain(0..me) {
            let part = parts_of(data.len(), size, from);
            call.receive_into(from, &mut data[part]).await?;
        }
    }
    Ok(())
}

/// Where a member is among the largest power of two of members, to which the others have given their operands: of
/// the first pairs, one member stands for both.
struct Power {
    /// Members that take part.
    size: usize,
    /// Pairs of which one takes part.
    pairs: usize,
    /// Our place among those that take part.
    place: Option<usize>,
}

impl Power {
    fn of(call: &Call<'_>) -> Self {
        let (me, all) = (call.me(), call.size());
        let size = if all.is_power_of_two() {
            all
        } else {
            all.next_power_of_two() / 2
        };
        let pairs = all - size;
        let place = if me >= 2 * pairs {
            Some(me - pairs)
        } else {
            (me % 2 == 1).then_some(me / 2)
        };
        Self { size, pairs, place }
    }

    fn member(&self, place: usize) -> usize {
        if place < self.pairs {
            2 * place + 1
        } else {
            place + self.pairs
        }
    }

    /// Of what is left of `len` elements when partners at larger distances have halved it: what the member at `place` keeps
    /// when it and its partner at `distance` halve that, and what it gives.
    fn halves(&self, place: usize, distance: usize, len: usize) -> (Range<usize>, Range<usize>) {
        let (mut keep, mut give) = (0..len, 0..0);
        let mut larger = self.size / 2;
        while larger >= distance {
            let middle = keep.start + keep.len() / 2;
            let halves = (keep.start..middle, middle..keep.end);
            (keep, give) = match place & larger {
                0 => halves,
                _ => (halves.1, halves.0),
            };
            larger /= 2;
        }
        (keep, give)
    }

    /// Gives the operands of the members that do not take part to those that do. Our place, if we take part.
    async fn fold<T: Element, O: Op<T>>(
        &self,
        call: &Call<'_>,
        data: &mut [T],
        op: &O,
    ) -> Result<Option<usize>, Error> {
        let me = call.me();
        if me < 2 * self.pairs {
            if me.is_multiple_of(2) {
                call.send(me + 1, 0, data).await?;
            } else {
                let left = call.receive_exactly::<T>(me - 1, data.len()).await?;
                op.combine_into_right(&left, data);
            }
        }
        Ok(self.place)
    }

    /// Gives the result to those that did not take part.
    async fn unfold<T: Element>(&self, call: &Call<'_>, data: &mut [T]) -> Result<(), Error> {
        let me = call.me();
        if me < 2 * self.pairs {
            if me.is_multiple_of(2) {
                call.receive_into(me + 1, data).await?;
            } else {
                call.send(me - 1, 0, data).await?;
            }
        }
        Ok(())
    }
}

/// Pairs at a distance that doubles exchange all they have. Neighbours come first, so the order is kept.
async fn recursive_doubling<T: Element, O: Op<T>>(
    call: &Call<'_>,
    data: &mut [T],
    op: &O,
) -> Result<(), Error> {
    let power = Power::of(call);
    if let Some(place) = power.fold(call, data, op).await? {
        let mut distance = 1;
        while distance < power.size {
            let partner = power.member(place ^ distance);
            call.send(partner, distance as u32, data).await?;
            let theirs = call.receive_exactly::<T>(partner, data.len()).await?;
            if place & distance == 0 {
                op.combine(data, &theirs);
            } else {
                op.combine_into_right(&theirs, data);
            }
            distance *= 2;
        }
    }
    power.unfold(call, data).await
}

/// Halves are exchanged until each member has combined its part of all, and then the parts come together the same way.
async fn rabenseifner<T: Element, O: Op<T>>(
    call: &Call<'_>,
    data: &mut [T],
    op: &O,
) -> Result<(), Error> {
    let power = Power::of(call);
    if let Some(place) = power.fold(call, data, op).await? {
        let mut distance = power.size / 2;
        while distance > 0 {
            let partner = power.member(place ^ distance);
            let (keep, give) = power.halves(place, distance, data.len());
            call.send(partner, 0, &data[give]).await?;
            let theirs = call.receive_exactly::<T>(partner, keep.len()).await?;
            op.combine(&mut data[keep], &theirs);
            distance /= 2;
        }
        distance = 1;
        while distance < power.size {
            let partner = power.member(place ^ distance);
            let (keep, give) = power.halves(place, distance, data.len());
            call.send(partner, 1, &data[keep]).await?;
            call.receive_into(partner, &mut data[give]).await?;
            distance *= 2;
        }
    }
    power.unfold(call, data).await
}

/// Parts go round once to be combined, and once to be known by all.
async fn ring<T: Element, O: Op<T>>(call: &Call<'_>, data: &mut [T], op: &O) -> Result<(), Error> {
    let (size, len) = (call.size(), data.len());
    let part = |member: usize| parts_of(len, size, member);
    crate::reduce_scatter::around(call, data, part, op).await?;
    crate::all_gather::ring(call, data, part).await
}
