//! What only some paths can be asked, or a rank alone.

use std::{
    cell::RefCell,
    future::poll_fn,
    rc::Rc,
    sync::{
        atomic::Ordering,
        mpsc::{Receiver, Sender},
    },
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use transport::{
    Address, Arena, Config, Error, Event, Fabric, Interface, Issued, Ledger, Path, Rank, Secret,
    Transport,
};

use crate::{
    end::{End, YieldOnce},
    harness::{Way, arena, config, drive, poll_until},
};

/// One rank of this node operates on memory by itself, another asks the owner over TCP, and the owner has
/// its part in it too.
#[test]
fn additions_over_different_paths_are_atomic_with_each_other() {
    const ADDITIONS: u64 = 20_000;
    let secret = Secret::random().unwrap();
    let (addresses, told) = std::sync::mpsc::channel();
    let ranks = [Transport::Auto, Transport::Shm, Transport::Tcp].map(|transport| {
        let (secret, addresses) = (secret.clone(), addresses.clone());
        let (tell, book) = std::sync::mpsc::channel::<Vec<Address>>();
        let rank = match transport {
            Transport::Auto => 0,
            Transport::Shm => 1,
            _ => 2,
        };
        let thread = thread::spawn(move || {
            let config = Config {
                transport,
                ..Config::new(rank, 3, &secret)
            };
            let fabric = Fabric::new(config, arena(1 << 20)).unwrap();
            addresses.send((rank, fabric.address().unwrap())).unwrap();
            let fabric = Rc::new(RefCell::new(fabric));
            fabric.borrow_mut().join(&book.recv().unwrap()).unwrap();
            let end = End::new(fabric.clone(), 0, || {});
            drive(
                fabric,
                match rank {
                    0 => Box::pin(owner(end)),
                    _ => Box::pin(adder(end)),
                },
            );
        });
        (tell, thread)
    });
    let mut book: Vec<(Rank, Address)> = told.iter().take(3).collect();
    book.sort_by_key(|(rank, _)| *rank);
    let book: Vec<Address> = book.into_iter().map(|(_, address)| address).collect();
    for (tell, _) in &ranks {
        tell.send(book.clone()).unwrap();
    }
    for (_, thread) in ranks {
        thread.join().unwrap();
    }

    async fn owner(end: End) {
        let loan = end.loan(8).await;
        let exposed = end.fabric.borrow().expose(loan).unwrap();
        exposed.words()[0].store(0, Ordering::Relaxed);
        // The others connect, each by the path it may take.
        for _ in [1, 2] {
            assert_eq!(end.receive().await.unwrap().as_slice(), b"connect");
        }
        for peer in [1, 2] {
            let handle = exposed.handle().to_bytes();
            let sent = end.fabric.borrow_mut().send_copy(peer, 0, &handle);
            assert!(sent.unwrap());
        }
        let mut done = 0;
        for addition in 0.. {
            if addition < ADDITIONS {
                exposed.words()[0].fetch_add(1, Ordering::Relaxed);
            } else if done == 2 {
                break;
            }
            end.take_in();
            done += end.arrived.borrow_mut().drain(..).count();
            if addition % 64 == 0 {
                YieldOnce::default().await;
            }
        }
        assert_eq!(exposed.words()[0].load(Ordering::Acquire), 3 * ADDITIONS);
        for peer in [1, 2] {
            let sent = end.fabric.borrow_mut().send_copy(peer, 0, b"all");
            assert!(sent.unwrap());
        }
        end.flush().await;
    }

    async fn adder(end: End) {
        end.send(b"connect").await;
        let region = end.attach(end.handle().await).await.unwrap();
        let mapped = end.fabric.borrow().rank() == 1;
        assert_eq!(region.words().is_some(), mapped);
        for _ in 0..ADDITIONS {
            let issued = end.issue(|fabric| fabric.fetch_add(&region, 0, 1)).await;
            assert_eq!(matches!(issued, Ok(Issued::Done(_))), mapped);
        }
        poll_fn(|_| {
            end.take_in();
            match end.fabric.borrow().outstanding(0) {
                0 => Poll::Ready(()),
                _ => Poll::Pending,
            }
        })
        .await;
        end.send(b"done").await;
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
    }
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let ledger = Ledger::new(1 << 20);
    let fabric = Fabric::alone(Arena::new(&ledger, 1 << 20).unwrap());
    assert!(matches!(
        fabric.loan(2 << 20),
        Err(Error::MessageTooLarge {
            limit: 1_048_576,
            ..
        })
    ));
    let second = Arena::new(&ledger, 1).unwrap_err();
    assert_eq!(
        second.to_string(),
        "the arena of an executor needs 1 bytes, but 1048576 of the ledger's 1048576 are in use"
    );
}

#[test]
fn ranks_meet_on_the_interface_that_is_chosen() {
    for chosen in ["lo", "127.0.0.2", "::1", "::1/128"] {
        let secret = Secret::random().unwrap();
        let interface = Interface::find(chosen).unwrap();
        let mut fabrics = [0, 1].map(|rank| {
            let config = Config {
                interface,
                ..config(rank, Way::Tcp, &secret)
            };
            Fabric::new(config, arena(1 << 20)).unwrap()
        });
        let book = fabrics.each_ref().map(|fabric| fabric.address().unwrap());
        let listens = book[1].to_string().rsplit_once('/').unwrap().1.to_owned();
        let listens: std::net::SocketAddr = listens.parse().unwrap();
        assert_eq!(listens.ip(), interface.address(), "{chosen}");
        for fabric in &mut fabrics {
            fabric.join(&book).unwrap();
        }
        fabrics[0].send_copy(1, 0, b"hello").unwrap();
        poll_until(
            &mut fabrics,
            |_, event| matches!(event, Event::Message { from: 0, buffer } if buffer.as_slice() == b"hello"),
        );
        assert_eq!(fabrics[1].path(0), Some(Path::Tcp), "{chosen}");
    }
}

/// Each message is sent about when its receiver falls asleep, and a lost wake-up would cost it ten seconds.
#[test]
fn no_wake_up_is_lost_whoever_fences() {
    const MESSAGES: u64 = 20_000;
    for spin in [true, false] {
        let secret = Secret::random().unwrap();
        let (to_there, from_here) = std::sync::mpsc::channel::<Address>();
        let (to_here, from_there) = std::sync::mpsc::channel::<Address>();
        let run =
            move |rank: Rank, secret: &Secret, tell: Sender<Address>, hear: Receiver<Address>| {
                let config = Config {
                    transport: Transport::Shm,
                    spin,
                    ..Config::new(rank, 2, secret)
                };
                let mut fabric = Fabric::new(config, arena(1 << 20)).unwrap();
                tell.send(fabric.address().unwrap()).unwrap();
                let mut book = vec![fabric.address().unwrap()];
                book.insert(1 - rank as usize, hear.recv().unwrap());
                fabric.join(&book).unwrap();
                for number in 0..MESSAGES {
                    if number % 2 == u64::from(rank) {
                        for _ in 0..number * 7919 % 1_000 {
                            std::hint::spin_loop();
                        }
                        assert!(fabric.send_copy(1 - rank, number, b"wake up").unwrap());
                        continue;
                    }
                    let start = Instant::now();
                    let buffer = loop {
                        match fabric.receive().unwrap() {
                            Some(Event::Message { buffer, .. }) => break buffer,
                            Some(event) => panic!("{event:?}"),
                            None => fabric.wait(Some(Duration::from_secs(10))).unwrap(),
                        }
                    };
                    assert_eq!(buffer.tag(), number);
                    assert!(
                        start.elapsed() < Duration::from_secs(5),
                        "message {number} woke nobody"
                    );
                }
                while !fabric.flush().unwrap() {}
            };
        let there = {
            let secret = secret.clone();
            thread::spawn(move || run(1, &secret, to_here, from_here))
        };
        run(0, &secret, to_there, from_there);
        there.join().unwrap();
    }
}

#[test]
fn a_rank_that_waits_uses_no_processor() {
    let secret = Secret::random().unwrap();
    let config = Config {
        transport: Transport::Auto,
        ..config(0, Way::Tcp, &secret)
    };
    let mut fabric = Fabric::new(config, arena(1 << 20)).unwrap();
    let cpu =
        || nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD).unwrap();
    let before = cpu().user_time() + cpu().system_time();
    for _ in 0..5 {
        fabric.wait(Some(Duration::from_millis(100))).unwrap();
    }
    let used = cpu().user_time() + cpu().system_time() - before;
    let used = Duration::from_micros((used.tv_sec() * 1_000_000 + used.tv_usec()) as u64);
    assert!(
        used < Duration::from_millis(25),
        "it used {used:?} in half a second"
    );
}
