//! What graphs of tasks with demands promise: the same results wherever schedulers put their instances, with the
//! constraints kept, alone and in several processes.

mod support;

use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use dataflow::{
    Error, GraphBuilder, Input, Job, Place, Progress, Sink, Source, collection, generate, inline,
    lines, lines_at,
    schedule::{FirstFit, Scheduler, Split, Task, Worker},
    simulate_on, source,
};
use proptest::prelude::*;
use support::{Folder, Launch, command};
use updraft::{Config, Env};

/// Puts instances anywhere, by what the seed makes of their numbers.
#[derive(Debug)]
struct Anywhere(u64);

impl Scheduler for Anywhere {
    fn schedule(&self, tasks: &[Task], workers: &[Worker]) -> Result<Vec<Vec<u32>>, Error> {
        let size = u64::from(workers.last().unwrap().ranks.end);
        let mut state = self.0 | 1;
        let mut any = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            ((state >> 33) % size) as u32
        };
        let tasks = tasks.iter();
        Ok(tasks
            .map(|task| (0..task.instances).map(|_| any()).collect())
            .collect())
    }
}

/// Workers with so many ranks each.
fn workers(number: u32, executors: u32) -> Vec<Worker> {
    let worker = |worker| Worker {
        ranks: worker * executors..(worker + 1) * executors,
        host: format!("host{worker}"),
        cores: 4,
        memory_bytes: 1 << 30,
        ..Worker::default()
    };
    (0..number).map(worker).collect()
}

/// Divides numbers among two outputs of different types, each of which is read in several ways, by different numbers
/// of instances; and counts how often the task saw a record, and had an end.
fn divided(seen: &Arc<AtomicU64>, ends: &Arc<AtomicU64>) -> Result<Job<Results>, Error> {
    let (seen, ends) = (seen.clone(), ends.clone());
    let mut graph = GraphBuilder::new();
    let mut source = graph.task(Task::new("count", 2), |place| u64::from(place.instance));
    let numbers = source.output::<u64>("numbers");
    source.produce(move |next, out| {
        while *next < 1000 && !out.is_full() {
            out.push(numbers, *next);
            *next += 2;
        }
        if *next < 1000 {
            Progress::Made
        } else {
            Progress::Done
        }
    });
    let source = source.done();

    let mut divide = graph.task(Task::new("divide", 3), |_| 0u64);
    let (small, large) = (
        divide.output::<u64>("small"),
        divide.output::<(String, u64)>("large"),
    );
    let pushed = move |sum: &mut u64, n: u64, out: &mut dataflow::Outputs| {
        *sum += n;
        if n < 500 {
            out.push(small, n);
        } else {
            out.push(large, (n.to_string(), n));
        }
    };
    divide.input(
        "numbers",
        source.output(numbers).rebalance(),
        move |sum, n, out| {
            seen.fetch_add(1, Ordering::Relaxed);
            pushed(sum, n, out);
        },
    );
    divide.input(
        "others",
        generate(500, |n| n + 1000).round_robin(),
        move |sum, n, out| pushed(sum, n, out),
    );
    divide.at_end(move |sum, out| {
        ends.fetch_add(1, Ordering::Relaxed);
        out.push(large, (String::new(), *sum));
        true
    });
    let divide = divide.done();

    let sum = divide
        .output(small)
        .exchange_by_hash()
        .parallelism(5)
        .reduce(|a, b| a + b)
        .collect();
    let times = divide
        .output(small)
        .direct()
        .map(|n| n % 7)
        .exchange_by_hash()
        .collect();
    let words = divide
        .output(large)
        .exchange_by_key()
        .as_task(Task::new("words", 4))
        .map(|(word, n)| (word.len() as u64, n))
        .reduce_by_key(|a, b| a + b)
        .collect();
    let copies = divide
        .output(large)
        .broadcast()
        .parallelism(2)
        .map(|(_, n)| n)
        .collect();
    graph.job_with(sum.and(times).and(words).and(copies))
}

type Results = (((Vec<u64>, Vec<u64>), Vec<(u64, u64)>), Vec<u64>);

/// Results as they are without an order.
fn sorted((((mut sum, mut times), mut words), mut copies): Results) -> Results {
    sum.sort_unstable();
    times.sort_unstable();
    words.sort_unstable();
    // Which part of the sum an instance has says nothing.
    let sums: u64 = copies.extract_if(.., |n| *n >= 1500).sum();
    copies.push(sums);
    copies.sort_unstable();
    (((sum, times), words), copies)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn results_are_the_same_wherever_instances_run(seed: u64, number in 1u32..4, executors in 1u32..3) {
        let (seen, ends) = (Arc::default(), Arc::default());
        let expected = sorted(inline(&divided(&seen, &ends).unwrap()).unwrap());
        let (seen, ends) = (Arc::default(), Arc::default());
        let job = divided(&seen, &ends).unwrap();
        let found = simulate_on(&job, seed, &workers(number, executors), &Anywhere(seed)).unwrap();
        prop_assert_eq!(sorted(found), expected);
        // However many ways its outputs are read in, a task is done once.
        prop_assert_eq!(seen.load(Ordering::Relaxed), 1000);
        prop_assert_eq!(ends.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn operators_work_wherever_instances_run(seed: u64, number in 1u32..4, executors in 1u32..3) {
        let words = || {
            let text = lines("README.md").unwrap();
            text.as_task(Task::new("read", 3)).flat_map(|line, out| {
                for word in line.split_whitespace() {
                    out.push((word, 1u64));
                }
            })
        };
        let job = || words()
            .exchange_by_key()
            .as_task(Task::new("part", 4))
            .join(words().reduce_by_key(|a, b| a + b).parallelism(3))
            .map(|(word, (one, count))| (word.to_owned(), one + count))
            .sort_by_key()
            .collect();
        let expected = inline(&job()).unwrap();
        let mut found = simulate_on(&job(), seed, &workers(number, executors), &Anywhere(seed)).unwrap();
        prop_assert!(found.iter().map(|(word, _)| word).is_sorted());
        found.sort();
        let mut expected = expected;
        expected.sort();
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn a_task_whose_outputs_nobody_wants_more_of_ends() {
    for seed in 0..20 {
        let mut graph = GraphBuilder::new();
        let mut source = graph.task(Task::new("for ever", 2), |_| 0u64);
        let numbers = source.output::<u64>("numbers");
        source.produce(move |next, out| {
            for _ in 0..100 {
                out.push(numbers, *next);
                *next += 1;
            }
            Progress::Made
        });
        let source = source.done();
        let first = source.output(numbers).direct().take(10).collect();
        let job = graph.job_with(first).unwrap();
        let found = simulate_on(&job, seed, &workers(2, 1), &FirstFit::default()).unwrap();
        assert_eq!(found.len(), 10, "seed {seed}");
    }
}

#[test]
fn what_is_wrong_with_a_graph_is_said_by_the_names_of_task_and_edge() {
    type Wrong = fn(&mut GraphBuilder);
    let cases: [(Wrong, &str); 8] = [
        (
            |graph| drop(graph.task(Task::new("a", 1), |_| ()).done()),
            "task \"a\": it has no input, and produces nothing",
        ),
        (
            |graph| {
                for _ in 0..2 {
                    let mut task = graph.task_on_each_rank("a", |_| ());
                    task.produce(|(), _| Progress::Done);
                    task.done();
                }
            },
            "task \"a\": there is another task of this name",
        ),
        (
            |graph| {
                let mut task = graph.task(Task::new("a", 1), |_| ());
                task.output::<u64>("left");
                task.produce(|(), _| Progress::Done);
                task.done();
            },
            "task \"a\": its output \"left\" leads to no sink",
        ),
        (
            |graph| {
                let mut task = graph.task(Task::new("a", 1), |_| ());
                task.output::<u64>("left");
                task.output::<u32>("left");
                task.produce(|(), _| Progress::Done);
                task.done();
            },
            "task \"a\": it has two outputs \"left\"",
        ),
        (
            |graph| {
                let mut task = graph.task(Task::new("a", 1), |_| ());
                task.input("in", collection(vec![1u64]).direct(), |(), _, _| ());
                task.input("in", collection(vec![1u64]).direct(), |(), _, _| ());
                task.done();
            },
            "task \"a\": it has two inputs \"in\"",
        ),
        (
            |graph| {
                let mut task = graph.task(Task::new("a", 1), |_| ());
                task.input("in", collection(vec![1u64]).direct(), |(), _, _| ());
                task.produce(|(), _| Progress::Done);
                task.done();
            },
            "task \"a\": it has the input \"in\", and yet it produces",
        ),
        (
            |graph| {
                let mut task = graph.task(Task::new("a", 0), |_| ());
                task.produce(|(), _| Progress::Done);
                task.done();
            },
            "task \"a\": it has no instances",
        ),
        (
            |graph| {
                let mut task = graph.task(Task::new("a", 1).with("b"), |_| ());
                task.produce(|(), _| Progress::Done);
                task.done();
            },
            "task \"a\": there is no task \"b\" to be with or apart from",
        ),
    ];
    for (wrong, expected) in cases {
        let mut graph = GraphBuilder::new();
        wrong(&mut graph);
        assert_eq!(graph.job().unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_function_that_fails_is_named_by_task_and_input() {
    let mut graph = GraphBuilder::new();
    let mut task = graph.task(Task::new("picky", 1), |_| ());
    task.input(
        "numbers",
        collection(vec![1u64, 2, 3]).direct(),
        |(), n, out| {
            if n == 2 {
                out.fail("two is too much");
            }
        },
    );
    task.done();
    let error = inline(&graph.job().unwrap()).unwrap_err();
    assert_eq!(
        dataflow::one_line(&error),
        "input \"numbers\" failed in instance 0 of task \"picky\", for record 2 in a batch of 3 from rank 0: \
         two is too much"
    );
}

#[test]
fn a_port_of_another_task_is_refused_at_either_end() {
    let mut graph = GraphBuilder::new();
    let mut other = graph.task(Task::new("other", 1), |_| ());
    let foreign = other.output::<u64>("numbers");
    other.produce(|(), _| Progress::Done);
    let other = other.done();
    let mut task = graph.task(Task::new("task", 1), |_| ());
    let own = task.output::<u64>("numbers");
    task.produce(move |(), out| {
        out.push(foreign, 1u64);
        Progress::Done
    });
    let task = task.done();
    let read = |port| task.output(port).direct().collect();
    let error = inline(&read(own)).unwrap_err();
    assert!(
        dataflow::one_line(&error).contains("it writes to an output of another task"),
        "{error}"
    );
    let error = inline(&read(foreign)).unwrap_err();
    assert!(error.to_string().starts_with("task \"task\": "), "{error}");
    assert!(
        inline(&other.output(foreign).direct().collect())
            .unwrap()
            .is_empty()
    );
}

/// What workers do in the tests below. Among the other tests, where there is no role, it does nothing.
#[test]
fn member() {
    let Ok(role) = std::env::var("UPDRAFT_TEST_ROLE") else {
        return;
    };
    // Each worker poses as a host of its own, which sees files of its own.
    let host = std::env::var("UPDRAFT_WORKER").map(|worker| format!("host{worker}"));
    let host = host.ok().filter(|_| role == "reads" || role == "near");
    if let (Some(host), Some(folder)) = (&host, std::env::var_os("UPDRAFT_TEST_FOLDER")) {
        std::env::set_current_dir(std::path::Path::new(&folder).join(host)).unwrap();
    }
    let config = Config {
        host: host.clone(),
        ..Config::default()
    };
    let outcome = updraft::run(config, |env| {
        match (&*role, host) {
            ("reads", Some(host)) => return reads(env, host),
            ("near", Some(host)) => return near(env, host),
            _ => {}
        }
        if role == "differs" {
            if env.worker() == 1 {
                env.set_scheduler(Anywhere(3));
            }
            let job = collection((0..10u64).collect()).parallelism(3).collect();
            return env.run(&job).map(drop);
        }
        let here = env.worker();
        let mut graph = GraphBuilder::new();
        let divide = Task::new("divide", 3).attribute("gpu");
        let mut divide = graph.task(divide, move |_| {
            assert_eq!(here, 1, "only worker 1 has a gpu");
        });
        let (even, odd) = (divide.output::<u64>("even"), divide.output::<String>("odd"));
        divide.input(
            "numbers",
            generate(1000, |n| n).round_robin(),
            move |_, n, out| match n % 2 {
                0 => out.push(even, n),
                _ => out.push(odd, n.to_string()),
            },
        );
        let divide = divide.done();
        let apart = Task::new("apart", 2).apart_from("divide");
        let sum = divide
            .output(even)
            .exchange_by_hash()
            .as_task(apart)
            .map(move |n| {
                assert_eq!(here, 0, "it is to be apart from worker 1");
                n
            });
        let sum = sum.reduce(|a, b| a + b).collect();
        let with = Task::new("with", 3).with("divide");
        let digits = divide.output(odd).direct().as_task(with).map(move |text| {
            assert_eq!(here, 1, "it is to be with the others");
            text.len() as u64
        });
        let digits = digits.reduce(|a, b| a + b).collect();
        let found = env.run(&graph.job_with(sum.and(digits))?)?;
        println!("{found:?}");
        Ok(())
    });
    if let Err(error) = outcome {
        eprintln!("error: {}", dataflow::one_line(&error));
        std::process::exit(error.exit_code().into());
    }
}

/// Reads the lines of files that each host has, where they are.
fn reads(env: &mut Env, host: String) -> Result<(), updraft::Error> {
    let files = env.files_by_host("data/*.txt")?;
    let read = lines_at(files).map(move |line| (line.to_owned(), host.clone()));
    let mut read = env.run(&read.collect())?;
    read.sort();
    assert_eq!(read.len(), 3 * 4 + 2 * 4 + 4);
    assert!(read.iter().all(|(line, host)| line.starts_with(host)));
    let missing = env.files_by_host("nowhere/*").unwrap_err();
    println!("{}", dataflow::one_line(&missing));
    Ok(())
}

/// Blocks that each host has some of, in an order that is not that of the hosts.
struct Blocks(Vec<String>);

impl Source for Blocks {
    type Input = Block;
    type Out = String;

    fn build(&self, place: &Place) -> Result<Block, Error> {
        Ok(Block(self.0[place.instance as usize].clone()))
    }

    fn splits(&self, instances: u32) -> Vec<Split> {
        let split = |instance: u32| Split {
            instance,
            hosts: vec![self.0[instance as usize].clone()],
            bytes: 1 << 20,
            is_bound: false,
        };
        (0..instances).map(split).collect()
    }
}

/// One of them, which gives the name of the host that has it.
struct Block(String);

impl Input for Block {
    type Out = String;

    fn poll<D: Sink<String>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        down.push(&self.0);
        Ok(Progress::Done)
    }
}

/// Tells how many blocks were read on the host that has them, and what was measured.
fn near(env: &mut Env, host: String) -> Result<(), updraft::Error> {
    let hosts = [2, 2, 0, 0, 1, 1].map(|host| format!("host{host}"));
    let blocks = source(Blocks(hosts.into()))
        .boxed()
        .map(move |has| (has.to_owned(), host.clone()));
    let read = env.run(&blocks.collect())?;
    let near = read.iter().filter(|(has, reads)| has == reads).count();
    println!("{near} of {} near", read.len());
    let measured: Vec<_> = env
        .schedulable_workers()
        .iter()
        .map(|worker| &worker.bytes_per_second)
        .collect();
    let is_whole = |(number, rates): (usize, &&std::collections::BTreeMap<String, u64>)| {
        let others = (0..3)
            .filter(|other| *other != number)
            .map(|other| format!("host{other}"));
        others.eq(rates.keys().cloned()) && rates.values().all(|&rate| rate > 1 << 20)
    };
    assert!(measured.iter().enumerate().all(is_whole), "{measured:?}");
    println!("measured {measured:?}");
    Ok(())
}

/// `updraft run` of this test program, by two workers.
fn members(role: &str, arguments: &[&str]) -> Command {
    let mut command = command();
    command
        .args(["run", "--executors", "2"])
        .args(if arguments.contains(&"-n") {
            &[][..]
        } else {
            &["-n", "2"]
        })
        .args(arguments)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "member", "--nocapture", "-q"])
        .env("UPDRAFT_TEST_ROLE", role)
        .stdin(Stdio::null());
    command
}

/// The same by three workers, each on a host of its own.
fn hosts(role: &str, scheduler: &str) -> Command {
    members(role, &["-n", "3", "--scheduler", scheduler, "--explain"])
}

#[test]
fn files_are_read_on_the_hosts_that_have_them_whoever_schedules() {
    let placed = [("round-robin", "0 1 0 3 2 5"), ("locality", "0 1 0 2 3 4")];
    for (scheduler, ranks) in placed {
        let folder = Folder::new();
        for (host, files) in [3, 2, 1].into_iter().enumerate() {
            let data = folder.0.join(format!("host{host}")).join("data");
            std::fs::create_dir_all(&data).unwrap();
            for file in 0..files {
                let lines: String = (0..4)
                    .map(|line| format!("host{host} {file} {line}\n"))
                    .collect();
                std::fs::write(data.join(format!("{file}.txt")), lines).unwrap();
            }
        }
        let mut command = hosts("reads", scheduler);
        command.env("UPDRAFT_TEST_FOLDER", &folder.0);
        let launch = Launch::of(command);
        assert_eq!(launch.code(), Some(0), "{} {}", launch.out, launch.err);
        // Half of the bytes are on the first, whose two ranks have three of the six instances.
        let bytes = 6 * 4 * "host0 0 0\n".len();
        launch.assert_err(&format!(
            "reads {bytes} bytes on the hosts that have them\n"
        ));
        launch.assert_err(&format!("(6 instances, on ranks {ranks})"));
        for worker in 0..3 {
            launch.assert_out(&format!("[w{worker}] no file matches \"nowhere/*\""));
        }
    }
}

#[test]
fn locality_has_instances_where_their_splits_are_and_round_robin_does_not() {
    let near = Launch::of(hosts("near", "locality"));
    assert_eq!(near.code(), Some(0), "{} {}", near.out, near.err);
    near.assert_err("reads 6291456 bytes on the hosts that have them\n");
    let far = Launch::of(hosts("near", "round-robin"));
    assert_eq!(far.code(), Some(0), "{} {}", far.out, far.err);
    far.assert_err("reads 0 bytes on the hosts that have them, 2097152 of host0 on host1, ");
    for worker in 0..3 {
        near.assert_out(&format!("[w{worker}] 6 of 6 near"));
        far.assert_out(&format!("[w{worker}] 0 of 6 near"));
    }
    // All have learnt the same.
    let lines: Vec<_> = near
        .out
        .lines()
        .filter_map(|line| line.split_once("measured "))
        .collect();
    assert_eq!(lines.len(), 3);
    assert!(
        lines.iter().all(|(_, measured)| *measured == lines[0].1),
        "{lines:?}"
    );
}

#[test]
fn workers_keep_the_constraints_of_a_graph_and_explain_where_tasks_are() {
    let explained = members("agrees", &["--attributes", "1:gpu", "--explain"]);
    let launch = Launch::of(explained);
    assert_eq!(launch.code(), Some(0), "{}", launch.err);
    // The sum of the even numbers, and 5 + 45 * 2 + 450 * 3 digits of the odd.
    for worker in 0..2 {
        launch.assert_out(&format!("[w{worker}] ([249500], [1445])"));
    }
    // Even spreading wants them on ranks 0, 1 and 2. The first two go on to the next worker that has a gpu, to its ranks in turn.
    launch.assert_err("divide (divide: 3 instances, on ranks 2 3 2)");
    launch.assert_err("by even: exchange_by_hash");
    launch.assert_err("(apart: 2 instances, on ranks 0 1)");
    launch.assert_err("(with: 3 instances, on ranks ");
    assert_eq!(launch.err.matches("run 0:").count(), 1, "{}", launch.err);
}

#[test]
fn a_constraint_that_no_worker_can_keep_ends_the_job_by_its_name() {
    let launch = Launch::of(members("agrees", &["--scheduler", "first-fit"]));
    assert_eq!(launch.code(), Some(7), "{}", launch.err);
    launch.assert_err(
        "no worker can have instance 0 of task \"divide\": it needs the attribute \"gpu\"",
    );
}

#[test]
fn workers_whose_schedulers_differ_say_so() {
    let launch = Launch::of(members("differs", &[]));
    assert_eq!(launch.code(), Some(1), "{}", launch.err);
    launch.assert_err("collection of 10 > collect (3 in all) -> 0");
    launch.assert_err("collection of 10 > collect (3 on ranks ");
}
