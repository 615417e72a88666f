//! What happens when processes die, stop or run out of something: those who are left are told in time, and nothing
//! stays behind.
//!
//! The runs here are short. `UPDRAFT_LONG=1 cargo test --release --test failure` takes many times as many.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, OpenOptions},
    io::Write,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use transport::{Arena, Config, Error, Event, Fabric, Ledger, Loss, Rank, Secret, Transport};
use updraft::collectives::{Group as Ranks, op::Sum};

mod support;

use support::{
    END_TIME_MAX, Folder, Launch, PATIENCE, Running, command, echo::Echo, example, long::often,
    skip::skipped,
};

const ARENA: u64 = 2 << 20;
/// Within which the death of a process of this machine is told.
const DEATH_TOLD: Duration = Duration::from_millis(50);

fn fabric(rank: Rank, secret: &Secret) -> Fabric {
    let config = Config {
        transport: Transport::Shm,
        spin: false,
        ..Config::new(rank, 2, secret)
    };
    Fabric::new(config, Arena::new(&Ledger::new(ARENA), ARENA).unwrap()).unwrap()
}

/// Another process of this machine, which sends back every message, and the rank here that talks to it.
struct Talk {
    echo: Echo,
    here: Fabric,
}

impl Talk {
    fn start() -> Self {
        let mut echo = Echo::start();
        let secret = Secret::random().unwrap();
        let mut here = fabric(0, &secret);
        echo.meet(&mut here, &secret);
        let mut talk = Self { echo, here };
        talk.say(b"there?");
        assert!(matches!(talk.next(PATIENCE), Some(Event::Message { .. })));
        talk
    }

    fn say(&mut self, bytes: &[u8]) {
        assert!(self.here.send_copy(1, 0, bytes).unwrap());
    }

    fn next(&mut self, time: Duration) -> Option<Event> {
        let started = Instant::now();
        while started.elapsed() < time {
            if let Some(event) = self.here.receive().unwrap() {
                return Some(event);
            }
            self.here.wait(Some(Duration::from_millis(1))).unwrap();
        }
        None
    }

    /// How long it takes until the loss of the peer is told.
    fn loss(&mut self) -> Duration {
        let started = Instant::now();
        loop {
            match self.next(PATIENCE) {
                Some(Event::Ended { peer: 1, error }) => {
                    let lost = matches!(
                        *error,
                        Error::PeerLost {
                            cause: Loss::ProcessEnded,
                            ..
                        }
                    );
                    assert!(lost, "{error}");
                    return started.elapsed();
                }
                Some(Event::Message { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
#[ignore = "the other process of the tests here"]
fn the_echo() {
    let mut here = Echo::met(|secret| fabric(1, secret));
    loop {
        match here.receive().unwrap() {
            Some(Event::Message { buffer, .. }) => here.send(0, buffer).unwrap(),
            Some(Event::Ended { .. }) => return,
            _ => here.wait(Some(Duration::from_millis(20))).unwrap(),
        }
    }
}

/// The time that 99 of 100 do not exceed.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[(times.len() * 99).div_ceil(100) - 1]
}

#[test]
fn the_death_of_a_process_is_told_within_50_ms_though_nobody_has_reaped_it() {
    let times: Vec<Duration> = (0..often(20, 1000))
        .map(|round| {
            let mut talk = Talk::start();
            if round % 2 == 0 {
                talk.say(b"on its way"); // In the midst of work, and in peace.
            }
            if round % 4 == 3 {
                talk.echo.signal(Signal::SIGSTOP);
            }
            talk.echo.signal(Signal::SIGKILL); // It stays a zombie until `talk` is dropped.
            talk.loss()
        })
        .collect();
    let p99 = p99(times);
    println!("p99 {p99:?}");
    assert!(p99 <= DEATH_TOLD, "{p99:?}");
}

#[test]
fn a_process_that_is_stopped_is_not_lost_and_costs_its_sender_no_more_than_the_arena() {
    let mut talk = Talk::start();
    talk.echo.signal(Signal::SIGSTOP);
    let stat = format!("/proc/{}/stat", talk.echo.process());
    while !fs::read_to_string(&stat).unwrap().contains(") T ") {
        thread::sleep(Duration::from_millis(1)); // It may be in the midst of a step.
    }
    let mut sent = 0;
    let refused = loop {
        match talk.here.loan(4096).unwrap() {
            Some(mut loan) => {
                loan.fill(sent as u8);
                talk.here.send(1, loan).unwrap();
                sent += 1;
            }
            None => break true,
        }
        assert!(sent < 10_000, "nothing bounds the sender");
    };
    assert!(refused && sent as u64 * 4096 <= ARENA, "{sent}");
    assert!(
        talk.next(Duration::from_secs(1)).is_none(),
        "it is not lost"
    );
    talk.echo.signal(Signal::SIGCONT);
    for number in 0..sent {
        match talk.next(PATIENCE) {
            Some(Event::Message { buffer, .. }) => {
                assert!(buffer.len() == 4096 && buffer.iter().all(|&byte| byte == number as u8));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn calls_that_signals_interrupt_lose_no_message() {
    let mut talk = Talk::start();
    for number in 0..often(200u32, 5000) {
        talk.say(&number.to_ne_bytes());
        // A wait for the sockets is interrupted by a stop, even if it goes on.
        talk.echo.signal(Signal::SIGSTOP);
        talk.echo.signal(Signal::SIGCONT);
        match talk.next(PATIENCE) {
            Some(Event::Message { buffer, .. }) => {
                assert_eq!(buffer.as_slice(), number.to_ne_bytes());
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The processes that have `mark` in their environment.
fn marked(mark: &str) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap();
    let processes = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_marked = |process: &u32| {
        let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        let environment = environment.windows(mark.len());
        environment.into_iter().any(|part| part == mark.as_bytes())
    };
    processes.filter(is_marked).collect()
}

#[test]
fn nothing_is_left_of_jobs_whose_processes_are_killed_at_any_moment() {
    let shared = fs::read_dir("/dev/shm").unwrap().count();
    for round in 0..often(14, 10_000) {
        let temporary = Folder::new();
        let mark = format!("UPDRAFT_TEST_MARK=failure-{}-{round}", std::process::id());
        let (name, value) = mark.split_once('=').unwrap();
        let mut job = command();
        job.args(["run", "-n", "2", "--"])
            .arg(example("kmeans"))
            .args([
                "--dataflow",
                "--iterations",
                "1000000",
                "--generate",
                "2000",
            ])
            .env(name, value)
            .env("TMPDIR", &temporary.0)
            .stdin(Stdio::null());
        let mut running = Running::start(&mut job);
        // Nothing is waited for: the moments go from before the workers are there to well into the job.
        thread::sleep(Duration::from_millis((round as u64 * 37) % 240));
        let launcher = running.launcher.id();
        let victim = match marked(&mark)
            .into_iter()
            .filter(|&one| one != launcher)
            .nth(round % 4)
        {
            Some(process) if round % 3 != 0 => process,
            _ => launcher,
        };
        let killed = Instant::now();
        let _ = kill(Pid::from_raw(victim.cast_signed()), Signal::SIGKILL);
        // The death of the watchdog is no failure of the job, so the launcher is killed as well, here: after a death
        // that ends the job, in the midst of ending it or later. All the same, nothing may be left.
        thread::sleep(Duration::from_millis(50));
        let _ = running.launcher.kill();
        running.wait();
        loop {
            let left = marked(&mark);
            if left.is_empty() {
                break;
            }
            let told = left
                .iter()
                .map(|one| fs::read_to_string(format!("/proc/{one}/cmdline")));
            let told: Vec<_> = told.collect();
            assert!(
                killed.elapsed() < Duration::from_secs(5),
                "round {round}: {told:?}"
            );
            thread::sleep(Duration::from_millis(5));
        }
        let left = fs::read_dir(&temporary.0).unwrap().count();
        assert_eq!(left, 0, "round {round}: files are left behind");
    }
    assert_eq!(fs::read_dir("/dev/shm").unwrap().count(), shared);
}

/// A worker that first leaves the secret of its job, which is handed to it and soon closed by everyone, in the file `SECRET`.
const LEAVES_SECRET: &str = r#"cat "/proc/self/fd/$UPDRAFT_SECRET_FD" > "$SECRET.$$" && mv "$SECRET.$$" "$SECRET" && exec "$0" "$@""#;

/// The secret that a worker has left.
fn secret_in(file: &Path) -> Vec<u8> {
    let started = Instant::now();
    loop {
        if let Ok(secret) = fs::read(file) {
            assert_eq!(secret.len(), Secret::BYTES);
            return secret;
        }
        assert!(started.elapsed() < PATIENCE, "no secret is found");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether `secret` is somewhere in `told`: as it is, in hexadecimal digits, or in part.
fn tells(told: &[u8], secret: &[u8]) -> bool {
    let has = |part: &[u8]| told.windows(part.len()).any(|window| window == part);
    secret.windows(8).any(|part| {
        let hex: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
        has(part) || has(hex.as_bytes()) || has(hex.to_uppercase().as_bytes())
    })
}

#[test]
fn the_secret_of_a_job_is_in_no_command_line_no_environment_and_no_output() {
    let secret: Vec<u8> = (0..32).map(|byte| byte * 7 + 3).collect();
    assert!(tells(b"abc \x26\x2d\x34\x3b\x42\x49\x50\x57 d", &secret));
    assert!(tells(b"key=262d343b42495057", &secret));
    assert!(!tells(b"key=262d343b424950", &secret));

    let program = example("kmeans");
    for options in [&[][..], &["--transport", "tcp"]] {
        let mark = format!("UPDRAFT_TEST_MARK=secret-{}", std::process::id());
        let (name, value) = mark.split_once('=').unwrap();
        let folder = Folder::new();
        let file = folder.0.join("secret");
        let mut job = command();
        job.args(["run", "-n", "2"])
            .args(options)
            .args(["--", "sh", "-c", LEAVES_SECRET])
            .arg(&program)
            .args([
                "--dataflow",
                "--iterations",
                "1000000",
                "--generate",
                "2000",
            ])
            .env(name, value)
            .env("SECRET", &file)
            .env("RUST_LOG", "trace")
            .stdin(Stdio::null());
        let running = Running::start(&mut job);
        let secret = secret_in(&file);
        assert_ne!(secret, [0; Secret::BYTES]);
        // From before the workers are there to well into the job.
        let mut workers = BTreeSet::new();
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(500) {
            for process in marked(&mark) {
                for place in ["cmdline", "environ"] {
                    let told = fs::read(format!("/proc/{process}/{place}")).unwrap_or_default();
                    assert!(!tells(&told, &secret), "{place} of {process} tells it");
                    if place == "cmdline" && told.starts_with(program.as_os_str().as_bytes()) {
                        workers.insert(process);
                    }
                }
            }
            thread::sleep(Duration::from_millis(20)); // Between two looks, of which each is at all there is.
        }
        assert!(workers.len() >= 2, "{workers:?}");
        running.signal(Signal::SIGINT);
        let launch = running.end();
        launch.assert_err("stopped by SIGINT");
        for told in [&launch.out, &launch.err] {
            assert!(!tells(told.as_bytes(), &secret), "{told}");
        }
    }
}

#[test]
fn a_panic_tells_no_secret() {
    let folder = Folder::new();
    let file = folder.0.join("secret");
    let mut job = command();
    job.args(["run", "-n", "2", "--transport", "tcp"])
        .args(["--", "sh", "-c", LEAVES_SECRET])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "the_program", "--ignored", "--nocapture", "-q"])
        .env("UPDRAFT_TEST_HOW", "panics")
        .env("RUST_BACKTRACE", "full")
        .env("SECRET", &file)
        .stdin(Stdio::null());
    let launch = Launch::of(job);
    assert_eq!(launch.code(), Some(1), "{}", launch.err);
    launch.assert_err("panicked at ");
    let secret = secret_in(&file);
    for told in [&launch.out, &launch.err] {
        assert!(!tells(told.as_bytes(), &secret), "{told}");
    }
}

/// A small job whose workers exchange words, in a shell that has done `before`.
fn job_after(before: &str, options: &[&str]) -> Launch {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("{before} && exec \"$0\" \"$@\"")])
        .arg(command().get_program())
        .args(["run", "-n", "2", "--executors", "1"])
        .args(options)
        .arg("--")
        .arg(example("wordcount"))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("LICENSE"))
        .stdin(Stdio::null());
    Launch::of(shell)
}

#[test]
fn a_job_says_once_that_it_falls_back_to_tcp_and_one_that_must_not_fails() {
    const SAID: &str = "between nodes, messages go over TCP and not RDMA";
    let folder = Folder::new();
    let boot = folder.0.join("boot");
    fs::write(&boot, "another\n").unwrap();
    // To the others, a worker whose kernel has booted another time is on another node.
    let script = format!(
        "[ $UPDRAFT_WORKER = 0 ] || mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$0\" \"$@\"",
        boot.display()
    );
    let job = |options: &[&str]| {
        let mut job = command();
        job.args(["run", "-n", "3", "--executors", "2"])
            .args(options)
            .args(["--", "unshare", "--mount", "sh", "-c", &script])
            .arg(example("wordcount"))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("LICENSE"))
            .env("UPDRAFT_RDMA_DEVICES", "none-such")
            .stdin(Stdio::null());
        Launch::of(job)
    };
    let launch = job(&[]);
    if launch.err.contains("unshare") || launch.err.contains("mount:") {
        skipped(format_args!("no mounts here: {}", launch.err));
        return;
    }
    assert_eq!(launch.code(), Some(0), "{}", launch.err);
    assert_eq!(launch.err.matches(SAID).count(), 1, "{}", launch.err);
    launch.assert_err("tcp (on another node, without RDMA: ");

    let launch = job(&["--transport", "tcp"]);
    assert_eq!(launch.code(), Some(0), "{}", launch.err);
    assert!(!launch.err.contains("RDMA"), "{}", launch.err);

    let launch = job(&["--transport", "rdma"]);
    assert_clear(&launch, &["RDMA"]);
    assert!(!launch.err.contains(SAID), "{}", launch.err);
}

#[test]
fn jobs_run_with_no_locked_memory() {
    let launch = job_after("ulimit -l 0", &[]);
    assert_eq!(launch.code(), Some(0), "{}", launch.err);
}

#[test]
fn jobs_run_whatever_becomes_of_named_shared_memory() {
    for options in ["size=4k", "ro"] {
        let mount = format!("mount -t tmpfs -o {options} none /dev/shm");
        let mut shell = Command::new("unshare");
        shell
            .args([
                "--mount",
                "sh",
                "-c",
                &format!("{mount} && exec \"$0\" \"$@\""),
            ])
            .arg(command().get_program())
            .args(["run", "-n", "2", "--executors", "1", "--"])
            .arg(example("wordcount"))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("LICENSE"))
            .stdin(Stdio::null());
        let launch = Launch::of(shell);
        if launch.err.contains("unshare") || launch.err.contains("mount:") {
            skipped(format_args!("no mounts here: {}", launch.err));
            return;
        }
        assert_eq!(launch.code(), Some(0), "{options}: {}", launch.err);
    }
}

/// Whether a job failed as a job should: in time, with a code of its own, not by a signal, and saying why.
fn assert_clear(launch: &Launch, reasons: &[&str]) {
    let code = launch.code();
    assert!(matches!(code, Some(1..=64)), "{code:?}: {}", launch.err);
    assert!(!launch.err.contains("panicked"), "{}", launch.err);
    let named = reasons.iter().any(|reason| launch.err.contains(reason));
    assert!(named, "none of {reasons:?} in {}", launch.err);
}

#[test]
fn too_few_descriptors_are_a_clear_error() {
    let mut too_few = 0;
    for limit in [10, 12, 14, 16, 20] {
        let launch = job_after(&format!("ulimit -n {limit}"), &[]);
        if launch.code() != Some(0) {
            assert_clear(&launch, &["Too many open files"]);
            too_few += 1;
        }
    }
    assert!(too_few > 0, "all of these are enough");
}

#[test]
fn a_limit_on_the_size_of_files_is_named_and_kills_nobody() {
    let launch = job_after("ulimit -f 2000", &[]);
    assert_clear(&launch, &["RLIMIT_FSIZE"]);
}

/// A control group of version 1 or 2 with a limit of memory. It goes with it.
struct Group(PathBuf);

impl Group {
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("updraft-test-{}", std::process::id());
        let (root, limit) = if Path::new("/sys/fs/cgroup/memory").exists() {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            ("/sys/fs/cgroup", "memory.max")
        };
        let group = Self(Path::new(root).join(name));
        let made = fs::create_dir(&group.0).and_then(|()| {
            let mut file = OpenOptions::new().write(true).open(group.0.join(limit))?;
            file.write_all(bytes.to_string().as_bytes())
        });
        if let Err(error) = made {
            skipped(format_args!("no control groups here: {error}"));
            return None;
        }
        Some(group)
    }

    fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs", self.0.display())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group can be removed once the last process in it is gone.
        let started = Instant::now();
        while fs::remove_dir(&self.0).is_err() && started.elapsed() < Duration::from_secs(2) {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn memory_that_the_control_group_does_not_have_is_refused_before_the_kernel_kills_for_it() {
    let Some(group) = Group::new(96 << 20) else {
        return;
    };
    let launch = job_after(&group.enter(), &["--memory", "2g"]);
    assert_clear(&launch, &["control group"]);
    let launch = job_after(&group.enter(), &[]);
    assert_eq!(launch.code(), Some(0), "{}", launch.err);
}

#[test]
fn a_full_disk_is_a_clear_error_and_leaves_no_results_that_look_whole() {
    let folder = Folder::new();
    let text = folder.0.join("text");
    let words: String = (0..200_000).map(|word| format!("word{word}\n")).collect();
    fs::write(&text, words).unwrap();
    let disk = folder.0.join("disk");
    fs::create_dir(&disk).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=64k none {0} && \"$@\"; code=$?; ls {0}/out; exit $code",
        disk.display()
    );
    let mut shell = Command::new("unshare");
    shell
        .args(["--mount", "sh", "-c", &script, "sh"])
        .arg(command().get_program())
        .args(["run", "-n", "2", "--executors", "1", "--"])
        .arg(example("wordcount"))
        .args([&text, Path::new("--out"), &disk.join("out")])
        .stdin(Stdio::null());
    let launch = Launch::of(shell);
    if launch.err.contains("unshare") || launch.err.contains("mount:") {
        skipped(format_args!("no mounts here: {}", launch.err));
        return;
    }
    assert_clear(&launch, &["No space left on device"]);
    assert!(!launch.out.contains("_SUCCESS"), "{}", launch.out);
}

/// A count of words whose memory has room for few, on disks that `tests/support/faults.c` has fail.
struct Faulty {
    folder: Folder,
    library: PathBuf,
    text: PathBuf,
    /// The lines of the results, in order.
    counts: Vec<String>,
}

impl Faulty {
    fn new() -> Self {
        let folder = Folder::new();
        let library = folder.0.join("faults.so");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/faults.c"))
            .status();
        assert!(compiled.unwrap().success());
        let text = folder.0.join("text");
        let words = (0..45_000).map(|word| format!("word{word}"));
        let words: Vec<String> = words.collect();
        fs::write(&text, words.join("\n")).unwrap();
        let counts = words.iter().map(|word| format!("{word}\t1"));
        let mut counts: Vec<String> = counts.collect();
        counts.sort_unstable();
        Self {
            folder,
            library,
            text,
            counts,
        }
    }

    /// Runs the count, whose results and files for what there is no memory for are on the disk. Also the lines of its results, in
    /// order.
    fn count(&self, faults: &str) -> (Launch, Vec<String>) {
        let disk = self.folder.0.join("disk");
        fs::create_dir(&disk).unwrap();
        let mut count = Command::new(example("wordcount"));
        count
            .arg(&self.text)
            .args([Path::new("--out"), &disk.join("out")])
            .args(["--executors", "1"])
            .env("UPDRAFT_MEMORY", "4194304")
            .env("UPDRAFT_SPILL_DIRS", &disk)
            .env("LD_PRELOAD", &self.library)
            .env("FAULTS_IN", &disk)
            .env("FAULTS", faults)
            .stdin(Stdio::null());
        let launch = Launch::of(count);
        let parts = fs::read_dir(disk.join("out")).into_iter().flatten();
        let mut lines = Vec::new();
        for part in parts.map(|part| part.unwrap().path()) {
            let name = part.file_name().unwrap().to_string_lossy().into_owned();
            assert!(name.starts_with("part-"), "{faults}: {name}");
            let text = fs::read_to_string(part).unwrap();
            lines.extend(text.lines().map(str::to_owned));
        }
        lines.sort_unstable();
        fs::remove_dir_all(&disk).unwrap();
        (launch, lines)
    }

    /// The count is right, though some of it was on disk. How many bytes were moved.
    fn succeeds(&self, faults: &str) -> u64 {
        let (launch, lines) = self.count(faults);
        assert_eq!(launch.code(), Some(0), "{}", launch.err);
        launch.assert_err(" on disk");
        assert!(lines == self.counts);
        let mut moved = launch.err.lines();
        let moved = moved.find_map(|line| line.strip_prefix("moved ")?.parse().ok());
        moved.unwrap()
    }

    /// The count fails for a reason that it names, with where that was, and has no results.
    fn fails(&self, faults: &str, reason: &str) {
        let (launch, lines) = self.count(faults);
        assert_clear(&launch, &[reason]);
        launch.assert_err(&self.folder.0.join("disk").display().to_string());
        assert!(lines.is_empty(), "{faults}: {}", lines.len());
    }
}

#[test]
fn a_disk_that_fails_or_is_full_at_any_byte_is_a_clear_error_and_leaves_no_results() {
    let faulty = Faulty::new();
    let (full, failing) = (Errno::ENOSPC as i32, Errno::EIO as i32);
    let [written, read] =
        ["write", "read"].map(|kind| faulty.succeeds(&format!("{kind} {} {failing}", i64::MAX)));
    assert!(written > read && read > 0, "{written} {read}");
    for (kind, bytes, error, few, reason) in [
        ("write", written, full, 6, "No space left on device"),
        ("write", written, failing, 2, "Input/output error"),
        ("read", read, failing, 2, "Input/output error"),
    ] {
        let times = often(few, 1000) as u64;
        for time in 0..times {
            // Also in the midst of blocks.
            let at = bytes * time / times + time;
            faulty.fails(&format!("{kind} {at} {error}"), reason);
        }
    }
    faulty.fails(&format!("sync 0 {failing}"), "Input/output error");
}

#[test]
fn short_reads_and_writes_of_files_change_no_result() {
    Faulty::new().succeeds("short");
}

/// The rank that fails in the programs in the manner of MPI.
const FAILING: usize = 1;
/// What it says then.
const ENOUGH: &str = "the rank has had enough";

/// Rounds of an operation until one rank fails in the way that is told.
fn failing(world: &Ranks, how: &str) -> Result<u64, updraft::Error> {
    const LAST: u64 = 100;
    for round in 0.. {
        let mut sum = [1u64];
        world.all_reduce(&mut sum, Sum).wait()?;
        if round == LAST && how == "returns" {
            break;
        }
        if round == LAST && world.rank() == FAILING {
            match how {
                "panics" => panic!("{ENOUGH}"),
                "mismatches" => world.barrier().wait()?,
                "ends" => std::process::exit(0),
                _ => return Err(updraft::Error::program(ENOUGH)),
            }
        }
    }
    Ok(LAST)
}

/// The error of such a program whose ranks are threads, and that it came soon.
fn error_of_threads(how: &'static str) -> updraft::Error {
    let config = updraft::Config {
        executors: Some(3),
        pin: false,
        ..updraft::Config::default()
    };
    let started = Instant::now();
    let error = updraft::bsp(config, move |world| failing(world, how)).unwrap_err();
    let elapsed = started.elapsed();
    assert!(elapsed < END_TIME_MAX, "{how}: {elapsed:?}");
    error
}

#[test]
fn a_program_of_threads_ends_with_the_error_of_the_rank_that_failed() {
    let error = error_of_threads("fails");
    let is_its = matches!(&error, updraft::Error::Program(reason) if reason.to_string() == ENOUGH);
    assert!(is_its, "{error}");

    let error = error_of_threads("panics");
    let is_its = matches!(
        &error,
        updraft::Error::Panicked { rank, operator: None, message }
            if *rank == FAILING as u32 && message.contains(ENOUGH)
    );
    assert!(is_its, "{error}");

    let error = error_of_threads("mismatches").to_string();
    for words in [
        "rank 1 called barrier",
        "rank",
        "called all_reduce(1 elements of u64, sum",
    ] {
        assert!(error.contains(words), "{error}");
    }
}

#[test]
#[ignore = "the program of the jobs of ranks"]
fn the_program() {
    let how = env::var("UPDRAFT_TEST_HOW").unwrap();
    let result = updraft::bsp(updraft::Config::default(), move |world| {
        failing(world, &how)
    });
    if let Err(error) = &result {
        eprintln!("error: {error}");
    }
    std::process::exit(result.map_or_else(|error| error.exit_code().into(), |_| 0));
}

/// Runs such a program as a job of three workers with a rank each.
fn job_of_ranks(how: &str, transport: &str) -> Launch {
    let mut job = command();
    let options = [
        "run",
        "-n",
        "3",
        "--executors",
        "1",
        "--transport",
        transport,
    ];
    job.args(options).arg("--").arg(env::current_exe().unwrap());
    job.args(["--exact", "the_program", "--ignored", "--nocapture", "-q"])
        .env("UPDRAFT_TEST_HOW", how)
        .stdin(Stdio::null());
    let launch = Launch::of(job);
    assert!(
        launch.elapsed < 2 * END_TIME_MAX,
        "{how}: {:?}",
        launch.elapsed
    );
    launch
}

#[test]
fn a_job_ends_with_the_error_of_the_rank_that_failed() {
    for (how, transport, said) in [
        ("fails", "auto", ENOUGH),
        ("panics", "auto", ENOUGH),
        ("mismatches", "auto", "rank 1 called barrier"),
        ("mismatches", "tcp", "rank 1 called barrier"),
    ] {
        let launch = job_of_ranks(how, transport);
        launch.assert_err(said);
        assert_eq!(launch.code(), Some(1), "{how}: {}", launch.err);
    }
    // Others learn that it is gone, and that is no success.
    let launch = job_of_ranks("ends", "auto");
    assert!(matches!(launch.code(), Some(1..=64)), "{}", launch.err);
    assert_eq!(job_of_ranks("returns", "auto").code(), Some(0));
}
