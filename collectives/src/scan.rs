//! Each member gets what those before it make.

use crate::{
    Algorithm, Element, Error, Group, Operation, Operator, board::Board, call::Call, copy,
    fate::Signature, op::Op, rounds, scratch::Scratch,
};

impl Group {
    /// Leaves in the `data` of each member what `op` makes of the `data` of all members up to and with it, element by
    /// element in their order. All have to have as much.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn scan<T: Element, O: Op<T>>(
        &self,
        data: &mut [T],
        op: O,
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async move {
            let signature = Signature::of::<T>("scan", Some(data.len())).with_op(op.name());
            scan(self, signature, data, &op, true).await
        })
    }

    /// The same, of the members before it alone. The `data` of the first member is left as it is.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn exscan<T: Element, O: Op<T>>(
        &self,
        data: &mut [T],
        op: O,
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async move {
            let signature = Signature::of::<T>("exscan", Some(data.len())).with_op(op.name());
            scan(self, signature, data, &op, false).await
        })
    }
}

async fn scan<T: Element, O: Op<T>>(
    group: &Group,
    signature: Signature,
    data: &mut [T],
    op: &O,
    with_own: bool,
) -> Result<(), Error> {
    let bytes = size_of_val(data);
    let algorithm = group.choose(Operator::Scan, bytes, op.is_commutative());
    if algorithm == Algorithm::Board {
        let (call, board) = group.begin_now(signature)?;
        let wrote = board.write_now(&call, data);
        let are_ahead = board.are_ahead(&call);
        let combined = wrote
            && match with_own {
                true => board.combine_before_now(&call, data, op),
                false => board.combine_now(&call, 0..group.rank(), 0, data, op),
            };
        if combined {
            if are_ahead {
                board.fetch_from_ahead(&call, bytes);
            }
            return call.end(Ok(()));
        }
        return Box::pin(async move {
            let result = on_board(&call, board, wrote, data, op, with_own).await;
            call.end(result)
        })
        .await;
    }
    Box::pin(async move {
        let call = group.begin(signature.by(algorithm)).await?;
        let result = by_messages(&call, algorithm, data, op, with_own).await;
        call.end(result)
    })
    .await
}

pub(crate) async fn by_messages<T: Element, O: Op<T>>(
    call: &Call<'_>,
    algorithm: Algorithm,
    data: &mut [T],
    op: &O,
    with_own: bool,
) -> Result<(), Error> {
    if call.size() == 1 {
        return Ok(());
    }
    match algorithm {
        Algorithm::Rounds if rounds::fits::<T>(call, 1) => {
            rounds::scan(call, data, op, with_own).await
        }
        Algorithm::Chain => chain(call, data, op, with_own).await,
        Algorithm::Flat => flat(call, data, op, with_own).await,
        _ => recursive_doubling(call, data, op, with_own).await,
    }
}

pub(crate) async fn on_board<T: Element, O: Op<T>>(
    call: &Call<'_>,
    board: &Board,
    wrote: bool,
    data: &mut [T],
    op: &O,
    with_own: bool,
) -> Result<(), Error> {
    if !wrote {
        board.write(call, data).await?;
    }
    match with_own {
        true => board.combine_before(call, data, op).await,
        false => board.combine(call, 0..call.me(), 0, data, op).await,
    }
}

/// Each member sends to all after it.
async fn flat<T: Element, O: Op<T>>(
    call: &Call<'_>,
    data: &mut [T],
    op: &O,
    with_own: bool,
) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    for (step, segment) in call.segments::<T>(data.len()).enumerate() {
        let data = &mut data[segment];
        if me + 1 < size {
            let message = call.message(step as u32, data).await?;
            for to in me + 1..size {
                call.give_in_turn(to, message.clone()).await?;
            }
        }
        let mut before: Option<Scratch<'_, T>> = None;
        for from in 0..me {
            let theirs = call.receive_exactly::<T>(from, data.len()).await?;
            match &mut before {
                None if me == 1 && with_own => op.combine_into_right(&theirs, data),
                None if me == 1 => copy(data, &theirs),
                None => before = Some(call.scratch_copy(&theirs)),
                Some(before) => op.combine(before, &theirs),
            }
        }
        if let Some(before) = before {
            if with_own {
                op.combine_into_right(&before, data);
            } else {
                copy(data, &before);
            }
        }
    }
    Ok(())
}

/// From member to member, in segments.
async fn chain<T: Element, O: Op<T>>(
    call: &Call<'_>,
    data: &mut [T],
    op: &O,
    with_own: bool,
) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    for (step, segment) in call.segments::<T>(data.len()).enumerate() {
        let data = &mut data[segment];
        if me == 0 {
            call.send(1, step as u32, data).await?;
            continue;
        }
        let before = call.receive_exactly::<T>(me - 1, data.len()).await?;
        if with_own {
            op.combine_into_right(&before, data);
            if me + 1 < size {
                call.send(me + 1, step as u32, data).await?;
            }
            continue;
        }
        if me + 1 < size {
            let mut loan = call.loan(step as u32, size_of_val(data)).await?;
            match bytemuck::try_cast_slice_mut::<u8, T>(&mut loan) {
                Ok(out) => op.combine_to(out, &before, data),
                Err(_) => {
                    let mut out = call.scratch_copy(&before);
                    op.combine(&mut out, data);
                    loan.copy_from_slice(bytemuck::cast_slice(&out));
                }
            }
            call.give(me + 1, loan)?;
        }
        copy(data, &before);
    }
    Ok(())
}

/// In round *k* each member hears what the 2^*k* members before those it knows of make (Hillis, Steele: "Data parallel
/// algorithms", 1986).
async fn recursive_doubling<T: Element, O: Op<T>>(
    call: &Call<'_>,
    data: &mut [T],
    op: &O,
    with_own: bool,
) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    // What the members make that we know of, with us and without us.
    let mut with_us = call.scratch_copy(data);
    let mut before: Option<Scratch<'_, T>> = None;
    let mut distance = 1;
    while distance < size {
        if me + distance < size {
            call.send(me + distance, distance as u32, &with_us).await?;
        }
        if me >= distance {
            let theirs = call.receive_exactly::<T>(me - distance, data.len()).await?;
            match &mut before {
                None => before = Some(call.scratch_copy(&theirs)),
                Some(before) => op.combine_into_right(&theirs, before),
            }
            op.combine_into_right(&theirs, &mut with_us);
        }
        distance *= 2;
    }
    if with_own {
        copy(data, &with_us);
    } else if let Some(before) = before {
        copy(data, &before);
    }
    Ok(())
}
