//! What `updraft run` promises to those who type it.

mod support;

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use support::{END_TIME_MAX, Folder, Launch, PATIENCE, Running, all_end, command, is_alive};
use updraft::{
    Config,
    coordinator::{Client, Entry, Membership},
    progress::Amount,
};

/// `updraft run -n WORKERS -- sh -c SCRIPT`
fn shell(workers: u32, script: &str) -> Command {
    let mut command = command();
    command
        .args(["run", "-n", &workers.to_string(), "--", "sh", "-c", script])
        .stdin(Stdio::null());
    command
}

#[test]
fn a_job_that_succeeds_exits_with_0_and_says_nothing_of_its_own() {
    let launch = Launch::of(shell(2, "true"));
    assert_eq!(launch.code(), Some(0));
    assert_eq!((&launch.out[..], &launch.err[..]), ("", ""));
}

#[test]
fn each_worker_knows_its_number_and_each_line_is_marked_with_it() {
    let launch = Launch::of(shell(3, "echo $UPDRAFT_WORKER of $UPDRAFT_WORKERS"));
    assert_eq!(
        launch.sorted(),
        ["[w0] 0 of 3", "[w1] 1 of 3", "[w2] 2 of 3"]
    );
}

#[test]
fn marks_are_equally_wide_and_standard_error_stays_apart() {
    let launch = Launch::of(shell(11, "echo out; echo err >&2"));
    assert_eq!(launch.sorted().len(), 11);
    assert!(launch.out.contains("[w3]  out\n") && launch.out.contains("[w10] out\n"));
    assert!(launch.err.contains("[w3]  err\n") && !launch.err.contains("out"));
}

#[test]
fn a_job_needs_no_dashes_before_it() {
    let mut command = command();
    command.args(["run", "-n", "1", "sh", "-c", "echo x $0 $1", "-n", "7"]);
    assert_eq!(Launch::of(command).out, "[w0] x -n 7\n");
}

#[test]
fn options_reach_the_workers_and_those_not_given_do_not() {
    let script = "echo $UPDRAFT_EXECUTORS $UPDRAFT_TRANSPORT $UPDRAFT_INTERFACE $UPDRAFT_MEMORY";
    let mut given = command();
    given
        .args(["run", "--executors", "3", "--transport", "tcp"])
        .args([
            "--interface",
            "lo",
            "--memory",
            "64k",
            "--",
            "sh",
            "-c",
            script,
        ]);
    assert_eq!(Launch::of(given).out, "[w0] 3 tcp lo 65536\n");
    assert_eq!(Launch::of(shell(1, script)).out, "[w0] \n");
}

#[test]
fn a_last_line_without_its_end_is_printed_and_an_empty_one_is_not() {
    assert_eq!(
        Launch::of(shell(1, "printf 'a\\n\\nb'")).out,
        "[w0] a\n[w0] \n[w0] b\n"
    );
    assert_eq!(Launch::of(shell(1, "printf 'a\\n'")).out, "[w0] a\n");
}

#[test]
fn long_lines_are_whole() {
    let launch = Launch::of(shell(2, "head -c 500000 /dev/zero | tr '\\0' x; echo"));
    let lengths: Vec<usize> = launch.out.lines().map(str::len).collect();
    assert_eq!(lengths, [500_005, 500_005]);
}

#[test]
fn much_output_is_complete_and_in_order() {
    let launch = Launch::of(shell(2, "seq 1 50000"));
    for tag in ["[w0] ", "[w1] "] {
        let numbers = launch.out.lines().filter_map(|line| line.strip_prefix(tag));
        assert!(numbers.map(|n| n.parse::<u32>().unwrap()).eq(1..=50_000));
    }
}

#[test]
fn worker_0_reads_the_input_and_the_others_read_nothing() {
    let mut command = shell(2, "cat; echo end");
    let mut running = Running::start(command.stdin(Stdio::piped()));
    let mut input = running.launcher.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"hello\n").unwrap();
    drop(input);
    assert_eq!(
        running.end().sorted(),
        ["[w0] end", "[w0] hello", "[w1] end"]
    );
}

#[test]
fn an_output_that_nobody_reads_stops_no_job() {
    let folder = Folder::new();
    let script = format!("seq 1 50000; echo done > {}/$UPDRAFT_WORKER", folder.path());
    let mut running = Running::start(&mut shell(2, &script));
    drop(running.launcher.stdout.take());
    assert!(running.wait().success());
    assert_eq!(folder.wait_for(2), ["done\n"; 2]);
}

#[test]
fn sixty_four_workers_start_and_end() {
    let mut command = command();
    command.args(["run", "-n", "64", "true"]);
    let launch = Launch::of(command);
    assert_eq!(launch.code(), Some(0), "{}", launch.err);
    assert!(launch.elapsed < Duration::from_secs(10));
}

#[test]
fn what_a_worker_leaves_behind_ends_with_the_job() {
    let folder = Folder::new();
    let script = format!("sleep 100 & echo $! > {}/left; echo bye", folder.path());
    let launch = Launch::of(shell(1, &script));
    assert_eq!((launch.code(), &launch.out[..]), (Some(0), "[w0] bye\n"));
    assert!(launch.elapsed < END_TIME_MAX);
    assert!(all_end(&folder.wait_for_processes(1)));
}

#[test]
fn the_exit_code_is_that_of_the_worker_that_failed() {
    let launch = Launch::of(shell(3, "test $UPDRAFT_WORKER != 1 || exit 42"));
    assert_eq!(launch.code(), Some(42));
    let report = "worker 1 of 3 failed first: it exited with code 42";
    launch.assert_err(report);
}

#[test]
fn a_worker_killed_by_a_signal_is_named_with_the_signal() {
    let script = "test $UPDRAFT_WORKER = 2 && kill -9 $$; exec sleep 100";
    let launch = Launch::of(shell(4, script));
    assert_eq!(launch.code(), Some(128 + 9));
    let report = "worker 2 of 4 failed first: it was killed by SIGKILL";
    launch.assert_err(report);
    launch.assert_err("3 other workers were stopped because of it");
    assert!(launch.elapsed < END_TIME_MAX, "{:?}", launch.elapsed);
}

#[test]
fn a_signal_without_a_name_is_told_by_its_number() {
    let launch = Launch::of(shell(1, "kill -40 $$"));
    assert_eq!(launch.code(), Some(128 + 40));
    launch.assert_err("killed by signal 40");
}

#[test]
fn the_last_lines_of_the_worker_that_failed_are_repeated() {
    let launch = Launch::of(shell(1, "seq 1 30; echo oops >&2; exit 1"));
    let tail: Vec<&str> = launch
        .err
        .lines()
        .filter_map(|line| line.strip_prefix("  | "))
        .collect();
    assert_eq!(tail.len(), 20, "{}", launch.err);
    assert!(tail.contains(&"oops") && tail.contains(&"30"));
    let silent = Launch::of(shell(1, "exit 1"));
    assert!(silent.err.contains("it printed nothing"), "{}", silent.err);
}

#[test]
fn a_worker_that_was_lost_is_to_blame_and_not_the_one_that_lost_it() {
    let script = "test $UPDRAFT_WORKER = 0 && exit 6; sleep 0.1; kill -9 $$";
    let launch = Launch::of(shell(2, script));
    assert_eq!(launch.code(), Some(128 + 9));
    launch.assert_err("worker 1 of 2 failed first");
}

#[test]
fn a_worker_that_will_not_end_is_killed_with_all_it_started() {
    let folder = Folder::new();
    let script = format!(
        "trap '' TERM; sleep 100 & echo $! > {0}/child$UPDRAFT_WORKER; echo $$ > {0}/$UPDRAFT_WORKER; \
         while [ $(ls {0} | wc -l) != 6 ]; do sleep 0.01; done; \
         test $UPDRAFT_WORKER = 0 && exit 3; wait; wait; sleep 100",
        folder.path()
    );
    let running = Running::start(&mut shell(3, &script));
    let processes = folder.wait_for_processes(6);
    let failed = Instant::now();
    let launch = running.end();
    assert!(failed.elapsed() < END_TIME_MAX, "{:?}", failed.elapsed());
    assert_eq!(launch.code(), Some(3), "{}", launch.err);
    assert!(all_end(&processes));
}

#[test]
fn signals_are_forwarded_to_every_worker() {
    for (signal, name) in [
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGUSR2, "USR2"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGTERM, "TERM"),
    ] {
        let folder = Folder::new();
        let script = format!(
            "trap 'echo got {name}; exit 0' {name}; echo ready > {}/$UPDRAFT_WORKER; \
             while true; do sleep 0.01; done",
            folder.path()
        );
        let running = Running::start(&mut shell(2, &script));
        folder.wait_for(2);
        running.signal(signal);
        let launch = running.end();
        assert_eq!(launch.code(), Some(0), "{}", launch.err);
        let lines = [format!("[w0] got {name}"), format!("[w1] got {name}")];
        assert_eq!(launch.sorted(), lines);
    }
}

#[test]
fn a_job_stopped_by_its_user_says_so_in_one_line() {
    let folder = Folder::new();
    let script = format!(
        "echo $$ > {}/$UPDRAFT_WORKER; exec sleep 100",
        folder.path()
    );
    let running = Running::start(&mut shell(2, &script));
    folder.wait_for(2);
    running.signal(Signal::SIGINT);
    let launch = running.end();
    assert_eq!(launch.code(), Some(128 + 2));
    assert!(launch.err.starts_with("updraft: stopped by SIGINT"));
    assert_eq!(launch.err.lines().count(), 1, "{}", launch.err);
}

#[test]
fn a_second_interrupt_kills() {
    let folder = Folder::new();
    let script = format!(
        "trap '' INT TERM; echo $$ > {}/$UPDRAFT_WORKER; while true; do sleep 1; done",
        folder.path()
    );
    let running = Running::start(&mut shell(2, &script));
    let processes = folder.wait_for_processes(2);
    running.signal(Signal::SIGINT);
    // The workers ignore the first, and nobody is to kill them for it: no condition tells when that would be.
    thread::sleep(Duration::from_millis(100));
    assert!(processes.iter().all(|&process| is_alive(process)));
    running.signal(Signal::SIGINT);
    assert_eq!(running.end().code(), Some(128 + 9));
    assert!(all_end(&processes));
}

#[test]
fn what_the_launcher_is_to_ignore_stays_ignored() {
    let folder = Folder::new();
    let mut ignoring = Command::new("sh");
    let script = format!(
        "echo $$ > {0}/$UPDRAFT_WORKER; while [ ! -e {0}/end ]; do sleep 0.01; done",
        folder.path()
    );
    let launch = shell(1, &script);
    ignoring
        .args(["-c", "trap '' HUP INT; exec \"$0\" \"$@\""])
        .arg(launch.get_program())
        .args(launch.get_args());
    let running = Running::start(&mut ignoring);
    folder.wait_for(1);
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGINT] {
        running.signal(signal);
        thread::sleep(Duration::from_millis(50)); // What is ignored leaves no trace to wait for.
    }
    fs::write(folder.0.join("end"), "now\n").unwrap();
    assert_eq!(running.end().code(), Some(0));
}

#[test]
fn nothing_survives_a_launcher_that_is_killed() {
    let folder = Folder::new();
    let script = format!(
        "sleep 100 & echo $! > {0}/child$UPDRAFT_WORKER; echo $$ > {0}/$UPDRAFT_WORKER; wait",
        folder.path()
    );
    let running = Running::start(&mut shell(3, &script));
    let processes = folder.wait_for_processes(6);
    running.signal(Signal::SIGKILL);
    assert!(all_end(&processes));
    assert_eq!(running.end().status.signal(), Some(9));
}

#[test]
fn a_job_that_is_not_there_is_refused_before_anything_starts() {
    for (job, named) in [
        ("./no/such/job", "./no/such/job"),
        ("no-such-job-in-path", "no-such-job-in-path"),
        ("/proc/version", "/proc/version"),
        ("/", "cannot run /"),
    ] {
        let mut command = command();
        command.args(["run", "-n", "2", job]);
        let launch = Launch::of(command);
        assert_eq!(launch.code(), Some(4), "{job}");
        launch.assert_err(named);
        assert_eq!(launch.err.lines().count(), 1, "{}", launch.err);
    }
}

#[test]
fn what_the_system_cannot_run_is_named() {
    let folder = Folder::new();
    let job = folder.0.join("job");
    fs::write(&job, "#!/no/such/interpreter\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&job, executable).unwrap();
    let mut command = command();
    command.arg("run").arg(&job);
    let launch = Launch::of(command);
    assert_eq!(launch.code(), Some(4));
    launch.assert_err("cannot run");
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [
        &["run"][..],
        &["run", "-n", "0", "true"],
        &["run", "-n", "some", "true"],
        &["run", "--bogus", "true"],
        &["run", "--memory", "1z", "true"],
        &["run", "--transport", "pigeon", "true"],
        &["frobnicate"],
        &[],
    ] {
        let mut command = command();
        command.args(arguments);
        assert_eq!(Launch::of(command).code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn the_secret_is_in_no_argument_and_no_variable() {
    let folder = Folder::new();
    let script = format!(
        "cat /proc/$$/environ /proc/$$/cmdline /proc/$PPID/environ /proc/$PPID/cmdline > {0}/public; \
         cat /proc/self/fd/$UPDRAFT_SECRET_FD > {0}/secret",
        folder.path()
    );
    let launch = Launch::of(shell(1, &script));
    assert_eq!(launch.code(), Some(0), "{}", launch.err);
    let secret = fs::read(folder.0.join("secret")).unwrap();
    let public = fs::read(folder.0.join("public")).unwrap();
    assert_eq!(secret.len(), 32);
    let hexadecimal: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!contains(&public, &secret));
    assert!(!contains(
        &public.to_ascii_lowercase(),
        hexadecimal.as_bytes()
    ));
}

fn contains(bytes: &[u8], sought: &[u8]) -> bool {
    bytes.windows(sought.len()).any(|window| window == sought)
}

/// `updraft run` of this test program, as a job whose workers do what `role` says.
fn members(workers: u32, role: &str) -> Command {
    let mut command = command();
    command
        .args(["run", "-n", &workers.to_string()])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "member", "--nocapture", "-q"])
        .env("UPDRAFT_TEST_ROLE", role)
        .stdin(Stdio::null());
    command
}

/// What such a worker does. Among the other tests, where there is no role, it does nothing.
#[test]
fn member() {
    let Ok(role) = std::env::var("UPDRAFT_TEST_ROLE") else {
        return;
    };
    if role == "loops" {
        return slow_loop();
    }
    let membership = Membership::from_env().unwrap().unwrap();
    let worker = membership.worker;
    if role == "absent" && worker == 1 {
        return;
    }
    let client = Client::connect(&membership).unwrap();
    let book = client.register(&Entry::at([format!("at {worker}")]));
    match &role[..] {
        "finishes" => {
            assert_eq!(book.unwrap()[1].addresses, ["at 1"]);
            let amount = Amount {
                records: 10,
                bytes: 20,
                bytes_total: 40,
                ..Amount::default()
            };
            client.progress(&amount).unwrap();
            client.finished(&format!("summary of {worker}")).unwrap();
        }
        "fails" if worker == 1 => {
            client.failed("the disk is full").unwrap();
            std::process::exit(7);
        }
        "fails" => {
            client
                .watch(
                    |_, _| (),
                    |reason| {
                        println!("told to stop: {reason}");
                        std::process::exit(6);
                    },
                )
                .unwrap();
            thread::sleep(PATIENCE); // The word to stop ends it long before.
        }
        "absent" => {
            println!("{}", book.unwrap_err());
            std::process::exit(6);
        }
        role => panic!("{role} is no role"),
    }
}

/// A loop whose rounds each halve an error, and that lasts until a line has told of it.
fn slow_loop() {
    let done = |errors: &[f64]| errors.len() == 54;
    let looped = updraft::run(Config::default(), |env| {
        let none = env.run(&env.collection(Vec::<u64>::new()).cache())?;
        env.iterate(&none, 1.0, done, |error, _| {
            thread::sleep(Duration::from_millis(100));
            *error /= 2.0;
            Ok(*error)
        })
    });
    assert_eq!(looped.unwrap().state, 0.5f64.powi(54));
}

/// Where no bar can be drawn, there is a line after five seconds.
#[test]
fn who_watches_a_loop_sees_its_rounds_and_what_they_measure() {
    let launch = Launch::of(members(2, "loops"));
    assert_eq!(launch.code(), Some(0), "{} {}", launch.out, launch.err);
    let line = launch
        .err
        .lines()
        .find(|line| line.starts_with("updraft: 5 s: 0 B, 0 records, "));
    let line = line.unwrap_or_else(|| panic!("{}", launch.err));
    let words: Vec<&str> = line.split(", ").collect();
    let rounds = words[2]
        .strip_suffix(" rounds")
        .and_then(|rounds| rounds.parse::<i32>().ok());
    let measure = words[3]
        .strip_prefix("the last at ")
        .and_then(|error| error.parse::<f64>().ok());
    let (Some(rounds @ 20..=54), Some(measure)) = (rounds, measure) else {
        panic!("{line}");
    };
    // The worker went on while it told the two, by a round at most.
    let far = measure.log2() + f64::from(rounds);
    assert!(far.abs() <= 1.01, "{line}");
}

#[test]
fn workers_meet_and_the_summary_of_the_first_is_shown() {
    let launch = Launch::of(members(2, "finishes"));
    assert_eq!(launch.code(), Some(0), "{} {}", launch.out, launch.err);
    assert_eq!(launch.err, "summary of 0\n");
}

#[test]
fn a_worker_that_reports_its_failure_is_quoted_and_the_others_are_told() {
    let launch = Launch::of(members(3, "fails"));
    assert_eq!(launch.code(), Some(7), "{} {}", launch.out, launch.err);
    launch.assert_err("worker 1 of 3 failed first: it exited with code 7");
    launch.assert_err("it said: the disk is full");
    // The last to be told, on a machine with much else to do, may be asked by a signal first.
    let told = launch.out.matches("told to stop: worker 1 ").count();
    assert!((1..=2).contains(&told), "{}", launch.out);
    assert!(launch.elapsed < END_TIME_MAX, "{:?}", launch.elapsed);
}

#[test]
fn nobody_waits_for_a_worker_that_ended_before_it_joined() {
    let launch = Launch::of(members(2, "absent"));
    assert_eq!(launch.code(), Some(1), "{} {}", launch.out, launch.err);
    launch.assert_err("worker 1 of 2 failed first");
    launch.assert_err("before it joined the job");
}
