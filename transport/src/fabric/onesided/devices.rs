//! What devices do with exposed memory, and what only this crate can ask of them.

use std::{
    env,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    Arena, Config, Event, Ledger, Loss, Outcome, RdmaConfig, Secret, Transport,
    link::rdma::{Deed, Direct},
};

const ARENA: u64 = 16 << 20;

/// Two ranks with a link between two devices, on one thread, and since when.
struct Pair([Fabric; 2], Instant);

impl Pair {
    fn new() -> Self {
        Self::with(false)
    }

    /// The second allows devices to write, or only to read.
    fn with(read_only: bool) -> Self {
        let devices = env::var("UPDRAFT_RDMA_DEVICES").unwrap();
        let devices: Vec<_> = devices.split_terminator(',').map(str::to_owned).collect();
        let secret = Secret::random().unwrap();
        let mut fabrics = [0, 1].map(|rank| {
            let config = Config {
                transport: Transport::Rdma,
                rdma: RdmaConfig {
                    devices: devices.clone(),
                    read_only: read_only && rank == 1,
                    ..RdmaConfig::default()
                },
                ..Config::new(rank, 2, &secret)
            };
            let arena = Arena::new(&Ledger::new(ARENA), ARENA).unwrap();
            Fabric::new(config, arena).unwrap()
        });
        let book = [0, 1].map(|rank: usize| fabrics[rank].address().unwrap());
        fabrics
            .iter_mut()
            .for_each(|fabric| fabric.join(&book).unwrap());
        let mut pair = Self(fabrics, Instant::now());
        pair.0[0].send_copy(1, 0, b"hello").unwrap();
        pair.drive(|rank, event| rank == 1 && matches!(event, Event::Message { .. }));
        pair
    }

    /// Drives both until `done` says so of an event of one of them.
    fn drive(&mut self, mut done: impl FnMut(usize, Event) -> bool) {
        let start = Instant::now();
        loop {
            for (rank, fabric) in self.0.iter_mut().enumerate() {
                fabric.tick(self.1.elapsed());
                if let Some(event) = fabric.receive().unwrap()
                    && done(rank, event)
                {
                    return;
                }
            }
            assert!(start.elapsed() < Duration::from_secs(20), "it hangs");
        }
    }

    /// Exposes memory of rank 1, to which rank 0 attaches.
    fn attached(&mut self, bytes: usize) -> (Exposed, RemoteRegion) {
        let mut loan = self.0[1].loan(bytes).unwrap().unwrap();
        loan.fill(0);
        let exposed = self.0[1].expose(loan).unwrap();
        assert!(matches!(
            self.0[0].attach(&exposed.handle()),
            Ok(Issued::Pending(_))
        ));
        let mut region = None;
        self.drive(|_, event| {
            if let Event::Completed { completion, .. } = event
                && let Ok(Outcome::Attached(attached)) = completion.outcome
            {
                region = Some(attached);
            }
            region.is_some()
        });
        (exposed, region.unwrap())
    }

    /// What the next operation of rank 0 brings; rank 1 has no part in it.
    fn outcome(&mut self) -> Outcome {
        let start = Instant::now();
        loop {
            self.0[0].tick(self.1.elapsed());
            match self.0[0].receive().unwrap() {
                Some(Event::Completed { completion, .. }) => return completion.outcome.unwrap(),
                Some(other) => panic!("{other:?}"),
                None => assert!(start.elapsed() < Duration::from_secs(20), "it hangs"),
            }
        }
    }

    fn link(&mut self, rank: usize) -> &mut crate::link::rdma::Rdma {
        match &mut self.0[rank].peers[1 - rank] {
            Contact::Open(Link::Rdma(link)) => link,
            _ => panic!("there is no link over RDMA"),
        }
    }
}

/// An operation that devices carry out.
fn under_way<T: std::fmt::Debug>(issued: Result<Issued<T>, Error>) {
    assert!(matches!(issued, Ok(Issued::Pending(_))), "{issued:?}");
}

#[test]
#[ignore = "needs RDMA: tests/rdma/run"]
fn devices_operate_on_words_in_order_with_puts_and_gets() {
    const BYTES: usize = 1 << 16;
    let mut pair = Pair::new();
    pair.link(1).serve_atomics();
    let (exposed, region) = pair.attached(BYTES);
    for round in 0..50u64 {
        let (first, old, new) = (2 * round, [round as u8; BYTES], [round as u8 + 1; BYTES]);
        // All of it at once, and each on what the one before it left.
        let here = &mut pair.0[0];
        under_way(here.get(&region, 8, BYTES - 8));
        under_way(here.put(&region, 8, &new[8..]));
        under_way(here.fetch_add(&region, 0, 1));
        under_way(here.compare_swap(&region, 0, first + 1, first + 2));
        under_way(here.compare_swap(&region, 0, first + 1, 99));
        under_way(here.get(&region, 0, BYTES));
        assert!(!here.onesided.is_asking(1), "the owner is not asked");
        assert_eq!(here.outstanding(1), 6);

        assert!(matches!(pair.outcome(), Outcome::Got(seen) if seen[..] == old[8..]));
        assert!(matches!(pair.outcome(), Outcome::Put));
        for due in first..=first + 2 {
            assert!(matches!(pair.outcome(), Outcome::Old(old) if old == due));
        }
        let Outcome::Got(seen) = pair.outcome() else {
            panic!("it is the last");
        };
        assert_eq!(seen[..8], (first + 2).to_ne_bytes());
        assert!(seen[8..] == new[8..], "round {round}");
        assert_eq!(pair.0[0].outstanding(1), 0);
        assert_eq!(exposed.words()[0].load(Ordering::Acquire), first + 2);
    }
}

#[test]
#[ignore = "needs RDMA: tests/rdma/run"]
fn an_owner_that_is_busy_is_put_to_and_got_from() {
    let mut pair = Pair::new();
    let (exposed, region) = pair.attached(1 << 20);
    let bytes: Vec<u8> = (0..1 << 20).map(|at| (at / 3) as u8).collect();
    under_way(pair.0[0].put(&region, 3, &bytes[..700_001]));
    under_way(pair.0[0].get(&region, 1, 1 << 19));
    assert!(matches!(pair.outcome(), Outcome::Put));
    let mut seen = vec![0; 1 << 20];
    exposed.read(0, &mut seen);
    assert!(seen[3..700_004] == bytes[..700_001]);
    assert!(seen[700_004..].iter().all(|byte| *byte == 0));
    assert!(matches!(pair.outcome(), Outcome::Got(got) if got[..] == seen[1..=1 << 19]));
}

#[test]
#[ignore = "needs RDMA: tests/rdma/run"]
fn more_is_put_than_there_is_room_for_requests_and_a_message_waits_for_it() {
    let mut pair = Pair::new();
    let (exposed, region) = pair.attached(1 << 20);
    let here = &mut pair.0[0];
    for put in 0..255u64 {
        under_way(here.put(&region, 8 * put + 1, &[put as u8; 15])); // Two requests each.
    }
    under_way(here.put(&region, 4096, &[7; 1 << 19]));
    assert!(matches!(here.put(&region, 0, b"no"), Ok(Issued::NoRoom)));
    here.send_copy(1, 0, b"look").unwrap();
    pair.drive(|rank, event| rank == 1 && matches!(event, Event::Message { .. }));
    let mut seen = vec![0; 1 << 20];
    exposed.read(0, &mut seen);
    for put in 0..255 {
        assert_eq!(seen[8 * put + 1..8 * put + 9], [put as u8; 8]);
    }
    assert!(seen[4096..][..1 << 19].iter().all(|byte| *byte == 7));
}

#[test]
#[ignore = "needs RDMA: tests/rdma/run"]
fn who_let_go_of_memory_and_writes_to_it_loses_its_link_and_nothing_is_written() {
    let mut pair = Pair::new();
    let (exposed, region) = pair.attached(1 << 12);
    let (access, at) = region.0.access().unwrap();
    let lent = |pair: &Pair| !pair.0[1].onesided.table().borrow().is_empty();
    drop(exposed);
    assert!(lent(&pair), "a peer holds it");
    drop(region);
    let start = Instant::now();
    while lent(&pair) {
        for fabric in &mut pair.0 {
            fabric.flush().unwrap();
            assert!(fabric.receive().unwrap().is_none());
        }
        assert!(start.elapsed() < Duration::from_secs(20), "it hangs");
    }
    let piece = Buffer::inline(0, &[9; 8]).unwrap();
    pair.link(0).operate(Direct {
        number: 1,
        key: access.key,
        at,
        deed: Deed::Put {
            pieces: [piece].into(),
        },
    });
    pair.drive(|rank, event| match event {
        Event::Ended { error, .. } if rank == 0 => {
            assert!(matches!(*error, Error::PeerLost { .. }), "{error:?}");
            true
        }
        _ => false,
    });
    let loan = pair.0[1].loan(1 << 12).unwrap().unwrap();
    assert!(!loan.contains(&9));
}

#[test]
#[ignore = "needs RDMA: tests/rdma/run"]
fn a_peer_that_writes_with_an_immediate_is_not_believed() {
    let mut pair = Pair::new();
    pair.link(0).write_with_immediate();
    pair.drive(|rank, event| match event {
        Event::Ended { error, .. } if rank == 1 => {
            let is_told = matches!(
                *error,
                Error::PeerLost {
                    cause: Loss::Protocol(_),
                    ..
                }
            );
            assert!(is_told, "{error:?}");
            true
        }
        _ => false,
    });
}

#[test]
#[ignore = "needs RDMA: tests/rdma/run"]
fn where_devices_may_only_read_messages_put_and_get() {
    let mut pair = Pair::with(true);
    let (exposed, region) = pair.attached(1 << 16);
    assert!(!region.is_direct());
    under_way(pair.0[0].put(&region, 1, &[5; 9_000]));
    under_way(pair.0[0].get(&region, 0, 9_002));
    let mut outcomes = Vec::new();
    pair.drive(|rank, event| {
        if let Event::Completed { completion, .. } = event {
            assert_eq!(rank, 0);
            outcomes.push(completion.outcome.unwrap());
        }
        outcomes.len() == 2
    });
    let mut seen = [0; 9_002];
    exposed.read(0, &mut seen);
    assert_eq!([seen[0], seen[1], seen[9_000], seen[9_001]], [0, 5, 5, 0]);
    assert!(matches!(&outcomes[1], Outcome::Got(got) if got[..] == seen));
}
