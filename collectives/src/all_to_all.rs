//! Each member has something for each.

use crate::{
    Algorithm, Element, Error, Group, Operation, Operator, Parts, board::Board, call::Call, copy,
    fate::Signature, rounds,
};

impl Group {
    /// Gives each member its block of every member's `data`, in the order of the members. Both vectors have as many
    /// blocks as there are members, all of the same length.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when the lengths differ or are no multiples of the group's size; see [`Error`].
    pub fn all_to_all<T: Element>(
        &self,
        data: &[T],
        into: &mut [T],
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async move {
            self.check_blocks("all_to_all", data.len() / self.size(), data.len())?;
            self.check_blocks("all_to_all", data.len() / self.size(), into.len())?;
            let signature = Signature::of::<T>("all_to_all", Some(data.len()));
            let block = size_of_val(data) / self.size();
            let algorithm = self.choose(Operator::AllToAll, block, true);
            if algorithm == Algorithm::Board {
                let (call, board) = self.begin_now(signature)?;
                let len = data.len() / self.size();
                let first = self.rank() * len;
                let wrote = board.write_now(&call, data);
                if wrote && board.read_all_now(&call, first, &data[first..first + len], into) {
                    return call.end(Ok(()));
                }
                return Box::pin(async move {
                    let result = on_board(&call, board, wrote, data, into).await;
                    call.end(result)
                })
                .await;
            }
            Box::pin(async move {
                let call = self.begin(signature.by(algorithm)).await?;
                let result = by_messages(&call, algorithm, data, into).await;
                call.end(result)
            })
            .await
        })
    }

    /// The same with a part of any length for each member.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when there is not one part for each member; see [`Error`].
    pub fn all_to_all_v<T: Element>(
        &self,
        parts: &[&[T]],
    ) -> Operation<'_, impl Future<Output = Result<Parts<T>, Error>>> {
        self.operation(async move {
            if parts.len() != self.size() {
                let reason = format!(
                    "{} parts are not one for each of {}",
                    parts.len(),
                    self.size()
                );
                return Err(self.argument("all_to_all_v", reason));
            }
            let call = self.begin(Signature::of::<T>("all_to_all_v", None)).await?;
            let result = varied(&call, parts).await;
            call.end(result)
        })
    }
}

pub(crate) async fn on_board<T: Element>(
    call: &Call<'_>,
    board: &Board,
    wrote: bool,
    data: &[T],
    into: &mut [T],
) -> Result<(), Error> {
    if !wrote {
        board.write(call, data).await?;
    }
    let (me, len) = (call.me(), data.len() / call.size());
    for from in 0..call.size() {
        let block = &mut into[from * len..(from + 1) * len];
        board.read(call, from, me * len, block).await?;
    }
    Ok(())
}

pub(crate) async fn by_messages<T: Element>(
    call: &Call<'_>,
    algorithm: Algorithm,
    data: &[T],
    into: &mut [T],
) -> Result<(), Error> {
    if call.size() == 1 {
        copy(into, data);
        return Ok(());
    }
    match algorithm {
        Algorithm::Rounds if rounds::fits::<T>(call, call.size() - 1) => {
            rounds::all_to_all(call, data, into).await
        }
        Algorithm::Bruck => bruck(call, data, into).await,
        Algorithm::Pairwise => pairwise(call, data, into).await,
        _ => flat(call, data, into).await,
    }
}

/// All at once, a segment of each block at a time.
async fn flat<T: Element>(call: &Call<'_>, data: &[T], into: &mut [T]) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    let len = data.len() / size;
    copy(
        &mut into[me * len..(me + 1) * len],
        &data[me * len..(me + 1) * len],
    );
    for (step, segment) in call.segments::<T>(len).enumerate() {
        let of = |member: usize| member * len + segment.start..member * len + segment.end;
        for to in (me + 1..size).chain(0..me) {
            call.send(to, step as u32, &data[of(to)]).await?;
        }
        for from in (me + 1..size).chain(0..me) {
            call.receive_into(from, &mut into[of(from)]).await?;
        }
    }
    Ok(())
}

/// One partner after another.
async fn pairwise<T: Element>(call: &Call<'_>, data: &[T], into: &mut [T]) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    let len = data.len() / size;
    copy(
        &mut into[me * len..(me + 1) * len],
        &data[me * len..(me + 1) * len],
    );
    for distance in 1..size {
        let (to, from) = ((me + distance) % size, (me + size - distance) % size);
        for segment in call.segments::<T>(len) {
            let of = |member: usize| member * len + segment.start..member * len + segment.end;
            call.send(to, distance as u32, &data[of(to)]).await?;
            call.receive_into(from, &mut into[of(from)]).await?;
        }
    }
    Ok(())
}

/// In round *k* all blocks travel 2^*k* members on whose distance has that bit.
async fn bruck<T: Element>(call: &Call<'_>, data: &[T], into: &mut [T]) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    let len = data.len() / size;
    // Block *d* is for the member *d* further on.
    let mut blocks = call.scratch_copy(data);
    blocks.rotate_left(me * len);
    let mut packed = call.scratch::<T>(data.len());
    let mut bit = 1;
    while bit < size {
        let travel = || (0..size).filter(|distance| distance & bit != 0);
        for (index, distance) in travel().enumerate() {
            let block = &blocks[distance * len..(distance + 1) * len];
            copy(&mut packed[index * len..(index + 1) * len], block);
        }
        let (to, from) = ((me + bit) % size, (me + size - bit) % size);
        for segment in call.segments::<T>(travel().count() * len) {
            call.send(to, bit as u32, &packed[segment.clone()]).await?;
            call.receive_into(from, &mut packed[segment]).await?;
        }
        for (index, distance) in travel().enumerate() {
            let block = &packed[index * len..(index + 1) * len];
            copy(&mut blocks[distance * len..(distance + 1) * len], block);
        }
        bit *= 2;
    }
    // Block *d* has come from the member *d* before us.
    for distance in 0..size {
        let from = (me + size - distance) % size;
        let block = &blocks[distance * len..(distance + 1) * len];
        copy(&mut into[from * len..(from + 1) * len], block);
    }
    Ok(())
}

async fn varied<T: Element>(call: &Call<'_>, parts: &[&[T]]) -> Result<Parts<T>, Error> {
    let (me, size) = (call.me(), call.size());
    let mut lens = vec![parts[me].len(); size];
    for distance in 1..size {
        let to = (me + distance) % size;
        call.send(to, 0, &[parts[to].len() as u64]).await?;
    }
    for from in (0..size).filter(|&from| from != me) {
        lens[from] = call.receive_exactly::<u64>(from, 1).await?[0] as usize;
    }
    let mut into = Parts::with_lens(lens.iter().copied());
    copy(into.part_mut(me), parts[me]);
    let longest = (lens.iter().copied())
        .chain(parts.iter().map(|part| part.len()))
        .max()
        .unwrap_or(0);
    for (step, segment) in call.segments::<T>(longest).enumerate() {
        let within = |len: usize| segment.start.min(len)..segment.end.min(len);
        for to in (me + 1..size).chain(0..me) {
            let place = within(parts[to].len());
            if !place.is_empty() {
                call.send(to, step as u32, &parts[to][place]).await?;
            }
        }
        for from in (me + 1..size).chain(0..me) {
            let part = into.part_mut(from);
            let place = within(part.len());
            if !place.is_empty() {
                call.receive_into(from, &mut part[place]).await?;
            }
        }
    }
    Ok(into)
}
