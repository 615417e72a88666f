//! What the operations on tables rest on: members send partitions to one another, and add those that arrive to a table, in the
//! order of the members. What arrives before its turn waits in memory of the receiver's own, so that nobody has to wait for
//! a third one.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    ops::Range,
    pin::pin,
    task::Poll,
};

use transport::Buffer;

use super::{
    Combiner, Payload, Table,
    stream::{Arrival, Both, Incoming, Outgoing},
};
use crate::{Error, Group, call::Call, fate::Signature};

/// Partitions for a member.
pub(super) type Parcel<'p, P> = Vec<(u64, &'p P)>;

/// Adds to `into` what all members have for this one. `own` is what it has for itself, and `give` for each member.
pub(super) async fn exchange<P: Payload, C: Combiner<P>>(
    group: &Group,
    signature: Signature,
    give: &[Parcel<'_, P>],
    own: Vec<(u64, P)>,
    into: &mut Table<P, C>,
) -> Result<(), Error> {
    let call = group.begin(signature).await?;
    let (me, size) = (call.me(), call.size());
    let both = Both::new(&call);
    let own = Own(Cell::new(Some(own)));
    let send = async {
        for to in (me + 1..size).chain(0..me) {
            let mut out = Outgoing::new(&both, vec![to]);
            for &(id, partition) in &give[to] {
                out.put(id, partition).await?;
            }
            out.end().await?;
        }
        Ok(())
    };
    let result = both.run(receive(&both, 0..size, &own, into), send).await;
    call.end(result)
}

/// Adds to `into` what all members have: each has the same `partitions` for all.
pub(super) async fn spread<P: Payload, C: Combiner<P>>(
    group: &Group,
    signature: Signature,
    partitions: Vec<(u64, P)>,
    into: &mut Table<P, C>,
) -> Result<(), Error> {
    let call = group.begin(signature).await?;
    let (me, size) = (call.me(), call.size());
    let both = Both::new(&call);
    let own = Own(Cell::new(None));
    let send = async {
        let others = (me + 1..size).chain(0..me).collect();
        let mut out = Outgoing::new(&both, others);
        for (id, partition) in &partitions {
            out.put(*id, partition).await?;
        }
        out.end().await?;
        own.0.set(Some(partitions));
        both.note();
        Ok(())
    };
    let result = both.run(receive(&both, 0..size, &own, into), send).await;
    call.end(result)
}

/// What only `from` sends, to all others: adds it to `into` there.
pub(super) async fn spread_from<P: Payload, C: Combiner<P>>(
    group: &Group,
    signature: Signature,
    root: usize,
    table: &mut Table<P, C>,
) -> Result<(), Error> {
    let call = group.begin(signature.with_root(root)).await?;
    let result = tell_all(&call, root, table).await;
    call.end(result)
}

/// Members up to which a root sends to each of them itself, where they share no memory.
const FLAT_MEMBERS_MAX: usize = 3;

async fn tell_all<P: Payload, C: Combiner<P>>(
    call: &Call<'_>,
    root: usize,
    table: &mut Table<P, C>,
) -> Result<(), Error> {
    let (me, size) = (call.me(), call.size());
    let both = Both::new(call);
    // Harp's broadcast goes from member to member. Members that share memory read the same copy, and need no chain.
    let is_flat = call.group.shares_memory() || size <= FLAT_MEMBERS_MAX;
    let after = (me + 1) % size;
    if me == root {
        let others = match is_flat {
            true => (0..size).filter(|&member| member != root).collect(),
            false => vec![after],
        };
        let mut out = Outgoing::new(&both, others);
        let send = async {
            for (id, partition) in table.iter() {
                out.put(id, partition).await?;
            }
            out.end().await
        };
        return both.run(async { Ok(()) }, send).await;
    }
    let before = if is_flat {
        root
    } else {
        (me + size - 1) % size
    };
    let next = (!is_flat && after != root).then_some(after);
    let receive = async {
        let mut incoming = Incoming::new(before);
        both.set_due(before, true);
        let add = |id, arrival: Arrival<'_, P>| table.take_in(call.group, before, id, arrival);
        incoming.all(&both, next, add).await?;
        both.set_due(before, false);
        Ok(())
    };
    both.run(receive, async { Ok(()) }).await
}

/// Has the table of every member go to the one that `to` says; `from` is whose comes here.
pub(super) async fn shift<P: Payload, C: Combiner<P>>(
    group: &Group,
    signature: Signature,
    [to, from]: [usize; 2],
    table: &mut Table<P, C>,
) -> Result<(), Error> {
    let call = group.begin(signature).await?;
    let both = Both::new(&call);
    let partitions: Vec<(u64, P)> = table.drain().collect();
    // Who keeps its table receives it from itself.
    let (own, partitions) = match to == call.me() {
        true => (partitions, Vec::new()),
        false => (Vec::new(), partitions),
    };
    let own = Own(Cell::new(Some(own)));
    let others = [to].into_iter().filter(|&to| to != call.me()).collect();
    let send = async {
        let mut out = Outgoing::new(&both, others);
        for (id, partition) in &partitions {
            out.put(*id, partition).await?;
        }
        out.end().await
    };
    let result = both
        .run(receive(&both, from..from + 1, &own, table), send)
        .await;
    call.end(result)
}

/// What a member adds of its own at its turn, once nobody needs to read it any more.
struct Own<P>(Cell<Option<Vec<(u64, P)>>>);

impl<P> Own<P> {
    /// The next message; or nothing, if it is the turn of what is here and that can be had.
    async fn or_message(
        &self,
        both: &Both<'_, '_>,
        is_its_turn: bool,
    ) -> Result<Option<(usize, Buffer)>, Error> {
        let mut message = pin!(both.receive_any());
        poll_fn(|context| {
            let own = self.0.take();
            let is_there = own.is_some();
            self.0.set(own);
            if is_its_turn && is_there {
                return Poll::Ready(Ok(None));
            }
            message.as_mut().poll(context).map_ok(Some)
        })
        .await
    }
}

/// A member that sends.
struct Sender<P: Payload> {
    member: usize,
    incoming: Incoming<P>,
    /// Partitions that have come before its turn.
    early: Vec<(u64, P)>,
    has_ended: bool,
}

/// Adds what members send, and what this one has of its own.
async fn receive<P: Payload, C: Combiner<P>>(
    both: &Both<'_, '_>,
    members: Range<usize>,
    own: &Own<P>,
    into: &mut Table<P, C>,
) -> Result<(), Error> {
    let (me, first) = (both.call.me(), members.start);
    let mut senders: Vec<Sender<P>> = members
        .map(|member| Sender {
            member,
            incoming: Incoming::new(member),
            early: Vec::new(),
            has_ended: member == me,
        })
        .collect();
    for sender in &senders {
        both.set_due(sender.member, !sender.has_ended);
    }
    let mut turn = 0;
    while turn < senders.len() {
        let sender = &mut senders[turn];
        for (id, partition) in sender.early.drain(..) {
            into.add(id, partition)?;
        }
        if sender.member == me
            && let Some(partitions) = own.0.take()
        {
            for (id, partition) in partitions {
                into.add(id, partition)?;
            }
            turn += 1;
            continue;
        }
        if sender.member != me && sender.has_ended {
            turn += 1;
            continue;
        }
        let Some((from, message)) = own.or_message(both, turn + first == me).await? else {
            continue;
        };
        let Some(sender) = from
            .checked_sub(first)
            .and_then(|place| senders.get_mut(place))
        else {
            continue;
        };
        let (incoming, early) = (&mut sender.incoming, &mut sender.early);
        let is_its_turn = from == turn + first;
        let take = |id, arrival: Arrival<'_, P>| {
            if is_its_turn {
                return into.take_in(both.group(), from, id, arrival);
            }
            early.push((id, arrival.made(both.group(), from)?));
            Ok(())
        };
        if !incoming.read(both, &message, || None, take)? {
            sender.has_ended = true;
            both.set_due(from, false);
        }
    }
    Ok(())
}
