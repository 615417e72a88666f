//! The last task: merges what the ranks send.

use std::{collections::VecDeque, fmt};

use transport::{Buffer, Rank};

use super::OrderBy;
use crate::{
    Error, Ordered, Record,
    batch::Batch,
    exchange::open,
    spill::LoserTree,
    stage::{Input, Place, Progress, Sink},
};

/// Records given in one turn, between which messages are looked for.
const GIVEN_A_TURN: usize = 4096;

/// Records that come from every rank in order, merged.
pub struct Merge<T, O> {
    place: Place,
    order: O,
    senders: Vec<Sender<T>>,
    /// The prefix of the record that each sender is at.
    prefixes: Vec<u64>,
    /// Once there is something of every sender, or its end.
    tree: Option<LoserTree>,
    /// The sender whose next batch it waits for: then it lost its place in the tree.
    awaited: Option<usize>,
}

/// What came from one rank.
struct Sender<T> {
    batches: VecDeque<Batch<T>>,
    /// The record of the first batch that is next.
    next: usize,
    ended: bool,
}

impl<T: Record> Sender<T> {
    fn view(&self) -> Option<T::View<'_>> {
        Some(self.batches.front()?.view(self.next))
    }

    /// Whether the record that it is at, or that there is none any more, is known.
    fn is_known(&self) -> bool {
        self.ended || !self.batches.is_empty()
    }

    fn advance(&mut self) {
        self.next += 1;
        if self
            .batches
            .front()
            .is_some_and(|batch| batch.len() == self.next)
        {
            self.batches.pop_front();
            self.next = 0;
        }
    }
}

impl<T: Record, O: OrderBy<T>> Merge<T, O> {
    pub(crate) fn new(place: &Place, order: O) -> Self {
        let sender = |_| Sender {
            batches: VecDeque::new(),
            next: 0,
            ended: false,
        };
        Self {
            place: place.clone(),
            order,
            senders: (0..place.size).map(sender).collect(),
            prefixes: vec![u64::MAX; place.size as usize],
            tree: None,
            awaited: None,
        }
    }

    /// Looks at the record that a sender is at; at its end, nothing comes behind it.
    fn look(&mut self, sender: usize) {
        let view = self.senders[sender].view();
        let prefix = view.map(|view| self.order.prefix(view));
        self.prefixes[sender] = prefix.unwrap_or(u64::MAX);
    }

    /// Finds out who is first, as soon as that can be known.
    fn play(&mut self) -> bool {
        match (self.awaited, &self.tree) {
            (None, Some(_)) => return true,
            (Some(awaited), _) if !self.senders[awaited].is_known() => return false,
            (Some(awaited), _) => self.look(awaited),
            (None, None) => {
                if !self.senders.iter().all(Sender::is_known) {
                    return false;
                }
                (0..self.senders.len()).for_each(|sender| self.look(sender));
            }
        }
        self.awaited = None;
        let Self {
            order,
            senders,
            prefixes,
            tree,
            ..
        } = self;
        let before = |a, b| is_before(order, senders, prefixes, a, b);
        match tree {
            Some(tree) => tree.replay(before),
            None => *tree = Some(LoserTree::new(senders.len(), before)),
        }
        true
    }
}

#[inline]
fn is_before<T: Record, O: OrderBy<T>>(
    order: &O,
    senders: &[Sender<T>],
    prefixes: &[u64],
    a: usize,
    b: usize,
) -> bool {
    if prefixes[a] != prefixes[b] {
        return prefixes[a] < prefixes[b];
    }
    match (senders[a].view(), senders[b].view()) {
        (Some(_), Some(_)) if O::Key::PREFIX_IS_ALL => a < b,
        (Some(first), Some(second)) => order.compare(first, second).then(a.cmp(&b)).is_lt(),
        (first, second) => first.is_some() && second.is_none(),
    }
}

impl<T: Record, O: OrderBy<T>> Input for Merge<T, O> {
    type Out = T;

    fn receive(&mut self, _port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        let batch = open(&self.place, from, batch)?;
        if let Some(sender) = self.senders.get_mut(from as usize)
            && batch.len() > 0
        {
            sender.batches.push_back(batch);
        }
        Ok(())
    }

    fn ended(&mut self, _port: usize, from: Rank) {
        if let Some(sender) = self.senders.get_mut(from as usize) {
            sender.ended = true;
        }
    }

    fn poll<D: Sink<T>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        if !self.play() {
            return Ok(Progress::None);
        }
        for _ in 0..GIVEN_A_TURN {
            let Self {
                order,
                senders,
                prefixes,
                tree: Some(tree),
                awaited,
                ..
            } = self
            else {
                return Ok(Progress::None);
            };
            let first = tree.winner();
            let Some(view) = senders[first].view() else {
                return Ok(Progress::Done);
            };
            if down.is_full() {
                return Ok(Progress::Made);
            }
            down.push(view);
            senders[first].advance();
            if !senders[first].is_known() {
                *awaited = Some(first);
                return Ok(Progress::Made);
            }
            let view = senders[first].view();
            prefixes[first] = view.map_or(u64::MAX, |view| order.prefix(view));
            tree.replay(|a, b| is_before(order, senders, prefixes, a, b));
        }
        Ok(Progress::Made)
    }
}

impl<T, O> fmt::Debug for Merge<T, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merge")
            .field("awaited", &self.awaited)
            .finish_non_exhaustive()
    }
}
