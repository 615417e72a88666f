//! One member tells all others.

use transport::Buffer;

use crate::{
    Algorithm, Element, Error, Group, Operation, Operator, board::Board, call::Call,
    fate::Signature, parts_of, rounds,
};

impl Group {
    /// Gives all members the `data` of member `root`. All have to have as much.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a root that is no member; see [`Error`].
    pub fn broadcast<T: Element>(
        &self,
        root: usize,
        data: &mut [T],
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async move {
            self.check_member("broadcast", root)?;
            let signature = Signature::of::<T>("broadcast", Some(data.len())).with_root(root);
            let algorithm = self.choose(Operator::Broadcast, size_of_val(data), true);
            if algorithm == Algorithm::Board {
                let (call, board) = self.begin_now(signature)?;
                let done = if self.rank() == root {
                    board.write_now(&call, data)
                } else {
                    board.read_now(&call, root, 0, data)
                };
                if done {
                    return call.end(Ok(()));
                }
                return Box::pin(async move {
                    let result = on_board(&call, board, root, data).await;
                    call.end(result)
                })
                .await;
            }
            Box::pin(async move {
                let call = self.begin(signature.by(algorithm)).await?;
                let result = by_messages(&call, algorithm, root, data).await;
                call.end(result)
            })
            .await
        })
    }
}

pub(crate) async fn by_messages<T: Element>(
    call: &Call<'_>,
    algorithm: Algorithm,
    root: usize,
    data: &mut [T],
) -> Result<(), Error> {
    if call.size() == 1 {
        return Ok(());
    }
    match algorithm {
        Algorithm::Rounds if rounds::fits::<T>(call, 1) => {
            rounds::broadcast(call, root, data).await
        }
        Algorithm::Flat => flat(call, root, data).await,
        Algorithm::Chain => chain(call, root, data).await,
        Algorithm::ScatterAllGather => scatter_all_gather(call, root, data).await,
        Algorithm::Hierarchical => {
            let levels = call.group.levels().await?;
            levels.broadcast(root, data).await
        }
        _ => tree(call, root, data).await,
    }
}

pub(crate) async fn on_board<T: Element>(
    call: &Call<'_>,
    board: &Board,
    root: usize,
    data: &mut [T],
) -> Result<(), Error> {
    if call.me() == root {
        return board.write(call, data).await;
    }
    board.read(call, root, 0, data).await
}

/// The root sends each segment to all. On shared memory that is one copy, which all read.
async fn flat<T: Element>(call: &Call<'_>, root: usize, data: &mut [T]) -> Result<(), Error> {
    for (step, segment) in call.segments::<T>(data.len()).enumerate() {
        if call.me() == root {
            let message = call.message(step as u32, &data[segment]).await?;
            for to in (0..call.size()).filter(|&to| to != root) {
                call.give_in_turn(to, message.clone()).await?;
            }
        } else {
            call.receive_into(root, &mut data[segment]).await?;
        }
    }
    Ok(())
}

/// Each member passes each segment on to the next.
async fn chain<T: Element>(call: &Call<'_>, root: usize, data: &mut [T]) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    let place = (me + size - root) % size;
    let (before, after) = ((me + size - 1) % size, (me + 1) % size);
    for (step, segment) in call.segments::<T>(data.len()).enumerate() {
        let data = &mut data[segment];
        if place > 0 {
            call.receive_into(before, data).await?;
        }
        if place + 1 < size {
            call.send(after, step as u32, data).await?;
        }
    }
    Ok(())
}

/// The member at `place`, counted from the root, hears from the one without its lowest bit, and tells those
/// that have one more bit below that.
pub(crate) async fn tree<T: Element>(
    call: &Call<'_>,
    root: usize,
    data: &mut [T],
) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    let place = (me + size - root) % size;
    let lowest = if place == 0 {
        size.next_power_of_two()
    } else {
        1 << place.trailing_zeros()
    };
    for (step, segment) in call.segments::<T>(data.len()).enumerate() {
        let data = &mut data[segment];
        if place > 0 {
            call.receive_into((place - lowest + root) % size, data)
                .await?;
        }
        let mut message: Option<Buffer> = None;
        let mut bit = lowest / 2;
        while bit > 0 {
            if place + bit < size {
                let message = match &message {
                    Some(message) => message,
                    None => message.insert(call.message(step as u32, data).await?),
                };
                call.give_in_turn((place + bit + root) % size, message.clone())
                    .await?;
            }
            bit /= 2;
        }
    }
    Ok(())
}

/// The root gives each member a part, and the parts go round.
async fn scatter_all_gather<T: Element>(
    call: &Call<'_>,
    root: usize,
    data: &mut [T],
) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    let part = |member: usize| parts_of(data.len(), size, member);
    if me == root {
        for to in (0..size).filter(|&to| to != root) {
            call.send(to, 0, &data[part(to)]).await?;
        }
    } else {
        let mine = part(me);
        call.receive_into(root, &mut data[mine]).await?;
    }
    let len = data.len();
    crate::all_gather::ring(call, data, |member| parts_of(len, size, member)).await
}
