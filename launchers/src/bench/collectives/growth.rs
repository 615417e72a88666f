//! How the cost of operations grows with the number of ranks: in messages and bytes, which the simulated network
//! counts up to thousands of ranks, each beside the formula of its algorithm; and in time, as threads of this machine.

use std::{
    fmt::Write as _,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use serde_json::json;
use updraft::{
    collectives::{Algorithm, Engine, Error as Failure, Group, Operator, op},
    dataflow::one_line,
    transport::{Arena, Flow, Ledger, Rank, Simulation},
};

use super::{Arguments, choice, measure_of};
use crate::{
    Error,
    bench::{
        PlaceArguments, Results, job,
        machine::Machine,
        plot::{Curve, Plot},
        rank,
        report::{digits, machine_json},
        samples::Samples,
        sizes::Sizes,
    },
    output::say,
};

/// Ranks of one operation by an algorithm in which each sends to every other: their messages grow with the square.
const SQUARE_MAX: u32 = 256;
/// Ranks that are timed: threads that share the cores of this machine.
const THREADS_MAX: u32 = 64;
/// Bytes of a vector that is not cut in parts.
const BYTES: usize = 64;
const WORD: usize = size_of::<u64>();
/// So much that no message is cut in segments. What is not used of it takes no memory.
const ARENA_BYTES: u64 = 4 << 30;
const SEED: u64 = 1;

/// What one operation by one algorithm sent.
struct Count {
    operator: Operator,
    algorithm: Algorithm,
    ranks: u32,
    counted: Flow,
    formula: Flow,
}

/// How long one operation took.
struct Time {
    operator: Operator,
    ranks: u32,
    ns: f64,
    algorithm: String,
}

/// Counts and times, and prints a line for each point. A count that is not what the formula says is an error.
pub(super) fn run(arguments: &Arguments, operators: &[Operator]) -> Result<u8, Error> {
    let machine = Machine::here();
    say(&format!("{}\n", machine.line()));
    let counts = counts(operators, arguments.algorithm, arguments.ranks_max)?;
    let mut times = Vec::new();
    for &operator in operators {
        let done = time(arguments, operator, &mut times)?;
        if done != 0 {
            return Ok(done);
        }
    }
    let csv = || csv(&counts, &times);
    let json = || {
        json!({
            "bench": "collectives, growth",
            "machine": machine_json(&machine),
            "counts": counts.iter().map(Count::json).collect::<Vec<_>>(),
            "times": times.iter().map(Time::json).collect::<Vec<_>>(),
        })
    };
    arguments
        .job
        .outputs
        .write(csv, json, || plot(&counts, &machine))?;
    let wrong = counts.iter().filter(|count| count.counted != count.formula);
    match wrong.count() {
        0 => Ok(0),
        wrong => Err(Error::Wrong {
            reason: format!("{wrong} counts differ from the formula of their algorithm"),
        }),
    }
}

fn counts(
    operators: &[Operator],
    only: Option<Algorithm>,
    ranks_max: u32,
) -> Result<Vec<Count>, Error> {
    say(&format!(
        "{:<15}{:<20}{:>6}{:>12}{:>12}{:>14}{:>14}\n",
        "operator", "algorithm", "ranks", "messages", "formula", "bytes", "formula"
    ));
    let mut counts = Vec::new();
    for ranks in ranks_to(ranks_max) {
        let mut job: Option<Job> = None;
        for &operator in operators {
            let algorithms = Algorithm::ALL
                .into_iter()
                .filter(|&algorithm| only.is_none_or(|only| only == algorithm));
            for algorithm in algorithms.filter(|algorithm| algorithm.serves(operator, true)) {
                let bytes = bytes(operator, algorithm, ranks);
                let Some(formula) = formula(operator, algorithm, ranks.into(), bytes as u64) else {
                    continue;
                };
                if ranks > SQUARE_MAX && formula.messages > u64::from(ranks * ranks.ilog2() * 2) {
                    continue;
                }
                // That all ranks get to know one another takes longest: once is enough.
                let job = match &mut job {
                    Some(job) => job,
                    none => none.insert(Job::new(ranks)?),
                };
                let count = Count {
                    operator,
                    algorithm,
                    ranks,
                    counted: job.count(operator, algorithm, bytes)?,
                    formula,
                };
                say(&count.row());
                counts.push(count);
            }
        }
    }
    // As they are drawn.
    counts.sort_by_key(|count| {
        let algorithm = |&algorithm: &Algorithm| algorithm == count.algorithm;
        (
            operators.iter().position(|&one| one == count.operator),
            Algorithm::ALL.iter().position(algorithm),
        )
    });
    Ok(counts)
}

/// Numbers of ranks: powers of two, and some that are none.
fn ranks_to(most: u32) -> impl Iterator<Item = u32> {
    [2, 3, 4, 7, 8, 16, 17, 32, 64, 100, 256, 1000, 1024, 4096]
        .into_iter()
        .filter(move |&ranks| ranks <= most)
}

/// Bytes of the vectors: a word for each rank, where each has a part; or of the blocks, of which there are many.
fn bytes(operator: Operator, algorithm: Algorithm, ranks: u32) -> usize {
    use Operator as On;
    match (algorithm, operator) {
        (_, On::Gather | On::Scatter | On::AllGather | On::AllToAll | On::ReduceScatter) => WORD,
        (
            Algorithm::Slices
            | Algorithm::ScatterAllGather
            | Algorithm::Rabenseifner
            | Algorithm::Ring,
            _,
        ) => ranks as usize * WORD,
        _ => BYTES,
    }
}

/// What all of `p` ranks together send in an operation on vectors, or blocks, of `n` bytes, of which each rank has a part as
/// large where there are parts. None where there are no messages, or nodes decide.
///
/// The formulas are those of Thakur, Rabenseifner and Gropp ("Optimization of collective communication operations in
/// MPICH", 2005), summed over the ranks; numbers that are no power of two fold the rest in first.
fn formula(operator: Operator, algorithm: Algorithm, p: u64, n: u64) -> Option<Flow> {
    use Operator as On;
    let others = p - 1;
    let rounds = u64::from(p.next_power_of_two().ilog2());
    // The largest power of two, and how many are more.
    let (power, doublings) = (1 << p.ilog2(), u64::from(p.ilog2()));
    let rest = p - power;
    let (messages, bytes) = match (algorithm, operator) {
        (Algorithm::Dissemination, _) => (p * rounds, 0),
        (Algorithm::ScatterAllGather, _) => (others * (p + 1), others * (p + 1) * (n / p)),
        (Algorithm::Slices, On::Reduce) => (others * (p + 1), others * (p + 1) * (n / p)),
        (Algorithm::Slices, _) => (2 * p * others, 2 * others * n),
        (Algorithm::RecursiveDoubling, On::Scan) => {
            let messages = p * rounds - ((1 << rounds) - 1);
            (messages, messages * n)
        }
        (Algorithm::RecursiveDoubling, _) => {
            let messages = 2 * rest + power * doublings;
            (messages, messages * n)
        }
        (Algorithm::Rabenseifner, _) => (
            2 * rest + 2 * power * doublings,
            2 * rest * n + 2 * n * (power - 1),
        ),
        (Algorithm::Ring, On::AllReduce) => (2 * p * others, 2 * others * n),
        (Algorithm::Bruck, On::AllGather) => (p * rounds, p * others * n),
        (Algorithm::Bruck, _) => {
            let blocks: u64 = (0..p)
                .map(|distance| u64::from(distance.count_ones()))
                .sum();
            (p * rounds, p * blocks * n)
        }
        (Algorithm::Tree, On::Gather | On::Scatter) => {
            let blocks: u64 = (1..p)
                .map(|place| (1 << place.trailing_zeros()).min(p - place))
                .sum();
            (others, blocks * n)
        }
        (Algorithm::Flat, On::Scan) => (p * others / 2, p * others / 2 * n),
        (Algorithm::Tree | Algorithm::Chain, _)
        | (Algorithm::Flat, On::Broadcast | On::Reduce | On::Gather | On::Scatter) => {
            (others, others * n)
        }
        (Algorithm::Flat | Algorithm::Pairwise | Algorithm::Ring, _) => {
            (p * others, p * others * n)
        }
        _ => return None,
    };
    Some(Flow { messages, bytes })
}

type Program<'g, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + 'g>>;

/// Ranks on the simulated network that know one another.
struct Job {
    /// All of one, which nobody leaves: the others would have to be told.
    worlds: Vec<Group>,
    network: Simulation,
    /// What all have sent so far.
    sent: Flow,
}

impl Job {
    fn new(ranks: u32) -> Result<Self, Error> {
        let network = Simulation::new(SEED, ranks);
        let what = format!("{ranks} ranks");
        // One for all: what is simulated here is not memory.
        let arena = Arena::new(&Ledger::new(ARENA_BYTES), ARENA_BYTES);
        let arena = arena.map_err(|error| failed(&what, &error))?;
        let fabrics = (0..ranks).map(|rank| network.fabric(rank, &arena));
        let engines: Vec<Engine> = fabrics.map(Engine::simulated).collect();
        let worlds = engines
            .iter()
            .map(|engine| -> Program<'_, Group> { Box::pin(async move { engine.world().await }) });
        let worlds = run_all(&network, worlds.collect(), &what)?;
        let sent = sent(&worlds);
        Ok(Self {
            worlds,
            network,
            sent,
        })
    }

    /// Has all ranks carry out an operation, and counts what they send.
    fn count(
        &mut self,
        operator: Operator,
        algorithm: Algorithm,
        bytes: usize,
    ) -> Result<Flow, Error> {
        let what = format!(
            "{operator} by {algorithm} among {} ranks",
            self.worlds.len()
        );
        let programs = self.worlds.iter().map(|group| -> Program<'_, ()> {
            Box::pin(async move {
                group.force(Some(algorithm));
                operate(group, operator, bytes / WORD).await
            })
        });
        run_all(&self.network, programs.collect(), &what)?;
        let before = std::mem::replace(&mut self.sent, sent(&self.worlds));
        Ok(Flow {
            messages: self.sent.messages - before.messages,
            bytes: self.sent.bytes - before.bytes,
        })
    }
}

fn failed(what: &str, error: &dyn std::error::Error) -> Error {
    Error::Wrong {
        reason: format!("{what}: {}", one_line(error)),
    }
}

/// Polls what the ranks do until all are done: each when something has arrived for it.
fn run_all<T>(
    network: &Simulation,
    programs: Vec<Program<'_, T>>,
    what: &str,
) -> Result<Vec<T>, Error> {
    let ranks = programs.len() as u32;
    let mut results: Vec<Option<T>> = programs.iter().map(|_| None).collect();
    let mut programs: Vec<_> = programs.into_iter().map(Some).collect();
    let mut context = Context::from_waker(Waker::noop());
    let mut poll = |rank: Rank| -> Result<bool, Error> {
        let place = &mut programs[rank as usize];
        let Some(program) = place else {
            return Ok(false);
        };
        let Poll::Ready(result) = program.as_mut().poll(&mut context) else {
            return Ok(false);
        };
        *place = None;
        results[rank as usize] = Some(result.map_err(|error| failed(what, &error))?);
        Ok(true)
    };
    let mut open = ranks;
    for rank in 0..ranks {
        open -= u32::from(poll(rank)?);
    }
    while open > 0 {
        let arrived = network.take_arrived();
        if arrived.is_empty() && !network.advance() {
            let reason = format!("{what}: it does not end");
            return Err(Error::Wrong { reason });
        }
        for rank in arrived {
            open -= u32::from(poll(rank)?);
        }
    }
    Ok(results.into_iter().flatten().collect())
}

/// What all ranks have sent so far.
fn sent(worlds: &[Group]) -> Flow {
    let mut sum = Flow::default();
    for world in worlds {
        let fabric = world.engine().fabric().borrow();
        let flows = (0..fabric.size()).filter_map(|peer| Some(fabric.counters(peer)?.sent));
        for flow in flows {
            sum.messages += flow.messages;
            sum.bytes += flow.bytes;
        }
    }
    sum
}

async fn operate(group: &Group, operator: Operator, words: usize) -> Result<(), Failure> {
    let mut own = vec![1u64; words];
    let size = group.size();
    let many = || vec![1u64; words * size];
    match operator {
        Operator::Barrier => group.barrier().await,
        Operator::Broadcast => group.broadcast(0, &mut own).await,
        Operator::Reduce => group.reduce(0, &mut own, op::Sum).await,
        Operator::AllReduce => group.all_reduce(&mut own, op::Sum).await,
        Operator::ReduceScatter => group.reduce_scatter(&many(), &mut own, op::Sum).await,
        Operator::Scan => group.scan(&mut own, op::Sum).await,
        Operator::Gather => group.gather(0, &own, &mut many()).await,
        Operator::Scatter => group.scatter(0, &many(), &mut own).await,
        Operator::AllGather => group.all_gather(&own, &mut many()).await,
        Operator::AllToAll => group.all_to_all(&many(), &mut many()).await,
        _ => Ok(()),
    }
}

/// Times an operation on small vectors among threads.
fn time(arguments: &Arguments, operator: Operator, times: &mut Vec<Time>) -> Result<u8, Error> {
    let most = arguments.ranks_max.min(THREADS_MAX);
    for ranks in [2, 4, 8, 16, 32, 64]
        .into_iter()
        .filter(|&ranks| ranks <= most)
    {
        let results = Results::new()?;
        let sizes = Sizes(vec![WORD]);
        let place = PlaceArguments {
            workers: 1,
            executors: ranks,
            ..arguments.job.place.clone()
        };
        let ranks_do = rank::Arguments {
            algorithm: arguments.algorithm,
            ..(arguments.job).ranks_do(measure_of(operator), &sizes, &results)
        };
        let code = place.start(job(&ranks_do))?;
        if code != 0 {
            return Ok(code);
        }
        let mut samples = Samples::default();
        samples
            .read_file(&results.path())
            .map_err(Error::io("read the results"))?;
        let Some((series, spread)) = samples
            .series()
            .find_map(|series| Some((series, series.spread()?)))
        else {
            continue;
        };
        if times.is_empty() {
            say(&format!(
                "\n{:<15}{:>6}{:>12}{:>12}  {}\n",
                "operator", "ranks", "us", "us a rank", "algorithm"
            ));
        }
        let time = Time {
            operator,
            ranks,
            ns: spread.median,
            algorithm: choice(series, &samples).0.to_owned(),
        };
        say(&time.row());
        times.push(time);
    }
    Ok(0)
}

impl Count {
    fn row(&self) -> String {
        let Self {
            operator,
            algorithm,
            ranks,
            counted,
            formula,
        } = self;
        let mark = if counted == formula { "" } else { "  differs" };
        format!(
            "{:<15}{:<20}{ranks:>6}{:>12}{:>12}{:>14}{:>14}{mark}\n",
            operator.name(),
            algorithm.name(),
            counted.messages,
            formula.messages,
            counted.bytes,
            formula.bytes,
        )
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "operator": self.operator.name(),
            "algorithm": self.algorithm.name(),
            "ranks": self.ranks,
            "messages": self.counted.messages,
            "formula_messages": self.formula.messages,
            "bytes": self.counted.bytes,
            "formula_bytes": self.formula.bytes,
        })
    }
}

impl Time {
    fn row(&self) -> String {
        format!(
            "{:<15}{:>6}{:>12}{:>12}  {}\n",
            self.operator.name(),
            self.ranks,
            digits(self.ns / 1e3),
            digits(self.ns / 1e3 / f64::from(self.ranks)),
            self.algorithm,
        )
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "operator": self.operator.name(),
            "algorithm": self.algorithm,
            "ranks": self.ranks,
            "ns": self.ns,
        })
    }
}

fn csv(counts: &[Count], times: &[Time]) -> String {
    let mut text =
        "operator,algorithm,ranks,messages,formula_messages,bytes,formula_bytes,us\n".to_owned();
    for count in counts {
        let _ = writeln!(
            text,
            "{},{},{},{},{},{},{},",
            count.operator,
            count.algorithm,
            count.ranks,
            count.counted.messages,
            count.formula.messages,
            count.counted.bytes,
            count.formula.bytes
        );
    }
    for time in times {
        let _ = writeln!(
            text,
            "{},{},{},,,,,{:.4}",
            time.operator,
            time.algorithm,
            time.ranks,
            time.ns / 1e3
        );
    }
    text
}

/// The messages of each algorithm, of which the dashed lines are the formulas.
fn plot(counts: &[Count], machine: &Machine) -> Plot {
    let mut curves: Vec<Curve> = Vec::new();
    for count in counts {
        let name = format!("{} {}", count.operator, count.algorithm);
        if curves.last().is_none_or(|curve| curve.name != name) {
            curves.push(Curve {
                name,
                points: Vec::new(),
                dashed: false,
                colour: curves.len(),
            });
        }
        if let Some(curve) = curves.last_mut() {
            let ranks = f64::from(count.ranks);
            curve.points.push((ranks, count.counted.messages as f64));
        }
    }
    Plot {
        title: "messages of an operation, simulated".to_owned(),
        subtitle: machine.line(),
        across: "ranks",
        label: |ranks| ranks.to_string(),
        up: "messages",
        curves,
    }
}
