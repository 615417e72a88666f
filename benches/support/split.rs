//! Reads one of several equal parts of a text, a chunk of whole lines at a time.
//!
//! A line belongs to the part its first byte lies in, so parts meet without cutting a word.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How much is read at once: it stays in the cache until its words are counted.
const CHUNK_BYTES: usize = 256 << 10;

/// One part of a text.
#[derive(Debug)]
pub struct Part {
    file: File,
    /// Where its first line starts.
    start: u64,
    /// Where its last line ends.
    end: u64,
}

impl Part {
    /// Part number `index` of the `parts` equal parts of the file at `path`.
    pub fn open(path: &Path, index: usize, parts: usize) -> io::Result<Self> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let boundary = |index| first_line(&file, bytes * index as u64 / parts as u64);
        let (start, end) = (boundary(index)?, boundary(index + 1)?);
        Ok(Self { file, start, end })
    }

    /// Calls `each` for each word of the part, in order.
    ///
    /// It is an error when the part is not valid UTF-8.
    pub fn for_each_word(&self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let (mut offset, mut filled) = (self.start, 0);
        while offset < self.end {
            let read = self.read(&mut buffer[filled..], offset)?;
            offset += read as u64;
            filled += read;
            let newline = memchr::memrchr(b'\n', &buffer[..filled]);
            let whole = match newline {
                _ if offset == self.end => filled,
                Some(newline) => newline + 1,
                None => 0,
            };
            let lines = str::from_utf8(&buffer[..whole]).map_err(io::Error::other)?;
            for_each_word(lines, &mut each);
            buffer.copy_within(whole..filled, 0);
            filled -= whole;
            if filled == buffer.len() {
                buffer.resize(2 * filled, 0); // A line that long has to fit.
            }
        }
        Ok(())
    }

    /// Reads some bytes of the part that are at `offset`.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.end - offset).unwrap_or(usize::MAX);
        let room = left.min(buffer.len());
        match self.file.read_at(&mut buffer[..room], offset)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
    }
}

/// Calls `each` for what [`str::split_whitespace`] finds, which is quicker to find in ASCII.
fn for_each_word(text: &str, mut each: impl FnMut(&[u8])) {
    if text.is_ascii() {
        let is_white = |byte: &u8| matches!(byte, b'\t'..=b'\r' | b' ');
        text.as_bytes()
            .split(is_white)
            .filter(|word| !word.is_empty())
            .for_each(each);
    } else {
        text.split_whitespace()
            .for_each(|word| each(word.as_bytes()));
    }
}

/// Where the first line that starts at or after `offset` starts, or the end of the file.
fn first_line(file: &File, offset: u64) -> io::Result<u64> {
    if offset == 0 {
        return Ok(0);
    }
    let mut buffer = [0; 4096];
    let mut offset = offset - 1;
    loop {
        let read = file.read_at(&mut buffer, offset)?;
        match memchr::memchr(b'\n', &buffer[..read]) {
            Some(newline) => return Ok(offset + newline as u64 + 1),
            None if read == 0 => return Ok(offset),
            None => offset += read as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_together_have_all_words() {
        let path = std::env::temp_dir().join(format!("split-{}", std::process::id()));
        let text = format!("a b\n\n{}\nlast\u{2003}\u{e9}", "c ".repeat(CHUNK_BYTES));
        std::fs::write(&path, &text).unwrap();
        for parts in 1..8 {
            let mut words = Vec::new();
            for index in 0..parts {
                let part = Part::open(&path, index, parts).unwrap();
                part.for_each_word(|word| words.push(word.to_vec()))
                    .unwrap();
            }
            assert!(
                words.iter().eq(text.split_whitespace().map(str::as_bytes)),
                "{parts} parts"
            );
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn ascii_has_the_white_space_of_unicode() {
        let ascii: String = (0..128).flat_map(|byte| [char::from(byte), 'x']).collect();
        let mut words = Vec::new();
        for_each_word(&ascii, |word| words.push(word.to_vec()));
        assert!(
            words
                .iter()
                .map(Vec::as_slice)
                .eq(ascii.split_whitespace().map(str::as_bytes))
        );
    }
}
