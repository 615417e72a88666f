//! Sources and sinks that the program writes itself.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, mpsc},
};

use dataflow::{
    Error, Extent, Input, Output, Place, Progress, Push, Sink, Source, Stop, one_line, source,
};
use proptest::prelude::*;
use updraft::Config;

use crate::{
    cluster::{cluster, instances, sorted},
    support::long::often,
};

/// The steps that numbers take to 1 by halving what is even, and by 3n + 1 otherwise.
#[derive(Clone)]
struct Collatz {
    /// The first number that is not asked for; without one, they go on.
    end: Option<u64>,
    /// The number at which it fails.
    bad: Option<u64>,
}

impl Source for Collatz {
    type Input = Steps;
    type Out = (u64, u64);

    fn build(&self, place: &Place) -> Result<Steps, Error> {
        Ok(Steps {
            next: 1 + u64::from(place.instance),
            end: self.end.unwrap_or(u64::MAX),
            bad: self.bad,
            place: place.clone(),
        })
    }

    fn extent(&self) -> Extent {
        match self.end {
            Some(_) => Extent::Bounded,
            None => Extent::Unbounded,
        }
    }
}

struct Steps {
    next: u64,
    end: u64,
    bad: Option<u64>,
    place: Place,
}

impl Input for Steps {
    type Out = (u64, u64);

    fn poll<D: Sink<(u64, u64)>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        for _ in 0..10 {
            if self.next >= self.end {
                return Ok(Progress::Done);
            }
            if down.is_full() {
                break;
            }
            if self.bad == Some(self.next) {
                let number = self.next.to_string();
                return Err(self.place.failure("Collatz", number, "it is not liked"));
            }
            down.push((self.next, steps(self.next)));
            self.next += u64::from(self.place.instances);
        }
        Ok(Progress::Made)
    }

    fn stop(&mut self) {
        self.end = self.next;
    }
}

fn steps(mut n: u64) -> u64 {
    let mut steps = 0;
    while n > 1 {
        n = if n.is_multiple_of(2) {
            n / 2
        } else {
            3 * n + 1
        };
        steps += 1;
    }
    steps
}

/// What sinks have given, in the runs of one job: each a part, when every rank had finished.
type Given = Arc<Mutex<Vec<Vec<(u64, u64)>>>>;

/// Takes few records at a time, and passes one on whenever it is polled.
struct Narrow {
    waiting: VecDeque<(u64, u64)>,
    /// How many waited at most.
    most: usize,
    passed: Vec<(u64, u64)>,
    given: Given,
}

/// How many records may wait in a [`Narrow`] sink.
const ROOM: usize = 3;

impl Push<(u64, u64)> for Narrow {
    fn push(&mut self, pair: (u64, u64)) {
        self.waiting.push_back(pair);
        self.most = self.most.max(self.waiting.len());
    }
}

impl Sink<(u64, u64)> for Narrow {
    fn is_full(&self) -> bool {
        self.waiting.len() >= ROOM
    }
}

impl Output<(u64, u64)> for Narrow {
    fn poll(&mut self) -> Result<bool, Error> {
        let passed = self.waiting.pop_front();
        self.passed.extend(passed);
        Ok(passed.is_some())
    }

    fn finish(&mut self) -> Result<bool, Error> {
        self.poll()?;
        Ok(self.waiting.is_empty())
    }

    fn commit(&mut self) -> Result<(), Error> {
        assert!(self.most <= ROOM, "{} wait where {ROOM} may", self.most);
        let passed = std::mem::take(&mut self.passed);
        self.given.lock().unwrap().push(passed);
        Ok(())
    }
}

/// Makes [`Narrow`] sinks.
fn narrow(given: &Given) -> impl Fn(&Place) -> Result<Narrow, Error> + Send + Sync + use<> {
    let given = given.clone();
    move |_| {
        Ok(Narrow {
            waiting: VecDeque::new(),
            most: 0,
            passed: Vec::new(),
            given: given.clone(),
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(often(32, 10_000)))]

    #[test]
    fn a_source_of_the_program_is_one_as_others(
        end in 1u64..2_000,
        cluster in cluster(),
        (m, n) in (instances(), instances()),
    ) {
        let numbers = source(Collatz { end: Some(end), bad: None }).parallelism(m);
        let odd = numbers.filter(|(_, steps)| steps % 2 == 1).exchange_by_key().parallelism(n);
        let expected = (1..end).map(|n| (n, steps(n))).filter(|(_, steps)| steps % 2 == 1);
        cluster.gives(&odd.collect(), expected.collect());
    }

    #[test]
    fn a_sink_of_the_program_gets_all_as_fast_as_it_takes_them(
        end in 1u64..500,
        cluster in cluster(),
        (m, n) in (instances(), instances()),
    ) {
        let given = Given::default();
        let numbers = source(Collatz { end: Some(end), bad: None }).parallelism(m);
        let job = numbers.round_robin().parallelism(n).write_to(narrow(&given));
        cluster.run(&job).unwrap();
        let parts = given.lock().unwrap().clone();
        prop_assert_eq!(parts.len(), n as usize);
        let expected: Vec<_> = (1..end).map(|n| (n, steps(n))).collect();
        prop_assert_eq!(sorted(parts.concat()), expected);
    }

    #[test]
    fn what_fails_in_a_source_of_the_program_is_told_and_its_sinks_give_nothing(
        end in 1u64..500,
        bad in any::<prop::sample::Index>(),
        cluster in cluster(),
        m in instances(),
    ) {
        let bad = 1 + bad.index(end as usize) as u64;
        let given = Given::default();
        let numbers = source(Collatz { end: Some(end + 1), bad: Some(bad) }).parallelism(m);
        let job = numbers.named("steps").round_robin().write_to(narrow(&given));
        let error = one_line(&cluster.run(&job).unwrap_err());
        let instance = (bad - 1) % u64::from(m);
        let expected = format!(
            "Collatz failed in instance {instance} of task \"steps > round_robin\", for {bad}: it is not liked"
        );
        prop_assert_eq!(error, expected);
        prop_assert!(given.lock().unwrap().is_empty());
    }
}

/// It goes on until enough was seen, and what it gave by then is there without a gap.
#[test]
fn a_source_of_the_program_that_goes_on_can_be_stopped() {
    for executors in 1..=3 {
        let endless = Collatz {
            end: None,
            bad: None,
        };
        let refused = dataflow::inline(&source(endless.clone()).sort().collect());
        assert!(matches!(refused, Err(Error::Unbounded { .. })));

        let stop = Stop::new();
        let (sender, receiver) = mpsc::channel();
        let enough = stop.clone();
        let job = source(endless).gather().for_each(move |(n, _)| {
            if n > 1_000 {
                enough.stop();
            }
            sender.send(n).unwrap();
        });
        let config = Config {
            executors: Some(executors),
            progress: false,
            ..Config::default()
        };
        let job = job.stopped_by(&stop);
        updraft::run(config, |env| env.run(&job)).unwrap();
        drop(job);
        let numbers: Vec<u64> = receiver.iter().collect();
        for instance in 1..=u64::from(executors) {
            let step = u64::from(executors);
            let share = |&n: &u64| n % step == instance % step;
            let share = sorted(numbers.iter().copied().filter(share).collect());
            let expected: Vec<_> = (0..share.len() as u64)
                .map(|i| instance + i * step)
                .collect();
            assert_eq!(share, expected);
        }
        assert!(numbers.iter().any(|&n| n > 1_000));
    }
}
