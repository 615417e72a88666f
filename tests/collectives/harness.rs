//! Who runs a program of several ranks: threads over a link of one kind, or the simulated network, in turns.

use std::{
    cell::RefCell,
    env,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use collectives::{Engine, Error, Group};
use transport::{
    Address, Arena, Config, Fabric, Ledger, RdmaConfig, Secret, Simulation, Transport,
};

pub(crate) const ARENA: u64 = 16 << 20;
/// Rounds in which nothing happens before a simulation counts as stuck.
const IDLE_ROUNDS_MAX: usize = 1000;
/// How long such a round takes.
const IDLE_ROUND: Duration = Duration::from_millis(10);

/// Elements after which operands repeat themselves: a prime number, so that no segment starts where another one could.
pub(crate) const PERIOD: usize = 1009;

/// An operand of `len` elements, which begins again after [`PERIOD`] of them.
pub(crate) fn periodic<T: Copy>(len: usize, element: impl Fn(usize) -> T) -> Vec<T> {
    lengthened(&(0..len.min(PERIOD)).map(element).collect::<Vec<_>>(), len)
}

/// What begins like `period` goes on to `len` elements.
pub(crate) fn lengthened<T: Copy>(period: &[T], len: usize) -> Vec<T> {
    let mut all = period.repeat(len.div_ceil(PERIOD));
    all.truncate(len);
    all
}

/// A program of one rank.
pub(crate) type Program<T> = Pin<Box<dyn Future<Output = Result<T, Error>>>>;

/// What every rank makes of `program` on the simulated network. Fails if it comes to a standstill.
pub(crate) fn simulate<T: 'static>(
    seed: u64,
    size: u32,
    program: impl Fn(Group) -> Program<T> + 'static,
) -> Vec<Result<T, Error>> {
    simulate_while(seed, size, program, |_, _| {})
}

/// The same, with something done to the network after each round.
pub(crate) fn simulate_while<T: 'static>(
    seed: u64,
    size: u32,
    program: impl Fn(Group) -> Program<T> + 'static,
    meanwhile: impl FnMut(&Simulation, usize),
) -> Vec<Result<T, Error>> {
    let network = Simulation::new(seed, size);
    let results = run_on(&network, ARENA, seed, size, program, false, meanwhile);
    let killed = || Err(Error::Transport("it was killed".to_owned()));
    results
        .into_iter()
        .map(|result| result.unwrap_or_else(killed))
        .collect()
}

/// The same, in small arenas.
pub(crate) fn simulate_in<T: 'static>(
    arena: u64,
    seed: u64,
    size: u32,
    program: impl Fn(Group) -> Program<T> + 'static,
) -> Vec<Result<T, Error>> {
    let network = Simulation::new(seed, size);
    let results = run_on(&network, arena, seed, size, program, false, |_, _| {});
    results.into_iter().map(Option::unwrap).collect()
}

/// The same, on a network where ranks die; nothing for those that did. Time passes while nothing happens.
pub(crate) fn simulate_on<T: 'static>(
    network: &Simulation,
    seed: u64,
    size: u32,
    program: impl Fn(Group) -> Program<T> + 'static,
) -> Vec<Option<Result<T, Error>>> {
    run_on(network, ARENA, seed, size, program, true, |_, _| {})
}

fn run_on<T: 'static>(
    network: &Simulation,
    arena: u64,
    seed: u64,
    size: u32,
    program: impl Fn(Group) -> Program<T> + 'static,
    may_stay: bool,
    mut meanwhile: impl FnMut(&Simulation, usize),
) -> Vec<Option<Result<T, Error>>> {
    let program = Rc::new(program);
    let mut engines: Vec<Option<Engine>> = Vec::new();
    let mut programs: Vec<Option<Program<T>>> = Vec::new();
    for rank in 0..size {
        let arena = Arena::new(&Ledger::new(arena), arena).unwrap();
        let engine = Engine::simulated(network.fabric(rank, &arena));
        engines.push(Some(engine.clone()));
        let program = program.clone();
        let running = async move { program(engine.world().await?).await };
        programs.push(Some(Box::pin(running)));
    }
    let mut results: Vec<Option<Result<T, Error>>> = (0..size).map(|_| None).collect();
    let mut context = Context::from_waker(Waker::noop());
    let (mut now, mut round, mut idle_rounds) = (Duration::ZERO, 0, 0);
    while programs.iter().any(Option::is_some) {
        let first = network.draw(size.into()) as usize;
        for turn in 0..size as usize {
            let rank = (first + turn) % size as usize;
            if let Some(program) = &mut programs[rank] {
                if let Poll::Ready(result) = program.as_mut().poll(&mut context) {
                    results[rank] = Some(result);
                    programs[rank] = None;
                    idle_rounds = 0;
                    if !may_stay || network.draw(2) == 0 {
                        engines[rank] = None; // Its process ends, and does not stay for others.
                    }
                }
            } else if let Some(engine) = &engines[rank] {
                engine.turn().unwrap();
            }
            if network.is_dead(rank as u32) {
                (programs[rank], results[rank], engines[rank]) = (None, None, None);
            }
        }
        meanwhile(network, round);
        round += 1;
        if network.advance() {
            idle_rounds = 0;
        } else {
            now += IDLE_ROUND;
            engines.iter().flatten().for_each(|engine| engine.tick(now));
        }
        idle_rounds += 1;
        if idle_rounds >= IDLE_ROUNDS_MAX {
            let stuck = (0..size as usize).filter(|&rank| programs[rank].is_some());
            panic!(
                "seed {seed}: {:?} of {size} are stuck",
                stuck.collect::<Vec<_>>()
            );
        }
    }
    results
}

/// The devices that ranks take turns on, where there are some.
fn rdma() -> RdmaConfig {
    let devices = env::var("UPDRAFT_RDMA_DEVICES").unwrap_or_default();
    RdmaConfig {
        devices: devices.split_terminator(',').map(str::to_owned).collect(),
        ..RdmaConfig::default()
    }
}

/// What every rank makes of `program` on a thread of its own.
pub(crate) fn threads<T: Send + 'static>(
    transport: Transport,
    size: u32,
    program: impl Fn(Group) -> Program<T> + Send + Sync + 'static,
) -> Vec<Result<T, Error>> {
    threads_in(ARENA, transport, size, program)
}

/// The same, in small arenas.
pub(crate) fn threads_in<T: Send + 'static>(
    arena_bytes: u64,
    transport: Transport,
    size: u32,
    program: impl Fn(Group) -> Program<T> + Send + Sync + 'static,
) -> Vec<Result<T, Error>> {
    let secret = Secret::random().unwrap();
    let addresses: Arc<Mutex<Vec<Option<Address>>>> =
        Arc::new(Mutex::new(vec![None; size as usize]));
    let met = Arc::new(Barrier::new(size as usize));
    let ended = Arc::new(AtomicU32::new(0));
    let program = Arc::new(program);
    let ranks: Vec<_> = (0..size)
        .map(|rank| {
            let (secret, addresses, met) = (secret.clone(), addresses.clone(), met.clone());
            let (program, ended) = (program.clone(), ended.clone());
            thread::spawn(move || {
                let config = Config {
                    transport,
                    rdma: rdma(),
                    spin: false,
                    ..Config::new(rank, size, &secret)
                };
                let arena = Arena::new(&Ledger::new(arena_bytes), arena_bytes).unwrap();
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
                // Others may have something to ask us until all are done, as they may ask an executor.
                ended.fetch_add(1, Ordering::SeqCst);
                let deadline = Instant::now() + Duration::from_secs(60);
                while ended.load(Ordering::SeqCst) < size && Instant::now() < deadline {
                    engine.turn().unwrap();
                    engine.flush();
                    let mut fabric = fabric.borrow_mut();
                    fabric.flush().unwrap();
                    fabric.wait(Some(Duration::from_millis(1))).unwrap();
                }
                result
            })
        })
        .collect();
    ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
}
