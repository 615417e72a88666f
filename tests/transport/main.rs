//! What a transport promises, whoever keeps the promise: threads, processes, TCP, the simulation.
//!
//! A promise is two programs, one for each end of a link. They are futures, so that the same text
//! runs on two threads, in two processes, or in turns on one thread.
//!
//! [`messages`] and [`memory`] are the promises, [`harness`] has them kept, and [`strangers`] and [`particular`] ask
//! what only some paths can be asked.

mod end;
mod harness;
mod memory;
mod messages;
mod particular;
mod strangers;

use std::{
    env,
    io::{Read, Write},
    net::TcpListener,
    os::fd::OwnedFd,
    process::Stdio,
};

use end::{End, Program};
use harness::{Way, ends_well, fabric, other_process, processes, run_end, simulated, threads};
use memory::*;
use messages::*;
use nix::sys::signal::{Signal, raise};
use transport::Secret;

/// Larger than the largest message, with room for a second one in flight.
const ARENA: u64 = 160 << 20;
const SMALL_ARENA: u64 = 1 << 20;

/// What both ends do.
#[derive(Clone, Copy)]
struct Promise {
    arena: u64,
    here: fn(End) -> Program,
    there: fn(End) -> Program,
}

macro_rules! promises {
    ($($name:ident in $arena:expr;)*) => {
        fn promise(name: &str) -> Promise {
            match name {
                $(stringify!($name) => Promise {
                    arena: $arena,
                    here: |end| Box::pin($name::here(end)),
                    there: |end| Box::pin($name::there(end)),
                },)*
                _ => panic!("no promise is called {name}"),
            }
        }

        mod threads_over_shared_memory { $(#[test] fn $name() {
            super::threads(super::promise(stringify!($name)), super::Way::Shm);
        })* }
        mod threads_over_tcp { $(#[test] fn $name() {
            super::threads(super::promise(stringify!($name)), super::Way::Tcp);
        })* }
        mod threads_over_tls { $(#[test] fn $name() {
            super::threads(super::promise(stringify!($name)), super::Way::Tls);
        })* }
        mod processes_over_shared_memory { $(#[test] fn $name() {
            super::processes(stringify!($name), super::Way::Shm);
        })* }
        mod processes_over_tcp { $(#[test] fn $name() {
            super::processes(stringify!($name), super::Way::Tcp);
        })* }
        mod processes_over_tls { $(#[test] fn $name() {
            super::processes(stringify!($name), super::Way::Tls);
        })* }
        mod threads_over_rdma { $(#[test] #[ignore = "needs RDMA: tests/rdma/run"] fn $name() {
            super::threads(super::promise(stringify!($name)), super::Way::Rdma);
        })* }
        mod processes_over_rdma { $(#[test] #[ignore = "needs RDMA: tests/rdma/run"] fn $name() {
            super::processes(stringify!($name), super::Way::Rdma);
        })* }
        mod simulation { $(#[test] fn $name() {
            super::simulated(super::promise(stringify!($name)));
        })* }
    };
}

promises! {
    delivers_in_order in ARENA;
    delivers_empty_and_huge_messages in ARENA;
    aligns_what_it_delivers in ARENA;
    makes_a_fast_sender_wait_for_a_slow_receiver in SMALL_ARENA;
    returns_every_loan in SMALL_ARENA;
    passes_on_what_another_lent in ARENA;
    reads_and_writes_the_memory_of_a_peer in ARENA;
    operates_on_a_peers_memory_like_on_ones_own in SMALL_ARENA;
    loses_no_addition_of_either_end in SMALL_ARENA;
    publishes_what_was_put_by_an_addition_and_by_a_message in SMALL_ARENA;
    answers_without_memory_to_answer_with in SMALL_ARENA;
    refuses_what_is_not_exposed in SMALL_ARENA;
    takes_memory_back_once_no_peer_can_touch_it in SMALL_ARENA;
    takes_memory_back_from_the_dead in SMALL_ARENA;
    ends_what_is_under_way_at_a_peer_that_dies in SMALL_ARENA;
    tells_of_an_orderly_end_after_the_last_message in SMALL_ARENA;
    tells_of_a_death_after_the_last_message in SMALL_ARENA;
    takes_back_what_the_dead_had_not_read in SMALL_ARENA;
    connects_once_when_both_connect_at_the_same_time in SMALL_ARENA;
}

/// Runs the other ends of the promises of another machine, for as long as it asks for them.
#[test]
#[ignore = "the other machine of the promises that are kept between two: tests/rdma/run"]
fn the_other_machine() {
    let listener = TcpListener::bind(env::var("UPDRAFT_TEST_MACHINE").unwrap()).unwrap();
    loop {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0]; // What follows is for the process.
            stream.read_exact(&mut byte).unwrap();
            line.extend(byte);
        }
        let line = String::from_utf8(line).unwrap();
        let (name, way) = line.trim().split_once(' ').unwrap();
        if name == "end" {
            return;
        }
        let stdio = || Stdio::from(OwnedFd::from(stream.try_clone().unwrap()));
        let mut child = other_process(name, way)
            .stdin(stdio())
            .stdout(stdio())
            .spawn()
            .unwrap();
        let ended_well = ends_well(&mut child);
        let _ = writeln!(stream, "\nENDED={ended_well}");
    }
}

#[test]
#[ignore = "the other end of the promises that are kept between processes"]
fn the_other_process() {
    let promise = promise(&env::var("PROMISE").unwrap());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let (hex, address) = line.trim().split_once(' ').unwrap();
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect();
    let secret = Secret::from(<[u8; Secret::BYTES]>::try_from(bytes).unwrap());
    let way = Way::named(&env::var("WAY").unwrap());
    let mut fabric = fabric(1, promise.arena, way, &secret);
    println!("ADDRESS={}", fabric.address().unwrap());
    fabric
        .join(&[address.parse().unwrap(), fabric.address().unwrap()])
        .unwrap();
    run_end(fabric, promise.there, || raise(Signal::SIGKILL).unwrap());
}
