//! A text whose words are as unevenly frequent as those of a language.
//!
//! The word of rank `r` among 1,000,000 occurs in proportion to `1 / r`. The text is a function of
//! its size and its seed: additions, multiplications and divisions make it, and no library.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// How many different words there are.
const WORDS: usize = 1_000_000;
/// How many words there are to a line.
const WORDS_PER_LINE: usize = 10;
/// How many letters the longest word has.
const LETTERS_MAX: usize = 12;
/// How many of the leading bits of a random number choose the place in [`Ranks::guide`].
const GUIDE_BITS: u32 = 20;
/// How much is written at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Writes whole lines of text to a new file at `path` until it has `bytes` bytes or a few more.
pub fn write(path: &Path, bytes: u64, seed: u64) -> io::Result<()> {
    let (ranks, words) = (Ranks::new(), (0..WORDS).map(Word::new).collect::<Vec<_>>());
    let mut random = SplitMix64(seed);
    let mut file = File::create(path)?;
    let mut written = 0;
    while written < bytes {
        let chunk_bytes = CHUNK_BYTES.min(usize::try_from(bytes - written).unwrap_or(CHUNK_BYTES));
        let mut chunk = Vec::with_capacity(CHUNK_BYTES + WORDS_PER_LINE * size_of::<Word>());
        while chunk.len() < chunk_bytes {
            for _ in 0..WORDS_PER_LINE {
                words[ranks.sample(random.next())].append_to(&mut chunk);
            }
            *chunk.last_mut().expect("a line has words") = b'\n';
        }
        file.write_all(&chunk)?;
        written += chunk.len() as u64;
    }
    Ok(())
}

/// The ranks `0..WORDS`, the first `r` of which take a share of the numbers in proportion to
/// `1 + 1/2 + … + 1/r`.
struct Ranks {
    /// The last number that falls on a rank.
    last: Vec<u64>,
    /// A rank that numbers with these leading bits reach or pass.
    guide: Vec<u32>,
}

impl Ranks {
    fn new() -> Self {
        let harmonic = |rank: usize| 1.0 / (rank + 1) as f64;
        let total: f64 = (0..WORDS).map(harmonic).sum();
        let mut sum = 0.0;
        let mut last: Vec<u64> = (0..WORDS)
            .map(|rank| {
                sum += harmonic(rank);
                (sum / total * 2_f64.powi(64)) as u64
            })
            .collect();
        *last.last_mut().expect("there are words") = u64::MAX;
        let guide = (0..1_u64 << GUIDE_BITS)
            .map(|place| last.partition_point(|&last| last < place << (64 - GUIDE_BITS)) as u32)
            .collect();
        Self { last, guide }
    }

    /// The rank that `number` falls on.
    fn sample(&self, number: u64) -> usize {
        let mut rank = self.guide[(number >> (64 - GUIDE_BITS)) as usize] as usize;
        while self.last[rank] < number {
            rank += 1;
        }
        rank
    }
}

/// A word and the space behind it, ready to be copied.
struct Word {
    text: [u8; LETTERS_MAX + 1],
    letters: u8,
}

impl Word {
    /// The word of rank `rank`: the rank in base 13, whose last digit is one of `n..=z` and the
    /// others of `a..=m`, then any letters. No rank is so the beginning of another.
    fn new(rank: usize) -> Self {
        let mut random = SplitMix64(rank as u64);
        let mut text = [b' '; LETTERS_MAX + 1];
        let (mut letters, mut rest) = (0, rank);
        while rest >= 13 {
            text[letters] = b'a' + (rest % 13) as u8;
            (letters, rest) = (letters + 1, rest / 13);
        }
        text[letters] = b'n' + rest as u8;
        letters += 1;
        let letters_min = 3 + (random.next() % 10) as usize;
        while letters < letters_min {
            text[letters] = b'a' + (random.next() % 26) as u8;
            letters += 1;
        }
        Self {
            text,
            letters: letters as u8,
        }
    }

    /// Appends the word and a space: a fixed size is fast to copy, and the excess is cut off.
    fn append_to(&self, chunk: &mut Vec<u8>) {
        let end = chunk.len() + usize::from(self.letters) + 1;
        chunk.extend_from_slice(&self.text);
        chunk.truncate(end);
    }
}

/// The generator of that name by Steele, Lea and Flood.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn different_ranks_are_different_words() {
        let words: HashSet<_> = (0..WORDS).map(|rank| Word::new(rank).text).collect();
        assert_eq!(words.len(), WORDS);
    }
}
