//! All members wait for one another.

use crate::{
    Algorithm, Error, Group, Operation, Operator, board::Board, call::Call, fate::Signature,
};

impl Group {
    /// Is over when all members have called it. What a member wrote before into memory that others can see, they see
    /// after it.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn barrier(&self) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async move {
            let algorithm = self.choose(Operator::Barrier, 0, true);
            if algorithm == Algorithm::Board {
                let (call, board) = self.begin_now(Signature::new("barrier"))?;
                let wrote = board.write_now::<u8>(&call, &[]);
                if wrote && others(&call).all(|from| board.arrives_soon(&call, from, 0)) {
                    return call.end(Ok(()));
                }
                return Box::pin(async move {
                    let result = on_board(&call, board, wrote).await;
                    call.end(result)
                })
                .await;
            }
            Box::pin(async move {
                let call = self.begin(Signature::new("barrier").by(algorithm)).await?;
                let result = by_messages(&call, algorithm).await;
                call.end(result)
            })
            .await
        })
    }
}

fn others(call: &Call<'_>) -> impl Iterator<Item = usize> {
    let me = call.me();
    (0..call.size()).filter(move |&member| member != me)
}

async fn on_board(call: &Call<'_>, board: &Board, wrote: bool) -> Result<(), Error> {
    if !wrote {
        board.write::<u8>(call, &[]).await?;
    }
    for from in others(call) {
        board.arrival(call, from).await?;
    }
    Ok(())
}

async fn by_messages(call: &Call<'_>, algorithm: Algorithm) -> Result<(), Error> {
    match algorithm {
        Algorithm::Hierarchical => {
            let levels = call.group.levels().await?;
            levels.barrier().await
        }
        _ => dissemination(call).await,
    }
}

/// In round *k*, each member tells the one 2^*k* further on, and hears from the one 2^*k* before it.
pub(crate) async fn dissemination(call: &Call<'_>) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    let mut distance = 1;
    while distance < size {
        call.send::<u8>((me + distance) % size, distance as u32, &[])
            .await?;
        call.receive((me + size - distance) % size).await?;
        distance *= 2;
    }
    Ok(())
}
