//! What each link has carried, for those who watch.

use std::fmt;

use crate::{Path, link::Link};

/// What went to a peer and came from it, as plain numbers that only their fabric's thread writes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Traffic {
    pub(super) sent: Flow,
    pub(super) received: Flow,
    /// What the link knew when it ended.
    pub(super) path: Option<Path>,
    pub(super) waits: u64,
    pub(super) retransmissions: u64,
    /// Bytes.
    pub(super) put: u64,
    pub(super) got: u64,
}

impl Traffic {
    /// Takes in what the link itself counts.
    pub(super) fn look_at(&mut self, link: &Link) {
        self.path = Some(link.path());
        self.waits = link.waits();
        self.retransmissions = link.retransmissions();
    }
}

/// Messages in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flow {
    /// How many.
    pub messages: u64,
    /// The sum of their lengths.
    pub bytes: u64,
}

impl Flow {
    #[inline(always)]
    pub(super) fn add(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes as u64;
    }
}

/// What the link to one peer has done so far; it is kept when the link ends.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// What carries the messages, or did until the link ended; none before the first.
    pub path: Option<Path>,
    /// Why it is that, and no faster one.
    pub why: Why,
    /// Messages that were handed over for the peer, whether or not they are on their way yet.
    pub sent: Flow,
    /// Messages of the peer that were received.
    pub received: Flow,
    /// How often messages found no room on their way and had to wait here. (Who finds no memory to
    /// lend is counted by [`Arena::refusals`](crate::Arena::refusals), for all peers together.)
    pub waits: u64,
    /// Packets that the kernel sent again, because they were lost or late. Of TCP only: RDMA devices count those of all their
    /// links together, and shared memory has none.
    pub retransmissions: u64,
    /// Bytes that this rank put into the memory of the peer, or had put there. What is sent for that is not among the messages.
    pub put: u64,
    /// Bytes that this rank got from the memory of the peer, or asked for. The same holds for them.
    pub got: u64,
}

/// Why a link takes its path.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// There has been no link.
    NoLink,
    /// The peer is on this node.
    SameNode,
    /// The peer is on another node.
    OtherNode,
    /// The peer is on another node, and this kept RDMA from it.
    NoRdma(String),
    /// The peer is on this node, and this kept shared memory from it.
    NoSharedMemory(String),
    /// No other may be used.
    Chosen,
    /// It is a simulation.
    Simulation,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLink => f.write_str("no link"),
            Self::SameNode => f.write_str("on this node"),
            Self::OtherNode => f.write_str("on another node"),
            Self::NoRdma(reason) => write!(f, "on another node, without RDMA: {reason}"),
            Self::NoSharedMemory(reason) => {
                write!(f, "on this node, without shared memory: {reason}")
            }
            Self::Chosen => f.write_str("as chosen"),
            Self::Simulation => f.write_str("simulated"),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Arena, Config, Event, Fabric, Ledger, Secret, Transport};

    /// Two ranks, of which the first sends 300 messages of 8 bytes and one of 5000 before the second looks.
    fn counted(transport: Transport) -> [Counters; 2] {
        let secret = Secret::random().unwrap();
        let mut ranks = [0, 1].map(|rank| {
            let config = Config {
                transport,
                ..Config::new(rank, 2, &secret)
            };
            Fabric::new(config, Arena::new(&Ledger::new(1 << 20), 1 << 20).unwrap()).unwrap()
        });
        let book = [0, 1].map(|rank: usize| ranks[rank].address().unwrap());
        ranks.iter_mut().for_each(|rank| rank.join(&book).unwrap());
        assert_eq!(ranks[0].counters(1).unwrap().why, Why::NoLink);
        for _ in 0..300 {
            assert!(ranks[0].send_copy(1, 0, &[7; 8]).unwrap());
        }
        assert!(ranks[0].send_copy(1, 0, &[7; 5000]).unwrap());
        let mut arrived = 0;
        while arrived < 301 {
            ranks[0].receive().unwrap();
            if let Some(Event::Message { .. }) = ranks[1].receive().unwrap() {
                arrived += 1;
            }
        }
        assert_eq!(ranks[0].counters(2), None);
        let counters = [ranks[0].counters(1).unwrap(), ranks[1].counters(0).unwrap()];
        let [mut first, second] = ranks;
        drop(second);
        while !matches!(first.receive().unwrap(), Some(Event::Ended { .. })) {}
        assert_eq!(first.path(1), None);
        assert_eq!(first.counters(1).as_ref(), Some(&counters[0]));
        counters
    }

    #[test]
    fn messages_bytes_and_waits_are_counted_and_the_path_is_explained() {
        let flow = Flow {
            messages: 301,
            bytes: 300 * 8 + 5000,
        };
        for (transport, path, why) in [
            (Transport::Auto, Path::Shm, Why::SameNode),
            (Transport::Shm, Path::Shm, Why::Chosen),
            (Transport::Tcp, Path::Tcp, Why::Chosen),
        ] {
            let [sender, receiver] = counted(transport);
            assert_eq!((sender.sent, receiver.received), (flow, flow));
            assert_eq!((sender.received, receiver.sent), Default::default());
            assert_eq!((sender.path, &sender.why), (Some(path), &why));
            // The ring has fewer slots than there are messages.
            assert_eq!(sender.waits > 0, path == Path::Shm, "{}", sender.waits);
            assert_eq!(receiver.waits, 0);
            for counters in [&sender, &receiver] {
                // On a machine's own loopback nothing gets lost.
                let others = (counters.retransmissions, counters.put, counters.got);
                assert_eq!(others, (0, 0, 0));
            }
        }
    }

    #[test]
    fn a_peer_of_this_node_that_is_not_reached_over_shared_memory_says_why() {
        let secret = Secret::random().unwrap();
        let mut ranks = [0, 1].map(|rank| {
            let arena = Arena::new(&Ledger::new(1 << 20), 1 << 20).unwrap();
            Fabric::new(Config::new(rank, 2, &secret), arena).unwrap()
        });
        let mut book = [0, 1].map(|rank: usize| ranks[rank].address().unwrap());
        book[1].name = "nobody".into();
        ranks.iter_mut().for_each(|rank| rank.join(&book).unwrap());
        assert!(ranks[0].send_copy(1, 0, b"hello").unwrap());
        while !matches!(ranks[1].receive().unwrap(), Some(Event::Message { .. })) {
            ranks[0].receive().unwrap();
        }
        let [here, there] = [(0, 1), (1, 0)].map(|(rank, peer): (usize, _)| {
            let counters = ranks[rank].counters(peer).unwrap();
            assert_eq!(counters.path, Some(Path::Tcp));
            counters.why.to_string()
        });
        let said = "on this node, without shared memory: ";
        let reason = here.strip_prefix(said).unwrap();
        assert!(reason.contains("refused"), "{reason}");
        assert_eq!(there, format!("{said}the peer came over TCP"));
    }
}
