//! What becomes of operations when processes of the machine are killed or stopped in them.

use std::{
    cell::RefCell,
    env,
    io::{BufRead, BufReader, Lines, Read, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use collectives::{
    Algorithm, Engine, Error, Group, Operator, Part, cooperate,
    harp::{Elementwise, Modulo, Table},
    op::Sum,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use transport::{Address, Arena, Config, Fabric, Ledger, Secret, Transport};

use crate::{failure::enduring, harness::ARENA, long::often};

/// Within which the death of a process is told to all.
const DEATH_TOLD: Duration = Duration::from_millis(50);
/// The same where every core has other work as well.
const DEATH_TOLD_MAX: Duration = Duration::from_secs(2);
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which links the ranks use.
const LINKS: [(&str, Transport); 2] = [("shm", Transport::Shm), ("tcp", Transport::Tcp)];

/// The time of day, which is the same for all processes.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// The process of one rank. It is killed when this is dropped.
struct RankProcess {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl RankProcess {
    fn start(process: &str) -> Self {
        let arguments = ["--exact", process, "--ignored", "--nocapture", "-q"];
        let mut child = Command::new(env::current_exe().unwrap())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            input: child.stdin.take(),
            output: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
        }
    }

    fn say(&mut self, line: &str) {
        let _ = writeln!(self.input.as_mut().unwrap(), "{line}");
    }

    /// What follows `word` in the next line that has it.
    #[track_caller]
    fn hear(&mut self, word: &str) -> String {
        let lines = self.output.by_ref().map_while(Result::ok);
        let found = lines
            .filter_map(|line| line.split_once(word).map(|(_, text)| text.to_owned()))
            .next();
        found.unwrap_or_else(|| panic!("a rank ended without a word of {word}"))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for RankProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a job whose ranks all do `work`.
fn job(size: u32, links: &str, work: &str) -> Vec<RankProcess> {
    job_of("processes::the_rank", size, links, work)
}

/// The same, of such processes.
fn job_of(process: &str, size: u32, links: &str, work: &str) -> Vec<RankProcess> {
    let secret = Secret::random().unwrap();
    let mut ranks: Vec<_> = (0..size).map(|_| RankProcess::start(process)).collect();
    for (rank, process) in ranks.iter_mut().enumerate() {
        (process.input.as_mut().unwrap())
            .write_all(secret.as_bytes())
            .unwrap();
        process.say(&format!("{rank} {size} {links} {work}"));
    }
    let book: Vec<String> = ranks.iter_mut().map(|rank| rank.hear("ADDRESS=")).collect();
    for rank in &mut ranks {
        rank.say(&book.join(" "));
    }
    ranks
}

#[test]
#[ignore = "the other processes of the tests here"]
fn the_rank() {
    let (engines, words, input) = begin(1);
    let engine = &engines[0];
    let stop = until_told(input);
    let result = engine.block_on(async {
        let group = engine.world().await?;
        println!("READY");
        match &*words[3] {
            "endure" => enduring(group, 20_000)
                .await
                .map(|left| format!("{left:?}")),
            "tables" => tables_for_ever(&group).await,
            _ => {
                let operator = Operator::ALL[words[3].parse::<usize>().unwrap()];
                let algorithm: Option<Algorithm> = words[4].parse().ok();
                work_until(&group, operator, algorithm, &stop).await
            }
        }
    });
    let at = now();
    println!(
        "ENDED={} {}",
        at.as_nanos(),
        result.unwrap_or_else(|error| error.to_string())
    );
    stay(&engines);
}

/// Joins a job with so many ranks, as the first two lines of the input say. Gives the words of the first as well.
fn begin(here: u32) -> (Vec<Engine>, Vec<String>, BufReader<std::io::Stdin>) {
    let mut input = BufReader::new(std::io::stdin());
    let mut secret = [0; Secret::BYTES];
    input.read_exact(&mut secret).unwrap();
    let mut line = String::new();
    input.read_line(&mut line).unwrap();
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let [process, processes] = [0, 1].map(|word| words[word].parse::<u32>().unwrap());
    let (_, links) = LINKS
        .into_iter()
        .find(|(name, _)| *name == words[2])
        .unwrap();
    let fabric = |index| {
        let config = Config {
            transport: links,
            spin: false,
            ..Config::new(
                process * here + index,
                processes * here,
                &Secret::from(secret),
            )
        };
        let arena = Arena::new(&Ledger::new(ARENA), ARENA).unwrap();
        Fabric::new(config, arena).unwrap()
    };
    let mut fabrics: Vec<_> = (0..here).map(fabric).collect();
    let addresses = fabrics.iter().map(|fabric| fabric.address().unwrap());
    let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
    println!("ADDRESS={}", addresses.join(" "));
    line.clear();
    input.read_line(&mut line).unwrap();
    let book: Vec<Address> = line
        .split_whitespace()
        .map(|text| text.parse().unwrap())
        .collect();
    let start = Instant::now();
    let engine = |mut fabric: Fabric| {
        fabric.join(&book).unwrap();
        let fabric = Rc::new(RefCell::new(fabric));
        Engine::new(fabric, false, move || start.elapsed())
    };
    (fabrics.drain(..).map(engine).collect(), words, input)
}

/// True once one line more has come: the word to stop. The end of the input ends the process.
fn until_told(input: BufReader<std::io::Stdin>) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    thread::spawn(move || {
        let mut lines = input.lines();
        lines.next();
        told.store(true, Ordering::Relaxed);
        lines.for_each(drop);
        std::process::exit(0);
    });
    stop
}

/// Others may still have to be told something.
fn stay(engines: &[Engine]) -> ! {
    loop {
        for engine in engines {
            let _ = engine.turn();
            engine.flush();
            let mut fabric = engine.fabric().borrow_mut();
            let _ = fabric.flush();
            let _ = fabric.wait(Some(Duration::from_millis(5)));
        }
    }
}

/// Ranks of a process that share its thread as futures.
const SHARING: u32 = 3;

#[test]
#[ignore = "the other processes of a test here"]
fn the_ranks_of_a_thread() {
    let (engines, words, input) = begin(SHARING);
    let stop = until_told(input);
    let operator = Operator::ALL[words[3].parse::<usize>().unwrap()];
    let part = |engine: &Engine| -> (Engine, Part<'_, ()>) {
        let (part, stop) = (engine.clone(), &stop);
        let part = async move {
            let result = async {
                let group = part.world().await?;
                if part.rank().is_multiple_of(SHARING) {
                    println!("READY");
                }
                work_until(&group, operator, None, stop).await
            };
            let result = result.await;
            let said = result.unwrap_or_else(|error| error.to_string());
            println!("ENDED={} {said}", now().as_nanos());
        };
        (engine.clone(), Box::pin(part))
    };
    cooperate(engines.iter().map(part).collect()).unwrap();
    stay(&engines);
}

#[test]
fn the_death_of_a_process_with_ranks_that_share_a_thread_is_told_to_all_that_share_others() {
    for operator in 0..Operator::ALL.len() {
        let (links, _) = LINKS[operator % LINKS.len()];
        let process = "processes::the_ranks_of_a_thread";
        let mut ranks = job_of(process, 3, links, &operator.to_string());
        for rank in &mut ranks {
            rank.hear("READY");
        }
        thread::sleep(Duration::from_millis(5 + operator as u64));
        let victim = operator % 3;
        let killed = now();
        ranks[victim].signal(Signal::SIGKILL);
        let survivors = ranks.iter_mut().enumerate();
        for (survivor, process) in survivors.filter(|(rank, _)| *rank != victim) {
            for _ in 0..SHARING {
                let ended = process.hear("ENDED=");
                let (at, error) = ended.split_once(' ').unwrap();
                let first = victim as u32 * SHARING;
                let lost = |rank| error.contains(&format!("rank {rank} was lost"));
                let is_told = (first..first + SHARING).any(lost);
                assert!(is_told, "{links}: process {survivor} of {victim}: {error}");
                let at = Duration::from_nanos(at.parse().unwrap());
                assert!(at.saturating_sub(killed) <= DEATH_TOLD_MAX, "{links}");
            }
        }
    }
}

/// One operation after another, until the first rank is told to stop.
async fn work_until(
    group: &Group,
    operator: Operator,
    algorithm: Option<Algorithm>,
    stop: &AtomicBool,
) -> Result<String, Error> {
    // From what fits into a line to several segments.
    for len in [8, 400, 30_000].into_iter().cycle() {
        let fits = algorithm.is_none_or(|algorithm| group.can(operator, algorithm, 8 * len, true));
        group.force(algorithm.filter(|_| fits));
        for _ in 0..if fits { 16 } else { 0 } {
            one(group, operator, len).await?;
        }
        group.force(None);
        let mut stops = [u8::from(stop.load(Ordering::Relaxed))];
        group.broadcast(0, &mut stops).await?;
        if stops == [1] {
            break;
        }
    }
    Ok("in order".to_owned())
}

pub(crate) async fn one(group: &Group, operator: Operator, len: usize) -> Result<(), Error> {
    let size = group.size();
    let (mut data, mut all) = (vec![1u64; len], vec![1u64; len * size]);
    match operator {
        Operator::Barrier => group.barrier().await,
        Operator::Broadcast => group.broadcast(1, &mut data).await,
        Operator::Reduce => group.reduce(1, &mut data, Sum).await,
        Operator::AllReduce => {
            group.all_reduce(&mut data, Sum).await?;
            assert_eq!(data, vec![size as u64; len]);
            Ok(())
        }
        Operator::ReduceScatter => group.reduce_scatter(&all, &mut data, Sum).await,
        Operator::Scan => group.scan(&mut data, Sum).await,
        Operator::Gather => group.gather(1, &data, &mut all).await,
        Operator::Scatter => group.scatter(1, &all, &mut data).await,
        Operator::AllGather => group.all_gather(&data, &mut all).await,
        Operator::AllToAll => {
            let data = all.clone();
            group.all_to_all(&data, &mut all).await
        }
        _ => group.barrier().await,
    }
}

/// Operations on tables, one after another, until one fails.
async fn tables_for_ever(group: &Group) -> Result<String, Error> {
    let partitions = |group: &Group| {
        let mut table = Table::new(Elementwise(Sum));
        for id in 0..4 {
            // From what fits into a message with others to several messages.
            table.add(
                4 * group.rank() as u64 + id,
                vec![1u64; 10_000 * id as usize],
            )?;
        }
        Ok::<_, Error>(table)
    };
    loop {
        let mut table = partitions(group)?;
        table.rotate(group).await?;
        table.rotate_with(group, |_, _, _| {}).await?;
        table.regroup(group, Modulo).await?;
        let mut global = Table::new(Elementwise(Sum));
        table.push(group, &mut global, Modulo).await?;
        table.pull(group, &global).await?;
        table.clone().broadcast(group, 1).await?;
        table.clone().reduce(group, 1).await?;
        table.clone().all_gather(group).await?;
        table.all_reduce(group).await?;
    }
}

/// Kills a rank of a job in the midst of its work, after some time; how long it took until each of the others knew.
fn times_to_tell(
    mut ranks: Vec<RankProcess>,
    victim: usize,
    after: Duration,
    said: &str,
) -> Vec<Duration> {
    for rank in &mut ranks {
        rank.hear("READY");
    }
    thread::sleep(after);
    let killed = now();
    ranks[victim].signal(Signal::SIGKILL); // It stays a zombie until it is dropped.
    let survivors = (ranks.iter_mut().enumerate()).filter(|(rank, _)| *rank != victim);
    survivors
        .map(|(rank, process)| {
            let ended = process.hear("ENDED=");
            let (at, error) = ended.split_once(' ').unwrap();
            let lost = error.contains(&format!("rank {victim} was lost"));
            assert!(lost, "{said}: rank {rank} of {victim}: {error}");
            Duration::from_nanos(at.parse().unwrap()).saturating_sub(killed)
        })
        .collect()
}

#[test]
fn the_death_of_a_process_in_any_operation_by_any_algorithm_is_told_to_all_in_time() {
    let mut times = Vec::new();
    let mut round = 0;
    for repetition in 0..often(1, 20) {
        for (links, _) in LINKS {
            for (index, operator) in Operator::ALL.into_iter().enumerate() {
                for algorithm in Algorithm::ALL {
                    let is_there = algorithm.serves(operator, true)
                        && algorithm != Algorithm::Hierarchical // There is one node.
                        && (links == "shm" || algorithm != Algorithm::Board);
                    if !is_there {
                        continue;
                    }
                    let said = format!("{operator} by {algorithm} over {links}, {repetition}");
                    let ranks = job(4, links, &format!("{index} {algorithm}"));
                    let after = Duration::from_micros(round as u64 * 977 % 15_000);
                    times.extend(times_to_tell(ranks, round % 4, after, &said));
                    round += 1;
                }
            }
        }
        // As long as an operation on tables takes, so that each is hit some time.
        for round in 0..6 {
            let (links, _) = LINKS[round % LINKS.len()];
            let said = format!("operations on tables over {links}, {repetition}");
            let after = Duration::from_micros(1500 * round as u64 + 777 * repetition);
            times.extend(times_to_tell(
                job(4, links, "tables"),
                round % 4,
                after,
                &said,
            ));
        }
    }
    times.sort_unstable();
    let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!(
        "{} survivors: median {median:?}, p99 {p99:?}, longest {:?}",
        times.len(),
        times[times.len() - 1]
    );
    assert!(
        median <= DEATH_TOLD && times[times.len() - 1] <= DEATH_TOLD_MAX,
        "{times:?}"
    );
    assert!(p99 <= often(DEATH_TOLD_MAX, DEATH_TOLD), "{p99:?}");
}

#[test]
fn a_process_that_is_stopped_for_a_second_in_an_operation_is_not_lost() {
    for (links, _) in LINKS {
        let mut ranks = job(3, links, "3 any");
        for rank in &mut ranks {
            rank.hear("READY");
        }
        for stopped in [1, 0] {
            ranks[stopped].signal(Signal::SIGSTOP);
            thread::sleep(Duration::from_secs(1));
            ranks[stopped].signal(Signal::SIGCONT);
        }
        ranks[0].say("stop");
        for rank in &mut ranks {
            let ended = rank.hear("ENDED=");
            assert!(ended.ends_with("in order"), "{links}: {ended}");
        }
    }
}

#[test]
fn processes_that_are_left_make_a_group_and_go_on() {
    for (links, _) in LINKS {
        let mut ranks = job(5, links, "endure");
        for rank in &mut ranks {
            rank.hear("READY");
        }
        for victim in [0, 3] {
            thread::sleep(Duration::from_millis(20));
            ranks[victim].signal(Signal::SIGKILL);
        }
        let started = Instant::now();
        for survivor in [1, 2, 4] {
            let ended = ranks[survivor].hear("ENDED=");
            assert!(ended.ends_with("[1, 2, 4]"), "{links}: {ended}");
        }
        assert!(started.elapsed() < PATIENCE);
    }
}
