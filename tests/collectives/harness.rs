//! Who runs a program of several ranks: threads over a link of one kind, or the simulated network, in turns.

use std::{
    cell::RefCell,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{Arc, Barrier, Mutex},
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use collectives::{Engine, Error, Group};
use transport::{Address, Arena, Config, Fabric, Ledger, Secret, Simulation, Transport};

pub(crate) const ARENA: u64 = 16 << 20;
/// Rounds in which nothing happens before a simulation counts as stuck.
const IDLE_ROUNDS_MAX: usize = 1000;

/// A program of one rank.
pub(crate) type Program<T> = Pin<Box<dyn Future<Output = Result<T, Error>>>>;

/// What every rank makes of `program` on the simulated network. Fails if it comes to a standstill.
pub(crate) fn simulate<T: 'static>(
    seed: u64,
    size: u32,
    program: fn(Group) -> Program<T>,
) -> Vec<Result<T, Error>> {
    simulate_while(seed, size, program, |_, _| {})
}

/// The same, with something done to the network after each round.
pub(crate) fn simulate_while<T: 'static>(
    seed: u64,
    size: u32,
    program: fn(Group) -> Program<T>,
    mut meanwhile: impl FnMut(&Simulation, usize),
) -> Vec<Result<T, Error>> {
    let network = Simulation::new(seed, size);
    let mut programs: Vec<Option<Program<T>>> = (0..size)
        .map(|rank| {
            let arena = Arena::new(&Ledger::new(ARENA), ARENA).unwrap();
            let engine = Engine::simulated(network.fabric(rank, &arena));
            let program: Program<T> = Box::pin(async move { program(engine.world().await?).await });
            Some(program)
        })
        .collect();
    let mut results: Vec<Option<Result<T, Error>>> = (0..size).map(|_| None).collect();
    let mut context = Context::from_waker(Waker::noop());
    let (mut round, mut idle_rounds) = (0, 0);
    while programs.iter().any(Option::is_some) {
        let first = network.draw(size.into()) as usize;
        for turn in 0..size as usize {
            let rank = (first + turn) % size as usize;
            if let Some(program) = &mut programs[rank]
                && let Poll::Ready(result) = program.as_mut().poll(&mut context)
            {
                results[rank] = Some(result);
                programs[rank] = None;
                idle_rounds = 0;
            }
        }
        if network.advance() {
            idle_rounds = 0;
        }
        idle_rounds += 1;
        assert!(
            idle_rounds < IDLE_ROUNDS_MAX,
            "seed {seed}: {size} ranks are stuck"
        );
        meanwhile(&network, round);
        round += 1;
    }
    results.into_iter().map(Option::unwrap).collect()
}

/// What every rank makes of `program` on a thread of its own.
pub(crate) fn threads<T: Send + 'static>(
    transport: Transport,
    size: u32,
    program: impl Fn(Group) -> Program<T> + Send + Sync + 'static,
) -> Vec<Result<T, Error>> {
    let secret = Secret::random().unwrap();
    let addresses: Arc<Mutex<Vec<Option<Address>>>> =
        Arc::new(Mutex::new(vec![None; size as usize]));
    let met = Arc::new(Barrier::new(size as usize));
    let program = Arc::new(program);
    let ranks: Vec<_> = (0..size)
        .map(|rank| {
            let (secret, addresses, met) = (secret.clone(), addresses.clone(), met.clone());
            let program = program.clone();
            thread::spawn(move || {
                let config = Config {
                    transport,
                    spin: false,
                    ..Config::new(rank, size, &secret)
                };
                let arena = Arena::new(&Ledger::new(ARENA), ARENA).unwrap();
                let mut fabric = Fabric::new(config, arena).unwrap();
                addresses.lock().unwrap()[rank as usize] = fabric.address();
                met.wait();
                let book: Vec<_> = addresses
                    .lock()
                    .unwrap()
                    .iter()
                    .map(|address| address.clone().unwrap())
                    .collect();
                fabric.join(&book).unwrap();
                let fabric = Rc::new(RefCell::new(fabric));
                let start = Instant::now();
                let engine = Engine::new(fabric.clone(), false, move || start.elapsed());
                let result = engine.block_on(async { program(engine.world().await?).await });
                // What is on its way to others is not lost with us.
                let deadline = Instant::now() + Duration::from_secs(5);
                while !fabric.borrow_mut().flush().unwrap() && Instant::now() < deadline {
                    thread::yield_now();
                }
                met.wait();
                result
            })
        })
        .collect();
    ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
}
