//! How the cost of a record grows with the number of records, of keys, and of ranks that share the cores.
//!
//! Of operators `updraft bench operators` measures: this looks at two points of each of its curves. Of two programs, K-means
//! and word count, it is the time of the cores that a record takes with one executor, with one on each core, and with 2 to 16
//! processes, against that of jobs of one executor, one on each core, that share nothing but the machine. What these take
//! longer than one alone is the machine's.
//!
//! `cargo bench --bench growth`; with `-- --smoke`, few records, once; with `-- --json FILE`, what `updraft bench compare`
//! reads; with `-- --plots DIR`, its plots.

#[path = "../tests/support/build.rs"]
mod build;
#[allow(
    dead_code,
    unused_imports,
    reason = "it has more than is needed here, and tests that are those of the command"
)]
#[path = "../launchers/src/bench/plot.rs"]
mod plot;
mod support;

use std::{fs, io, path::Path, process::Command, thread};

use plot::{Curve, Plot};
use support::{
    measure::{self, Case, Spread},
    options::{Options, Rows},
    programs, zipf,
};

/// Ranks of a program, each a process.
const RANKS: &[usize] = &[2, 4, 8, 16];
const SMOKE_RANKS: &[usize] = &[4];
/// What K-means clusters, and word count reads.
const POINTS: u64 = 400_000;
const TEXT_BYTES: u64 = 256 << 20;
const ALONE: &str = "alone on each core";

/// The most that a record may cost, against what it costs at the other end.
const AT_MOST: f64 = 1.15;
const ROUNDS: usize = 5;
/// Operators whose results are no more than their records. A join of more records with as many keys has more to give for
/// each of them.
const LINEAR: &str = "exchange-by-hash,reduce-by-key,group-by-key,sort,distinct";
const JOINS: &str = "join,merge-join";
const ALL: &str = "exchange-by-hash,reduce-by-key,group-by-key,sort,distinct,join,merge-join";

/// The end of a curve: how the ranks are started, the records, and the keys.
type End = (&'static str, u64, u64);

const THREADS: &str = "-n 1 --executors 2";

/// What grows: its name, the operators, and its ends.
const GROWTHS: [(&str, &str, [End; 2]); 4] = [
    (
        "records x100",
        LINEAR,
        [(THREADS, 200_000, 20_000), (THREADS, 20_000_000, 20_000)],
    ),
    (
        "records and keys x100",
        JOINS,
        [(THREADS, 200_000, 20_000), (THREADS, 20_000_000, 2_000_000)],
    ),
    (
        "keys x100",
        LINEAR,
        [
            (THREADS, 2_000_000, 10_000),
            (THREADS, 2_000_000, 1_000_000),
        ],
    ),
    (
        "ranks 2 to 16",
        ALL,
        [
            ("-n 2 --executors 1", 2_000_000, 200_000),
            ("-n 16 --executors 1", 2_000_000, 200_000),
        ],
    ),
];
/// Records in a case, to one of those when it takes a moment.
const SMOKE: u64 = 200;

fn main() -> io::Result<()> {
    let options = Options::read()?;
    match options.words()[..] {
        ["work", ref words @ ..] => return programs::work(words),
        ["alone", ref words @ ..] => return programs::alone(&shares(words)?),
        ["job", workers, executors, ref words @ ..] => {
            let words = [&["work"][..], words].concat();
            return measure::in_workers(&["-n", workers, "--executors", executors], &words);
        }
        _ => {}
    }
    let built = build::build().args(["--bin", "updraft"]).status()?;
    if !built.success() {
        return Err(io::Error::other("the command updraft could not be built"));
    }
    println!("{}", measure::machine());
    let plots = match options.words()[..] {
        ["--plots", folder] => Some(Path::new(folder)),
        [] => None,
        ref words => return Err(io::Error::other(format!("no such option: {words:?}"))),
    };
    let mut rows = Rows::default();
    for (name, operators, ends) in GROWTHS {
        let rounds = if options.smoke { 1 } else { ROUNDS };
        let rounds = (0..rounds).map(|_| {
            let [few, many] = ends.map(|end| costs(&options, operators, end));
            Ok((few?, many?))
        });
        let rounds = rounds.collect::<io::Result<Vec<_>>>()?;
        for (index, operator) in operators.split(',').enumerate() {
            let pairs = rounds
                .iter()
                .filter_map(|(few, many)| Some((*many.get(index)?, *few.get(index)?)));
            let pairs: Vec<(f64, f64)> = pairs.collect();
            if pairs.is_empty() {
                return Err(io::Error::other(format!("{operator} was not measured")));
            }
            let [many, few] = [0, 1].map(|end| {
                let costs = pairs
                    .iter()
                    .map(|pair| if end == 0 { pair.0 } else { pair.1 });
                Spread::of(costs).times(1e9)
            });
            let ratio = Spread::of(pairs.iter().map(|(many, few)| many / few));
            let verdict = ratio.verdict(AT_MOST);
            println!(
                "{name}: {operator:<17} {few} ns a record, then {many}: {ratio} target <= {AT_MOST} {verdict}"
            );
            let point = format!("{name}, {operator}");
            rows.pairs(["P22", "", &point, "the small one"], &pairs);
        }
    }
    let curves = grow_programs(&options, &mut rows)?;
    if let Some(folder) = plots {
        plot(folder)?;
        fs::write(folder.join("programs.svg"), programs_plot(curves).svg())?;
    }
    rows.write(&options)
}

/// The works that the cores share: so many points, or a file of each.
fn shares(words: &[&str]) -> io::Result<Vec<Vec<String>>> {
    let share = |name: &str, what: String| vec![name.to_owned(), what];
    match words {
        ["kmeans", points] => {
            let points: usize = points.parse().map_err(io::Error::other)?;
            let cores = cores();
            let part = |core| points * (core + 1) / cores - points * core / cores;
            let parts = (0..cores).map(|core| share("kmeans", part(core).to_string()));
            Ok(parts.collect())
        }
        ["wordcount", files @ ..] => {
            let parts = files
                .iter()
                .map(|file| share("wordcount", (*file).to_owned()));
            Ok(parts.collect())
        }
        _ => Err(io::Error::other(format!("no such work: {words:?}"))),
    }
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Measures both programs. Gives the curve of each: nanoseconds of a core for a record, by ranks.
fn grow_programs(options: &Options, rows: &mut Rows) -> io::Result<Vec<Curve>> {
    let folder = tempfile::tempdir()?;
    let cores = cores();
    let (points, bytes) = match options.smoke {
        true => (POINTS / SMOKE, TEXT_BYTES / SMOKE),
        false => (POINTS, TEXT_BYTES),
    };
    let mut files = Vec::new();
    for core in 0..cores {
        let path = folder.path().join(format!("text-{core}"));
        zipf::write(&path, bytes / cores as u64, core as u64 + 1)?;
        files.push(path.display().to_string());
    }
    let points = points.to_string();
    let texts = ["wordcount"]
        .into_iter()
        .chain(files.iter().map(String::as_str));
    let works: [(usize, Vec<&str>); 2] = [(0, vec!["kmeans", &points]), (1, texts.collect())];
    let curves = works.into_iter().map(|(colour, work)| {
        Ok(Curve {
            name: work[0].to_owned(),
            points: grow_program(options, &work, cores, rows)?,
            dashed: false,
            colour,
        })
    });
    curves.collect()
}

fn grow_program(
    options: &Options,
    work: &[&str],
    cores: usize,
    rows: &mut Rows,
) -> io::Result<Vec<(f64, f64)>> {
    let name = work[0];
    let (ranks, rounds) = match options.smoke {
        true => (SMOKE_RANKS, 1),
        false => (RANKS, ROUNDS),
    };
    // Each with its workers and their executors.
    let mut jobs = vec![
        ("1 executor".to_owned(), 1, 1),
        (format!("{cores} executors"), 1, cores),
    ];
    jobs.extend((ranks.iter()).map(|&ranks| (format!("{ranks} processes"), ranks, 1)));
    let case = |(called, workers, executors): &(String, usize, usize)| {
        let ways = [workers.to_string(), executors.to_string()];
        let words = ["job", &ways[0], &ways[1]];
        Case::of_this_program(called, &[&words[..], work].concat())
    };
    let mut cases = jobs.iter().map(case).collect::<io::Result<Vec<_>>>()?;
    cases.push(Case::of_this_program(
        ALONE,
        &[&["alone"][..], work].concat(),
    )?);
    let report = measure::measure(cases, rounds)?;
    let records: f64 = report.answer().parse().map_err(io::Error::other)?;
    let all = (jobs.iter()).map(|(called, workers, executors)| (&**called, workers * executors));
    let mut points = Vec::new();
    for (called, ranks) in all {
        let pairs = report.pairs(called, ALONE, |run| run.seconds).into_iter();
        let share = |seconds: f64, ranks: usize| seconds * ranks.min(cores) as f64 / records;
        let pairs: Vec<(f64, f64)> = pairs
            .map(|(ours, alone)| (share(ours, ranks), share(alone, cores)))
            .collect();
        let [ours, alone] = [0, 1].map(|side| {
            let costs = pairs
                .iter()
                .map(|pair| if side == 0 { pair.0 } else { pair.1 });
            Spread::of(costs).times(1e9)
        });
        let ratio = Spread::of(pairs.iter().map(|(ours, alone)| ours / alone));
        let verdict = ratio.verdict(AT_MOST);
        println!(
            "{name}, {called:<12} {ours} ns of a core a record, {ALONE} {alone}: {ratio} target <= {AT_MOST} {verdict}"
        );
        if ranks == 1 {
            let machine = Spread::of(pairs.iter().map(|(ours, alone)| alone / ours));
            println!(
                "{name}: what has every core to itself takes {machine} of one executor alone on the machine"
            );
        }
        let point = format!("{name}, {called}");
        rows.pairs(["P22", "program", &point, ALONE], &pairs);
        points.push((ranks as f64, ours.median));
    }
    // One executor on each core of a process, and a process on each core, are as many ranks.
    points.dedup_by_key(|point| point.0);
    Ok(points)
}

fn programs_plot(curves: Vec<Curve>) -> Plot {
    Plot {
        title: "a record of a program, by ranks that share the cores".to_owned(),
        subtitle: measure::machine(),
        across: "ranks",
        label: |ranks| ranks.to_string(),
        up: "ns of a core a record",
        curves,
    }
}

/// Seconds of work for a record, of each operator: ranks that share a core work in turns, so that the time of all is the
/// time of the machine.
fn costs(options: &Options, operators: &str, (ranks, records, keys): End) -> io::Result<Vec<f64>> {
    let csv = tempfile::NamedTempFile::new()?;
    let fewer = if options.smoke { SMOKE } else { 1 };
    let mut command = Command::new(measure::launcher()?);
    command
        .args([
            "bench",
            "operators",
            "--record",
            "pair",
            "--repeats",
            "1",
            "--only",
            operators,
        ])
        .args(ranks.split_whitespace())
        .args([
            "--records",
            &(records / fewer).to_string(),
            "--keys",
            &(keys / fewer).to_string(),
        ])
        .arg("--csv")
        .arg(csv.path());
    let output = command.output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(format!(
            "{ranks}, {records} records: {said}"
        )));
    }
    let text = fs::read_to_string(csv.path())?;
    let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let head = lines.next().unwrap_or_default();
    let rate = head.iter().position(|name| *name == "records_per_s");
    let rate = rate.ok_or_else(|| io::Error::other("there are no rates"))?;
    let rates = lines.filter_map(|line| line.get(rate)?.parse::<f64>().ok());
    Ok(rates.map(|rate| 1.0 / rate).collect())
}

/// Rates by records and by keys.
fn plot(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (name, arguments) in [
        ("records.svg", "--records 200k,2M,20M --keys 20k"),
        ("keys.svg", "--records 2M --keys 10k,100k,1M"),
    ] {
        let status = Command::new(measure::launcher()?)
            .args([
                "bench",
                "operators",
                "-n",
                "1",
                "--executors",
                "2",
                "--only",
                ALL,
            ])
            .args(arguments.split_whitespace())
            .arg("--plot")
            .arg(folder.join(name))
            .status()?;
        if !status.success() {
            return Err(io::Error::other(format!("{name}: {status}")));
        }
    }
    Ok(())
}
