//! Documents, as lists of the numbers of their words.

use std::path::Path;

use updraft::{
    Error,
    collectives::{
        Group,
        harp::{Single, Table},
        op::Sum,
    },
};

#[path = "../input/mod.rs"]
pub(crate) mod input;

use super::kernel::Random;

/// The documents of a rank.
#[derive(Debug)]
pub(crate) struct Corpus {
    pub(crate) documents: Vec<Vec<u32>>,
    /// The number of the first token, among those of all ranks.
    pub(crate) first_token: u64,
    /// Tokens of all ranks.
    pub(crate) tokens: u64,
    /// Words in the vocabulary.
    pub(crate) words: usize,
    /// The vocabulary, where words are more than numbers.
    pub(crate) vocabulary: Vec<String>,
}

/// Documents that follow from a seed: each is about two topics, and most words of a topic are its own.
#[derive(Debug, Clone)]
pub(crate) struct Generated {
    pub(crate) documents: usize,
    pub(crate) length: usize,
    pub(crate) words: usize,
    pub(crate) topics: usize,
    pub(crate) seed: u64,
}

impl Generated {
    fn document(&self, number: usize) -> Vec<u32> {
        let draws = 3 * self.length + 3;
        let mut random = Random::at(!self.seed, (number * draws) as u64);
        let (words, topics) = (self.words as u64, self.topics as u64);
        let about = [(); 2].map(|()| random.below(topics));
        let own = (words / topics).max(1);
        let mut word = || {
            let topic = about[random.below(2) as usize];
            let anywhere = random.below(10) == 0;
            let word = random.below(if anywhere { words } else { own });
            ((word + if anywhere { 0 } else { topic * own }) % words) as u32
        };
        (0..self.length).map(|_| word()).collect()
    }

    /// The documents of a rank.
    pub(crate) fn corpus(&self, rank: usize, ranks: usize) -> Corpus {
        let edge = |rank: usize| self.documents * rank / ranks;
        Corpus {
            documents: (edge(rank)..edge(rank + 1))
                .map(|number| self.document(number))
                .collect(),
            first_token: (edge(rank) * self.length) as u64,
            tokens: (self.documents * self.length) as u64,
            words: self.words,
            vocabulary: Vec::new(),
        }
    }
}

/// The documents of a part of a file: a line to each.
fn texts(path: &Path, part: usize, parts: usize) -> Result<Vec<Vec<String>>, Error> {
    let mut texts = Vec::new();
    input::lines(path, part, parts, |line| {
        texts.push(line.split_whitespace().map(str::to_owned).collect());
        Ok(())
    })?;
    Ok(texts)
}

/// What `path` holds, read by all ranks together: they agree on a vocabulary.
pub(crate) fn read(world: &Group, path: &Path) -> Result<Corpus, Error> {
    let texts = texts(path, world.rank(), world.size())?;
    let mut own: Vec<String> = texts.iter().flatten().cloned().collect();
    own.sort_unstable();
    own.dedup();
    let merge = |left: &mut Single<Vec<String>>, right: Single<Vec<String>>| {
        left.0.extend(right.0);
        left.0.sort_unstable();
        left.0.dedup();
    };
    let mut table = Table::new(merge);
    table.add(0, Single(own))?;
    table.all_gather(world).wait()?;
    let vocabulary = table.remove(0).map_or_else(Vec::new, |Single(words)| words);

    let mut tokens = [texts.iter().map(Vec::len).sum::<usize>() as u64];
    let mut before = tokens;
    world.exscan(&mut before, Sum).wait()?;
    world.all_reduce(&mut tokens, Sum).wait()?;
    Ok(Corpus {
        documents: numbered(&texts, &vocabulary),
        first_token: if world.rank() == 0 { 0 } else { before[0] },
        tokens: tokens[0],
        words: vocabulary.len(),
        vocabulary,
    })
}

/// What rank `rank` of `ranks` has read, without its first token's number.
pub(crate) fn read_again(
    path: &Path,
    rank: usize,
    ranks: usize,
    vocabulary: &[String],
) -> Result<Vec<Vec<u32>>, Error> {
    Ok(numbered(&texts(path, rank, ranks)?, vocabulary))
}

fn numbered(texts: &[Vec<String>], vocabulary: &[String]) -> Vec<Vec<u32>> {
    let number = |word: &String| vocabulary.partition_point(|other| other < word) as u32;
    texts
        .iter()
        .map(|text| text.iter().map(number).collect())
        .collect()
}
