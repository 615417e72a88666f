//! What the example programs in the manner of MPI promise: with `--check` each compares its result with that of a plain
//! loop, and it has to be the same in threads and in processes, whatever the number of ranks and the path.

mod support;

use std::{
    fmt::Write,
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
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
    // Where workers are processes, what one of them prints last may come after what another prints later.
    let agrees = |lines: &Vec<String>| lines.iter().any(|line| line.contains("plain loop"));
    assert!(outputs.iter().all(agrees), "{outputs:?}");
    outputs
}

fn assert_all_equal(outputs: &[Vec<String>]) {
    assert!(
        outputs.iter().all(|output| *output == outputs[0]),
        "{outputs:#?}"
    );
}

#[test]
fn kmeans_gives_the_same_however_it_is_written() {
    let arguments = ["--generate", "5000", "--dimensions", "3", "-k", "11"];
    let outputs = check("kmeans", &arguments);
    assert_all_equal(&outputs);
    assert_eq!(outputs[0].len(), 12);
    for form in ["--bsp", "--dataflow"] {
        let output = output(
            "kmeans",
            WAYS[4],
            &[&arguments[..], &["--check", form]].concat(),
        );
        assert_eq!(outputs[0], output, "{form}");
    }
}

#[test]
fn words_are_counted_while_they_come() {
    let arguments = ["--for", "0.3", "--window", "50", "--rate", "4000"];
    for lines in check("live-words", &arguments) {
        assert!(lines.len() > 3, "{lines:?}");
        assert!(lines[0].contains("0.000 s"), "{lines:?}");
    }
}

#[test]
fn a_signal_stops_a_stream_gracefully() {
    let (started, limit) = (Instant::now(), "20");
    let mut program = Command::new(example("live-words"));
    program.args([
        "--executors",
        "2",
        "--window",
        "50",
        "--rate",
        "4000",
        "--check",
        "--for",
        limit,
    ]);
    program.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut program = program.spawn().unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    lines.next().expect("it has counted something").unwrap();
    kill(Pid::from_raw(program.id().cast_signed()), Signal::SIGTERM).unwrap();
    let last = lines.map(Result::unwrap).last();
    assert_eq!(program.wait().unwrap().code(), Some(0));
    assert!(last.is_some_and(|line| line.contains("a plain loop gives the same")));
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "it ended by itself"
    );
}

#[test]
fn a_history_is_a_table_or_a_plot() {
    let folder = Folder::new();
    let file = |name: &str| folder.0.join(name).to_str().unwrap().to_owned();
    let (table, plot) = (file("history.csv"), file("history.svg"));
    for path in [&table, &plot] {
        output("kmeans", WAYS[1], &["--generate", "900", "--history", path]);
    }
    let table = fs::read_to_string(table).unwrap();
    let squares: Vec<f64> = table
        .lines()
        .skip(1)
        .map(|line| line.split(',').nth(1).unwrap().parse().unwrap())
        .collect();
    assert_eq!(squares.len(), 10);
    assert!(
        squares.windows(2).all(|pair| pair[1] <= pair[0]),
        "Lloyd's iterations never go up: {squares:?}"
    );
    let plot = fs::read_to_string(plot).unwrap();
    assert_eq!(
        plot.matches(',').count(),
        11,
        "a point for each round: {plot}"
    );
}

#[test]
fn a_column_of_a_file_is_described_by_another() {
    let folder = Folder::new();
    let path = folder.0.join("flights.csv");
    let mut text = "carrier,flight,delay\n".to_owned();
    for flight in 0..3000 {
        // Writing to a `String` does not fail.
        let _ = match flight % 7 {
            0 => writeln!(text, "UA,{flight},"),
            1 => writeln!(text, "B6,{flight},NA"),
            of_week => writeln!(
                text,
                "{},{flight},{}",
                ["UA", "B6", "AA"][flight % 3],
                flight % 50 * of_week
            ),
        };
    }
    fs::write(&path, text).unwrap();
    let file = path.to_str().unwrap();
    let outputs = check(
        "groupby",
        &["--input", file, "--by", "carrier", "--of", "delay"],
    );
    assert_all_equal(&outputs);
    let keys: Vec<&str> = outputs[0]
        .iter()
        .map(|line| line.split('\t').next().unwrap())
        .collect();
    assert_eq!(
        keys,
        ["carrier", "AA", "B6", "UA", "as by a plain loop: true"]
    );

    let mut program = Command::new(example("groupby"));
    program.args(["--input", file, "--by", "carrier", "--of", "height"]);
    let launch = Launch::of(program);
    assert_eq!(launch.code(), Some(8), "{}", launch.err);
    launch.assert_err("there is no column \"height\"");
}

/// The height of each point of a plot, from above, and what is written on its axis.
fn plotted(plot: &str) -> (Vec<f64>, &str) {
    let line = plot.split("<polyline points='").nth(1).unwrap();
    let points = line.split('\'').next().unwrap().split(' ');
    let heights = points.map(|point| point.split(',').nth(1).unwrap().parse().unwrap());
    let label = plot.split("y='18'>").nth(1).unwrap();
    (heights.collect(), label.split('<').next().unwrap())
}

#[test]
fn every_program_with_rounds_draws_them() {
    let folder = Folder::new();
    let graph = &["--vertices", "2000", "--generate", "4000"][..];
    for (program, of, named) in [
        ("components", graph, "vertices whose label changed"),
        ("shortest-paths", graph, "vertices that came nearer"),
        (
            "pagerank",
            graph,
            "change of all ranks together, logarithmic",
        ),
        ("logistic", &["--generate", "2000"], "mean loss"),
    ] {
        let path = folder.0.join(program).with_extension("svg");
        let arguments = [of, &["--history", path.to_str().unwrap()]].concat();
        output(program, WAYS[1], &arguments);
        let plot = fs::read_to_string(path).unwrap();
        let (heights, label) = plotted(&plot);
        assert_eq!(label, named);
        // However it goes in between, it ends at the least, which is drawn lowest.
        let lowest = heights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        assert!(
            heights.len() > 3 && heights.last() == Some(&lowest),
            "{program}: {heights:?}"
        );
        if program == "pagerank" {
            // What falls by the same factor in each round falls by the same height.
            let falls: Vec<f64> = heights.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(falls.iter().skip(10).all(|&fall| fall > 0.0), "{falls:?}");
        }
    }
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
    let arguments = ["--bsp", "-k", "3", "--check", path.to_str().unwrap()];
    for way in [WAYS[1], WAYS[4]] {
        output("kmeans", way, &arguments);
    }
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
    let by_jobs = [WAYS[1], WAYS[4]]
        .into_iter()
        .flat_map(|way| [(way, "--tset"), (way, "--iterate")])
        .map(|(way, form)| {
            output(
                "pagerank",
                way,
                &[&arguments[..], &["--check", form]].concat(),
            )
        })
        .collect::<Vec<_>>();
    for lines in pulled.iter().chain(&pushed).chain(&by_jobs) {
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

/// Runs a program with `--check` alone, in processes and over TCP; gives what it printed.
fn check_in_some_ways(name: &str, arguments: &[&str]) -> Vec<Vec<String>> {
    let arguments = [arguments, &["--check"]].concat();
    let outputs = [WAYS[0], WAYS[4], WAYS[5]].map(|way| output(name, way, &arguments));
    assert!(
        outputs
            .iter()
            .all(|lines| lines.last().is_some_and(|line| line.contains("plain loop"))),
        "{outputs:?}"
    );
    outputs.into()
}

#[test]
fn components_paths_and_triangles_of_a_graph_are_those_of_plain_loops() {
    // So few edges that there are many components.
    let sparse = ["--vertices", "2000", "--generate", "1500"];
    let outputs = check_in_some_ways("components", &sparse);
    assert_all_equal(&outputs);
    assert!(outputs[0][0].ends_with(" components") && outputs[0].len() == 12);
    let dense = ["--vertices", "500", "--generate", "6000"];
    assert_all_equal(&check_in_some_ways("shortest-paths", &dense));
    let outputs = check_in_some_ways("triangles", &dense);
    assert_all_equal(&outputs);
    assert_ne!(outputs[0][0], "0 triangles");

    let folder = Folder::new();
    let path = folder.0.join("edges.txt");
    fs::write(
        &path,
        "# a square with a diagonal, and an edge\n0 1\n1 2\n2 3\n3 0\n0 2\n2 0\n\n7 8",
    )
    .unwrap();
    let path = path.to_str().unwrap();
    let of = |name| output(name, WAYS[1], &[path, "--check"]);
    assert_eq!(
        of("components")[..3],
        ["2 components", "4\tvertices with 0", "2\tvertices with 7"]
    );
    assert_eq!(of("triangles")[0], "2 triangles");
    assert_eq!(of("shortest-paths")[0], "4 vertices can be reached");
}

#[test]
fn classes_are_learned_as_by_plain_loops() {
    let generated = ["--generate", "900", "--features", "5"];
    for (name, more) in [
        ("logistic", &["--iterations", "60"][..]),
        ("svm", &[]),
        ("svm", &["--bsp"]),
    ] {
        let outputs = check_in_some_ways(name, &[&generated[..], more].concat());
        for output in outputs {
            let (_, share) = output[0].rsplit_once("; ").unwrap();
            let share: f64 = share.split(' ').next().unwrap().parse().unwrap();
            assert!(
                share > 90.0,
                "one in twenty is of the wrong class: {output:?}"
            );
        }
    }
    let folder = Folder::new();
    let path = folder.0.join("examples.csv");
    let mut examples = String::new();
    for number in 0..300_i32 {
        let (x, y) = (number * 7 % 101 - 50, number * 13 % 89 - 44);
        writeln!(
            examples,
            "{x},{y}.5,{}",
            if x > y { "above" } else { "below" }
        )
        .unwrap();
    }
    fs::write(&path, examples.trim_end()).unwrap();
    let arguments = ["--input", path.to_str().unwrap(), "--class", "above"];
    for name in ["logistic", "svm"] {
        check_in_some_ways(name, &arguments);
    }
    fs::write(&path, "1,2,a\n1,two,b\n").unwrap();
    let mut program = Command::new(example("logistic"));
    let launch = Launch::of({
        program.args(arguments).args(["--executors", "2"]);
        program
    });
    assert_ne!(launch.code(), Some(0));
    launch.assert_err("examples.csv");
    launch.assert_err("\"1,two,b\" is not numbers and a class");
}

#[test]
fn pi_and_a_product_of_matrices_are_those_of_plain_loops() {
    assert_all_equal(&check_in_some_ways("pi", &["--points", "300000"]));
    let product = ["-n", "50", "--block", "16"];
    assert_all_equal(&check_in_some_ways("matmul", &product));
}

#[test]
fn points_are_drawn_as_by_a_plain_loop_to_the_last_bit() {
    let arguments = ["--generate", "70", "--iterations", "40"];
    let outputs = check_in_some_ways("mds", &arguments);
    for output in outputs {
        let (_, part) = output[0].rsplit_once("rounds, ").unwrap();
        let part: f64 = part.split(' ').next().unwrap().parse().unwrap();
        assert!(part < 0.3, "{output:?}");
    }
}

#[test]
fn an_index_has_every_word_of_every_document_in_order() {
    let folder = Folder::new();
    let texts = ["To be, or not to be.", "", "Be not afraid.\nNot now"];
    let files: Vec<String> = (0..texts.len())
        .map(|number| {
            folder
                .0
                .join(format!("text-{number}"))
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    for (file, text) in files.iter().zip(texts) {
        fs::write(file, text).unwrap();
    }
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let arguments = [&files[..], &["--find", "be", "--find", "not"]].concat();
    let outputs = check_in_some_ways("inverted-index", &arguments);
    assert_all_equal(&outputs);
    let expected = [
        "11 words, 6 of them distinct, in 3 documents".to_owned(),
        format!("be\t{}:1,5\t{}:0", files[0], files[2]),
        format!("not\t{}:3\t{}:1,3", files[0], files[2]),
    ];
    assert_eq!(outputs[0][..3], expected);
    let out = folder.0.join("index");
    output(
        "inverted-index",
        WAYS[1],
        &[&files[..], &["--out", out.to_str().unwrap()]].concat(),
    );
    let lines: usize = fs::read_dir(&out)
        .unwrap()
        .map(|part| {
            fs::read_to_string(part.unwrap().path())
                .unwrap()
                .lines()
                .count()
        })
        .sum();
    assert_eq!(lines, 6);
}
