//! Collapsed Gibbs sampling on the documents of a rank.

#[path = "../random/mod.rs"]
mod random;

pub(crate) use random::Random;

/// A model of topics.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Model {
    pub(crate) topics: usize,
    /// Words in the vocabulary.
    pub(crate) words: usize,
    /// Partitions that the words are in: word *w* is in partition *w* modulo these.
    pub(crate) partitions: usize,
    /// What is added to each document's count of a topic.
    pub(crate) alpha: f64,
    /// What is added to each word's count of a topic.
    pub(crate) beta: f64,
    pub(crate) seed: u64,
}

impl Model {
    /// Words of a partition.
    pub(crate) fn words_in(&self, partition: usize) -> usize {
        (partition..self.words).step_by(self.partitions).len()
    }

    /// The topic of a token at the beginning.
    fn first_topic(&self, token: u64) -> usize {
        Random::at(self.seed, token).below(self.topics as u64) as usize
    }
}

/// An occurrence of a word in a document.
#[derive(Debug, Clone, Copy)]
struct Token {
    /// Its number in all documents of all ranks, from which its random numbers follow.
    number: u64,
    document: u32,
    /// The number of its word in its partition.
    word: u32,
    topic: u32,
}

/// The documents of a rank, and what it knows of topics.
#[derive(Debug)]
pub(crate) struct Share {
    model: Model,
    /// By partition of the words.
    tokens: Vec<Vec<Token>>,
    /// Of each document, the tokens of each topic.
    documents: Vec<u32>,
    /// Tokens of each topic: of all ranks when an iteration began, and of this one since then.
    pub(crate) totals: Vec<i64>,
    /// One over each of these, with what is added to it.
    inverses: Vec<f64>,
    /// Room for the weights of topics, each added to those before.
    weights: Vec<f64>,
}

impl Share {
    /// Begins with a random topic for each token. `first_token` is the number of the first one.
    pub(crate) fn new(model: Model, documents: &[Vec<u32>], first_token: u64) -> Self {
        let mut new = Self {
            tokens: vec![Vec::new(); model.partitions],
            documents: vec![0; documents.len() * model.topics],
            totals: vec![0; model.topics],
            inverses: vec![0.0; model.topics],
            weights: vec![0.0; model.topics],
            model,
        };
        let mut number = first_token;
        for (document, words) in documents.iter().enumerate() {
            for &word in words {
                let topic = model.first_topic(number);
                new.tokens[word as usize % model.partitions].push(Token {
                    number,
                    document: document as u32,
                    word: word / model.partitions as u32,
                    topic: topic as u32,
                });
                new.documents[document * model.topics + topic] += 1;
                new.totals[topic] += 1;
                number += 1;
            }
        }
        for tokens in &mut new.tokens {
            tokens.sort_by_key(|token| token.word);
        }
        new
    }

    /// Of each word of a partition, the tokens of each topic in the documents of this rank.
    pub(crate) fn counts(&self, partition: usize) -> Vec<u32> {
        let topics = self.model.topics;
        let mut counts = vec![0; self.model.words_in(partition) * topics];
        for token in &self.tokens[partition] {
            counts[token.word as usize * topics + token.topic as usize] += 1;
        }
        counts
    }

    /// Learns what the totals of all ranks are.
    pub(crate) fn set_totals(&mut self, totals: &[i64]) {
        self.totals.copy_from_slice(totals);
        let added = self.model.words as f64 * self.model.beta;
        for (inverse, &total) in self.inverses.iter_mut().zip(totals) {
            *inverse = 1.0 / (total as f64 + added);
        }
    }

    /// Draws a new topic for each token of a partition of the words, whose counts are given.
    pub(crate) fn sample(&mut self, iteration: usize, partition: usize, counts: &mut [u32]) {
        let Model {
            topics,
            words,
            alpha,
            beta,
            seed,
            ..
        } = self.model;
        let added = words as f64 * beta;
        // A sequence of random numbers for each iteration, and a place in it for each token.
        let seed = Random::at(seed, iteration as u64).draw();
        for token in &mut self.tokens[partition] {
            let document = &mut self.documents[token.document as usize * topics..][..topics];
            let word = &mut counts[token.word as usize * topics..][..topics];
            let old = token.topic as usize;
            document[old] -= 1;
            word[old] -= 1;
            self.totals[old] -= 1;
            self.inverses[old] = 1.0 / (self.totals[old] as f64 + added);
            let mut sum = 0.0;
            let factors = document.iter().zip(&*word).zip(&self.inverses);
            for (weight, ((&of_document, &of_word), inverse)) in
                self.weights.iter_mut().zip(factors)
            {
                sum += (f64::from(of_document) + alpha) * (f64::from(of_word) + beta) * inverse;
                *weight = sum;
            }
            let drawn = Random::at(seed, token.number).unit() * sum;
            let new = self.weights.partition_point(|weight| *weight <= drawn);
            let new = new.min(topics - 1);
            document[new] += 1;
            word[new] += 1;
            self.totals[new] += 1;
            self.inverses[new] = 1.0 / (self.totals[new] as f64 + added);
            token.topic = new as u32;
        }
    }

    /// The part that this rank's documents have in the logarithm of the likelihood.
    pub(crate) fn log_likelihood(&self) -> f64 {
        let Model { topics, alpha, .. } = self.model;
        let all = topics as f64 * alpha;
        let empty = ln_gamma(all) - topics as f64 * ln_gamma(alpha);
        let of_document = |counts: &[u32]| {
            let tokens: u32 = counts.iter().sum();
            let of_topics: f64 = counts
                .iter()
                .map(|&count| ln_gamma(f64::from(count) + alpha))
                .sum();
            empty + of_topics - ln_gamma(f64::from(tokens) + all)
        };
        self.documents.chunks_exact(topics).map(of_document).sum()
    }
}

impl Model {
    /// The part that the words of a partition have in the logarithm of the likelihood.
    pub(crate) fn log_likelihood_of_words(&self, counts: &[u32]) -> f64 {
        let empty = ln_gamma(self.beta);
        let of_count = |&count: &u32| match count {
            0 => 0.0,
            count => ln_gamma(f64::from(count) + self.beta) - empty,
        };
        counts.iter().map(of_count).sum()
    }

    /// The part that the totals have in it.
    pub(crate) fn log_likelihood_of_totals(&self, totals: &[i64]) -> f64 {
        let all = self.words as f64 * self.beta;
        let of_total = |&total: &i64| ln_gamma(all) - ln_gamma(total as f64 + all);
        totals.iter().map(of_total).sum()
    }
}

/// The logarithm of the gamma function of a positive number, by Stirling's series where that has converged.
fn ln_gamma(mut x: f64) -> f64 {
    let mut below = 1.0;
    while x < 10.0 {
        below *= x;
        x += 1.0;
    }
    let inverse = 1.0 / x;
    let square = inverse * inverse;
    let series =
        inverse * (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0)));
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series - below.ln()
}
