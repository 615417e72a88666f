//! What is promised of operations on the memory that a peer has exposed.

use std::{collections::VecDeque, future::poll_fn, sync::atomic::Ordering, task::Poll};

use transport::{Error, Issued, Operation, Outcome, Path, RegionHandle};

use crate::{
    SMALL_ARENA,
    end::{End, YieldOnce, pattern},
};

pub(crate) mod reads_and_writes_the_memory_of_a_peer {
    use super::*;

    const BYTES: usize = (1 << 20) - 3;

    pub(crate) async fn here(end: End) {
        let region = end.attach(end.handle().await).await.unwrap();
        assert_eq!(region.owner(), end.peer);
        assert_eq!(region.len(), 1 << 20, "it is rounded up to words");
        let mut model = pattern(1, BYTES);
        model.resize(1 << 20, 0);
        let whole = end.get(&region, 0, 1 << 20).await.unwrap();
        assert!(whole.as_slice() == model);
        drop(whole);

        let (mut put, mut got) = (0, 1 << 20);
        for (number, (offset, len)) in [
            (0, 0),
            (0, 1),
            (1 << 20, 0),
            ((1 << 20) - 1, 1),
            (13, 5),
            (7, 104),
            (9, 105),
            (3, 700_001),
            (8, 4096),
        ]
        .into_iter()
        .enumerate()
        {
            let bytes = pattern(number + 2, len);
            end.put(&region, offset as u64, &bytes).await.unwrap();
            model[offset..offset + len].copy_from_slice(&bytes);
            let back = end.get(&region, offset as u64, len).await.unwrap();
            assert!(back.as_slice() == bytes, "put {number}");
            (put, got) = (put + len as u64, got + len as u64);
        }
        end.put(&region, 64, &5u64.to_ne_bytes()).await.unwrap();
        let counters = end.fabric.borrow().counters(end.peer).unwrap();
        assert_eq!((counters.put, counters.got), (put + 8, got));
        let add = end.old(|fabric| fabric.fetch_add(&region, 64, 37)).await;
        assert_eq!(add.unwrap(), 5);
        let other = end.old(|fabric| fabric.compare_swap(&region, 64, 5, 1));
        assert_eq!(other.await.unwrap(), 42, "it was not the expected");
        let swap = end.old(|fabric| fabric.compare_swap(&region, 64, 42, u64::MAX));
        assert_eq!(swap.await.unwrap(), 42);
        let wrap = end.old(|fabric| fabric.fetch_add(&region, 64, 2)).await;
        assert_eq!(wrap.unwrap(), u64::MAX);
        model[64..72].copy_from_slice(&1u64.to_ne_bytes());

        assert_eq!(end.fabric.borrow().outstanding(end.peer), 0);
        let path = end.fabric.borrow().path(end.peer);
        let is_direct = matches!(path, Some(Path::Shm | Path::Rdma));
        assert_eq!(region.is_direct(), is_direct);
        if path == Some(Path::Shm) {
            let words = region.words().unwrap();
            assert_eq!(words[8].load(Ordering::Acquire), 1);
        } else {
            assert!(region.words().is_none());
        }
        let (is_in_place, mut word) = (path == Some(Path::Shm), [0; 8]);
        assert_eq!(region.read(64, &mut word), is_in_place);
        assert_eq!(u64::from_ne_bytes(word), u64::from(is_in_place));
        assert_eq!(region.write(64, &word), is_in_place);
        for past in [(1 << 20) - 7, 1 << 20, usize::MAX] {
            assert!(!region.read(past, &mut word) && !region.write(past, &word));
        }
        let whole = end.get(&region, 0, 1 << 20).await.unwrap();
        assert!(whole.as_slice() == model);
        end.send(b"look").await;
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
    }

    pub(crate) async fn there(end: End) {
        let exposed = end.expose(&pattern(1, BYTES)).await;
        assert_eq!(end.receive().await.unwrap().as_slice(), b"look");
        assert_eq!(exposed.words()[8].load(Ordering::Acquire), 1);
        let mut bytes = [0; 3];
        exposed.read((1 << 20) - 4, &mut bytes);
        assert_eq!(bytes[2], 0, "the rest of the last word is zero");
        end.send(b"all").await;
        end.flush().await;
        let _ = end.receive().await;
    }
}

pub(crate) mod operates_on_a_peers_memory_like_on_ones_own {
    use super::*;

    const BYTES: usize = 200_000;
    const OPERATIONS: usize = 600;

    /// What an operation has to bring.
    enum Due {
        Put,
        Got(Vec<u8>),
        Old(u64),
    }

    fn check(number: usize, outcome: Outcome, due: &Due) {
        match (outcome, due) {
            (Outcome::Put, Due::Put) => {}
            (Outcome::Got(buffer), Due::Got(bytes)) => {
                assert!(buffer.as_slice() == bytes, "operation {number}");
            }
            (Outcome::Old(old), Due::Old(due)) => assert_eq!(old, *due, "operation {number}"),
            (outcome, _) => panic!("operation {number}: {outcome:?}"),
        }
    }

    /// Issues operations without waiting for them, and compares all that comes with a plain slice.
    pub(crate) async fn here(end: End) {
        let region = end.attach(end.handle().await).await.unwrap();
        let mut model = pattern(9, BYTES);
        let mut random = 42u64;
        let mut draw = |bound: usize| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            ((random >> 33) as usize) % bound
        };
        let mut under_way: VecDeque<(usize, Operation, Due)> = VecDeque::new();
        for number in 0..OPERATIONS {
            let kind = draw(4);
            let longest = [40, 300, 30_000][draw(3)];
            let len = if kind < 2 { draw(longest) } else { 8 };
            let offset = match kind {
                0 | 1 => draw(BYTES - len),
                _ => draw(BYTES / 8 - 1) * 8,
            };
            let (at, range) = (offset as u64, offset..offset + len);
            let word = u64::from_ne_bytes(model[offset..offset + 8].try_into().unwrap());
            let (issued, due) = match kind {
                0 => {
                    let bytes = pattern(number, len);
                    model[range].copy_from_slice(&bytes);
                    let issued = end.issue(|fabric| fabric.put(&region, at, &bytes)).await;
                    (outcome_of(issued.unwrap(), |()| Outcome::Put), Due::Put)
                }
                1 => {
                    let issued = end.issue(|fabric| fabric.get(&region, at, len)).await;
                    let due = Due::Got(model[range].to_vec());
                    (outcome_of(issued.unwrap(), Outcome::Got), due)
                }
                2 => {
                    model[range].copy_from_slice(&word.wrapping_add(at).to_ne_bytes());
                    let issued = end.issue(|fabric| fabric.fetch_add(&region, at, at)).await;
                    (outcome_of(issued.unwrap(), Outcome::Old), Due::Old(word))
                }
                _ => {
                    let expected = word ^ draw(2) as u64;
                    if expected == word {
                        model[range].copy_from_slice(&(number as u64).to_ne_bytes());
                    }
                    let new = number as u64;
                    let issued = end
                        .issue(|fabric| fabric.compare_swap(&region, at, expected, new))
                        .await;
                    (outcome_of(issued.unwrap(), Outcome::Old), Due::Old(word))
                }
            };
            match issued {
                Ok(outcome) => check(number, outcome, &due),
                Err(operation) => under_way.push_back((number, operation, due)),
            }
            while under_way.len() > [0, 30][draw(20).min(1)] {
                let (number, operation, due) = under_way.pop_front().unwrap();
                check(number, end.complete(operation).await.unwrap(), &due);
            }
        }
        for (number, operation, due) in under_way {
            check(number, end.complete(operation).await.unwrap(), &due);
        }
        assert_eq!(end.fabric.borrow().outstanding(end.peer), 0);
        let whole = end.get(&region, 0, BYTES).await.unwrap();
        assert!(whole.as_slice() == model);
        end.send(b"all").await;
        end.flush().await;
        let _ = end.receive().await;
    }

    /// What came at once, or the operation that will bring it.
    fn outcome_of<T>(
        issued: Issued<T>,
        outcome: impl FnOnce(T) -> Outcome,
    ) -> Result<Outcome, Operation> {
        match issued {
            Issued::Done(done) => Ok(outcome(done)),
            Issued::Pending(operation) => Err(operation),
            Issued::NoRoom => unreachable!(),
        }
    }

    pub(crate) async fn there(end: End) {
        let _exposed = end.expose(&pattern(9, BYTES)).await;
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
    }
}

pub(crate) mod loses_no_addition_of_either_end {
    use super::*;

    const ADDITIONS: u64 = 2_000;

    pub(crate) async fn here(end: End) {
        let region = end.attach(end.handle().await).await.unwrap();
        let mut pending = Vec::new();
        let mut seen = Vec::new();
        for _ in 0..ADDITIONS {
            match end.issue(|fabric| fabric.fetch_add(&region, 8, 1)).await {
                Ok(Issued::Done(old)) => seen.push(old),
                Ok(Issued::Pending(operation)) => pending.push(operation),
                other => panic!("{other:?}"),
            }
        }
        for operation in pending {
            match end.complete(operation).await {
                Ok(Outcome::Old(old)) => seen.push(old),
                other => panic!("{other:?}"),
            }
        }
        assert!(seen.is_sorted_by(|a, b| a < b), "each sees the one before");
        end.send(b"all").await;
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
    }

    pub(crate) async fn there(end: End) {
        let exposed = end.expose(&[0; 16]).await;
        for addition in 0..ADDITIONS {
            exposed.words()[1].fetch_add(1, Ordering::Relaxed);
            if addition % 16 == 0 {
                end.take_in();
            }
        }
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
        assert_eq!(exposed.words()[1].load(Ordering::Acquire), 2 * ADDITIONS);
        assert_eq!(exposed.words()[0].load(Ordering::Relaxed), 0);
        end.send(b"all").await;
        end.flush().await;
        let _ = end.receive().await;
    }
}

pub(crate) mod publishes_what_was_put_by_an_addition_and_by_a_message {
    use super::*;

    const ROUNDS: usize = 200;
    const LEN: usize = 5_000;

    pub(crate) async fn here(end: End) {
        let region = end.attach(end.handle().await).await.unwrap();
        for round in 0..ROUNDS {
            let bytes = pattern(round, LEN);
            let put = end.issue(|fabric| fabric.put(&region, 8, &bytes)).await;
            drop(put.unwrap());
            match round % 2 {
                0 => drop(end.issue(|fabric| fabric.fetch_add(&region, 0, 1)).await),
                _ => end.send(b"there").await,
            }
            assert_eq!(end.receive().await.unwrap().as_slice(), b"seen");
        }
    }

    pub(crate) async fn there(end: End) {
        let exposed = end.expose(&[0; 8 + LEN]).await;
        for round in 0..ROUNDS {
            if round % 2 == 0 {
                poll_fn(|_| {
                    end.take_in();
                    let additions = exposed.words()[0].load(Ordering::Acquire);
                    match additions == round as u64 / 2 + 1 {
                        true => Poll::Ready(()),
                        false => Poll::Pending,
                    }
                })
                .await;
            } else {
                assert_eq!(end.receive().await.unwrap().as_slice(), b"there");
            }
            let mut bytes = [0; LEN];
            exposed.read(8, &mut bytes);
            assert!(bytes[..] == pattern(round, LEN), "round {round}");
            end.send(b"seen").await;
        }
        end.flush().await;
        let _ = end.receive().await;
    }
}

pub(crate) mod answers_without_memory_to_answer_with {
    use super::*;

    const BYTES: usize = 60_001;

    pub(crate) async fn here(end: End) {
        let region = end.attach(end.handle().await).await.unwrap();
        end.send(b"lend").await;
        assert_eq!(end.receive().await.unwrap().as_slice(), b"lent");
        let get = end.issue(|fabric| fabric.get(&region, 1, BYTES)).await;
        // What comes behind the answer waits for it, and in order.
        for number in 0..10u8 {
            end.send(&[number]).await;
        }
        let add = end.old(|fabric| fabric.fetch_add(&region, 0, 1));
        add.await.unwrap();
        let buffer = match get.unwrap() {
            Issued::Done(buffer) => buffer,
            Issued::Pending(operation) => match end.complete(operation).await.unwrap() {
                Outcome::Got(buffer) => buffer,
                other => panic!("{other:?}"),
            },
            Issued::NoRoom => unreachable!(),
        };
        assert!(buffer.as_slice() == &pattern(4, BYTES + 1)[1..]);
        end.send(b"all").await;
        end.flush().await;
        let _ = end.receive().await;
    }

    pub(crate) async fn there(end: End) {
        let _exposed = end.expose(&pattern(4, BYTES + 1)).await;
        assert_eq!(end.receive().await.unwrap().as_slice(), b"lend");
        let mut lent = Vec::new();
        for bytes in [1 << 16, 1 << 12, 1] {
            let loan = || end.fabric.borrow().loan(bytes).unwrap();
            lent.extend(std::iter::from_fn(loan));
        }
        end.send(b"lent").await;
        for number in 0..10u8 {
            assert_eq!(end.receive().await.unwrap().as_slice(), [number]);
        }
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
    }
}

pub(crate) mod refuses_what_is_not_exposed {
    use super::*;

    pub(crate) async fn here(end: End) {
        let handle = end.handle().await;
        let region = end.attach(handle).await.unwrap();
        for byte in 4..16 {
            let mut forged = handle.to_bytes();
            forged[byte] ^= 1; // Its place in the book, and its key.
            let attached = end.attach(RegionHandle::from_bytes(&forged)).await;
            let refused = matches!(attached, Err(Error::NotExposed { peer }) if peer == end.peer);
            assert!(refused, "{attached:?}");
        }
        let mut stranger = handle.to_bytes();
        stranger[0] = 7;
        let attached = end.issue(|fabric| fabric.attach(&RegionHandle::from_bytes(&stranger)));
        assert!(matches!(
            attached.await,
            Err(Error::UnknownRank { rank: 7, size: 2 })
        ));
        // Where it is and how long: the owner says that itself.
        let mut shifted = handle.to_bytes();
        shifted[16..].fill(0xff);
        let shifted = end.attach(RegionHandle::from_bytes(&shifted)).await;
        assert_eq!(shifted.unwrap().len(), 1000);

        for (offset, bytes) in [(1000, 1), (993, 8), (u64::MAX, 2), (0, 1001)] {
            let put = end.put(&region, offset, &vec![0; bytes]).await;
            assert!(matches!(put, Err(Error::OutOfRegion { .. })), "{put:?}");
            let got = end.get(&region, offset, bytes).await;
            assert!(matches!(got, Err(Error::OutOfRegion { .. })), "{got:?}");
        }
        let old = end.old(|fabric| fabric.fetch_add(&region, 1000, 1)).await;
        assert!(matches!(old, Err(Error::OutOfRegion { .. })), "{old:?}");
        let old = end.old(|fabric| fabric.fetch_add(&region, 12, 1)).await;
        assert!(
            matches!(old, Err(Error::Misaligned { offset: 12 })),
            "{old:?}"
        );

        end.send(b"no more").await;
        assert_eq!(end.receive().await.unwrap().as_slice(), b"none");
        // Those who have it mapped learn of it soon; others when they ask.
        let refused = loop {
            end.take_in();
            match end.put(&region, 0, b"late").await {
                Ok(()) => YieldOnce::default().await,
                Err(error) => break error,
            }
        };
        assert!(
            matches!(refused, Error::NotExposed { peer } if peer == end.peer),
            "{refused:?}"
        );
        let again = end.attach(handle).await;
        assert!(matches!(again, Err(Error::NotExposed { .. })), "{again:?}");
        end.send(b"all").await;
        end.flush().await;
        let _ = end.receive().await;
    }

    pub(crate) async fn there(end: End) {
        let exposed = end.expose(&[3; 1000]).await;
        assert_eq!(end.receive().await.unwrap().as_slice(), b"no more");
        let mut bytes = [0; 1000];
        exposed.read(0, &mut bytes);
        assert_eq!(bytes, [3; 1000], "nothing was written");
        drop(exposed);
        end.send(b"none").await;
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
    }
}

pub(crate) mod takes_memory_back_once_no_peer_can_touch_it {
    use super::*;

    const BYTES: usize = SMALL_ARENA as usize / 2;

    pub(crate) async fn here(end: End) {
        let region = end.attach(end.handle().await).await.unwrap();
        let other = region.clone();
        end.send(b"attached").await;
        assert_eq!(end.receive().await.unwrap().as_slice(), b"taken back");
        if let Some(words) = region.words() {
            assert_eq!(words[0].load(Ordering::Relaxed), 0x0505_0505_0505_0505);
        }
        if region.is_direct() {
            // It learns that it should let go.
            poll_fn(|_| {
                end.take_in();
                match region.is_revoked() {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            })
            .await;
        }
        drop(region);
        drop(other);
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
    }

    pub(crate) async fn there(end: End) {
        let exposed = end.expose(&[5; BYTES]).await;
        assert_eq!(end.receive().await.unwrap().as_slice(), b"attached");
        drop(exposed);
        let path = end.fabric.borrow().path(end.peer);
        if matches!(path, Some(Path::Shm | Path::Rdma)) {
            let early = end.fabric.borrow().loan(BYTES).unwrap();
            assert!(early.is_none(), "a peer can touch it");
        }
        end.send(b"taken back").await;
        drop(end.loan(BYTES).await);
        end.send(b"all").await;
        end.flush().await;
        let _ = end.receive().await;
    }
}

pub(crate) mod takes_memory_back_from_the_dead {
    use super::*;

    const BYTES: usize = SMALL_ARENA as usize / 2;

    pub(crate) async fn here(end: End) {
        let exposed = end.expose(&[5; BYTES]).await;
        assert_eq!(end.receive().await.unwrap().as_slice(), b"attached");
        drop(exposed);
        let died = end.receive().await;
        assert!(matches!(died, Err(Error::PeerLost { .. })), "{died:?}");
        drop(end.loan(BYTES).await);
    }

    pub(crate) async fn there(end: End) {
        let _region = end.attach(end.handle().await).await.unwrap();
        end.send(b"attached").await;
        end.flush().await;
        (end.die)();
    }
}

pub(crate) mod ends_what_is_under_way_at_a_peer_that_dies {
    use super::*;

    pub(crate) async fn here(end: End) {
        let region = end.attach(end.handle().await).await.unwrap();
        end.send(b"die").await;
        // Nobody knows which of these are carried out, but each of them ends.
        let mut under_way = Vec::new();
        let refused = loop {
            match end.issue(|fabric| fabric.fetch_add(&region, 0, 1)).await {
                Ok(Issued::Pending(operation)) => under_way.push(operation),
                Ok(_) => {}
                Err(Error::NotExposed { .. }) => {} // A thread that dies takes its memory back.
                Err(error) => break error,
            }
            end.take_in();
            YieldOnce::default().await;
        };
        assert!(matches!(refused, Error::PeerLost { .. }), "{refused:?}");
        for operation in under_way {
            match end.complete(operation).await {
                Ok(Outcome::Old(_)) | Err(Error::PeerLost { .. } | Error::NotExposed { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(end.fabric.borrow().outstanding(end.peer), 0);
        let again = end.issue(|fabric| fabric.attach(&region_of(&end))).await;
        assert!(matches!(again, Err(Error::PeerLost { .. })), "{again:?}");
    }

    /// Any handle of the peer.
    fn region_of(end: &End) -> RegionHandle {
        let mut bytes = [0; RegionHandle::BYTES];
        bytes[0] = end.peer as u8;
        RegionHandle::from_bytes(&bytes)
    }

    pub(crate) async fn there(end: End) {
        let _exposed = end.expose(&[0; 64]).await;
        assert_eq!(end.receive().await.unwrap().as_slice(), b"die");
        (end.die)();
    }
}
