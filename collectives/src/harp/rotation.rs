//! Rotation with computation overlapped.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::{Future, poll_fn},
    task::Poll,
};

use super::{
    Combiner, Payload, Table, payload,
    stream::{Arrival, Both, Incoming, Outgoing, SMALL},
    table::malformed,
};
use crate::{Error, Group, Operation, call::Call, fate::Signature};

/// What has arrived and waits to be worked on.
enum Waiting<P> {
    Partition(u64, P),
    /// No more of this step.
    End,
}

/// Partitions between the two halves of a rotation.
struct Lane<P> {
    waiting: RefCell<VecDeque<Waiting<P>>>,
    /// Partitions that were sent on, whose memory others can arrive in.
    spare: RefCell<Vec<P>>,
}

impl<P: Payload, C: Combiner<P>> Table<P, C> {
    /// Has every partition go round all members, and `work` on it at each. Afterwards each is back, as all members left it.
    ///
    /// In step *s* (from 0) a member works on the partitions of the member *s* before it, in the order of their ids; `work` gets the
    /// step, the id and the partition. Each partition is sent on as soon as it was worked on, and the next ones arrive
    /// meanwhile. So transfers cost no time as long as there are a few partitions to a member and the work on one
    /// takes longer than its way; Harp does the same with two halves of a table.
    ///
    /// A partition is at one member at a time, so `work` has it for itself. What each member works on, and when, does not depend
    /// on timing.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn rotate_with<'g>(
        &'g mut self,
        group: &'g Group,
        work: impl FnMut(usize, u64, &mut P) + 'g,
    ) -> Operation<'g, impl Future<Output = Result<(), Error>>> {
        group.operation(async move {
            let call = group.begin(Signature::new("table rotate_with")).await?;
            let result = go_round(&call, self, work).await;
            call.end(result)
        })
    }
}

async fn go_round<P: Payload, C: Combiner<P>>(
    call: &Call<'_>,
    table: &mut Table<P, C>,
    mut work: impl FnMut(usize, u64, &mut P),
) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    if size == 1 {
        for (id, partition) in table.iter_mut() {
            work(0, id, partition);
        }
        return Ok(());
    }
    let both = Both::new(call);
    let lane = Lane {
        waiting: RefCell::new(
            table
                .drain()
                .map(|(id, p)| Waiting::Partition(id, p))
                .collect(),
        ),
        spare: RefCell::default(),
    };
    lane.waiting.borrow_mut().push_back(Waiting::End);

    let receive = async {
        let before = (me + size - 1) % size;
        both.set_due(before, true);
        for step in 1..=size {
            let is_home = step == size;
            let mut incoming = Incoming::new(before);
            let mut follows = true;
            while follows {
                let spare = || lane.spare.borrow_mut().pop();
                let take = |id, arrival: Arrival<'_, P>| {
                    let partition = match arrival {
                        Arrival::Made(partition) => partition,
                        Arrival::Bytes(bytes) => payload::decode(bytes, spare())
                            .map_err(|reason| malformed(call.group, before, reason))?,
                    };
                    if is_home {
                        return table.add(id, partition);
                    }
                    lane.waiting
                        .borrow_mut()
                        .push_back(Waiting::Partition(id, partition));
                    Ok(())
                };
                follows = incoming.next(&both, spare, take).await?;
            }
            if !is_home {
                lane.waiting.borrow_mut().push_back(Waiting::End);
            }
        }
        both.set_due(before, false);
        Ok(())
    };

    let send = async {
        let mut out = Outgoing::new(&both, vec![(me + 1) % size]);
        let mut step = 0;
        while step < size {
            if lane.waiting.borrow().is_empty() {
                // Nothing is to be done here: the next member may have nothing to do either.
                out.flush().await?;
            }
            match lane.next().await {
                Waiting::Partition(id, mut partition) => {
                    work(step, id, &mut partition);
                    out.put(id, &partition).await?;
                    if out.waiting() >= SMALL {
                        out.flush().await?;
                    }
                    lane.spare.borrow_mut().push(partition);
                    // Others may wait for what this rank's links have taken in, or have yet to send.
                    both.take_in()?;
                }
                Waiting::End => {
                    out.end().await?;
                    step += 1;
                }
            }
            both.note();
        }
        Ok(())
    };
    both.run(receive, send).await
}

impl<P> Lane<P> {
    /// The next that waits to be worked on, once there is one.
    fn next(&self) -> impl Future<Output = Waiting<P>> {
        poll_fn(|_| match self.waiting.borrow_mut().pop_front() {
            Some(next) => Poll::Ready(next),
            None => Poll::Pending,
        })
    }
}
