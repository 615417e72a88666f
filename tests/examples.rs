//! What the example programs in the manner of MPI promise: with `--check` each compares its result with that of a plain
//! loop, and it has to be the same in threads and in processes, whatever the number of ranks and the path.

mod support;

use std::{
    fmt::Write,
    fs,
    process::{Command, Stdio},
};

use support::{Folder, Launch, command, example};

/// Ways to run a program: the arguments of `updraft run`, or none to start the program itself, and its own.
const WAYS: [(&[&str], &[&str]); 6] = [
    (&[], &["--executors", "1"]),
    (&[], &["--executors", "2"]),
    (&[], &["--executors", "5"]),
    (&["-n", "3", "--executors", "1"], &[]),
    (&["-n", "2", "--executors", "3"], &[]),
    (&["-n", "3", "--executors", "1", "--transport", "tcp"], &[]),
];

/// What a program prints that is run in some way, with these arguments.
fn output(name: &str, (launcher, own): (&[&str], &[&str]), arguments: &[&str]) -> Vec<String> {
    let mut program = if launcher.is_empty() {
        Command::new(example(name))
    } else {
        let mut program = command();
        program
            .arg("run")
            .args(launcher)
            .arg("--")
            .arg(example(name));
        program
    };
    program.args(own).args(arguments).stdin(Stdio::null());
    let launch = Launch::of(program);
    assert_eq!(launch.code(), Some(0), "{name}: {}", launch.err);
    let lines = launch.out.lines();
    let unmarked = lines.map(|line| line.strip_prefix("[w0] ").unwrap_or(line).to_owned());
    unmarked.collect()
}

/// Runs a program with `--check` in all ways; gives what it printed in each.
fn check(name: &str, arguments: &[&str]) -> Vec<Vec<String>> {
    let arguments = [arguments, &["--check"]].concat();
    let outputs: Vec<_> = WAYS
        .iter()
        .map(|&way| output(name, way, &arguments))
        .collect();
    assert!(
        outputs
            .iter()
            .all(|lines| lines.last().is_some_and(|line| line.contains("plain loop")))
    );
    outputs
}

fn assert_all_equal(outputs: &[Vec<String>]) {
    assert!(
        outputs.iter().all(|output| *output == outputs[0]),
        "{outputs:#?}"
    );
}

#[test]
fn kmeans_in_the_manner_of_mpi_gives_what_its_dataflow_gives() {
    let arguments = ["--generate", "5000", "--dimensions", "3", "-k", "11"];
    let outputs = check("kmeans", &[&arguments[..], &["--bsp"]].concat());
    assert_all_equal(&outputs);
    let dataflow = output("kmeans", WAYS[1], &[&arguments[..], &["--check"]].concat());
    assert_eq!(outputs[0], dataflow);
    assert_eq!(dataflow.len(), 12);
}

#[test]
fn kmeans_in_the_manner_of_mpi_reads_each_point_of_a_file_once() {
    let folder = Folder::new();
    let path = folder.0.join("points.csv");
    let mut points = String::new();
    for number in 0..1000_u32 {
        writeln!(
            points,
            "{}.5,{}",
            number % 3 * 1000 + number % 7,
            number % 13
        )
        .unwrap();
    }
    fs::write(&path, points.trim_end()).unwrap();
    let outputs = check("kmeans", &["--bsp", "-k", "3", path.to_str().unwrap()]);
    assert_all_equal(&outputs);
}

#[test]
fn pagerank_agrees_with_a_plain_loop() {
    let arguments = ["--vertices", "1000", "--generate", "9000", "--top", "20"];
    let pulled = check(
        "pagerank",
        &[&arguments[..], &["--exchange", "gather"]].concat(),
    );
    let pushed = check(
        "pagerank",
        &[&arguments[..], &["--exchange", "scatter"]].concat(),
    );
    for lines in pulled.iter().chain(&pushed) {
        assert_eq!(
            lines[..20],
            pulled[0][..20],
            "the order or nine digits differ"
        );
    }
}

#[test]
fn pagerank_reads_each_edge_of_a_file_once() {
    let folder = Folder::new();
    let path = folder.0.join("edges.txt");
    let mut edges = String::from("# from to\n\n");
    for number in 0..500_u64 {
        let (from, to) = (number * number % 97, number * 31 % 103);
        writeln!(edges, "{from}\t{to}").unwrap();
    }
    fs::write(&path, edges.trim_end()).unwrap();
    check("pagerank", &[path.to_str().unwrap()]);
    fs::write(&path, "0 1\n1 two\n").unwrap();
    let mut program = Command::new(example("pagerank"));
    let launch = Launch::of({
        program.arg(&path).args(["--executors", "2"]);
        program
    });
    assert_eq!(launch.code(), Some(8), "{}", launch.err);
    launch.assert_err("edges.txt");
    launch.assert_err("\"1 two\" is not the numbers of two vertices");
}

#[test]
fn heat_spreads_as_by_a_plain_loop_to_the_last_bit() {
    for size in [
        ["--rows", "40", "--columns", "33"],
        ["--rows", "3", "--columns", "70"],
    ] {
        let outputs = check(
            "heat",
            &[&size[..], &["--iterations", "60", "--every", "20"]].concat(),
        );
        assert_all_equal(&outputs);
    }
}

#[test]
fn conjugate_gradients_find_the_solution_that_a_plain_loop_finds() {
    check("cg", &["--side", "31", "--every", "50"]);
    assert_all_equal(&check("cg", &["--side", "31", "--exact"]));
    check("cg", &["--side", "2"]);
}

#[test]
fn bodies_move_as_by_a_plain_loop_to_the_last_bit() {
    let outputs = check(
        "nbody",
        &["--bodies", "101", "--iterations", "10", "--every", "5"],
    );
    assert_all_equal(&outputs);
}

#[test]
fn factors_by_rotation_are_those_of_the_same_steps_in_a_plain_loop() {
    let arguments = ["--users", "120", "--items", "70", "--generate", "4000"];
    check(
        "mf",
        &[
            &arguments[..],
            &["--iterations", "5", "--every", "2", "--factors", "5"],
        ]
        .concat(),
    );
    let folder = Folder::new();
    let path = folder.0.join("ratings.txt");
    let mut ratings = String::new();
    for number in 0..600_u32 {
        let (user, item) = (number * 7 % 41, number * 13 % 29);
        writeln!(
            ratings,
            "{user},{item},{}",
            f64::from((user + item) % 5) / 2.0
        )
        .unwrap();
    }
    fs::write(&path, ratings.trim_end()).unwrap();
    check("mf", &["--partitions", "1", path.to_str().unwrap()]);
}

#[test]
fn topics_by_rotation_are_those_of_the_same_draws_in_a_plain_loop() {
    let arguments = [
        "--generate",
        "90",
        "--length",
        "30",
        "--words",
        "200",
        "--topics",
        "6",
    ];
    let outputs = check(
        "lda",
        &[&arguments[..], &["--iterations", "8", "--every", "4"]].concat(),
    );
    for output in &outputs {
        assert!(
            output.contains(&"2700 tokens of 2700 have a topic".to_owned()),
            "{output:?}"
        );
    }
}

#[test]
fn topics_of_a_file_are_named_by_their_words() {
    let folder = Folder::new();
    let path = folder.0.join("documents.txt");
    let mut documents = String::new();
    for number in 0..60 {
        let about = [
            ["rank", "link", "loan", "message"],
            ["bolt", "spout", "tuple", "stream"],
        ];
        let words = (0..20).map(|token| about[number % 2][(token + number / 2) % 4]);
        writeln!(documents, "{}", words.collect::<Vec<_>>().join(" ")).unwrap();
    }
    fs::write(&path, documents.trim_end()).unwrap();
    for output in check("lda", &["--topics", "2", path.to_str().unwrap()]) {
        let mut topics: Vec<Vec<&str>> = output[..2]
            .iter()
            .map(|line| line.split(' ').skip(2).take(4).collect())
            .collect();
        topics.iter_mut().for_each(|words| words.sort_unstable());
        topics.sort_unstable();
        assert_eq!(
            topics,
            [
                ["bolt", "spout", "stream", "tuple"],
                ["link", "loan", "message", "rank"]
            ]
        );
    }
}

#[test]
fn joins_of_generated_tables_are_those_of_a_plain_loop() {
    let hows = ["inner", "left", "right", "full", "semi", "anti"];
    for (number, how) in hows.into_iter().enumerate() {
        for (by, way) in [("hash", number), ("merging", number + 3)] {
            let way = [WAYS[1], WAYS[3]][way % 2];
            let arguments = [
                "--rows", "6000", "--keys", "700", "--skew", "20", "--how", how, "--by", by,
                "--check",
            ];
            let lines = output("join", way, &arguments);
            assert_eq!(
                lines.last().map(String::as_str),
                Some("a plain loop gives the same")
            );
        }
    }
}

#[test]
fn joins_of_files_give_lines_and_spill_where_memory_is_short() {
    let folder = Folder::new();
    let [left, right, out] = ["left.csv", "right.csv", "out"].map(|name| folder.0.join(name));
    fs::write(&left, "1,a\n2,b\n,c\n2,d\n").unwrap();
    fs::write(&right, "2,e,f\n3,g\n,h\n").unwrap();
    let paths = [&left, &right].map(|path| path.to_str().unwrap());
    let out_path = out.to_str().unwrap();
    let lines = output(
        "join",
        WAYS[1],
        &[
            paths[0], paths[1], "--how", "full", "--out", out_path, "--check",
        ],
    );
    assert!(lines[0].contains(": 6 rows, checksum "), "{lines:?}");
    let mut rows: Vec<String> = Vec::new();
    for part in fs::read_dir(&out).unwrap() {
        let text = fs::read_to_string(part.unwrap().path()).unwrap();
        rows.extend(text.lines().map(str::to_owned));
    }
    rows.sort();
    assert_eq!(rows, [",c", ",h", "1,a", "2,b,e,f", "2,d,e,f", "3,g"]);

    let mut program = Command::new(example("join"));
    program.args([
        "--rows",
        "200000",
        "--keys",
        "150000",
        "--memory",
        "8M",
        "--executors",
        "2",
    ]);
    program.args([
        "--how", "full", "--by", "merging", "--check", "--seed", "77",
    ]);
    let launch = Launch::of(program);
    assert_eq!(launch.code(), Some(0), "{}", launch.err);
    launch.assert_err(" on disk");
}

#[test]
fn answers_of_the_group_by_set_are_those_of_a_plain_loop() {
    let arguments = ["--rows", "20000", "--groups", "10", "--check"];
    for way in [WAYS[1], WAYS[3]] {
        let lines = output("groupby", way, &arguments);
        assert_eq!(lines.len(), 11);
        assert!(
            lines[0].starts_with("q1 sum v1 by id1: 10 groups, sums "),
            "{lines:?}"
        );
    }
    let mut program = Command::new(example("groupby"));
    program.args([
        "6",
        "10",
        "--rows",
        "200000",
        "--check",
        "--memory",
        "8M",
        "--executors",
        "2",
    ]);
    let launch = Launch::of(program);
    assert_eq!(launch.code(), Some(0), "{}", launch.err);
    launch.assert_err(" on disk");
}
