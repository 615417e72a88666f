//! What the example jobs promise to those who run them: alone, in several processes, over every transport.

mod support;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fmt::Write,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::{END_TIME_MAX, Folder, Launch, Running, all_end, command, example};

/// Time for workers to join their job and be in the midst of it, which nobody outside can see. Should a machine take
/// longer, they are killed while they join: what is promised then is the same.
const UNDER_WAY: Duration = Duration::from_millis(300);

/// A way to run a job: the arguments of `updraft run`, or none to start the program itself; and
/// those that are added to the program's.
type Way<'a> = (&'a [&'a str], &'a [&'a str]);

/// All of them.
const WAYS: [Way<'_>; 8] = [
    (&[], &["--executors", "1"]),
    (&[], &["--executors", "2"]),
    (&[], &["--executors", "3"]),
    (&["-n", "2"], &[]),
    (&["-n", "3", "--executors", "2"], &[]),
    (&["-n", "2", "--transport", "tcp"], &[]),
    (
        &["-n", "2", "--transport", "tcp", "--interface", "::1"],
        &[],
    ),
    (&["-n", "2", "--transport", "shm"], &[]),
];

/// A job, started as `way` says.
fn job(name: &str, (launcher, arguments): Way<'_>) -> Command {
    let mut job = if launcher.is_empty() {
        Command::new(example(name))
    } else {
        let mut job = command();
        job.arg("run").args(launcher).arg("--").arg(example(name));
        job
    };
    job.args(arguments).stdin(Stdio::null());
    job
}

/// A job by itself, with these arguments.
fn alone(name: &str, arguments: &[&str]) -> Command {
    job(name, (&[], arguments))
}

/// Runs a job that has to succeed, and returns the lines that worker 0 printed.
fn succeed(job: Command) -> Vec<String> {
    let launch = Launch::of(job);
    assert_eq!(launch.code(), Some(0), "{}", launch.err);
    let lines = launch.out.lines();
    let unmarked = lines.map(|line| line.strip_prefix("[w0] ").unwrap_or(line).to_owned());
    unmarked.collect()
}

/// Runs a job that has to fail with `code`, and returns the one line in which it says why.
fn fail(job: Command, code: i32) -> String {
    let launch = Launch::of(job);
    assert_eq!(launch.code(), Some(code), "{}", launch.err);
    let lines: Vec<&str> = launch.err.lines().collect();
    assert!(
        lines.len() == 1 && lines[0].starts_with("error: "),
        "{}",
        launch.err
    );
    launch.err
}

/// The sources and texts of this project: no test made them up.
fn project_files() -> Vec<PathBuf> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![project.join("LICENSE"), project.join("README.md")];
    let layers = [
        "transport",
        "collectives",
        "dataflow",
        "runtime",
        "launchers",
    ];
    for layer in layers {
        collect_sources(&project.join(layer), &mut files);
    }
    // `tr` knows no other white space than that of ASCII.
    files.retain(|file| {
        fs::read_to_string(file).is_ok_and(|text| {
            let mut spaces = text.chars().filter(|character| character.is_whitespace());
            spaces.all(|space| space.is_ascii())
        })
    });
    assert!(files.len() > 20, "{files:?}");
    files
}

fn collect_sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name() != Some(OsStr::new("target")) {
            collect_sources(&path, files);
        } else if path.extension() == Some(OsStr::new("rs")) {
            files.push(path);
        }
    }
}

/// The counts as the tools of Unix find them: lines `word<TAB>count`, in order.
fn count_by_unix_tools(files: &[PathBuf]) -> Vec<String> {
    let script = r#"for file; do cat "$file"; echo; done |
        tr -s '[:space:]' '\n' | sed '/^$/d' | sort | uniq -c"#;
    let counted = Command::new("sh")
        .args(["-c", script, "sh"])
        .args(files)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let text = String::from_utf8(counted.stdout).unwrap();
    let line = |line: &str| {
        let (count, word) = line.trim_start().split_once(' ').unwrap();
        format!("{word}\t{count}")
    };
    let mut lines: Vec<String> = text.lines().map(line).collect();
    lines.sort_unstable();
    lines
}

/// The lines of the part files in a folder, in order. Nothing else may be there.
fn written(folder: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("part-"), "{name} is left behind");
        let text = fs::read_to_string(&path).unwrap();
        lines.extend(text.lines().map(str::to_owned));
    }
    lines.sort_unstable();
    lines
}

#[test]
fn words_of_real_text_are_counted_as_unix_tools_count_them_in_every_way_to_run() {
    let files = project_files();
    let expected = count_by_unix_tools(&files);
    assert!(expected.len() > 1000);
    for way in WAYS {
        let folder = Folder::new();
        let out = folder.0.join("out");
        let mut count = job("wordcount", way);
        count.args(&files).arg("--out").arg(&out);
        assert!(succeed(count).is_empty(), "{way:?}");
        assert!(written(&out) == expected, "{way:?} counts differently");
    }
}

#[test]
fn the_most_frequent_words_are_the_same_in_every_way_to_run() {
    let files = project_files();
    let total: u64 = count_by_unix_tools(&files)
        .iter()
        .map(|line| line.rsplit('\t').next().unwrap().parse::<u64>().unwrap())
        .sum();
    let mut first = None;
    for way in WAYS {
        let mut count = job("wordcount", way);
        count.args(&files).args(["--top", "7"]);
        let found = succeed(count);
        assert_eq!(found.len(), 8, "{found:?}");
        let total = format!("{total:>12}  words, ");
        assert!(found[7].starts_with(&total), "{found:?}");
        assert_eq!(
            first.get_or_insert_with(|| found.clone()),
            &found,
            "{way:?}"
        );
    }
}

/// What a job that succeeds says of its links: how many of what kind, and how many messages went over them.
fn links(way: Way<'_>) -> Option<(String, u64)> {
    let mut count = job("wordcount", way);
    count.args(["--top", "1"]);
    let launch = Launch::of(count);
    assert_eq!(launch.code(), Some(0), "{}", launch.err);
    let mut lines = launch.err.lines().filter(|line| line.contains("links"));
    let line = lines.next()?;
    assert_eq!(lines.next(), None, "{}", launch.err);
    let (links, carried) = line.split_once(" · ").unwrap();
    let (messages, _) = carried.split_once(" message").unwrap();
    let messages = messages.replace(',', "").parse().unwrap();
    Some((links.to_owned(), messages))
}

#[test]
fn the_summary_tells_over_which_links_messages_went() {
    let one = &["--executors", "1"][..];
    let ways: [(Way<'_>, &str); 4] = [
        ((&["-n", "2"], one), "links of worker 0: 1 shm"),
        (
            (&["-n", "2", "--transport", "tcp"], one),
            "links of worker 0: 1 tcp (as chosen)",
        ),
        // Between its own two ranks, and from each of them to the four others.
        (
            (&["-n", "3"], &["--executors", "2"]),
            "links of worker 0: 9 shm",
        ),
        ((&[], &["--executors", "2"]), "updraft: links: 1 shm"),
    ];
    for (way, expected) in ways {
        let (links, messages) = links(way).unwrap();
        assert_eq!(links, expected, "{way:?}");
        assert!(messages > 1, "{way:?}");
    }
    assert_eq!(links((&[], one)), None);
}

#[test]
fn the_summary_tells_what_each_task_did_if_it_is_asked_to() {
    let folder = Folder::new();
    let words = distinct_words(&folder, 5_000);
    let launch = |metrics: &[&str]| {
        let way = [&["-n", "2", "--executors", "2"], metrics].concat();
        let mut job = job("wordcount", (&way, &[]));
        job.arg(&words).arg("--top").arg("1");
        Launch::of(job)
    };
    let told = launch(&["--metrics"]);
    assert_eq!(told.code(), Some(0), "{}", told.err);
    let lines: Vec<_> = told
        .err
        .lines()
        .filter(|line| line.contains(" s in "))
        .collect();
    let line_of = |name: &str| {
        lines
            .iter()
            .find(|line| line.contains(name))
            .unwrap_or_else(|| panic!("{lines:?}"))
    };
    let first = line_of(" s in lines of 1 files, ");
    assert!(
        first.contains(" > flat_map > ") && first.contains("wordcount.rs:"),
        "{first}"
    );
    assert!(
        first.contains(": read 5,000 records, ") && first.contains("; 4 instances, "),
        "{first}"
    );
    let second = line_of(" s in after ");
    assert!(second.contains(" received 5,000 records, "), "{second}");
    let silent = launch(&[]);
    assert!(!silent.err.contains("s in lines of"), "{}", silent.err);
}

#[test]
fn without_a_path_the_words_of_the_project_are_counted() {
    let found = succeed(alone("wordcount", &["--top", "1"]));
    let (count, words) = found[1].trim_start().split_once("  words, ").unwrap();
    assert!(count.parse::<u64>().unwrap() > 10_000, "{count} {words}");
}

#[test]
fn results_that_are_there_are_not_written_over() {
    let folder = Folder::new();
    let (text, out) = (folder.0.join("text"), folder.0.join("out"));
    fs::write(&text, "a b a\n").unwrap();
    let count = || {
        let mut count = alone("wordcount", &["--executors", "1", "--out"]);
        count.arg(&out).arg(&text);
        count
    };
    succeed(count());
    let line = fail(count(), 9);
    let part = out.join("part-00000");
    assert!(line.contains(part.to_str().unwrap()), "{line}");
    assert_eq!(written(&out), ["a\t2", "b\t1"]);
}

#[test]
fn an_input_that_is_missing_is_named_and_exits_with_8() {
    let line = fail(alone("wordcount", &["/no/such/text"]), 8);
    assert!(line.contains("/no/such/text"), "{line}");
    let line = fail(alone("kmeans", &["/no/such/points"]), 8);
    assert!(line.contains("/no/such/points"), "{line}");
}

#[test]
fn an_input_that_is_missing_is_named_by_the_launcher_too() {
    let mut count = job("wordcount", (&["-n", "2"], &[]));
    count.arg("/no/such/text");
    let launch = Launch::of(count);
    assert_eq!(launch.code(), Some(8), "{}", launch.err);
    let said = "it said: cannot read /no/such/text";
    launch.assert_err(said);
}

#[test]
fn an_input_that_is_not_text_is_named_with_the_place() {
    let folder = Folder::new();
    let text = folder.0.join("text");
    fs::write(&text, b"fine\nbad \xff\n").unwrap();
    let line = fail(alone("wordcount", &[text.to_str().unwrap()]), 8);
    assert!(
        line.ends_with("text is not UTF-8 at byte 9, in line 2\n"),
        "{line}"
    );
}

#[test]
fn a_flag_that_is_none_exits_with_2() {
    assert_eq!(Launch::of(alone("wordcount", &["--bogus"])).code(), Some(2));
    assert_eq!(Launch::of(alone("kmeans", &["-k", "some"])).code(), Some(2));
}

#[test]
fn an_environment_that_makes_no_sense_exits_with_7() {
    for (variable, value, named) in [
        (
            "UPDRAFT_TRANSPORT",
            "nonsense",
            "UPDRAFT_TRANSPORT is \"nonsense\"",
        ),
        ("UPDRAFT_EXECUTORS", "some", "UPDRAFT_EXECUTORS is \"some\""),
        ("UPDRAFT_EXECUTORS", "0", "at least one executor"),
        ("UPDRAFT_MEMORY", "9m", "UPDRAFT_MEMORY is \"9m\""),
        ("UPDRAFT_MEMORY", "1000", "bytes of memory, not 1000"),
    ] {
        let mut count = alone("wordcount", &[]);
        count.env(variable, value);
        let line = fail(count, 7);
        assert!(line.contains(named), "{line}");
    }
}

/// A text of so many words, each another one.
fn distinct_words(folder: &Folder, count: u32) -> PathBuf {
    let mut text = String::new();
    for word in 0..count {
        writeln!(text, "word-{word}").unwrap();
    }
    let path = folder.0.join("words");
    fs::write(&path, text).unwrap();
    path
}

/// More points than fit in `LITTLE` memory, in which they would have to stay.
const POINTS: [&str; 2] = ["--generate", "200000"];
const LITTLE: &str = "9000000";

#[test]
fn a_memory_limit_too_small_for_the_job_exits_with_10_and_names_who_needs_more() {
    let mut cluster = alone("kmeans", &["--executors", "2"]);
    cluster.args(POINTS).env("UPDRAFT_MEMORY", LITTLE);
    let line = fail(cluster, 10);
    assert!(line.contains("cache needs "), "{line}");
    assert!(line.contains("of the ledger's 9000000"), "{line}");
}

#[test]
fn words_that_memory_has_no_room_for_are_counted_on_disk() {
    let folder = Folder::new();
    let words = distinct_words(&folder, 300_000);
    let mut count = alone("wordcount", &["--executors", "2"]);
    count.arg(&words).env("UPDRAFT_MEMORY", LITTLE);
    let launch = Launch::of(count);
    assert_eq!(launch.code(), Some(0), "{}", launch.err);
    launch.assert_err(" on disk");
    launch.assert_err("300,000 records");
}

#[test]
fn the_launcher_blames_the_worker_whose_memory_ran_out_and_not_its_peers() {
    for transport in ["shm", "tcp"] {
        let way: [&str; 8] = [
            "-n",
            "2",
            "--executors",
            "1",
            "--memory",
            LITTLE,
            "--transport",
            transport,
        ];
        let mut cluster = job("kmeans", (&way, &[]));
        cluster.args(POINTS);
        let launch = Launch::of(cluster);
        assert_eq!(launch.code(), Some(10), "{}", launch.err);
        launch.assert_err("it said: instance ");
        launch.assert_err("cache needs ");
    }
}

#[test]
fn kmeans_agrees_with_a_plain_loop_in_every_way_to_run() {
    for way in WAYS {
        let mut cluster = job("kmeans", way);
        cluster.args(["--check", "--generate", "5000"]);
        let found = succeed(cluster);
        assert_eq!(found.len(), 9, "{found:?}");
    }
}

#[test]
fn kmeans_reads_points_from_a_file() {
    let folder = Folder::new();
    let path = folder.0.join("points.csv");
    let mut points = String::new();
    for number in 0..3_000_u32 {
        let place = f64::from(number % 3) * 100.0;
        let (x, y) = (f64::from(number % 71) * 0.37, f64::from(number % 53) * 0.11);
        writeln!(points, "{:.2},{:.3}", place + x, place - y).unwrap();
    }
    fs::write(&path, points).unwrap();
    for way in [WAYS[1], WAYS[3], WAYS[5]] {
        let mut cluster = job("kmeans", way);
        cluster.args(["--check", "-k", "3"]).arg(&path);
        assert_eq!(succeed(cluster).len(), 4, "{way:?}");
    }
}

#[test]
fn a_line_that_is_no_point_is_quoted() {
    let folder = Folder::new();
    let path = folder.0.join("points.csv");
    for bad in ["5,6,7", "5", "5,x", "inf,6", ""] {
        fs::write(&path, format!("1,2\n3.5,4\n{bad}\n7,8\n")).unwrap();
        let line = fail(alone("kmeans", &["-k", "2", path.to_str().unwrap()]), 8);
        assert!(line.contains(&format!("{bad:?}")), "{line}");
        assert!(line.contains("points.csv"), "{line}");
    }
}

/// A job of three workers that would take minutes, and the process of each.
struct LongJob {
    running: Running,
    processes: Vec<u32>,
    /// The only place where it may leave files.
    temporary: Folder,
}

impl LongJob {
    fn start(transport: &str) -> Self {
        let (folder, temporary) = (Folder::new(), Folder::new());
        let script = format!(
            "echo $$ > {}/$UPDRAFT_WORKER; exec \"$0\" \"$@\"",
            folder.path()
        );
        let mut job = command();
        job.args(["run", "-n", "3", "--transport", transport, "--"])
            .args(["sh", "-c", &script])
            .arg(example("kmeans"))
            .args([
                "--dataflow",
                "--iterations",
                "1000000",
                "--generate",
                "20000",
            ])
            .env("TMPDIR", &temporary.0)
            .stdin(Stdio::null());
        let running = Running::start(&mut job);
        folder.wait_for_processes(3);
        let process = |worker: u32| {
            let text = fs::read_to_string(folder.0.join(worker.to_string())).unwrap();
            text.trim().parse().unwrap()
        };
        let processes = (0..3).map(process).collect();
        thread::sleep(UNDER_WAY);
        Self {
            running,
            processes,
            temporary,
        }
    }

    fn signal(&self, worker: usize, signal: Signal) {
        kill(Pid::from_raw(self.processes[worker].cast_signed()), signal).unwrap();
    }

    /// Waits for the end that follows on the death of a worker, and for all processes to be gone.
    fn end(self, killed: Instant) -> Launch {
        let launch = self.running.end();
        assert!(killed.elapsed() < END_TIME_MAX, "{:?}", killed.elapsed());
        assert!(all_end(&self.processes));
        let left = fs::read_dir(&self.temporary.0).unwrap().count();
        assert_eq!(left, 0, "files are left behind");
        launch
    }
}

/// The names of what is in named shared memory.
fn shared_memory() -> BTreeSet<std::ffi::OsString> {
    let entries = fs::read_dir("/dev/shm").unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

fn assert_blamed(launch: &Launch, worker: usize) {
    assert_eq!(launch.code(), Some(128 + 9), "{}", launch.err);
    let report = format!("worker {worker} of 3 failed first: it was killed by SIGKILL");
    launch.assert_err(&report);
}

#[test]
fn a_worker_killed_in_the_midst_of_a_job_ends_it_at_once_and_is_named() {
    let before = shared_memory();
    for (transport, worker) in [("auto", 0), ("shm", 1), ("tcp", 0), ("tcp", 2)] {
        let job = LongJob::start(transport);
        job.signal(worker, Signal::SIGKILL);
        assert_blamed(&job.end(Instant::now()), worker);
    }
    assert!(shared_memory().is_subset(&before), "memory is left behind");
}

#[test]
fn a_worker_that_was_stopped_and_is_killed_ends_the_job_at_once_and_is_named() {
    for (transport, worker) in [("auto", 1), ("tcp", 1)] {
        let job = LongJob::start(transport);
        job.signal(worker, Signal::SIGSTOP);
        thread::sleep(UNDER_WAY);
        job.signal(worker, Signal::SIGKILL);
        assert_blamed(&job.end(Instant::now()), worker);
    }
}

#[test]
fn no_worker_survives_a_launcher_that_is_killed_in_the_midst_of_a_job() {
    let job = LongJob::start("auto");
    job.running.signal(Signal::SIGKILL);
    let launch = job.end(Instant::now());
    assert_eq!(launch.status.signal(), Some(9));
}

#[test]
fn a_worker_killed_while_it_writes_leaves_no_results_that_look_whole() {
    let folder = Folder::new();
    let out = folder.0.join("out");
    let text = folder.0.join("text");
    let line = "more words than a worker can count before it is killed\n";
    fs::write(&text, line.repeat((128 << 20) / line.len())).unwrap();
    let script = "test $UPDRAFT_WORKER = 1 && (sleep 0.2; kill -9 $$) & exec \"$0\" \"$@\"";
    let mut count = command();
    count
        .args(["run", "-n", "2", "--", "sh", "-c", script])
        .arg(example("wordcount"))
        .args([&text, Path::new("--out"), &out]);
    let launch = Launch::of(count);
    assert_eq!(launch.code(), Some(128 + 9), "{}", launch.err);
    let parts = fs::read_dir(&out).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with("part-")
    });
    assert_eq!(parts.count(), 0);
}

/// The most memory that a process had resident, while it runs.
fn peak_bytes(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

#[test]
fn peak_memory_is_bounded_by_the_ledger_and_not_by_the_input() {
    const INPUT_BYTES: usize = 96 << 20;
    const LEDGER_BYTES: u64 = 16 << 20;
    /// The program itself, its threads, and what it writes of itself.
    const PROGRAM_BYTES: u64 = 16 << 20;
    let folder = Folder::new();
    let text = folder.0.join("large");
    let line = "the same few words on every line of a text that is much larger than the memory\n";
    fs::write(&text, line.repeat(INPUT_BYTES / line.len())).unwrap();
    let mut count = alone("wordcount", &["--executors", "2"]);
    count
        .arg(&text)
        .env("UPDRAFT_MEMORY", LEDGER_BYTES.to_string());
    let mut child = count
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut peak = 0;
    let status = loop {
        peak = peak_bytes(child.id()).unwrap_or(peak);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        thread::sleep(Duration::from_millis(5)); // Between two looks at the peak, which only grows.
    };
    assert!(status.success());
    assert!(peak > 0, "the process was never looked at");
    assert!(peak < LEDGER_BYTES + PROGRAM_BYTES, "it had {peak} bytes");
}
