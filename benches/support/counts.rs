//! The table of counts that the peers have in common, so that they differ in how they share work.

use super::answer::Answer;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// How often each word was seen. The words stand one after another in one buffer: a new one costs
/// no allocation, and the frequent ones, which come early, are close together.
#[derive(Debug, Default)]
pub struct Counts {
    words: Vec<u8>,
    seen: HashTable<Seen>,
}

/// A word, as its place in the buffer, and its count.
#[derive(Debug)]
struct Seen {
    hash: u64,
    start: u32,
    bytes: u32,
    count: u64,
}

impl Seen {
    fn word<'a>(&self, words: &'a [u8]) -> &'a [u8] {
        &words[self.start as usize..][..self.bytes as usize]
    }
}

impl Counts {
    /// Adds `count` to the count of `word`, whose hash is `hash`.
    ///
    /// Panics when the different words have more than 4 GiB together.
    pub fn add(&mut self, hash: u64, word: &[u8], count: u64) {
        let words = &mut self.words;
        let is_word = |seen: &Seen| seen.hash == hash && seen.word(words) == word;
        match self.seen.entry(hash, is_word, |seen| seen.hash) {
            Entry::Occupied(mut seen) => seen.get_mut().count += count,
            Entry::Vacant(vacant) => {
                let start = u32::try_from(words.len()).expect("there are less than 4 GiB of words");
                vacant.insert(Seen {
                    hash,
                    start,
                    bytes: word.len() as u32,
                    count,
                });
                words.extend_from_slice(word);
            }
        }
    }

    /// Every word with its hash and its count.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &[u8], u64)> {
        self.seen
            .iter()
            .map(|seen| (seen.hash, seen.word(&self.words), seen.count))
    }

    /// The counts in three numbers.
    pub fn answer(&self) -> Answer {
        self.seen.iter().map(|seen| seen.count).collect()
    }
}
