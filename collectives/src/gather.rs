//! One member learns what each has, and the other way round.

use crate::{
    Algorithm, Element, Error, Group, Operation, Operator, Parts, board::Board, call::Call, copy,
    fate::Signature, rounds,
};

impl Group {
    /// Gives member `root` the vectors `mine` of all, in the order of the members. All are as long as `mine`; `all` has
    /// room for as many as there are members at the root, and is not used elsewhere.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a root that is no member, or when its `all` has another length; see [`Error`].
    pub fn gather<T: Element>(
        &self,
        root: usize,
        mine: &[T],
        all: &mut [T],
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async move {
            self.check_member("gather", root)?;
            if self.rank() == root {
                self.check_blocks("gather", mine.len(), all.len())?;
            }
            let signature = Signature::of::<T>("gather", Some(mine.len())).with_root(root);
            let algorithm = self.choose(Operator::Gather, size_of_val(mine), true);
            if algorithm == Algorithm::Board {
                let (call, board) = self.begin_now(signature)?;
                let wrote = board.write_now(&call, mine);
                let reads = self.rank() == root;
                if wrote && (!reads || board.read_all_now(&call, 0, mine, all)) {
                    return call.end(Ok(()));
                }
                return Box::pin(async move {
                    let result = gather_on_board(&call, board, wrote, root, mine, all).await;
                    call.end(result)
                })
                .await;
            }
            Box::pin(async move {
                let call = self.begin(signature.by(algorithm)).await?;
                let result = gather(&call, algorithm, root, mine, all).await;
                call.end(result)
            })
            .await
        })
    }

    /// The same, where each member may have as many elements as it likes. `None` for all but the root.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a root that is no member; see [`Error`].
    pub fn gather_v<T: Element>(
        &self,
        root: usize,
        mine: &[T],
    ) -> Operation<'_, impl Future<Output = Result<Option<Parts<T>>, Error>>> {
        self.operation(async move {
            self.check_member("gather_v", root)?;
            let signature = Signature::of::<T>("gather_v", None).with_root(root);
            let call = self.begin(signature).await?;
            let result = gather_varied(&call, root, mine).await;
            call.end(result)
        })
    }

    /// Gives each member its block of `all` of member `root`. All blocks are as long as `mine`; `all` has as many as
    /// there are members at the root, and is not used elsewhere.
    ///
    /// # Errors
    ///
    /// As [`gather`](Self::gather).
    pub fn scatter<T: Element>(
        &self,
        root: usize,
        all: &[T],
        mine: &mut [T],
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async move {
            self.check_member("scatter", root)?;
            if self.rank() == root {
                self.check_blocks("scatter", mine.len(), all.len())?;
            }
            let signature = Signature::of::<T>("scatter", Some(mine.len())).with_root(root);
            let algorithm = self.choose(Operator::Scatter, size_of_val(mine), true);
            if algorithm == Algorithm::Board {
                let (call, board) = self.begin_now(signature)?;
                let (first, len) = (self.rank() * mine.len(), mine.len());
                let done = if self.rank() == root {
                    board.write_now(&call, all)
                } else {
                    board.read_now(&call, root, first, mine)
                };
                if !done {
                    return Box::pin(async move {
                        let result = scatter_on_board(&call, board, root, all, mine).await;
                        call.end(result)
                    })
                    .await;
                }
                if self.rank() == root {
                    mine.copy_from_slice(&all[first..first + len]);
                }
                return call.end(Ok(()));
            }
            Box::pin(async move {
                let call = self.begin(signature.by(algorithm)).await?;
                let result = scatter(&call, algorithm, root, all, mine).await;
                call.end(result)
            })
            .await
        })
    }

    /// The same with as many elements for each member as the root's part of it has; the others give `None`.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a root that is no member, or has not one part for each member; see [`Error`].
    pub fn scatter_v<T: Element>(
        &self,
        root: usize,
        parts: Option<&[&[T]]>,
    ) -> Operation<'_, impl Future<Output = Result<Vec<T>, Error>>> {
        self.operation(async move {
            self.check_member("scatter_v", root)?;
            if self.rank() == root && parts.is_none_or(|parts| parts.len() != self.size()) {
                let reason = "the root is to give one part for each member";
                return Err(self.argument("scatter_v", reason));
            }
            let signature = Signature::of::<T>("scatter_v", None).with_root(root);
            let call = self.begin(signature).await?;
            let result = scatter_varied(&call, root, parts.unwrap_or_default()).await;
            call.end(result)
        })
    }
}

pub(crate) async fn gather<T: Element>(
    call: &Call<'_>,
    algorithm: Algorithm,
    root: usize,
    mine: &[T],
    all: &mut [T],
) -> Result<(), Error> {
    if call.size() > 1 && algorithm == Algorithm::Rounds && rounds::fits::<T>(call, 1) {
        return rounds::gather(call, root, mine, all).await;
    }
    if call.me() == root {
        let len = mine.len();
        copy(&mut all[root * len..(root + 1) * len], mine);
    }
    match algorithm {
        _ if call.size() == 1 => Ok(()),
        Algorithm::Tree => gather_by_tree(call, root, mine, all).await,
        _ => gather_flat(call, root, mine, all).await,
    }
}

/// All send to the root.
async fn gather_flat<T: Element>(
    call: &Call<'_>,
    root: usize,
    mine: &[T],
    all: &mut [T],
) -> Result<(), Error> {
    let (me, size, len) = (call.me(), call.size(), mine.len());
    for (step, segment) in call.segments::<T>(len).enumerate() {
        if me != root {
            call.send(root, step as u32, &mine[segment]).await?;
            continue;
        }
        for from in (0..size).filter(|&from| from != root) {
            let place = from * len + segment.start..from * len + segment.end;
            call.receive_into(from, &mut all[place]).await?;
        }
    }
    Ok(())
}

pub(crate) async fn gather_on_board<T: Element>(
    call: &Call<'_>,
    board: &Board,
    wrote: bool,
    root: usize,
    mine: &[T],
    all: &mut [T],
) -> Result<(), Error> {
    if !wrote {
        board.write(call, mine).await?;
    }
    if call.me() != root {
        return Ok(());
    }
    let len = mine.len();
    for from in 0..call.size() {
        let block = &mut all[from * len..(from + 1) * len];
        board.read(call, from, 0, block).await?;
    }
    Ok(())
}

/// Blocks that a member at a place of a binomial tree has to do with, and the place above it.
fn subtree(place: usize, size: usize) -> (usize, Option<usize>) {
    if place == 0 {
        return (size, None);
    }
    let lowest = 1 << place.trailing_zeros();
    (lowest.min(size - place), Some(place - lowest))
}

async fn gather_by_tree<T: Element>(
    call: &Call<'_>,
    root: usize,
    mine: &[T],
    all: &mut [T],
) -> Result<(), Error> {
    let (me, size, len) = (call.me(), call.size(), mine.len());
    let place = (me + size - root) % size;
    let (count, above) = subtree(place, size);
    // Counted from our own block.
    let mut blocks = call.scratch::<T>(count * len);
    copy(&mut blocks[..len], mine);
    let mut bit = 1;
    while bit < count {
        let below = place + bit;
        let (theirs, _) = subtree(below, size);
        for segment in call.segments::<T>(theirs * len) {
            let into = &mut blocks[bit * len..][segment];
            call.receive_into((below + root) % size, into).await?;
        }
        bit *= 2;
    }
    if let Some(above) = above {
        for segment in call.segments::<T>(blocks.len()) {
            call.send((above + root) % size, 0, &blocks[segment])
                .await?;
        }
        return Ok(());
    }
    for index in 0..size {
        let member = (index + root) % size;
        let block = &blocks[index * len..(index + 1) * len];
        copy(&mut all[member * len..(member + 1) * len], block);
    }
    Ok(())
}

pub(crate) async fn scatter_on_board<T: Element>(
    call: &Call<'_>,
    board: &Board,
    root: usize,
    all: &[T],
    mine: &mut [T],
) -> Result<(), Error> {
    let (first, len) = (call.me() * mine.len(), mine.len());
    if call.me() != root {
        return board.read(call, root, first, mine).await;
    }
    mine.copy_from_slice(&all[first..first + len]);
    board.write(call, all).await
}

pub(crate) async fn scatter<T: Element>(
    call: &Call<'_>,
    algorithm: Algorithm,
    root: usize,
    all: &[T],
    mine: &mut [T],
) -> Result<(), Error> {
    let size = call.size();
    if size > 1 && algorithm == Algorithm::Rounds && rounds::fits::<T>(call, size - 1) {
        return rounds::scatter(call, root, all, mine).await;
    }
    if call.me() == root {
        let len = mine.len();
        copy(mine, &all[root * len..(root + 1) * len]);
    }
    match algorithm {
        _ if size == 1 => Ok(()),
        Algorithm::Tree => scatter_by_tree(call, root, all, mine).await,
        _ => scatter_flat(call, root, all, mine).await,
    }
}

/// The root sends each its block.
async fn scatter_flat<T: Element>(
    call: &Call<'_>,
    root: usize,
    all: &[T],
    mine: &mut [T],
) -> Result<(), Error> {
    let (me, size, len) = (call.me(), call.size(), mine.len());
    for (step, segment) in call.segments::<T>(len).enumerate() {
        if me != root {
            call.receive_into(root, &mut mine[segment]).await?;
            continue;
        }
        for to in (0..size).filter(|&to| to != root) {
            let place = to * len + segment.start..to * len + segment.end;
            call.send(to, step as u32, &all[place]).await?;
        }
    }
    Ok(())
}

async fn scatter_by_tree<T: Element>(
    call: &Call<'_>,
    root: usize,
    all: &[T],
    mine: &mut [T],
) -> Result<(), Error> {
    let (me, size, len) = (call.me(), call.size(), mine.len());
    let place = (me + size - root) % size;
    let (count, above) = subtree(place, size);
    // Counted from our own block.
    let mut blocks = call.scratch::<T>(count * len);
    if let Some(above) = above {
        for segment in call.segments::<T>(count * len) {
            call.receive_into((above + root) % size, &mut blocks[segment])
                .await?;
        }
        copy(mine, &blocks[..len]);
    } else {
        for index in 0..size {
            let member = (index + root) % size;
            let block = &all[member * len..(member + 1) * len];
            copy(&mut blocks[index * len..(index + 1) * len], block);
        }
    }
    let mut bit = count.next_power_of_two() / 2;
    while bit > 0 {
        let below = place + bit;
        if bit < count {
            let (theirs, _) = subtree(below, size);
            let theirs = &blocks[bit * len..(bit + theirs) * len];
            for segment in call.segments::<T>(theirs.len()) {
                call.send((below + root) % size, 0, &theirs[segment])
                    .await?;
            }
        }
        bit /= 2;
    }
    Ok(())
}

/// The length of a vector, and then the vector.
pub(crate) async fn send_varied<T: Element>(
    call: &Call<'_>,
    to: usize,
    data: &[T],
) -> Result<(), Error> {
    call.send(to, 0, &[data.len() as u64]).await?;
    for segment in call
        .segments::<T>(data.len())
        .filter(|segment| !segment.is_empty())
    {
        call.send(to, 1, &data[segment]).await?;
    }
    Ok(())
}

async fn gather_varied<T: Element>(
    call: &Call<'_>,
    root: usize,
    mine: &[T],
) -> Result<Option<Parts<T>>, Error> {
    let (me, size) = (call.me(), call.size());
    if me != root {
        send_varied(call, root, mine).await?;
        return Ok(None);
    }
    let mut lens = vec![mine.len(); size];
    for from in (0..size).filter(|&from| from != root) {
        lens[from] = call.receive_exactly::<u64>(from, 1).await?[0] as usize;
    }
    let mut parts = Parts::with_lens(lens.into_iter());
    copy(parts.part_mut(me), mine);
    for from in (0..size).filter(|&from| from != root) {
        let part = parts.part_mut(from);
        for segment in call
            .segments::<T>(part.len())
            .filter(|segment| !segment.is_empty())
        {
            call.receive_into(from, &mut part[segment]).await?;
        }
    }
    Ok(Some(parts))
}

async fn scatter_varied<T: Element>(
    call: &Call<'_>,
    root: usize,
    parts: &[&[T]],
) -> Result<Vec<T>, Error> {
    let (me, size) = (call.me(), call.size());
    if me == root {
        for to in (0..size).filter(|&to| to != root) {
            send_varied(call, to, parts[to]).await?;
        }
        return Ok(parts[me].to_vec());
    }
    let len = call.receive_exactly::<u64>(root, 1).await?[0] as usize;
    let mut mine = vec![bytemuck::Zeroable::zeroed(); len];
    for segment in call
        .segments::<T>(len)
        .filter(|segment| !segment.is_empty())
    {
        call.receive_into(root, &mut mine[segment]).await?;
    }
    Ok(mine)
}
