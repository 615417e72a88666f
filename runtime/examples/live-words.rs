//! Counts words by the second while they come: of lines that are made at some rate, or that arrive on a socket.
//!
//! `cargo run --release --example live-words -- --for 5` prints the most frequent words of each second of five. With
//! `--listen 127.0.0.1:7000`, lines come from whoever connects, such as `nc 127.0.0.1 7000`.

#[path = "program/mod.rs"]
mod program;

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    process::ExitCode,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Parser;
use program::Executors;
use updraft::{
    Error,
    dataflow::{
        Accumulator, Key, Narrow, Sender, Source, Stop, Windows, channel, generate_unbounded,
    },
    prelude::*,
};

/// Counts words by the second while they come.
#[derive(Debug, Parser)]
struct Arguments {
    /// Seconds until the stream is stopped (without it, it goes on until SIGINT or SIGTERM).
    #[arg(long = "for", value_name = "S")]
    seconds: Option<f64>,

    /// Lines made a second, by all executors together.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    rate: u32,

    /// Milliseconds in a window.
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(i64).range(1..))]
    window: i64,

    /// How many of the most frequent words to print of each window.
    #[arg(long, value_name = "N", default_value_t = 3)]
    top: usize,

    /// Make no lines, but read those that arrive here, on worker 0.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,

    /// Compare the counts with those of a plain loop, once the stream is stopped.
    #[arg(long, conflicts_with = "listen")]
    check: bool,

    #[command(flatten)]
    executors: Executors,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let stop = Stop::new();
    let config = Config {
        progress: false,
        stop: Some(stop.clone()),
        ..arguments.executors.config()
    };
    updraft::exit(updraft::run(config, |env| count(env, &arguments, &stop)))
}

/// Microseconds in a millisecond.
const MS: i64 = 1_000;

/// A line has so many words.
const WORDS_A_LINE: u64 = 4;
const WORDS: [&str; 8] = ["to", "be", "or", "not", "that", "is", "the", "question"];

/// When line `n` happens, in microseconds.
fn time_of(n: u64, rate: u32) -> i64 {
    (u128::from(n) * 1_000_000 / u128::from(rate.max(1))) as i64
}

/// The words of line `n`: the first of the list more often than the last.
fn words_of(n: u64) -> impl Iterator<Item = &'static str> {
    (0..WORDS_A_LINE).map(move |place| {
        let drawn = u64::hash(n * WORDS_A_LINE + place);
        WORDS[(drawn % WORDS.len() as u64).min(drawn >> 32 & 7) as usize]
    })
}

fn count(env: &mut Env, arguments: &Arguments, stop: &Stop) -> Result<(), Error> {
    if let Some(seconds) = arguments.seconds {
        let (stop, time) = (stop.clone(), Duration::from_secs_f64(seconds.max(0.0)));
        thread::spawn(move || {
            thread::sleep(time);
            stop.stop();
        });
    }
    if let Some(address) = arguments.listen {
        let (sender, lines) = channel::<(i64, String)>(1024);
        if env.worker() == 0 {
            let listener = TcpListener::bind(address).map_err(|error| unheard(address, &error))?;
            thread::spawn(move || listen(&listener, &sender));
        }
        let words = lines
            .watermarks(0, |(time, _)| time)
            .idle_after(Duration::from_millis(100))
            .flat_map(|(time, line), out| {
                for word in line.split_whitespace() {
                    out.push((word, time));
                }
            });
        return env.run(&printed(counts(words, arguments), arguments).stopped_by(stop));
    }
    let (rate, made) = (arguments.rate, Accumulator::new());
    let making = made.clone();
    let words = generate_unbounded(move |n| {
        making.add(1);
        n
    })
    .per_second(f64::from(rate))
    .watermarks(0, move |n| time_of(n, rate))
    .flat_map(move |n, out| {
        for word in words_of(n) {
            out.push((word, time_of(n, rate)));
        }
    });
    let counts = counts(words, arguments).direct();
    if !arguments.check {
        return env.run(&printed(counts, arguments).stopped_by(stop));
    }
    let job = printed(counts.clone(), arguments)
        .and(counts.collect())
        .with_total(&made)
        .stopped_by(stop);
    let (((), counts), made) = env.run(&job)?;
    if env.worker() == 0 {
        check(&counts, made, rate, arguments.window * MS)?;
    }
    Ok(())
}

/// A word, the window it was counted in, and its count.
type Counted = (String, ((i64, i64), u64));

/// How often each word comes in each window.
fn counts<S, N>(
    words: TSet<S, N>,
    arguments: &Arguments,
) -> TSet<impl Source<Out = Counted>, impl Narrow<Counted, Out = Counted>>
where
    S: Source,
    N: Narrow<S::Out, Out = (String, i64)>,
{
    words
        .window_by_key(Windows::tumbling(arguments.window * MS), |time| time)
        .aggregate(|of| of.count())
}

/// Prints the most frequent words of each window, where all of them meet.
fn printed<S, N>(counts: TSet<S, N>, arguments: &Arguments) -> Job<()>
where
    S: Source,
    N: Narrow<S::Out, Out = Counted>,
{
    let top = arguments.top;
    counts
        .map(|(word, ((_, end), count))| ((), (end - 1, (count, word.to_owned()))))
        .window_by_key(Windows::tumbling(arguments.window * MS), |(time, _)| time)
        .group()
        .for_each(move |((), ((start, _), counts))| {
            let mut counts: Vec<_> = counts.iter().map(|(_, counted)| counted).collect();
            counts.sort_unstable_by(|one, other| other.cmp(one));
            let words: Vec<_> = counts
                .iter()
                .take(top)
                .map(|(count, word)| format!("{word} {count}"))
                .collect();
            println!("{:>10.3} s  {}", start as f64 / 1e6, words.join(", "));
        })
}

/// Compares with a plain loop: all that was made is counted, and windows that are whole have the same counts.
fn check(counts: &[Counted], made: u64, rate: u32, window: i64) -> Result<(), Error> {
    let counted: u64 = counts.iter().map(|(_, (_, count))| count).sum();
    let mut windows = BTreeMap::<i64, BTreeMap<&str, u64>>::new();
    for (word, ((start, _), count)) in counts {
        windows.entry(*start).or_default().insert(word, *count);
    }
    let mut expected = BTreeMap::<i64, BTreeMap<&str, u64>>::new();
    let end = windows
        .last_key_value()
        .map_or(0, |(start, _)| start + window);
    for n in (0..).take_while(|&n| time_of(n, rate) < end) {
        let start = time_of(n, rate) / window * window;
        for word in words_of(n) {
            *expected.entry(start).or_default().entry(word).or_default() += 1;
        }
    }
    // When they are stopped, some executors are further than others, and the last windows are not whole. One that has as
    // many words as all its lines has these lines.
    let total = |counts: &BTreeMap<&str, u64>| counts.values().sum::<u64>();
    let is_whole = |(start, counts): &(&i64, &BTreeMap<&str, u64>)| {
        windows.get(*start).map(total) == Some(total(counts))
    };
    let mut whole = expected.iter().filter(is_whole);
    let differs = whole.find(|&(start, counts)| windows.get(start) != Some(counts));
    if counted != made * WORDS_A_LINE || differs.is_some() {
        let reason = format!(
            "{counted} words of {made} lines are counted, and a plain loop gives other counts for {differs:?}"
        );
        return Err(Error::Config { reason });
    }
    println!("a plain loop gives the same for {made} lines");
    Ok(())
}

/// Sends on the lines of all that connect, with the times when they came.
fn listen(listener: &TcpListener, sender: &Sender<(i64, String)>) {
    for stream in listener.incoming().flatten() {
        let sender = sender.clone();
        thread::spawn(move || {
            let lines = BufReader::new(stream).lines().map_while(Result::ok);
            for line in lines {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let time = now.unwrap_or_default().as_micros() as i64;
                if sender.send((time, line)).is_err() {
                    return; // The job has ended.
                }
            }
        });
    }
}

fn unheard(address: SocketAddr, error: &io::Error) -> Error {
    let reason = format!("cannot listen at {address}: {error}");
    Error::Config { reason }
}
