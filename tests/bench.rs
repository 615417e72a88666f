//! What `updraft bench` promises to those who type it.

mod support;

use std::{
    fs,
    path::Path,
    process::Stdio,
    sync::{Mutex, PoisonError},
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

/// Measures until some batch of each size was undisturbed, one measurement at a time: they spin.
fn measure(words: &str, sizes: &[&str]) -> (Folder, Launch) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
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
        assert!(launch.out.contains("100 KiB"), "{}", launch.out);
        assert!(launch.out.contains("2 ranks in 2 processes over shm"));
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
        assert!(launch.out.contains(said), "{}", launch.out);
    }
}

#[test]
fn the_machine_has_limits() {
    let (folder, launch) = measure("limits --sizes 64,8Ki --repeats 3", &["0", "64", "8192"]);
    let csv = read(&folder, "csv");
    for what in ["cache line", "memcpy", "futex wake", "TCP", "Unix socket"] {
        assert!(launch.out.contains(what), "{what} in {}", launch.out);
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
    assert!(
        launch.err.contains("cannot fit in an arena"),
        "{}",
        launch.err
    );
}
