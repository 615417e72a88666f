//! How a link to a peer comes to be, and comes to an end.

use std::{collections::VecDeque, time::Duration};

use super::{Event, Fabric, sockets};
use crate::{
    Buffer, Endpoint, Error, Loss, Rank,
    link::{End, Link},
};

/// What a fabric knows of a peer.
pub(super) enum Contact {
    /// No message has gone either way.
    Unknown,
    /// A link is being made; the messages wait for it.
    Connecting {
        attempt: Option<sockets::Id>,
        waiting: VecDeque<Buffer>,
        deadline: Duration,
    },
    Open(Link),
    Ended(End),
}

impl Fabric {
    pub(super) fn take(&mut self, step: sockets::Step) {
        match step {
            sockets::Step::Ready {
                peer,
                readable,
                writable,
            } => match &mut self.peers[peer as usize] {
                Contact::Open(Link::Tcp(link)) => link.notify(readable, writable),
                Contact::Open(Link::Rdma(link)) => link.notify(),
                _ => {}
            },
            sockets::Step::Died { peer } => {
                self.onesided.table().borrow_mut().forget(peer);
                self.end(peer, End::Lost(Loss::ProcessEnded));
            }
            sockets::Step::Refused { reason } => {
                self.refused += 1;
                self.events.push_back(Event::Refused { reason });
            }
            sockets::Step::Failed { id, peer, loss } => {
                if matches!(&self.peers[peer as usize], Contact::Connecting { attempt, .. } if *attempt == Some(id))
                {
                    self.end(peer, End::Lost(loss));
                }
            }
            sockets::Step::Proved { id, peer } => self.admit(id, peer),
            sockets::Step::Crossed { id, peer } => {
                if let Contact::Connecting { attempt, .. } = &mut self.peers[peer as usize]
                    && *attempt == Some(id)
                {
                    *attempt = None;
                }
            }
            sockets::Step::Linked { id, peer, link } => self.open(id, peer, link),
        }
    }

    /// Starts to make a link, for which messages wait.
    pub(super) fn connect(&mut self, to: Rank, waiting: VecDeque<Buffer>) {
        let Some(sockets) = &mut self.sockets else {
            return;
        };
        let deadline = sockets.connect_deadline();
        match sockets.connect(to) {
            Ok(id) => {
                self.peers[to as usize] = Contact::Connecting {
                    attempt: Some(id),
                    waiting,
                    deadline,
                };
            }
            Err(loss) => self.end(to, End::Lost(loss)),
        }
    }

    /// Decides about a peer that connected and proved itself. When two ranks connect to each other at
    /// the same time, the connection of the lower rank is the one that counts.
    fn admit(&mut self, id: sockets::Id, peer: Rank) {
        let ours_counts = self.rank < peer;
        let (welcome, abandoned) = match &self.peers[peer as usize] {
            Contact::Unknown => (true, None),
            Contact::Connecting { attempt, .. } => (attempt.is_none() || !ours_counts, *attempt),
            Contact::Open(_) | Contact::Ended(_) => (false, None),
        };
        let Some(sockets) = &mut self.sockets else {
            return;
        };
        if !welcome {
            sockets.refuse_crossed(id);
            return;
        }
        let deadline = sockets.connect_deadline();
        let waiting = match &mut self.peers[peer as usize] {
            Contact::Connecting { waiting, .. } => std::mem::take(waiting),
            _ => VecDeque::new(),
        };
        self.peers[peer as usize] = Contact::Connecting {
            attempt: Some(id),
            waiting,
            deadline,
        };
        self.abandon(abandoned);
        if let Some(sockets) = &mut self.sockets
            && let Some(step) = sockets.welcome(id, peer)
        {
            self.take(step);
        }
    }

    pub(super) fn abandon(&mut self, attempt: Option<sockets::Id>) {
        if let (Some(sockets), Some(id)) = (&mut self.sockets, attempt) {
            sockets.forget(id);
        }
    }

    fn open(&mut self, id: sockets::Id, peer: Rank, offer: sockets::Offered) {
        let Contact::Connecting {
            attempt, waiting, ..
        } = &mut self.peers[peer as usize]
        else {
            return;
        };
        if *attempt != Some(id) {
            return;
        }
        let waiting = std::mem::take(waiting);
        let Some(sockets) = &mut self.sockets else {
            return;
        };
        let mut link = match sockets.link(id, peer, offer) {
            Ok(link) => link,
            Err(loss) => return self.end(peer, End::Lost(loss)),
        };
        for message in waiting {
            // A link that fails at once says so when it is received from.
            let _ = link.send(message);
        }
        self.onesided.opened(peer, &mut link);
        link.flush();
        self.peers[peer as usize] = Contact::Open(link);
        self.open.push(peer);
        self.decide_on_probes();
    }

    /// Takes note that a peer is gone. An open link tells it once everything has been received.
    pub(super) fn end(&mut self, peer: Rank, end: End) {
        match &mut self.peers[peer as usize] {
            Contact::Open(link) => link.end(end),
            Contact::Ended(_) => {}
            other => {
                self.events.push_back(Event::Ended {
                    peer,
                    error: Box::new(end.error(peer)),
                });
                self.onesided.ended(peer, &end, &mut self.events);
                *other = Contact::Ended(end);
            }
        }
    }

    #[cold]
    pub(super) fn ended(&mut self, peer: Rank, error: Error) {
        if let Contact::Open(link) = &self.peers[peer as usize] {
            self.traffic[peer as usize].look_at(link);
            if let Link::Rdma(_) = link {
                // Its queue pair is gone, so its device reaches nothing here any more.
                self.onesided.table().borrow_mut().forget(peer);
            }
        }
        let end = match &error {
            Error::PeerLost { cause, .. } => End::Lost(cause.clone()),
            _ => End::Closed,
        };
        self.peers[peer as usize] = Contact::Ended(end.clone());
        self.open.retain(|&open| open != peer);
        self.next = 0;
        self.decide_on_probes();
        self.events.push_back(Event::Ended {
            peer,
            error: Box::new(error),
        });
        self.onesided.ended(peer, &end, &mut self.events);
    }
}
