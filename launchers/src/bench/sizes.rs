//! Sizes of messages, as people write them.

use std::{fmt, str::FromStr};

use crate::command::bytes_of;

/// The largest message there can be: what half of the largest arena holds.
const BYTES_MAX: usize = 64 << 20;

/// The sizes to measure, in rising order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sizes(pub(crate) Vec<usize>);

/// Reads `8,64,1Ki..64Ki`: sizes, and ranges that double.
impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut sizes = Vec::new();
        for part in text.split(',') {
            match part.split_once("..") {
                None => sizes.push(parse(part)?),
                Some((first, last)) => {
                    let (first, last) = (parse(first)?, parse(last)?);
                    if first > last {
                        return Err(format!("{part} starts with more than it ends with"));
                    }
                    let doubled = std::iter::successors(Some(first), |size| Some(2 * size));
                    sizes.extend(doubled.take_while(|&size| size < last).chain([last]));
                }
            }
        }
        sizes.sort_unstable();
        sizes.dedup();
        Ok(Self(sizes))
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, size) in self.0.iter().enumerate() {
            write!(f, "{}{size}", if index > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

fn parse(text: &str) -> Result<usize, String> {
    let text = text.trim();
    match bytes_of(text).and_then(|bytes| usize::try_from(bytes).ok()) {
        None => Err(format!("{text:?} is not a size such as 8, 64, 1Ki or 4Mi")),
        Some(0) => Err("a message has at least one byte".to_owned()),
        Some(size) if size > BYTES_MAX => Err(format!("{text} is more than {}", label(BYTES_MAX))),
        Some(size) => Ok(size),
    }
}

/// A size for people: `8 B`, `64 KiB`, `4 MiB`.
pub(crate) fn label(bytes: usize) -> String {
    [(20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(shift, _)| bytes >= 1 << shift && bytes.is_multiple_of(1 << shift))
        .map_or_else(
            || format!("{bytes} B"),
            |(shift, unit)| format!("{} {unit}", bytes >> shift),
        )
}

/// Reads a number of things: `5000`, `100k`, `1M` or `2G`, by powers of a thousand.
pub(crate) fn parse_count(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'M', 'G']) {
        Some(digits) => (digits, &text[digits.len()..]),
        None => (text, ""),
    };
    let factor = match unit {
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => 1,
    };
    let number = digits.parse::<u64>().ok();
    number
        .and_then(|number| number.checked_mul(factor))
        .filter(|number| (1..=COUNT_MAX).contains(number))
        .ok_or_else(|| format!("{text:?} is not a number such as 5000, 100k or 1M"))
}

/// The largest number of things: sums of it stay far from the end of a word.
const COUNT_MAX: u64 = 1 << 40;

/// A number of things for people, as [`parse_count`] reads it.
pub(crate) fn count_label(count: u64) -> String {
    [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")]
        .into_iter()
        .find(|(factor, _)| count >= *factor && count.is_multiple_of(*factor))
        .map_or_else(
            || count.to_string(),
            |(factor, unit)| format!("{}{unit}", count / factor),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_single_or_double_up_to_the_end_of_a_range() {
        let read = |text: &str| text.parse::<Sizes>().map(|sizes| sizes.0);
        assert_eq!(read("8"), Ok(vec![8]));
        assert_eq!(read("1Mi,8,64B"), Ok(vec![8, 64, 1 << 20]));
        assert_eq!(read("1Ki..4Ki,2K"), Ok(vec![1024, 2048, 4096]));
        assert_eq!(read("3..13"), Ok(vec![3, 6, 12, 13]));
    }

    #[test]
    fn what_is_no_size_is_refused_by_name() {
        for text in [
            "",
            "8,",
            "x",
            "0",
            "8..4",
            "8Ki..",
            "-1",
            "65Mi",
            "1Ti",
            "99999999999999999999",
        ] {
            assert!(text.parse::<Sizes>().is_err(), "{text}");
        }
        assert_eq!(
            "8,64q".parse::<Sizes>().unwrap_err(),
            "\"64q\" is not a size such as 8, 64, 1Ki or 4Mi"
        );
    }

    #[test]
    fn a_number_is_labelled_as_it_is_read() {
        for count in [1, 999, 1000, 1500, 100_000, 20_000_000, 1_000_000_000] {
            assert_eq!(parse_count(&count_label(count)), Ok(count));
        }
        for text in ["", "k", "0", "-1", "1.5M", "1m", "2000000G", "1kk"] {
            let error = parse_count(text).unwrap_err();
            assert!(error.contains("is not a number such as"), "{text} {error}");
        }
    }

    #[test]
    fn a_size_is_labelled_as_it_is_read() {
        for size in [1, 8, 1000, 1024, 1536, 64 << 10, 4 << 20] {
            assert_eq!(label(size).replace(' ', "").parse(), Ok(Sizes(vec![size])));
        }
    }
}
