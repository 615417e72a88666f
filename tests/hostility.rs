//! What strangers and peers gone mad can do to a rank: nothing but what a typed error says.
//!
//! The runs here are short. `UPDRAFT_LONG=1 cargo test --release --test hostility` takes a hundred times as many.

#[path = "support/long.rs"]
mod long;

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::{FileExt, MetadataExt},
    panic::resume_unwind,
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use long::often;
use transport::{
    Address, Arena, Buffer, Config, Event, Fabric, HELLO_BYTES, Ledger, Rank, Secret, Transport,
};

const ARENA: u64 = 4 << 20;
/// Longer than any of these should take: more is a hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many times as much is done when there is time.
fn many(few: u64) -> u64 {
    often(few, 100 * few)
}

/// Numbers that look random, from a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn fabric(rank: Rank, transport: Transport, secret: &Secret) -> Fabric {
    let config = Config {
        transport,
        spin: false,
        ..Config::new(rank, 2, secret)
    };
    Fabric::new(config, Arena::new(&Ledger::new(ARENA), ARENA).unwrap()).unwrap()
}

/// Two ranks that know of each other.
fn pair(transport: Transport) -> [Fabric; 2] {
    let secret = Secret::random().unwrap();
    let mut ranks = [0, 1].map(|rank| fabric(rank, transport, &secret));
    let book = [0, 1].map(|rank: usize| ranks[rank].address().unwrap());
    for rank in &mut ranks {
        rank.join(&book).unwrap();
    }
    ranks
}

/// Where a rank listens for others.
fn port(fabric: &Fabric) -> SocketAddr {
    let address = fabric.address().unwrap().to_string();
    address.rsplit('/').next().unwrap().parse().unwrap()
}

/// Does it on another thread, so that a hang is a failure and not a hang.
fn in_time(work: impl FnOnce() + Send + 'static) {
    let (done, is_done) = channel();
    let patience = PATIENCE * u32::try_from(many(1)).unwrap();
    let worker = thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    match is_done.recv_timeout(patience) {
        Err(RecvTimeoutError::Timeout) => panic!("it hangs"),
        _ => worker.join().unwrap_or_else(|panic| resume_unwind(panic)),
    }
}

/// The arenas of this thread's ranks, opened as their peers have them: for reading and writing.
fn arenas(sizes: u64) -> Vec<File> {
    let mut found: Vec<(u64, File)> = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let path = entry.unwrap().path();
        let is_arena = fs::read_link(&path)
            .is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:updraft-arena"));
        if !is_arena {
            continue;
        }
        let Ok(file) = File::options().read(true).write(true).open(&path) else {
            continue;
        };
        let metadata = file.metadata().unwrap();
        let known = found.iter().any(|(inode, _)| *inode == metadata.ino());
        if metadata.len() >= sizes && !known {
            found.push((metadata.ino(), file));
        }
    }
    found.into_iter().map(|(_, file)| file).collect()
}

/// What is read of a buffer that a mad peer writes to at the same time: all of it.
fn read_all(buffer: &Buffer) -> u64 {
    buffer.iter().map(|&byte| u64::from(byte)).sum()
}

/// Two ranks send to each other what they can, and keep a few of the messages; a few steps of it.
fn work(ranks: &mut [Fabric; 2], kept: &mut Vec<Buffer>, random: &mut Random, steps: u64) -> bool {
    for _ in 0..steps {
        for here in ranks.iter_mut() {
            let to = 1 - here.rank();
            let len = [0, 8, 60, 104, 105, 4096, 60_000][random.below(7) as usize];
            // Typed errors, all of them: the peer is lost, or there is no room.
            if let Ok(Some(mut loan)) = here.loan(len) {
                loan.fill(len as u8);
                let _ = here.send(to, loan);
            }
            match here.receive() {
                Ok(Some(Event::Message { buffer, .. })) => {
                    read_all(&buffer);
                    if kept.len() < 8 {
                        kept.push(buffer);
                    }
                }
                Ok(Some(Event::Ended { .. })) => return false,
                Ok(_) | Err(_) => {}
            }
            if random.below(4) == 0 && !kept.is_empty() {
                let at = random.below(kept.len() as u64) as usize;
                kept.swap_remove(at);
            }
        }
    }
    true
}

/// A word that a mad peer might leave: small, huge, or one bit away from what was there.
fn nonsense(random: &mut Random, was: u64) -> u64 {
    match random.below(6) {
        0 => 0,
        1 => u64::MAX,
        2 => random.below(70_000),
        3 => was ^ 1 << random.below(64),
        4 => was.wrapping_add(random.below(3)).wrapping_sub(1),
        _ => random.next(),
    }
}

/// Where pages are written to, so where there is something to spoil: header, bell, counts, and the blocks that
/// are rings and messages.
fn place(random: &mut Random, bytes: u64) -> u64 {
    let data = bytes - ARENA;
    let at = match random.below(8) {
        0 => random.below(512),
        1 => 4096 + random.below(64 * 64),
        2..6 => data + random.below(64 << 10),
        _ => data + random.below(ARENA),
    };
    at.min(bytes - 8) & !7
}

#[test]
fn a_peer_that_scribbles_over_shared_pages_costs_its_link_and_no_more() {
    in_time(|| {
        let (mut ended, rounds) = (0, many(60));
        for seed in 0..rounds {
            let mut random = Random(seed);
            let mut ranks = pair(Transport::Shm);
            let mut kept = Vec::new();
            assert!(work(&mut ranks, &mut kept, &mut random, 300), "seed {seed}");
            assert!(ranks[0].path(1).is_some(), "seed {seed}: they have met");
            let arenas = arenas(ARENA);
            assert!(arenas.len() >= 2, "{}", arenas.len());
            let mut alive = true;
            for _ in 0..400 {
                let file = &arenas[random.below(arenas.len() as u64) as usize];
                let bytes = file.metadata().unwrap().len();
                let at = place(&mut random, bytes);
                let mut word = [0; 8];
                file.read_exact_at(&mut word, at).unwrap();
                let word = nonsense(&mut random, u64::from_ne_bytes(word));
                file.write_all_at(&word.to_ne_bytes(), at).unwrap();
                alive &= work(&mut ranks, &mut kept, &mut random, 4);
                if !alive && random.below(4) == 0 {
                    break;
                }
            }
            ended += u64::from(!alive);
            drop(ranks);
            drop(kept);
        }
        println!("{ended} of {rounds} links were ended by it");
        assert!(ended > 0, "nothing was spoilt that matters");
    });
}

#[test]
fn nobody_can_make_shared_pages_go_away() {
    let mut ranks = pair(Transport::Shm);
    let mut kept = Vec::new();
    assert!(work(&mut ranks, &mut kept, &mut Random(1), 300));
    for file in arenas(ARENA) {
        for bytes in [0, 4096, 1 << 40] {
            assert!(file.set_len(bytes).is_err(), "{bytes}");
        }
    }
    assert!(work(&mut ranks, &mut kept, &mut Random(2), 300));
}

/// Has rank 0 send a word to rank 1, and returns how long it took to arrive.
fn word_arrives(ranks: &mut [Fabric; 2]) -> Duration {
    let started = Instant::now();
    assert!(ranks[0].send_copy(1, 0, b"word").unwrap());
    loop {
        for rank in ranks.iter_mut() {
            rank.tick(started.elapsed());
            match rank.receive().unwrap() {
                Some(Event::Message { buffer, .. }) => {
                    assert_eq!(buffer.as_slice(), b"word");
                    return started.elapsed();
                }
                Some(Event::Ended { error, .. }) => panic!("{error}"),
                _ => {}
            }
        }
        assert!(started.elapsed() < PATIENCE, "the word does not arrive");
    }
}

#[test]
fn those_who_belong_get_through_a_flood_of_half_open_conversations() {
    let mut ranks = pair(Transport::Tcp);
    let port = port(&ranks[1]);
    let mut strangers = Vec::new();
    for number in 0..3000 {
        let Ok(mut stranger) = TcpStream::connect_timeout(&port, Duration::from_secs(1)) else {
            break; // No descriptors left here: enough.
        };
        if number % 2 == 0 {
            let _ = stranger.write_all(&[0; HELLO_BYTES - 1]);
        }
        strangers.push(stranger);
        let _ = ranks[1].receive();
        if number % 50 == 0 {
            ranks[1].refresh().unwrap();
        }
    }
    assert!(strangers.len() > 1200, "{}", strangers.len());
    let took = word_arrives(&mut ranks);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_stranger_is_heard_for_64_bytes_and_no_more() {
    let mut ranks = pair(Transport::Tcp);
    let port = port(&ranks[1]);
    const { assert!(HELLO_BYTES <= 64) };
    let mut random = Random(3);
    for _ in 0..many(20) {
        let mut stranger = TcpStream::connect(port).unwrap();
        let noise: Vec<u8> = (0..4096).map(|_| random.next() as u8).collect();
        let _ = stranger.write_all(&noise);
        let started = Instant::now();
        let refused = loop {
            ranks[1].refresh().unwrap();
            match ranks[1].receive().unwrap() {
                Some(Event::Refused { .. }) => break true,
                Some(event) => panic!("{event:?}"),
                None if started.elapsed() > Duration::from_secs(2) => break false,
                None => {}
            }
        };
        assert!(refused, "noise is refused at once");
        stranger
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        let mut heard = Vec::new();
        let _ = stranger.read_to_end(&mut heard);
        assert!(heard.is_empty(), "nothing is said to a stranger: {heard:?}");
    }
    word_arrives(&mut ranks);
}

/// What goes from one socket to another, written down.
fn pipe_and_record(mut from: TcpStream, mut to: TcpStream) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut record = Vec::new();
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut chunk) {
            record.extend_from_slice(&chunk[..read]);
            if to.write_all(&chunk[..read]).is_err() {
                break;
            }
        }
        record
    })
}

#[test]
fn a_conversation_that_is_replayed_proves_nothing() {
    // A stranger between two ranks, which hears all they say.
    let secret = Secret::random().unwrap();
    let mut ranks = [0, 1].map(|rank| fabric(rank, Transport::Tcp, &secret));
    let between = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let real = ranks[1].address().unwrap();
    let real_port = port(&ranks[1]).to_string();
    let told_port = between.local_addr().unwrap().to_string();
    let told: Address = real
        .to_string()
        .replace(&real_port, &told_port)
        .parse()
        .unwrap();
    ranks[0].join(&[ranks[0].address().unwrap(), told]).unwrap();
    let own = ranks[0].address().unwrap();
    ranks[1].join(&[own, real]).unwrap();
    let listener = thread::spawn(move || {
        let (caller, _) = between.accept().unwrap();
        let called = TcpStream::connect(real_port).unwrap();
        let record = pipe_and_record(caller.try_clone().unwrap(), called.try_clone().unwrap());
        let _back = pipe_and_record(called, caller);
        record.join().unwrap()
    });
    word_arrives(&mut ranks);
    let [first, mut second] = ranks;
    drop(first);
    let record = listener.join().unwrap();
    assert!(
        record.windows(4).any(|part| part == b"word"),
        "it was heard"
    );
    while let Some(event) = second.receive().unwrap() {
        assert!(matches!(event, Event::Ended { .. }), "{event:?}");
    }
    // The same words again, to a rank with the same secret that has not met the first yet.
    let mut third = fabric(1, Transport::Tcp, &secret);
    let own = third.address().unwrap();
    third.join(&[own.clone(), own]).unwrap();
    let mut replay = TcpStream::connect(port(&third)).unwrap();
    let _ = replay.write_all(&record);
    let started = Instant::now();
    loop {
        third.refresh().unwrap();
        match third.receive().unwrap() {
            Some(Event::Refused { .. }) => break,
            Some(event) => panic!("{event:?}"),
            None => assert!(started.elapsed() < PATIENCE, "the replay is not refused"),
        }
    }
}

#[test]
fn what_is_printed_of_a_rank_tells_no_secret() {
    let secret = Secret::from([0xA7; Secret::BYTES]);
    let config = Config::new(0, 2, &secret);
    let rank = fabric(0, Transport::Auto, &secret);
    let printed = format!(
        "{secret:?} {config:?} {config:#?} {rank:?} {:?}",
        rank.address()
    );
    for sought in ["167, 167", "a7a7a7", "A7A7A7", "\u{a7}\u{a7}", "\\xa7"] {
        assert!(!printed.contains(sought), "{sought} is in {printed}");
    }
}
