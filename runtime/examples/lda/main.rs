//! Latent Dirichlet allocation (Blei, Ng, Jordan, 2003) by collapsed Gibbs sampling (Griffiths, Steyvers: "Finding scientific
//! topics", 2004) with rotation, as in Harp (Peng and others: "HarpLDA+", IEEE Big Data 2017).
//!
//! Every rank has some of the documents, with the topics of their tokens. How often each word has each topic is a table
//! in as many partitions as are wanted; they go round the ranks, each of which draws new topics for its own tokens of those
//! words while other partitions are on their way. The totals of the topics are a rank's own during an iteration,
//! and those of all after it. With `--check`, counts have to add up, the likelihood has to rise, and all counts have to be those
//! of one thread that samples in the order of the rotation. That order, and with it the result, depends on the
//! number of ranks.

mod corpus;
mod kernel;
#[path = "../program/mod.rs"]
mod program;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use clap::Parser;
use corpus::{Corpus, Generated, input};
use kernel::{Model, Share};
use program::{Executors, check_same};
use updraft::{
    Error,
    collectives::{
        harp::{Elementwise, Modulo, Table},
        op::Sum,
    },
    prelude::*,
};

/// Words to print of a topic.
const WORDS_SHOWN: usize = 8;

/// Finds topics in documents.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// A file with a document to a line; without one, documents are generated.
    documents: Option<PathBuf>,

    /// Documents to generate.
    #[arg(long, default_value_t = 2000, conflicts_with = "documents")]
    generate: usize,

    /// Tokens of a document to generate.
    #[arg(long, default_value_t = 100, value_parser = input::at_least_one, conflicts_with = "documents")]
    length: usize,

    /// Words in the vocabulary to generate.
    #[arg(long, default_value_t = 2000, value_parser = input::at_least_one, conflicts_with = "documents")]
    words: usize,

    /// Topics.
    #[arg(short = 'k', long, default_value_t = 20, value_parser = input::at_least_one)]
    topics: usize,

    /// Iterations, in which every token gets a new topic once.
    #[arg(short, long, default_value_t = 30)]
    iterations: usize,

    /// What is added to each document's count of a topic.
    #[arg(long, default_value_t = 0.1, value_parser = positive)]
    alpha: f64,

    /// What is added to each word's count of a topic.
    #[arg(long, default_value_t = 0.01, value_parser = positive)]
    beta: f64,

    /// Partitions of the words for each rank.
    #[arg(long, default_value_t = 4, value_parser = input::at_least_one)]
    partitions: usize,

    /// What the topics that are drawn, and the documents, follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Say every so many iterations how likely the documents are.
    #[arg(long, value_name = "ITERATIONS", default_value_t = 0)]
    every: usize,

    /// Compare the result with that of the same draws on one thread.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    executors: Executors,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if number > 0.0 && f64::is_finite(number) => Ok(number),
        Ok(_) => Err("it has to be more than zero".to_owned()),
        Err(error) => Err(format!("{error}")),
    }
}

impl Arguments {
    fn generated(&self) -> Generated {
        Generated {
            documents: self.generate,
            length: self.length,
            words: self.words,
            topics: self.topics,
            seed: self.seed,
        }
    }

    fn corpus(&self, world: &Group) -> Result<Corpus, Error> {
        match &self.documents {
            Some(path) => corpus::read(world, path),
            None => Ok(self.generated().corpus(world.rank(), world.size())),
        }
    }

    fn model(&self, ranks: usize, words: usize) -> Model {
        Model {
            topics: self.topics,
            words,
            partitions: self.partitions * ranks,
            alpha: self.alpha,
            beta: self.beta,
            seed: self.seed,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments
        .executors
        .bsp(move |world| find_topics(world, &arguments))
}

/// How often each word of a partition has each topic.
type Counts = Table<Vec<u32>, Elementwise<Sum>>;

fn find_topics(world: &Group, arguments: &Arguments) -> Result<(), Error> {
    let (me, size) = (world.rank(), world.size());
    let corpus = arguments.corpus(world)?;
    if corpus.tokens == 0 {
        return Err(Error::program("there are no words in the documents"));
    }
    let model = arguments.model(size, corpus.words);
    let mut share = Share::new(model, &corpus.documents, corpus.first_token);
    let mut table = Table::new(Elementwise(Sum));
    for partition in 0..model.partitions {
        table.add(partition as u64, share.counts(partition))?;
    }
    table.regroup(world, Modulo).wait()?;
    let mut totals = share.totals.clone();
    world.all_reduce(&mut totals, Sum).wait()?;
    share.set_totals(&totals);
    let at_first = log_likelihood(world, &model, &share, &table, &totals)?;

    let started = Instant::now();
    for iteration in 1..=arguments.iterations {
        table
            .rotate_with(world, |_, partition, counts| {
                share.sample(iteration, partition as usize, counts);
            })
            .wait()?;
        let mut changes: Vec<i64> = share
            .totals
            .iter()
            .zip(&totals)
            .map(|(new, old)| new - old)
            .collect();
        world.all_reduce(&mut changes, Sum).wait()?;
        totals
            .iter_mut()
            .zip(changes)
            .for_each(|(total, change)| *total += change);
        share.set_totals(&totals);
        if arguments.every > 0 && iteration % arguments.every == 0 {
            let likelihood = log_likelihood(world, &model, &share, &table, &totals)?;
            if me == 0 {
                eprintln!("iteration {iteration}: log-likelihood {likelihood}");
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let at_last = log_likelihood(world, &model, &share, &table, &totals)?;
    table.reduce(world, 0).wait()?;
    if me != 0 {
        return Ok(());
    }
    let draws = corpus.tokens as f64 * arguments.iterations as f64;
    eprintln!(
        "{} iterations in {seconds:.3} s: {:.2} million tokens/s",
        arguments.iterations,
        draws / seconds / 1e6
    );
    print_topics(&model, &corpus, &table);
    println!("log-likelihood {at_first} at first, {at_last} at last");
    if arguments.check {
        check(arguments, &model, size, &corpus, &table, &totals)?;
        if arguments.iterations > 0 && at_last <= at_first {
            return Err(Error::program("the likelihood does not rise"));
        }
    }
    Ok(())
}

/// The logarithm of the likelihood of all words and topics.
fn log_likelihood(
    world: &Group,
    model: &Model,
    share: &Share,
    table: &Counts,
    totals: &[i64],
) -> Result<f64, Error> {
    let of_words = table
        .iter()
        .map(|(_, counts)| model.log_likelihood_of_words(counts));
    let mut sum = [share.log_likelihood() + of_words.sum::<f64>()];
    world.all_reduce(&mut sum, Sum).wait()?;
    Ok(sum[0] + model.log_likelihood_of_totals(totals))
}

/// Prints the words that each topic has most often.
fn print_topics(model: &Model, corpus: &Corpus, table: &Counts) {
    for topic in 0..model.topics {
        let count = |word: usize| {
            let counts = table.get((word % model.partitions) as u64);
            counts.map_or(0, |counts| {
                counts[word / model.partitions * model.topics + topic]
            })
        };
        let mut words: Vec<usize> = (0..model.words).collect();
        words.sort_by_key(|&word| std::cmp::Reverse(count(word)));
        let name = |word: usize| match corpus.vocabulary.get(word) {
            Some(name) => name.clone(),
            None => word.to_string(),
        };
        let names: Vec<String> = words.into_iter().take(WORDS_SHOWN).map(name).collect();
        println!("topic {topic}: {}", names.join(" "));
    }
}

fn check(
    arguments: &Arguments,
    model: &Model,
    ranks: usize,
    corpus: &Corpus,
    table: &Counts,
    totals: &[i64],
) -> Result<(), Error> {
    let mut by_topic = vec![0; model.topics];
    for (_, counts) in table.iter() {
        for words in counts.chunks_exact(model.topics) {
            by_topic
                .iter_mut()
                .zip(words)
                .for_each(|(sum, count)| *sum += i64::from(*count));
        }
    }
    let tokens: i64 = by_topic.iter().sum();
    println!("{tokens} tokens of {} have a topic", corpus.tokens);
    if tokens.cast_unsigned() != corpus.tokens || by_topic != totals {
        return Err(Error::program("counts got lost"));
    }
    let expected = reference(arguments, model, ranks, corpus)?;
    let found = table.iter().map(|(_, counts)| counts);
    let differ = found
        .zip(&expected)
        .filter(|(found, expected)| found != expected)
        .count();
    println!("partitions that differ from those of the same draws in a plain loop: {differ}");
    check_same(differ == 0 && table.len() == expected.len())
}

/// The counts that the same draws give on one thread, in the order of the rotation.
fn reference(
    arguments: &Arguments,
    model: &Model,
    ranks: usize,
    corpus: &Corpus,
) -> Result<Vec<Vec<u32>>, Error> {
    let mut shares = Vec::new();
    let mut first_token = 0;
    for rank in 0..ranks {
        let documents = match &arguments.documents {
            Some(path) => corpus::read_again(path, rank, ranks, &corpus.vocabulary)?,
            None => arguments.generated().corpus(rank, ranks).documents,
        };
        shares.push(Share::new(*model, &documents, first_token));
        first_token += documents.iter().map(Vec::len).sum::<usize>() as u64;
    }
    let mut all: Vec<Vec<u32>> = (0..model.partitions)
        .map(|partition| {
            let mut sum = vec![0; model.words_in(partition) * model.topics];
            for share in &shares {
                sum.iter_mut()
                    .zip(share.counts(partition))
                    .for_each(|(sum, count)| *sum += count);
            }
            sum
        })
        .collect();
    let sum_of = |shares: &[Share], of: &dyn Fn(&Share, usize) -> i64| -> Vec<i64> {
        (0..model.topics)
            .map(|topic| shares.iter().map(|share| of(share, topic)).sum())
            .collect()
    };
    let mut totals = sum_of(&shares, &|share, topic| share.totals[topic]);
    for iteration in 1..=arguments.iterations {
        shares
            .iter_mut()
            .for_each(|share| share.set_totals(&totals));
        for step in 0..ranks {
            for (rank, share) in shares.iter_mut().enumerate() {
                for partition in ((rank + ranks - step) % ranks..model.partitions).step_by(ranks) {
                    share.sample(iteration, partition, &mut all[partition]);
                }
            }
        }
        let changes = sum_of(&shares, &|share, topic| share.totals[topic] - totals[topic]);
        totals
            .iter_mut()
            .zip(changes)
            .for_each(|(total, change)| *total += change);
    }
    Ok(all)
}
