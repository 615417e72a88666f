//! All members wait for one another.

use crate::{Algorithm, Error, Group, Operation, Operator, call::Call, fate::Signature};

impl Group {
    /// Is over when all members have called it. What a member wrote before into memory that others can see, they see
    /// after it.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn barrier(&self) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async {
            let call = self.begin(Signature::new("barrier")).await?;
            let result = run(&call).await;
            call.end(result)
        })
    }
}

async fn run(call: &Call<'_>) -> Result<(), Error> {
    match call.group.choose(Operator::Barrier, 0, true) {
        Algorithm::Board => on_board(call).await,
        Algorithm::Hierarchical => {
            let levels = call.group.levels().await?;
            levels.barrier().await
        }
        _ => dissemination(call).await,
    }
}

async fn on_board(call: &Call<'_>) -> Result<(), Error> {
    let Some(board) = call.group.board() else {
        return dissemination(call).await;
    };
    board.write::<u8>(call, &[]).await?;
    for from in (0..call.size()).filter(|&from| from != call.me()) {
        board.arrival(call, from).await?;
    }
    Ok(())
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
