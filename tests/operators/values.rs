//! Operators that a program drives give, round by round, what `inline` makes of all that was sent.

use std::{
    fmt::Debug,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use collectives::{Engine, Group, op::Sum};
use dataflow::{Error, Inputs, One, Operator, Operators, Record, Sent, Two, collection, inline};
use proptest::prelude::*;
use transport::{Arena, Ledger, Simulation};
use updraft::Config;

use crate::support::long::often;

/// Turns in which nothing happens before a simulation counts as stuck.
const IDLE_MAX: u32 = 20_000;

type Program<T> = Pin<Box<dyn Future<Output = Result<T, Error>>>>;
type Pair = (u64, u64);
type Text = (u64, String);

/// What every rank makes of `program` on the simulated network.
fn simulate<T: 'static>(
    seed: u64,
    size: u32,
    program: impl Fn(Rc<Group>) -> Program<T> + 'static,
) -> Vec<Result<T, Error>> {
    let network = Simulation::new(seed, size);
    let program = Rc::new(program);
    let mut programs: Vec<Program<T>> = Vec::new();
    for rank in 0..size {
        let arena = Arena::new(&Ledger::new(1 << 30), 4 << 20).unwrap();
        let engine = Engine::simulated(network.fabric(rank, &arena));
        engine.attend(Rc::new(Operators::alone(&engine)));
        let program = program.clone();
        programs.push(Box::pin(async move {
            let world = Rc::new(engine.world().await?);
            program(world).await
        }));
    }
    let mut results: Vec<Option<_>> = (0..size).map(|_| None).collect();
    let mut context = Context::from_waker(Waker::noop());
    let mut idle = 0;
    while results.iter().any(Option::is_none) {
        let rank = network.draw(size.into()) as usize;
        if results[rank].is_none()
            && let Poll::Ready(result) = programs[rank].as_mut().poll(&mut context)
        {
            results[rank] = Some(result);
            idle = 0;
        }
        idle = if network.advance() { 0 } else { idle + 1 };
        assert!(
            idle < IDLE_MAX,
            "seed {seed}: some of {size} ranks are stuck"
        );
    }
    results.into_iter().flatten().collect()
}

/// Waits for what `attempt` says is ready.
async fn until<T>(mut attempt: impl FnMut() -> Result<Option<T>, Error>) -> Result<T, Error> {
    poll_fn(|_| match attempt().transpose() {
        Some(result) => Poll::Ready(result),
        None => Poll::Pending,
    })
    .await
}

/// The results of the rest of a round, and the start of the next.
async fn end<I: Inputs, U: Record>(operator: &mut Operator<I, U>) -> Result<Vec<U>, Error> {
    operator.finish();
    let mut results = Vec::new();
    loop {
        let next = until(|| {
            Ok(match operator.try_poll()? {
                Poll::Ready(view) => Some(view.map(U::own)),
                Poll::Pending => None,
            })
        });
        match next.await? {
            Some(result) => results.push(result),
            None => break,
        }
    }
    until(|| Ok(operator.try_reset()?.then_some(()))).await?;
    Ok(results)
}

/// Sends the records of a round, and gives its results.
async fn round<T: Record, U: Record>(
    operator: &mut Operator<One<T>, U>,
    records: &[T],
) -> Result<Vec<U>, Error> {
    for record in records {
        until(|| Ok(operator.try_send(record)?.then_some(()))).await?;
    }
    end(operator).await
}

/// What each rank sends in each round.
#[derive(Debug, Clone)]
struct Case {
    seed: u64,
    size: u32,
    rounds: Vec<Vec<Vec<Pair>>>,
}

fn cases() -> impl Strategy<Value = Case> {
    let records = prop::collection::vec((0u64..20, 0u64..1000), 0..60);
    (any::<u64>(), 1u32..=4, 1usize..=3)
        .prop_flat_map(move |(seed, size, rounds)| {
            let of_round = prop::collection::vec(records.clone(), size as usize);
            let rounds = prop::collection::vec(of_round, rounds);
            (Just(seed), Just(size), rounds)
        })
        .prop_map(|(seed, size, rounds)| Case { seed, size, rounds })
}

/// Which ranks get the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    /// Each result goes to one.
    One,
    /// All go to all.
    All,
    /// All go to the first, in order.
    FirstInOrder,
}

fn sorted<T: Ord>(mut records: Vec<T>) -> Vec<T> {
    records.sort();
    records
}

/// Whether the results of a round, by rank, are those that `inline` gives.
fn check<U: Record + Ord + Debug>(to: To, results: Vec<Vec<U>>, expected: Vec<U>, what: &str) {
    match to {
        To::One => {
            let results = results.into_iter().flatten().collect();
            assert_eq!(sorted(results), sorted(expected), "{what}");
        }
        To::All => {
            let expected = sorted(expected);
            for results in results {
                assert_eq!(sorted(results), expected, "{what}");
            }
        }
        To::FirstInOrder => {
            let results: Vec<_> = results.into_iter().flatten().collect();
            assert_eq!(results, expected, "{what}");
        }
    }
}

/// An operator gives in each round what it gives `inline`: on the simulated network, with an all-reduce in the middle of each
/// round, and for some seeds in threads.
macro_rules! agrees {
    ($case:expr, $to:expr, |$stream:ident| $operator:expr) => {{
        let case: Case = $case.clone();
        let what = format!(
            "{} of {} for seed {}",
            stringify!($operator),
            case.size,
            case.seed
        );
        let sent = case.rounds.clone();
        let ranks = simulate(case.seed, case.size, move |world| {
            let sent = sent.clone();
            Box::pin(async move {
                let mut operator = Operator::new(&world, |$stream: Sent<Pair>| $operator)?;
                let mut results = Vec::new();
                for of_round in &sent {
                    let records = &of_round[world.rank()];
                    let (before, after) = records.split_at(records.len() / 2);
                    for record in before {
                        until(|| Ok(operator.try_send(record)?.then_some(()))).await?;
                    }
                    let mut sum = [1u64];
                    world.all_reduce(&mut sum, Sum).await?;
                    assert_eq!(sum, [world.size() as u64]);
                    results.push(round(&mut operator, after).await?);
                }
                world.barrier().await?;
                Ok(results)
            })
        });
        let ranks: Vec<_> = ranks.into_iter().map(Result::unwrap).collect();
        let by_round = |ranks: &[Vec<Vec<_>>], number: usize| -> Vec<Vec<_>> {
            ranks.iter().map(|rank| rank[number].clone()).collect()
        };
        for (number, of_round) in case.rounds.iter().enumerate() {
            let $stream = collection(of_round.concat());
            let expected = inline(&$operator.collect()).unwrap();
            check($to, by_round(&ranks, number), expected, &what);
        }
        if case.seed.is_multiple_of(16) {
            let config = Config {
                executors: Some(case.size),
                progress: false,
                ..Config::default()
            };
            let sent = case.rounds.clone();
            let threads = updraft::bsp(config, move |world| {
                let mut operator = Operator::new(world, |$stream: Sent<Pair>| $operator)?;
                let mut results = Vec::new();
                for of_round in &sent {
                    for record in &of_round[world.rank()] {
                        operator.send(record)?;
                    }
                    operator.finish();
                    let mut of_rank = Vec::new();
                    while let Some(view) = operator.poll()? {
                        of_rank.push(owned(view));
                    }
                    results.push(of_rank);
                    operator.reset()?;
                }
                Ok(results)
            });
            let threads = threads.unwrap();
            for (number, of_round) in case.rounds.iter().enumerate() {
                let $stream = collection(of_round.concat());
                let expected = inline(&$operator.collect()).unwrap();
                check($to, by_round(&threads, number), expected, &what);
            }
        }
    }};
}

/// A view of numbers is what it is a view of.
fn owned<T>(view: T) -> T {
    view
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(often(12, 10_000)))]

    #[test]
    fn exchanges_driven_by_hand_lose_nothing(case in cases()) {
        agrees!(case, To::One, |pairs| pairs.exchange_by_key());
        agrees!(case, To::One, |pairs| pairs.exchange_by_hash().parallelism(3));
        agrees!(case, To::One, |pairs| pairs.partition(|(_, value)| value));
        agrees!(case, To::One, |pairs| pairs.round_robin());
        agrees!(case, To::One, |pairs| pairs.rebalance());
        agrees!(case, To::One, |pairs| pairs.direct().map(|(key, value)| (value, key)));
        agrees!(case, To::One, |pairs| pairs.filter(|(key, _)| key % 2 == 0));
        agrees!(case, To::All, |pairs| pairs.broadcast());
        agrees!(case, To::One, |pairs| pairs.gather());
    }

    #[test]
    fn reductions_driven_by_hand_agree_with_one_thread(case in cases()) {
        agrees!(case, To::One, |pairs| pairs.map(|(_, value)| value).reduce(|a, b| a + b));
        agrees!(case, To::All, |pairs| pairs.map(|(_, value)| value).all_reduce(|a, b| a.max(b)));
        agrees!(case, To::One, |pairs| pairs.reduce_by_key(|a, b| a + b));
        agrees!(case, To::One, |pairs| pairs.aggregate_by_key(|of| (of.count(), of.sum(|value| value))));
        agrees!(case, To::One, |pairs| pairs.count());
        agrees!(case, To::One, |pairs| pairs.distinct());
        agrees!(case, To::FirstInOrder, |pairs| pairs.top_n(3, |pair| pair));
    }

    #[test]
    fn sorts_groups_and_joins_driven_by_hand_agree_with_one_thread(case in cases()) {
        agrees!(case, To::FirstInOrder, |pairs| pairs.sort_by(|pair| pair));
        agrees!(case, To::One, |pairs| {
            let pairs = pairs.direct();
            let most = pairs.clone().reduce_by_key(|a, b| a.max(b));
            most.join(pairs).map(|(key, (most, value))| (key, most - value))
        });
        agrees!(case, To::One, |pairs| {
            let pairs = pairs.direct();
            pairs.clone().union(pairs.map(|(key, value)| (value, key)))
        });
    }

    /// Two operators at a time, the one with two inputs, of which the second is sent to first.
    #[test]
    fn operators_open_together_keep_their_messages_apart(case in cases()) {
        let sent = case.rounds.clone();
        let ranks = simulate(case.seed, case.size, move |world| {
            let sent = sent.clone();
            Box::pin(async move {
                let mut sums = Operator::new(&world, |pairs: Sent<Pair>| pairs.reduce_by_key(|a, b| a + b))?;
                let mut joined: Operator<Two<Pair, Pair>, _> =
                    Operator::of_two(&world, |left: Sent<Pair>, right: Sent<Pair>| left.join(right))?;
                let mut results = Vec::new();
                for of_round in &sent {
                    let records = &of_round[world.rank()];
                    for record in records {
                        joined.send_right(record)?;
                        until(|| Ok(sums.try_send(record)?.then_some(()))).await?;
                    }
                    for &(key, value) in records.iter().take(5) {
                        joined.send_left(&(key, value + 1))?;
                    }
                    joined.finish_left();
                    let found = end(&mut joined).await?;
                    results.push((end(&mut sums).await?, found));
                }
                world.barrier().await?;
                Ok(results)
            })
        });
        let ranks: Vec<_> = ranks.into_iter().map(Result::unwrap).collect();
        for (number, of_round) in case.rounds.iter().enumerate() {
            let sums = ranks.iter().map(|rank| rank[number].0.clone()).collect();
            let joined = ranks.iter().map(|rank| rank[number].1.clone()).collect();
            let left = of_round.iter().flat_map(|records| records.iter().take(5));
            let left = left.map(|&(key, value)| (key, value + 1)).collect();
            let all = collection(of_round.concat());
            let what = format!("{case:?}");
            let expected = inline(&all.clone().reduce_by_key(|a, b| a + b).collect()).unwrap();
            check(To::One, sums, expected, &what);
            check(To::One, joined, inline(&collection::<Pair>(left).join(all).collect()).unwrap(), &what);
        }
    }
}

#[test]
fn much_more_than_a_window_goes_through_while_a_rank_only_sends() {
    const RECORDS: u64 = 200_000;
    let ranks = simulate(7, 3, |world| {
        Box::pin(async move {
            let mut shuffle =
                Operator::new(&world, |numbers: Sent<u64>| numbers.exchange_by_hash())?;
            for number in 0..RECORDS {
                until(|| Ok(shuffle.try_send(&number)?.then_some(()))).await?;
            }
            Ok(end(&mut shuffle).await?.len() as u64)
        })
    });
    let all: u64 = ranks.into_iter().map(Result::unwrap).sum();
    assert_eq!(all, 3 * RECORDS);
}

#[test]
fn different_operators_on_two_ranks_are_an_error_that_names_both() {
    let ranks = simulate(3, 2, |world| {
        Box::pin(async move {
            if world.rank() == 0 {
                let mut one = Operator::new(&world, |numbers: Sent<u64>| numbers.gather())?;
                round(&mut one, &[1]).await
            } else {
                let mut other = Operator::new(&world, |numbers: Sent<u64>| numbers.broadcast())?;
                round(&mut other, &[1]).await
            }
        })
    });
    let errors: Vec<_> = ranks.into_iter().filter_map(Result::err).collect();
    assert_eq!(errors.len(), 2);
    let text: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert!(
        text.iter()
            .any(|text| text.contains("gather") && text.contains("broadcast")),
        "{text:?}"
    );
}

#[test]
fn a_rank_that_drops_an_operator_ends_it_for_all() {
    for finished in [false, true] {
        let ranks = simulate(5, 3, move |world| {
            Box::pin(async move {
                let mut sums = Operator::new(&world, |n: Sent<u64>| n.all_reduce(|a, b| a + b))?;
                if world.rank() == 1 && !finished {
                    return Ok(0);
                }
                round(&mut sums, &[1]).await?;
                if world.rank() == 1 {
                    return Ok(1);
                }
                round(&mut sums, &[1]).await?;
                Ok(2)
            })
        });
        for (rank, result) in ranks.into_iter().enumerate() {
            match result {
                Ok(rounds) => assert_eq!((rank, rounds), (1, u64::from(finished))),
                Err(error) => assert!(
                    matches!(error, Error::Collectives(_) | Error::Transport(_)),
                    "{error}"
                ),
            }
        }
    }
}

#[test]
fn a_function_that_fails_is_told_once_and_to_all() {
    let ranks = simulate(9, 2, |world| {
        Box::pin(async move {
            let mut checked = Operator::new(&world, |numbers: Sent<u64>| {
                numbers.exchange_by_hash().try_map(|n| match n {
                    13 => Err("it is unlucky"),
                    _ => Ok(n),
                })
            })?;
            round(&mut checked, &[1, 2, 13]).await
        })
    });
    let errors: Vec<_> = ranks
        .into_iter()
        .map(|result| result.unwrap_err())
        .collect();
    assert!(
        errors
            .iter()
            .any(|error| matches!(error, Error::Function { .. })),
        "{errors:?}"
    );
}

#[test]
fn what_is_sent_cannot_be_read_by_two_tasks_before_an_exchange() {
    let ranks = simulate(1, 1, |world| {
        Box::pin(async move {
            let twice = Operator::new(&world, |numbers: Sent<u64>| numbers.clone().union(numbers));
            Ok(twice.map(drop))
        })
    });
    let error = ranks.into_iter().next().unwrap().unwrap().unwrap_err();
    assert!(matches!(error, Error::SentTwice), "{error}");
}

#[test]
fn what_is_sent_after_the_end_and_before_a_reset_is_an_error() {
    let ranks = simulate(1, 1, |world| {
        Box::pin(async move {
            let mut numbers = Operator::new(&world, |numbers: Sent<u64>| numbers.take(1))?;
            for number in 0..100_000u64 {
                numbers.send(&number)?; // Nobody wants more than the first, and yet there is room.
            }
            numbers.finish();
            let late = numbers.send(&1u64);
            assert!(matches!(late, Err(Error::SentTooLate)), "{late:?}");
            assert_eq!(end(&mut numbers).await?, [0]);
            numbers.send(&2u64)?;
            end(&mut numbers).await
        })
    });
    assert_eq!(
        ranks.into_iter().map(Result::unwrap).collect::<Vec<_>>(),
        [[2]]
    );
}

#[test]
fn an_operator_of_other_instances_than_ranks_needs_an_exchange_first() {
    let ranks = simulate(1, 2, |world| {
        Box::pin(async move {
            let wrong = Operator::new(&world, |numbers: Sent<u64>| numbers.parallelism(3));
            Ok(wrong.map(drop))
        })
    });
    for rank in ranks {
        let error = rank.unwrap().unwrap_err();
        assert!(
            matches!(
                error,
                Error::NotSentHere {
                    instances: 3,
                    ranks: 2
                }
            ),
            "{error}"
        );
    }
}

#[test]
fn an_operator_goes_through_more_rounds_than_can_be_told_apart() {
    const ROUNDS: u64 = 600;
    let ranks = simulate(11, 3, |world| {
        Box::pin(async move {
            let mut sums = Operator::new(&world, |pairs: Sent<Pair>| {
                pairs.reduce_by_key(|a, b| a + b)
            })?;
            let me = world.rank() as u64;
            let mut found = Vec::new();
            for number in 0..ROUNDS {
                // Some ranks send nothing, some one pair and some two.
                let pairs = [(number % 5, number), (number % 3, me)];
                let few = ((number + me) % 3) as usize;
                found.push(round(&mut sums, &pairs[..few]).await?);
            }
            world.barrier().await?;
            Ok(found)
        })
    });
    let ranks: Vec<_> = ranks.into_iter().map(Result::unwrap).collect();
    for number in 0..ROUNDS {
        let mut expected = std::collections::BTreeMap::<u64, u64>::new();
        for me in 0..3 {
            let pairs = [(number % 5, number), (number % 3, me)];
            for (key, value) in &pairs[..((number + me) % 3) as usize] {
                *expected.entry(*key).or_default() += value;
            }
        }
        let found = ranks.iter().flat_map(|rank| rank[number as usize].clone());
        let expected: Vec<_> = expected.into_iter().collect();
        assert_eq!(sorted(found.collect()), expected, "round {number}");
    }
}

/// A job with so little memory that what is not polled does not fit.
fn tight() -> Config {
    Config {
        executors: Some(2),
        memory_bytes: Some(24 << 20),
        progress: false,
        ..Config::default()
    }
}

#[test]
fn results_that_nobody_polls_go_to_disk_and_come_in_their_order() {
    const RECORDS: u64 = 250_000;
    let config = tight();
    let limit = config.memory_bytes.unwrap();
    let peak = updraft::run(config, |env| {
        let ranks = env.bsp(|world| {
            let me = world.rank() as u64;
            let wide = |records: Sent<(u64, String)>| records.partition(|(from, _)| from);
            let mut wide = Operator::new(world, wide)?;
            let mut wrong = 0;
            for round in 0..2 {
                for n in 0..RECORDS {
                    // All that a rank sends comes to it.
                    wide.send(&(me, format!("{n:>100}")))?;
                    if round == 1 && n % 3 == 0 {
                        let (_, text) = wide
                            .poll()?
                            .map(|(from, text)| (from, text.len()))
                            .unwrap_or((me, 100));
                        wrong += u64::from(text != 100);
                    }
                }
                wide.finish();
                let mut last = None;
                while let Some((from, text)) = wide.poll()? {
                    let number = text.trim_start().parse::<u64>().ok();
                    wrong += u64::from(from != me || number <= last && last.is_some());
                    last = number;
                }
                wrong += u64::from(last != Some(RECORDS - 1));
                wide.reset()?;
            }
            // What was not polled when the next round begins is gone, also from disk.
            for n in 0..RECORDS {
                wide.send(&(me, format!("{n:>100}")))?;
            }
            wide.reset()?;
            wide.send(&(me, "the next".to_owned()))?;
            wide.finish();
            wrong += u64::from(wide.poll()? != Some((me, "the next")));
            wrong += u64::from(wide.poll()?.is_some());
            Ok(wrong)
        })?;
        assert_eq!(ranks, [0, 0]);
        Ok(env.ledger().peak())
    });
    assert!(peak.unwrap() <= limit);
}

#[test]
fn what_waits_for_the_other_input_and_has_no_room_is_an_error_by_name() {
    let result = updraft::bsp(tight(), |world| {
        let join = |left: Sent<(u64, String)>, right: Sent<(u64, String)>| left.join(right);
        let mut join: Operator<Two<Text, Text>, _> = Operator::of_two(world, join)?;
        // The join reads its left side after the right one, which never ends here.
        for n in 0u64.. {
            join.send_left(&(n, format!("{n:>100}")))?;
        }
        Ok(())
    });
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 10, "{error}");
    let text = error.to_string();
    assert!(
        text.starts_with("records sent to an operator needs "),
        "{text}"
    );
}
