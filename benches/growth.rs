//! How the cost of a record grows with the number of records, of keys, and of ranks that share the cores.
//!
//! `updraft bench operators` measures: this looks at two points of each of its curves. `cargo bench --bench growth`; with
//! `-- --smoke`, few records, once; with `-- --json FILE`, what `updraft bench compare` reads; with `-- --plots DIR`, its
//! plots.

#[path = "../tests/support/build.rs"]
mod build;
mod support;

use std::{fs, io, path::Path, process::Command};

use support::{
    measure::{self, Spread},
    options::{Options, Rows},
};

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
            let verdict = if ratio.median <= AT_MOST {
                "met"
            } else {
                "missed"
            };
            println!(
                "{name}: {operator:<17} {few} ns a record, then {many}: {ratio} target <= {AT_MOST} {verdict}"
            );
            let point = format!("{name}, {operator}");
            rows.pairs(["P22", "", &point, "the small one"], &pairs);
        }
    }
    if let Some(folder) = plots {
        plot(folder)?;
    }
    rows.write(&options)
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
