//! How many instructions a message takes, on its way from one rank to another, and a round of ranks that share a thread.
//!
//! Both ranks are on one thread, so that none is spent on waiting. This program counts with callgrind (Debian: valgrind), which
//! runs it twice for each case: what more messages take is divided by how many more there are. The kernel's instructions are
//! not among them. `cargo bench --bench instructions`.

use std::{
    env,
    hint::black_box,
    process::{Command, ExitCode},
};

use transport::{Arena, Config, Event, Fabric, Ledger, Secret, Transport};
use updraft::{collectives::op::Sum, prelude::*};

const ARENA_BYTES: u64 = 16 << 20;
/// Messages of a batch that is sent before any of it is received.
const BATCH: u64 = 64;
/// How often a case is done in the two runs.
const TIMES: [u64; 2] = [2_000, 12_000];

/// A case: what it is called, and how it is done so often.
type Case = (&'static str, fn(u64));

const CASES: [Case; 10] = [
    ("8 B one way, shm", |times| {
        ping(Transport::Shm, 8, 1, times);
    }),
    ("64 B one way, shm", |times| {
        ping(Transport::Shm, 64, 1, times);
    }),
    ("1 KiB one way, shm", |times| {
        ping(Transport::Shm, 1024, 1, times);
    }),
    ("8 B in batches of 64, shm", |times| {
        ping(Transport::Shm, 8, BATCH, times);
    }),
    ("64 B in batches of 64, shm", |times| {
        ping(Transport::Shm, 64, BATCH, times);
    }),
    ("8 B one way, tcp", |times| {
        ping(Transport::Tcp, 8, 1, times);
    }),
    ("1 KiB one way, tcp", |times| {
        ping(Transport::Tcp, 1024, 1, times);
    }),
    ("8 B there and back, 2 futures of a thread", |times| {
        futures(async move |world: &Group| {
            let peer = 1 - world.rank();
            for _ in 0..times {
                if world.rank() == 0 {
                    world.send(peer, 0, &[7u64]).await?;
                }
                world.receive::<u64>(Some(peer), Some(0)).await?;
                if world.rank() == 1 {
                    world.send(peer, 0, &[7u64]).await?;
                }
            }
            Ok(())
        });
    }),
    ("barrier of 2 futures of a thread", |times| {
        futures(async move |world: &Group| {
            for _ in 0..times {
                world.barrier().await?;
            }
            Ok(())
        });
    }),
    ("8 B all_reduce of 2 futures of a thread", |times| {
        futures(async move |world: &Group| {
            let mut sum = [1u64];
            for _ in 0..times {
                world.all_reduce(&mut sum, Sum).await?;
            }
            Ok(())
        });
    }),
];

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    if let [case, times] = &words[..]
        && let (Ok(case), Ok(times)) = (case.parse::<usize>(), times.parse())
    {
        CASES[case].1(times);
        return ExitCode::SUCCESS;
    }
    println!("instructions, by callgrind");
    for (case, (name, _)) in CASES.iter().enumerate() {
        let counts = TIMES.map(|times| instructions(case, times));
        let [Some(few), Some(many)] = counts else {
            eprintln!("valgrind --tool=callgrind does not run here (Debian: valgrind)");
            return ExitCode::FAILURE;
        };
        let each = (many - few) as f64 / (TIMES[1] - TIMES[0]) as f64;
        println!("  {name:<42} {each:>6.0}");
    }
    ExitCode::SUCCESS
}

/// The instructions of a run, of all its threads.
fn instructions(case: usize, times: u64) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe().ok()?)
        .args([case.to_string(), times.to_string()])
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let (_, count) = said.split_once("Collected : ")?;
    count.split_whitespace().next()?.parse().ok()
}

/// Messages from one rank to the other and back by turns, in batches, each written by its sender and read by its receiver.
fn ping(transport: Transport, bytes: usize, batch: u64, times: u64) {
    let secret = Secret::random().unwrap();
    let mut ranks = [0, 1].map(|rank| {
        let config = Config {
            transport,
            ..Config::new(rank, 2, &secret)
        };
        let arena = Arena::new(&Ledger::new(ARENA_BYTES), ARENA_BYTES).unwrap();
        Fabric::new(config, arena).unwrap()
    });
    let book = [0, 1].map(|rank: usize| ranks[rank].address().unwrap());
    ranks.iter_mut().for_each(|rank| rank.join(&book).unwrap());
    let payload = vec![7; bytes];
    let mut sender = 0;
    for _ in 0..times / batch {
        for _ in 0..batch {
            send(&mut ranks[sender], 1 - sender as u32, &payload);
        }
        for _ in 0..batch {
            receive(&mut ranks, 1 - sender);
        }
        sender = 1 - sender;
    }
}

fn send(rank: &mut Fabric, to: u32, payload: &[u8]) {
    if payload.len() <= transport::Buffer::INLINE_BYTES {
        assert!(rank.send_copy(to, 0, payload).unwrap());
        return;
    }
    let mut loan = rank.loan(payload.len()).unwrap().unwrap();
    loan.copy_from_slice(payload);
    rank.send(to, loan).unwrap();
}

fn receive(ranks: &mut [Fabric; 2], receiver: usize) {
    loop {
        if let Some(Event::Message { buffer, .. }) = ranks[receiver].receive().unwrap() {
            black_box(buffer.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)));
            return;
        }
        // Until there is a link, and where the sender has something to do for it to arrive.
        ranks[1 - receiver].receive().unwrap();
    }
}

/// Two ranks on the thread of one executor.
fn futures(program: impl AsyncFn(&Group) -> Result<(), updraft::Error> + Send + Sync + 'static) {
    let config = updraft::Config {
        executors: Some(1),
        progress: false,
        ..updraft::Config::default()
    };
    updraft::run(config, |env| env.bsp_cooperative(2, program)).unwrap();
}
