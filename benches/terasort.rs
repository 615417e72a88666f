//! How fast records of 100 bytes are sorted, in memory and in an eighth of it, beside GNU sort, timely, and the disk.
//!
//! Every case is a process of its own, and the cases take turns. Each ends when its output is on the disk. `cargo
//! bench --bench terasort`; with `-- MEGABYTES ROUNDS`, other sizes; with `-- --smoke`, few records and one round; with `--
//! --json FILE`, what `updraft bench compare` reads. DuckDB takes part if a Python has it, which `--peer DIR` may name.

mod support;

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use nix::sys::resource::{UsageWho, getrusage};
use support::{
    measure::{self, Case},
    options::{self, Options, Rows},
    tera, timely_sort,
};
use updraft::{Config, dataflow::records_of};

const MEGABYTES: u64 = 1000;
const ROUNDS: usize = 5;
const SEED: u64 = 1;
/// How many times more data there is than memory in the cases that have little.
const TIMES_MEMORY: u64 = 8;
/// What a process may take besides its data memory.
const BESIDES: u64 = 64 << 20;
/// The least data memory, which two executors need.
const MEMORY_MIN: u64 = 16 << 20;

fn main() -> io::Result<()> {
    let options = Options::read()?;
    match options.words()[..] {
        ["ours", from, memory] => case(from, true, |from, out| ours(from, out, number(memory)?)),
        ["gnu", from, memory] => case(from, true, |from, out| gnu(from, out, memory)),
        ["timely", from] => case(from, true, timely_sort::sort),
        ["disk", from] => case(from, false, disk),
        ["duckdb", from, python] => case(from, true, |from, out| duckdb(from, out, python)),
        [] if options.smoke => compare(&options, 4, 1),
        [megabytes, rounds] => compare(&options, number(megabytes)?, number(rounds)? as usize),
        [] => compare(&options, MEGABYTES, ROUNDS),
        ref words => Err(io::Error::other(format!("no such case: {words:?}"))),
    }
}

fn number(text: &str) -> io::Result<u64> {
    text.parse().map_err(io::Error::other)
}

/// Has a new folder filled, takes the time of that, and then looks at what came out, and at its order if it has one.
fn case(
    from: &str,
    ordered: bool,
    sort: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let from = Path::new(from);
    let folder = tempfile::tempdir_in(from.parent().unwrap_or(Path::new("/")))?;
    let start = Instant::now();
    sort(from, folder.path())?;
    let seconds = start.elapsed().as_secs_f64();
    let kibibytes = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss().max(0) as u64;
    let peak_bytes = measure::peak_bytes()?.max(kibibytes << 10);
    let mut found = tera::validate(&tera::parts(folder.path())?)?;
    if !ordered {
        found.out_of_order = 0;
    }
    measure::print_run(seconds, peak_bytes, found);
    Ok(())
}

/// What a user would write.
fn ours(from: &Path, out: &Path, memory: u64) -> io::Result<()> {
    let config = Config {
        progress: false,
        memory_bytes: (memory > 0).then_some(memory),
        spill: updraft::dataflow::spill::Config {
            directories: vec![out.parent().unwrap_or(out).to_owned()],
            ..Default::default()
        },
        ..Config::default()
    };
    let done = updraft::run(config, |env| {
        let sorted = records_of::<{ tera::RECORD }>(vec![from.to_owned()])?
            .sort_by(|record| -> [u8; tera::KEY] { *record.first_chunk().unwrap_or(&[0; 10]) })
            .write_records(out);
        env.run(&sorted)
    });
    done.map_err(io::Error::other)
}

/// GNU sort with two threads, which by itself leaves its output to the page cache.
fn gnu(from: &Path, out: &Path, memory: &str) -> io::Result<()> {
    let part = out.join("part-0");
    let mut sort = Command::new("sort");
    sort.env("LC_ALL", "C").arg("--parallel=2");
    if memory != "0" {
        sort.args(["-S", &format!("{memory}b")]);
    }
    let status = sort
        .arg("-T")
        .arg(out.parent().unwrap_or(out))
        .arg("-o")
        .arg(&part)
        .arg(from)
        .status()?;
    if !status.success() {
        return Err(io::Error::other(format!("sort: {status}")));
    }
    File::open(part)?.sync_all()
}

/// DuckDB with two threads, which by itself leaves its output to the page cache as well.
fn duckdb(from: &Path, out: &Path, python: &str) -> io::Result<()> {
    let part = out.join("part-0");
    let status = Command::new(python)
        .args(["-c", options::PEER, "duckdb", "sort"])
        .arg(from)
        .arg(&part)
        .stdout(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(io::Error::other(format!("DuckDB: {status}")));
    }
    File::open(part)?.sync_all()
}

/// What sorting on disk cannot do without: two threads read the data and write it to a file that is unlinked, and
/// then read that and write the output, which they sync.
fn disk(from: &Path, out: &Path) -> io::Result<()> {
    let input = File::open(from)?;
    let bytes = input.metadata()?.len();
    let between = tempfile::tempfile_in(out.parent().unwrap_or(out))?;
    let copy = |from: &File, start: u64, end: u64, to: &File, at: u64| -> io::Result<()> {
        let mut buffer = vec![0; 256 << 10];
        let mut offset = start;
        while offset < end {
            let some = buffer.len().min((end - offset) as usize);
            from.read_exact_at(&mut buffer[..some], offset)?;
            to.write_all_at(&buffer[..some], offset - start + at)?;
            offset += some as u64;
        }
        Ok(())
    };
    let both = |work: &(dyn Fn(u64, u64, u64) -> io::Result<()> + Sync)| {
        thread::scope(|scope| {
            let half = bytes / 2;
            let other = scope.spawn(move || work(1, half, bytes));
            let mine = work(0, 0, half);
            other
                .join()
                .map_err(|_| io::Error::other("a thread panicked"))??;
            mine
        })
    };
    both(&|_, start, end| copy(&input, start, end, &between, start))?;
    both(&|thread, start, end| {
        let part = File::create(out.join(format!("part-{thread}")))?;
        copy(&between, start, end, &part, 0)?;
        part.sync_all()
    })
}

fn compare(options: &Options, megabytes: u64, rounds: usize) -> io::Result<()> {
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("input");
    let bytes = megabytes * 1_000_000;
    tera::write(&input, bytes / tera::RECORD as u64, SEED)?;
    let path = input
        .to_str()
        .ok_or_else(|| io::Error::other("the folder's name is not text"))?;
    let memory = (bytes / TIMES_MEMORY).max(MEMORY_MIN);
    let little = memory.to_string();
    let case = |name: &str, arguments: &[&str]| Case::of_this_program(name, arguments);
    let mut cases = vec![
        case("updraft", &["ours", path, "0"])?,
        case("timely", &["timely", path])?,
        case("updraft limited", &["ours", path, &little])?,
        case("disk", &["disk", path])?,
    ];
    let has_gnu = Command::new("sort")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.stdout.starts_with(b"sort (GNU"));
    if has_gnu {
        cases.push(case("gnu sort", &["gnu", path, "0"])?);
        cases.push(case("gnu sort limited", &["gnu", path, &little])?);
    }
    let mut rows = Rows::default();
    let mut peers = vec!["timely"];
    match options.python("duckdb") {
        Some(python) => {
            let python = python.display().to_string();
            cases.push(case("DuckDB", &["duckdb", path, &python])?);
            peers.push("DuckDB");
        }
        None => {
            println!("no DuckDB (PyPI: duckdb)");
            rows.absent(["P15", "in memory", "DuckDB"], "no DuckDB (PyPI: duckdb)");
        }
    }
    if has_gnu {
        peers.push("gnu sort");
    }
    let report = measure::measure(cases, rounds)?;
    println!("{}", measure::machine());
    println!("{megabytes} MB of records, {}", report.answer());
    print!("{}", report.table(bytes));
    for peer in peers {
        println!("{}", report.ratio_line("updraft", peer, 1.0));
        rows.cases(
            ["P15", "in memory", "in memory"],
            &report,
            ["updraft", peer],
        );
    }
    let point = "at 8 times its memory";
    rows.cases(
        ["P15", "external", point],
        &report,
        ["updraft limited", "disk"],
    );
    println!("{}", report.ratio_line("updraft limited", "disk", 1.25));
    if has_gnu {
        let limited = ["updraft limited", "gnu sort limited"];
        rows.cases(["P15", "external, systems", point], &report, limited);
        println!(
            "{}",
            report.ratio_line("updraft limited", "gnu sort limited", 1.0)
        );
    }
    let peak = report.spread("updraft limited", |run| {
        run.peak_bytes as f64 / (memory + BESIDES) as f64
    });
    println!(
        "updraft limited: peak memory / the {} MB of its ledger and {} more {peak}",
        memory / 1_000_000,
        BESIDES / 1_000_000
    );
    rows.write(options)
}
