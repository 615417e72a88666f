//! The vectors of all members become one.

use crate::{
    Algorithm, Element, Error, Group, Operation, Operator, board::Board, call::Call,
    fate::Signature, op::Op, parts_of, rounds,
};

impl Group {
    /// Leaves in `data` of member `root` what `op` makes of the `data` of all members, element by element in the order of
    /// the members. All have to have as much; what the others have in it afterwards is of no use.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a root that is no member; see [`Error`].
    pub fn reduce<T: Element, O: Op<T>>(
        &self,
        root: usize,
        data: &mut [T],
        op: O,
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async move {
            self.check_member("reduce", root)?;
            let signature = Signature::of::<T>("reduce", Some(data.len()))
                .with_root(root)
                .with_op(op.name());
            let bytes = size_of_val(data);
            let algorithm = self.choose(Operator::Reduce, bytes, op.is_commutative());
            if algorithm == Algorithm::Board {
                let (call, board) = self.begin_now(signature)?;
                let wrote = board.write_now(&call, data);
                let reads = self.rank() == root;
                if wrote && (!reads || board.combine_all_now(&call, 0, data, &op)) {
                    return call.end(Ok(()));
                }
                return Box::pin(async move {
                    let result = on_board(&call, board, wrote, root, data, &op).await;
                    call.end(result)
                })
                .await;
            }
            Box::pin(async move {
                let call = self.begin(signature.by(algorithm)).await?;
                let result = by_messages(&call, algorithm, root, data, &op).await;
                call.end(result)
            })
            .await
        })
    }
}

pub(crate) async fn by_messages<T: Element, O: Op<T>>(
    call: &Call<'_>,
    algorithm: Algorithm,
    root: usize,
    data: &mut [T],
    op: &O,
) -> Result<(), Error> {
    if call.size() == 1 {
        return Ok(());
    }
    match algorithm {
        Algorithm::Rounds if rounds::fits::<T>(call, 1) => {
            rounds::reduce(call, root, data, op).await
        }
        Algorithm::Slices => slices(call, root, data, op).await,
        Algorithm::Tree => tree(call, root, data, op).await,
        Algorithm::Hierarchical => {
            let levels = call.group.levels().await?;
            levels.reduce(root, data, op).await
        }
        _ => flat(call, root, data, op).await,
    }
}

pub(crate) async fn on_board<T: Element, O: Op<T>>(
    call: &Call<'_>,
    board: &Board,
    wrote: bool,
    root: usize,
    data: &mut [T],
    op: &O,
) -> Result<(), Error> {
    if !wrote {
        board.write(call, data).await?;
    }
    if call.me() == root {
        board.combine(call, 0..call.size(), 0, data, op).await?;
    }
    Ok(())
}

/// All send to the root.
async fn flat<T: Element, O: Op<T>>(
    call: &Call<'_>,
    root: usize,
    data: &mut [T],
    op: &O,
) -> Result<(), Error> {
    for (step, segment) in call.segments::<T>(data.len()).enumerate() {
        let data = &mut data[segment];
        if call.me() == root {
            combine_all(call, data, op).await?;
        } else {
            call.send(root, step as u32, data).await?;
        }
    }
    Ok(())
}

/// Combines the next vectors of all members with ours, in the order of the members.
pub(crate) async fn combine_all<T: Element, O: Op<T>>(
    call: &Call<'_>,
    data: &mut [T],
    op: &O,
) -> Result<(), Error> {
    let me = call.me();
    if me > 0 {
        let first = call.receive_exactly::<T>(0, data.len()).await?;
        if me == 1 {
            op.combine_into_right(&first, data);
        } else {
            let mut left = call.scratch_copy(&first);
            for from in 1..me {
                let right = call.receive_exactly::<T>(from, data.len()).await?;
                op.combine(&mut left, &right);
            }
            op.combine_into_right(&left, data);
        }
    }
    for from in me + 1..call.size() {
        let right = call.receive_exactly::<T>(from, data.len()).await?;
        op.combine(data, &right);
    }
    Ok(())
}

/// Each member combines a slice, and sends it to the root.
async fn slices<T: Element, O: Op<T>>(
    call: &Call<'_>,
    root: usize,
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
        if me != root {
            call.send(root, 1, &data[mine]).await?;
            continue;
        }
        for from in (0..size).filter(|&from| from != root) {
            let part = parts_of(data.len(), size, from);
            call.receive_into(from, &mut data[part]).await?;
        }
    }
    Ok(())
}

/// Up a binomial tree, in segments. Neighbours are combined first, so that the order is kept; then the result goes from
/// the first member to the root.
async fn tree<T: Element, O: Op<T>>(
    call: &Call<'_>,
    root: usize,
    data: &mut [T],
    op: &O,
) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    // Operands that commute may as well be counted from the root.
    let first = if op.is_commutative() { root } else { 0 };
    let place = (me + size - first) % size;
    for (step, segment) in call.segments::<T>(data.len()).enumerate() {
        let data = &mut data[segment];
        let mut bit = 1;
        while bit < size {
            if place & bit != 0 {
                call.send((place - bit + first) % size, step as u32, data)
                    .await?;
                break;
            }
            if place + bit < size {
                let from = (place + bit + first) % size;
                let right = call.receive_exactly::<T>(from, data.len()).await?;
                op.combine(data, &right);
            }
            bit *= 2;
        }
        if first != root {
            if me == first {
                call.send(root, step as u32, data).await?;
            } else if me == root {
                call.receive_into(first, data).await?;
            }
        }
    }
    Ok(())
}
