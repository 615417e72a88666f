//! What every scheduler promises, for any tasks and workers.

use proptest::{collection::vec, prelude::*, sample::subsequence};

use super::*;

/// Workers on a few hosts, each with one or more ranks.
fn workers() -> impl Strategy<Value = Vec<Worker>> {
    let worker = (
        0u32..3,
        1u32..5,
        0u64..9,
        subsequence(vec!["gpu", "disk"], 0..=2),
    );
    (1u32..4, vec(worker, 1..5)).prop_map(|(executors, workers)| {
        let mut first = 0;
        let mut all = Vec::new();
        for (host, cores, memory_bytes, attributes) in workers {
            all.push(Worker {
                ranks: first..first + executors,
                host: format!("host{host}"),
                cores,
                memory_bytes,
                attributes: attributes.into_iter().map(str::to_owned).collect(),
                ..Worker::default()
            });
            first += executors;
        }
        all
    })
}

/// Tasks with any demands that do not contradict themselves.
fn tasks() -> impl Strategy<Value = Vec<Task>> {
    let split = (0u32..8, vec(0u32..3, 0..3), 0u64..1000, any::<bool>());
    let task = (
        1u32..8,
        0u32..1500,
        0u64..4,
        subsequence(vec!["gpu", "disk"], 0..=1),
        prop::option::of(1u32..4),
        prop::option::of(0usize..4),
        vec(0usize..4, 0..2),
        vec(split, 0..4),
    );
    vec(task, 1..5)
        .prop_map(|tasks| {
            let named = tasks.into_iter().enumerate();
            let tasks = named.map(
                |(
                    number,
                    (instances, millicores, bytes, attributes, most, with, apart, splits),
                )| {
                    let split =
                        |(instance, hosts, bytes, is_bound): (u32, Vec<u32>, u64, bool)| Split {
                            instance: instance % instances,
                            hosts: hosts.iter().map(|host| format!("host{host}")).collect(),
                            bytes,
                            is_bound,
                        };
                    Task {
                        name: number.to_string(),
                        instances,
                        millicores: if millicores < 500 { 0 } else { millicores },
                        memory_bytes: bytes,
                        attributes: attributes.into_iter().map(str::to_owned).collect(),
                        per_worker_max: most,
                        // What there is not is left out, and what comes before can be referred to without a cycle.
                        with: with
                            .filter(|&other| other < number)
                            .map(|other| other.to_string()),
                        apart_from: apart
                            .into_iter()
                            .filter(|&other| other < number)
                            .map(|other| other.to_string())
                            .collect(),
                        splits: splits.into_iter().map(split).collect(),
                    }
                },
            );
            tasks.collect::<Vec<_>>()
        })
        .prop_filter("no contradictions", |tasks| check_tasks(tasks).is_ok())
}

/// Whether there is a placement at all, by trying all of them for one bundle after the other.
fn is_possible(
    seats: &Seats<'_>,
    bundles: &[Bundle],
    workers: usize,
    steps: &mut u32,
) -> Option<bool> {
    let Some((first, rest)) = bundles.split_first() else {
        return Some(true);
    };
    for worker in 0..workers {
        *steps = steps.checked_sub(1)?;
        if seats.fits(first, worker).is_ok() {
            let mut seats = seats.clone();
            seats.place(first, worker, None);
            if is_possible(&seats, rest, workers, steps)? {
                return Some(true);
            }
        }
    }
    Some(false)
}

/// The least time of all placements of one task, by trying all of them.
fn least(
    locality: &Locality,
    task: &Task,
    workers: &[Worker],
    room: &mut [u32],
    instance: u32,
) -> Option<u128> {
    if instance == task.instances {
        return Some(0);
    }
    let mut best: Option<u128> = None;
    for (number, worker) in workers.iter().enumerate() {
        let mut splits = task.splits.iter();
        let cannot_read = splits.any(|split| {
            split.instance == instance && split.is_bound && !split.hosts.contains(&worker.host)
        });
        if room[number] > 0 && !cannot_read {
            room[number] -= 1;
            let here = locality.nanoseconds(task, instance, worker);
            let rest = least(locality, task, workers, room, instance + 1);
            room[number] += 1;
            if let Some(rest) = rest {
                best = Some(best.map_or(here + rest, |best| best.min(here + rest)));
            }
        }
    }
    best
}

proptest! {
    #[test]
    fn every_instance_is_placed_once_and_all_constraints_are_kept(tasks in tasks(), workers in workers()) {
        let schedulers: [&dyn Scheduler; 3] = [&RoundRobin, &FirstFit { padding_percent: 0 }, &Locality::default()];
        for scheduler in schedulers {
            match scheduler.schedule(&tasks, &workers) {
                Ok(placed) => {
                    check(&tasks, &workers, &placed).unwrap();
                    let again = scheduler.schedule(&tasks.clone(), &workers.clone()).unwrap();
                    prop_assert_eq!(placed, again, "another worker finds another placement");
                }
                Err(error) => {
                    let named = matches!(&error, Error::Unplaceable { task, .. } if tasks.iter().any(|its| its.name == *task));
                    prop_assert!(named, "{}", error);
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_placed_has_no_place(mut task in tasks().prop_map(|mut tasks| tasks.remove(0)), workers in workers()) {
        // Of one task no instance differs from another, unless it is bound to a host, so that no scheduler may miss a
        // placement.
        task.splits.iter_mut().for_each(|split| split.is_bound = false);
        let tasks = [task];
        let seats = Seats::new(&tasks, &workers, 0);
        let possible = is_possible(&seats, &seats.bundles(), workers.len(), &mut 20_000);
        prop_assume!(possible.is_some());
        let schedulers: [&dyn Scheduler; 3] = [&RoundRobin, &FirstFit { padding_percent: 0 }, &Locality::default()];
        for scheduler in schedulers {
            prop_assert_eq!(Some(scheduler.schedule(&tasks, &workers).is_ok()), possible, "{:?}", scheduler);
        }
    }

    #[test]
    fn padding_stays_free(tasks in tasks(), workers in workers(), padding_percent in 0u32..60) {
        let Ok(placed) = (FirstFit { padding_percent }).schedule(&tasks, &workers) else { return Ok(()) };
        for worker in &workers {
            let mut needs = (0, 0);
            for (task, ranks) in tasks.iter().zip(&placed) {
                let here = ranks.iter().filter(|rank| worker.ranks.contains(rank)).count() as u64;
                needs.0 += here * task.memory_bytes;
                needs.1 += here * u64::from(task.millicores);
            }
            let share = u64::from(100 - padding_percent);
            prop_assert!(needs.0 * 100 <= worker.memory_bytes * share);
            prop_assert!(needs.1 * 100 <= u64::from(worker.cores) * 1000 * share);
        }
    }

    #[test]
    fn locality_is_optimal(
        instances in 1u32..6,
        splits in vec((0u32..6, vec(0u32..4, 0..3), 0u64..1_000_000_000, prop::bool::weighted(0.2)), 0..8),
        hosts in vec((0u32..4, vec((0u32..4, 1u64..10_000_000_000), 0..4)), 1..4),
    ) {
        let name = |host: &u32| format!("host{host}");
        let splits = splits.iter().map(|(instance, hosts, bytes, is_bound)| Split {
            instance: instance % instances,
            hosts: hosts.iter().map(name).collect(),
            bytes: *bytes,
            is_bound: *is_bound,
        });
        let task = Task::new("reads", instances).splits(splits.collect());
        let workers: Vec<_> = (0..).zip(&hosts).map(|(rank, (host, measured))| Worker {
            ranks: rank..rank + 1,
            host: name(host),
            bytes_per_second: measured.iter().map(|(from, rate)| (name(from), *rate)).collect(),
            ..Worker::default()
        }).collect();
        let locality = Locality::default();
        let placed = locality.schedule(std::slice::from_ref(&task), &workers).ok();
        let times = placed.map(|placed| {
            let times = (0..).zip(&placed[0]);
            times.map(|(instance, &rank)| locality.nanoseconds(&task, instance, &workers[rank as usize])).sum()
        });
        let share = instances.div_ceil(workers.len() as u32);
        let best = (share..=instances).find_map(|share| {
            least(&locality, &task, &workers, &mut vec![share; workers.len()], 0)
        });
        prop_assert_eq!(times, best);
    }
}

fn two_workers() -> Vec<Worker> {
    let worker = |number: u32, attributes: &[&str]| Worker {
        ranks: number..number + 1,
        host: format!("host{number}"),
        cores: 2,
        memory_bytes: 1000,
        attributes: attributes
            .iter()
            .map(|&attribute| attribute.to_owned())
            .collect(),
        ..Worker::default()
    };
    vec![worker(0, &[]), worker(1, &["gpu", "rack=3"])]
}

#[test]
fn instances_go_where_their_bytes_are() {
    let split = |instance, host: &str| Split {
        instance,
        hosts: vec![host.to_owned()],
        bytes: 1 << 20,
        is_bound: false,
    };
    let crossed = vec![
        split(0, "host1"),
        split(1, "host0"),
        split(2, "host1"),
        split(3, "host0"),
    ];
    let placed =
        Locality::default().schedule(&[Task::new("read", 4).splits(crossed)], &two_workers());
    assert_eq!(placed.unwrap(), [[1, 0, 1, 0]]);
}

#[test]
fn a_split_that_no_other_host_has_binds_its_instance_whoever_schedules() {
    let split = |instance, host: &str| Split {
        instance,
        hosts: vec![host.to_owned()],
        bytes: 1 << 20,
        is_bound: true,
    };
    // Three of four are on the second host, whatever its even share is.
    let mine = |host| vec![split(0, host), split(1, "host1"), split(2, "host1")];
    let schedulers: [&dyn Scheduler; 3] = [&RoundRobin, &FirstFit::default(), &Locality::default()];
    for scheduler in schedulers {
        let tasks = [Task::new("read", 4).splits(mine("host1"))];
        let placed = scheduler.schedule(&tasks, &two_workers()).unwrap();
        assert_eq!(placed[0][..3], [1, 1, 1], "{scheduler:?}");
        let tasks = [Task::new("read", 4).splits(mine("elsewhere"))];
        let refused = scheduler.schedule(&tasks, &two_workers()).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "no worker can have instance 0 of task \"read\": only elsewhere can read what it reads"
        );
    }
}

#[test]
fn bytes_on_hosts_without_workers_are_read_where_the_bandwidth_from_there_is_best() {
    let mut workers = two_workers();
    let rates = |x, y| [("x".to_owned(), x), ("y".to_owned(), y)].into();
    workers[0].bytes_per_second = rates(1 << 20, 1 << 34);
    workers[1].bytes_per_second = rates(1 << 34, 1 << 20);
    let split = |(instance, host): (u32, &str)| Split {
        instance,
        hosts: vec![host.to_owned()],
        bytes: 1 << 20,
        is_bound: false,
    };
    let tasks = [Task::new("read", 2).splits([(0, "x"), (1, "y")].map(split).to_vec())];
    let placed = |workers: &[Worker]| Locality::default().schedule(&tasks, workers).unwrap();
    assert_eq!(placed(&workers), [[1, 0]]);
    assert_eq!(placed(&two_workers()), [[0, 1]], "nothing is known");
}

#[test]
fn without_demands_instances_are_spread_evenly() {
    let tasks = [Task::new("few", 1), Task::new("many", 5)];
    for scheduler in [
        &RoundRobin as &dyn Scheduler,
        &FirstFit::default(),
        &Locality::default(),
    ] {
        let placed = scheduler.schedule(&tasks, &two_workers()).unwrap();
        assert_eq!(placed, [vec![0], vec![0, 0, 0, 1, 1]]);
    }
}

#[test]
fn a_constraint_that_cannot_be_kept_is_named_with_its_task() {
    let cases = [
        (
            Task::new("a", 1).attribute("fpga"),
            "instance 0 of task \"a\": it needs the attribute \"fpga\"",
        ),
        (
            Task::new("b", 3).per_worker_max(1),
            "instance 2 of task \"b\": a worker may have only one instance of it",
        ),
        (
            Task::new("c", 3).memory_bytes(600),
            "instance 2 of task \"c\": it needs 600 bytes of memory",
        ),
        (
            Task::new("d", 5).millicores(1000),
            "instance 4 of task \"d\": it needs 1000 millicores",
        ),
        (
            Task::new("e", 1).attribute("gpu").memory_bytes(2000),
            "instance 0 of task \"e\": it needs 2000 bytes of memory",
        ),
    ];
    for (task, expected) in cases {
        let refused = RoundRobin.schedule(&[task], &two_workers()).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("no worker can have {expected}")
        );
    }
    let everywhere = Task::new("f", 2).per_worker_max(1);
    let apart = Task::new("g", 1).apart_from("f");
    let refused = FirstFit::default()
        .schedule(&[everywhere, apart], &two_workers())
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "no worker can have instance 0 of task \"g\": it has to be apart from task \"f\""
    );
}

#[test]
fn demands_that_contradict_themselves_are_refused() {
    let cases: [(Vec<Task>, &str); 7] = [
        (vec![Task::new("a", 0)], "task \"a\": it has no instances"),
        (
            vec![Task::new("a", 1), Task::new("a", 2)],
            "task \"a\": there is another task of this name",
        ),
        (
            vec![Task::new("a", 1).per_worker_max(0)],
            "task \"a\": no worker may have an instance of it",
        ),
        (
            vec![Task::new("a", 1).with("b")],
            "task \"a\": there is no task \"b\" to be with or apart from",
        ),
        (
            vec![Task::new("a", 1).apart_from("a")],
            "task \"a\": it cannot be apart from itself: have a worker get one instance at most",
        ),
        (
            vec![Task::new("a", 1).with("b"), Task::new("b", 1).with("a")],
            "task \"a\": it is to be with itself, by way of others",
        ),
        (
            vec![
                Task::new("a", 1).with("b"),
                Task::new("b", 1).with("c"),
                Task::new("c", 1).apart_from("a"),
            ],
            "task \"a\": it is to be both with task \"c\" and apart from it",
        ),
    ];
    for (tasks, expected) in cases {
        assert_eq!(check_tasks(&tasks).unwrap_err().to_string(), expected);
    }
}

#[test]
fn what_a_scheduler_of_the_program_gives_is_checked() {
    let workers = two_workers();
    let tasks = [
        Task::new("a", 2).per_worker_max(1),
        Task::new("b", 1).with("a"),
    ];
    assert!(check(&tasks, &workers, &[vec![0, 1], vec![0]]).is_ok());
    let wrong: [(&[Vec<Rank>], &str); 5] = [
        (
            &[vec![0, 1]],
            "instance 0 of task \"b\": 1 tasks have a place, of 2",
        ),
        (
            &[vec![0], vec![0]],
            "instance 1 of task \"a\": 1 of its instances have a place, of 2",
        ),
        (
            &[vec![0, 7], vec![0]],
            "instance 1 of task \"a\": it was placed on rank 7, which the job does not have",
        ),
        (
            &[vec![0, 0], vec![0]],
            "instance 1 of task \"a\": a worker may have only one instance of it",
        ),
        (
            &[vec![0, 1], vec![1]],
            "instance 0 of task \"b\": it has to be with task \"a\"",
        ),
    ];
    for (placed, expected) in wrong {
        let refused = check(&tasks, &workers, placed).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("no worker can have {expected}")
        );
    }
}
