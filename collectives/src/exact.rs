//! Sums of floats that do not depend on the order, on the number of members or on the algorithm: they are exact, and rounded
//! once.
//!
//! What is summed up is held as an integer of 2,144 bits that covers all that an `f64` can be, in units of the smallest:
//! the small superaccumulator of Neal ("Fast exact summation using small and large superaccumulators", 2015).

use std::array;

use crate::{Error, Group, Operation, call::Call, fate::Signature, op::Op, parts_of};

/// Bits of a chunk that are its own; those above are carried to the next one, sooner or later.
const CHUNK_BITS: u32 = 32;
const CHUNK_MASK: i64 = (1 << CHUNK_BITS) - 1;
/// Chunks. The largest float has its highest bit in the 66th, and the last one takes what is carried out of that.
const CHUNKS: usize = 67;
/// Bits of a float's fraction.
const FRACTION_BITS: u32 = f64::MANTISSA_DIGITS - 1;
/// What is added to a chunk at a time is below 2^52, so that this many and a carry fit.
const ADDS_MAX: u32 = (1 << 11) - 1;

/// What was added that is no number.
const INFINITE: i64 = 1;
const NEGATIVE_INFINITE: i64 = 2;
const NOT_A_NUMBER: i64 = 4;

/// The exact sum of any number of `f64`s.
///
/// The [`value`](Self::value) is the sum as if computed with infinite precision and then rounded to the nearest float, ties
/// to even: it is the same in whatever order and groups its terms were added. A sum of zero is `+0.0`; infinities and
/// what is not a number give what IEEE 754 says, of whatever order. An exact sum too large for a float is infinite, but
/// what it comes to on the way does not matter.
///
/// ```
/// use collectives::ExactSum;
///
/// let mut sum = ExactSum::new();
/// for term in [1e100, 1.0, -1e100, 0.5] {
///     sum.add(term);
/// }
/// assert_eq!(sum.value(), 1.5);
/// assert_eq!(ExactSum::of(&[f64::MAX, f64::MAX, -f64::MAX]).value(), f64::MAX);
/// ```
#[derive(Debug, Clone)]
pub struct ExactSum {
    /// The sum is that of each chunk times 2^(32 i - 1074).
    chunks: [i64; CHUNKS],
    /// What was added that is no number.
    special: i64,
    /// Terms added since the last carry.
    added: u32,
}

impl Default for ExactSum {
    fn default() -> Self {
        Self::new()
    }
}

impl ExactSum {
    /// Words of the [form](ExactWords) that a sum travels in.
    pub const WORDS: usize = CHUNKS + 1;

    /// The sum of nothing.
    pub const fn new() -> Self {
        Self {
            chunks: [0; CHUNKS],
            special: 0,
            added: 0,
        }
    }

    /// The sum of `terms`.
    pub fn of(terms: &[f64]) -> Self {
        let mut sum = Self::new();
        terms.iter().for_each(|&term| sum.add(term));
        sum
    }

    /// Adds a term.
    #[inline]
    pub fn add(&mut self, term: f64) {
        let bits = term.to_bits();
        let exponent = (bits >> FRACTION_BITS) as u32 & 0x7ff;
        let fraction = bits & ((1 << FRACTION_BITS) - 1);
        if exponent == 0x7ff {
            return self.add_special(term);
        }
        // Without its hidden bit a number is as large as one of exponent 1.
        let hidden = u64::from(exponent != 0) << FRACTION_BITS;
        let (mantissa, place) = (fraction | hidden, exponent.max(1) - 1);
        let (chunk, shift) = ((place / CHUNK_BITS) as usize, place % CHUNK_BITS);
        let low = (mantissa << shift) as i64 & CHUNK_MASK;
        let high = (mantissa >> (CHUNK_BITS - shift)) as i64;
        let sign = 1 - 2 * (bits >> 63) as i64;
        self.chunks[chunk] += sign * low;
        self.chunks[chunk + 1] += sign * high;
        self.added += 1;
        if self.added == ADDS_MAX {
            self.carry();
        }
    }

    #[cold]
    fn add_special(&mut self, term: f64) {
        self.special |= if term.is_nan() {
            NOT_A_NUMBER
        } else if term > 0.0 {
            INFINITE
        } else {
            NEGATIVE_INFINITE
        };
    }

    /// Adds all terms of another sum.
    pub fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        other.carry();
        self.carry();
        merge(&mut self.chunks, &other.chunks);
        self.special |= other.special;
    }

    /// The sum, rounded once.
    pub fn value(&self) -> f64 {
        if self.special != 0 {
            return match self.special {
                INFINITE => f64::INFINITY,
                NEGATIVE_INFINITE => f64::NEG_INFINITY,
                _ => f64::NAN,
            };
        }
        let mut chunks = self.chunks;
        carry(&mut chunks);
        let is_negative = chunks[CHUNKS - 1] < 0;
        if is_negative {
            chunks.iter_mut().for_each(|chunk| *chunk = -*chunk);
            carry(&mut chunks);
        }
        let magnitude = rounded(&chunks);
        if is_negative { -magnitude } else { magnitude }
    }

    /// The form that it travels in: it depends on the sum alone, and not on how it came about.
    pub fn to_words(&self) -> ExactWords {
        let mut chunks = self.chunks;
        carry(&mut chunks);
        array::from_fn(|word| chunks.get(word).copied().unwrap_or(self.special))
    }

    /// The sum that travelled as `words`.
    pub fn from_words(words: &ExactWords) -> Self {
        let mut sum = Self {
            chunks: array::from_fn(|chunk| words[chunk]),
            special: words[CHUNKS],
            added: 0,
        };
        // Whoever sent it may have left something to carry.
        sum.carry();
        sum
    }

    fn carry(&mut self) {
        carry(&mut self.chunks);
        self.added = 0;
    }
}

impl PartialEq for ExactSum {
    fn eq(&self, other: &Self) -> bool {
        self.to_words() == other.to_words()
    }
}

impl FromIterator<f64> for ExactSum {
    fn from_iter<I: IntoIterator<Item = f64>>(terms: I) -> Self {
        let mut sum = Self::new();
        sum.extend(terms);
        sum
    }
}

impl Extend<f64> for ExactSum {
    fn extend<I: IntoIterator<Item = f64>>(&mut self, terms: I) {
        terms.into_iter().for_each(|term| self.add(term));
    }
}

/// An [`ExactSum`] as an [element](crate::Element) of vectors.
pub type ExactWords = [i64; ExactSum::WORDS];

/// Merges exact sums, in the form that they travel in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeExact;

impl Op<ExactWords> for MergeExact {
    fn name(&self) -> &'static str {
        "exact sum"
    }

    fn combine(&self, left: &mut [ExactWords], right: &[ExactWords]) {
        for (left, right) in left.iter_mut().zip(right) {
            let ([left @ .., left_special], [right @ .., right_special]) = (left, right);
            merge(left, right);
            *left_special |= right_special;
        }
    }
}

/// Leaves in every chunk but the last what is its own, so that no two forms of a sum differ.
///
/// It wraps around rather than to overflow: what came from a peer can be anything.
fn carry(chunks: &mut [i64; CHUNKS]) {
    let mut carried = 0i64;
    let (last, others) = match chunks {
        [others @ .., last] => (last, others),
    };
    for chunk in others {
        let sum = chunk.wrapping_add(carried);
        *chunk = sum & CHUNK_MASK;
        carried = sum >> CHUNK_BITS;
    }
    *last = last.wrapping_add(carried);
}

/// Adds sums that have nothing to carry.
fn merge(left: &mut [i64; CHUNKS], right: &[i64; CHUNKS]) {
    for (left, right) in left.iter_mut().zip(right) {
        *left = left.wrapping_add(*right);
    }
    carry(left);
}

/// The float next to a sum that is not negative and has nothing to carry.
fn rounded(chunks: &[i64; CHUNKS]) -> f64 {
    let Some(top) = chunks.iter().rposition(|&chunk| chunk != 0) else {
        return 0.0;
    };
    // The highest chunk and the two below it, which hold 65 bits at least, in units of 2^(32 (top - 2) - 1074).
    let chunk = |below: usize| {
        let index = top.checked_sub(below);
        index.map_or(0, |index| u128::from(chunks[index].unsigned_abs()))
    };
    let window = chunk(0) << (2 * CHUNK_BITS) | chunk(1) << CHUNK_BITS | chunk(2);
    let bits = u128::BITS - window.leading_zeros();
    // How far below its highest bit the sum reaches, in units of 2^-1074.
    let place = (CHUNK_BITS * top as u32 + bits).saturating_sub(2 * CHUNK_BITS);
    // Bits that there is no place for in a float.
    let dropped = place.saturating_sub(f64::MANTISSA_DIGITS);
    let kept = place - dropped;
    let shift = bits - kept;
    let (mantissa, rest) = (window >> shift, window & ((1 << shift) - 1));
    let half = 1u128 << (shift - 1);
    let is_more =
        rest & (half - 1) != 0 || (chunks[..top.saturating_sub(2)].iter()).any(|&chunk| chunk != 0);
    let is_up = rest & half != 0 && (is_more || mantissa & 1 == 1);
    // A mantissa without its hidden bit is that of exponent 0; rounding up may make one of the next exponent.
    let bits = (u64::from(dropped) << FRACTION_BITS) + mantissa as u64 + u64::from(is_up);
    f64::from_bits(bits.min(f64::INFINITY.to_bits()))
}

/// The most bytes of sums that travel as such; longer vectors are summed up a slice at each member.
const WORDS_BYTES_MAX: usize = 4096;

impl Group {
    /// Leaves in the `data` of all members the exact sums, element by element, of the `data` of all, each rounded once: the same
    /// bits by every algorithm and in whatever order the members come. All have to have as much. See [`ExactSum`], also for
    /// sums of more than one term of a member: [`all_reduce_sums`](Self::all_reduce_sums).
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn all_reduce_exact(
        &self,
        data: &mut [f64],
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async move {
            if data.len() * size_of::<ExactWords>() <= WORDS_BYTES_MAX {
                let mut words: Vec<_> = data.iter().map(to_words).collect();
                self.all_reduce(&mut words, MergeExact).await?;
                from_words(&words, data);
                return Ok(());
            }
            let signature = Signature::of::<f64>("all_reduce_exact", Some(data.len()));
            let call = self.begin(signature).await?;
            let result = slices(&call, data, None).await;
            call.end(result)
        })
    }

    /// The same for member `root` alone; what the others have in `data` afterwards is of no use.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a root that is no member; see [`Error`].
    pub fn reduce_exact(
        &self,
        root: usize,
        data: &mut [f64],
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async move {
            self.check_member("reduce_exact", root)?;
            if data.len() * size_of::<ExactWords>() <= WORDS_BYTES_MAX {
                let mut words: Vec<_> = data.iter().map(to_words).collect();
                self.reduce(root, &mut words, MergeExact).await?;
                from_words(&words, data);
                return Ok(());
            }
            let signature = Signature::of::<f64>("reduce_exact", Some(data.len()));
            let call = self.begin(signature.with_root(root)).await?;
            let result = slices(&call, data, Some(root)).await;
            call.end(result)
        })
    }

    /// Merges the sums of all members, element by element: each member adds what it has of the terms, and all get
    /// the same sums, however the terms were spread among any number of members. All have to have as many sums.
    ///
    /// ```
    /// use collectives::ExactSum;
    /// # use collectives::Engine;
    /// # use transport::{Arena, Fabric, Ledger};
    /// # let fabric = Fabric::alone(Arena::new(&Ledger::new(1 << 20), 1 << 20)?);
    /// # let engine = Engine::simulated(fabric);
    /// # engine.block_on(async {
    /// # let group = engine.world().await?;
    ///
    /// let mine = [0.1, 0.2, 0.3, -0.6];
    /// let mut sums = [ExactSum::of(&mine)];
    /// group.all_reduce_sums(&mut sums).await?;
    /// assert_eq!(sums[0].value(), 2.7755575615628914e-17);
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn all_reduce_sums(
        &self,
        sums: &mut [ExactSum],
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async move {
            let mut words: Vec<_> = sums.iter().map(ExactSum::to_words).collect();
            self.all_reduce(&mut words, MergeExact).await?;
            for (sum, words) in sums.iter_mut().zip(&words) {
                *sum = ExactSum::from_words(words);
            }
            Ok(())
        })
    }
}

fn to_words(term: &f64) -> ExactWords {
    ExactSum::of(&[*term]).to_words()
}

fn from_words(words: &[ExactWords], data: &mut [f64]) {
    for (value, words) in data.iter_mut().zip(words) {
        *value = ExactSum::from_words(words).value();
    }
}

/// Each member sums up a slice, and sends it to those who need it.
async fn slices(call: &Call<'_>, data: &mut [f64], root: Option<usize>) -> Result<(), Error> {
    let (me, size, len) = (call.me(), call.size(), data.len());
    let others = || (me + 1..size).chain(0..me);
    for round in call.rounds::<f64>(len) {
        let data = &mut data[round];
        let part = |member: usize| parts_of(data.len(), size, member);
        for to in others() {
            call.send(to, 0, &data[part(to)]).await?;
        }
        let mine = part(me);
        let mut operands = Vec::with_capacity(size);
        for from in others() {
            operands.push(call.receive_exactly::<f64>(from, mine.len()).await?);
        }
        for (index, value) in data[mine.clone()].iter_mut().enumerate() {
            let mut sum = ExactSum::of(&[*value]);
            sum.extend(operands.iter().map(|operand| operand[index]));
            *value = sum.value();
        }
        let needs_all = root.is_none_or(|root| root == me);
        for to in others().filter(|&to| root.is_none_or(|root| root == to)) {
            call.send(to, 1, &data[mine.clone()]).await?;
        }
        for from in others().filter(|_| needs_all) {
            let part = parts_of(data.len(), size, from);
            call.receive_into(from, &mut data[part]).await?;
        }
    }
    Ok(())
}

const _: () = crate::element::check::<ExactWords>();

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// The same by another algorithm: a natural number of 2,200 bits for the terms of each sign, bit by bit.
    fn reference(terms: &[f64]) -> f64 {
        const BITS: usize = 2200;
        let mut total = [vec![0u32; BITS], vec![0u32; BITS]];
        for &term in terms {
            let bits = term.to_bits();
            let exponent = (bits >> 52 & 0x7ff) as usize;
            let mantissa = (bits & ((1 << 52) - 1)) | u64::from(exponent > 0) << 52;
            for bit in (0..53).filter(|bit| mantissa >> bit & 1 == 1) {
                total[(bits >> 63) as usize][exponent.max(1) - 1 + bit] += 1;
            }
        }
        for number in &mut total {
            for bit in 0..BITS - 1 {
                number[bit + 1] += number[bit] / 2;
                number[bit] %= 2;
            }
        }
        let [plus, minus] = &total;
        let is_negative = plus.iter().rev().lt(minus.iter().rev());
        let (large, small) = if is_negative {
            (minus, plus)
        } else {
            (plus, minus)
        };
        let mut difference = vec![0i64; BITS];
        for bit in 0..BITS {
            difference[bit] += i64::from(large[bit]) - i64::from(small[bit]);
            if difference[bit] < 0 {
                difference[bit] += 2;
                difference[bit + 1] -= 1;
            }
        }
        let Some(highest) = difference.iter().rposition(|&bit| bit == 1) else {
            return 0.0;
        };
        let lowest = highest.saturating_sub(52);
        let mut mantissa = (lowest..=highest)
            .rev()
            .fold(0, |value, bit| value * 2 + difference[bit] as u64);
        let is_half = lowest > 0 && difference[lowest - 1] == 1;
        let is_more = lowest > 1 && difference[..lowest - 1].contains(&1);
        if is_half && (is_more || mantissa % 2 == 1) {
            mantissa += 1;
        }
        // Exact steps: the mantissa has 53 bits, and the product is rounded only when it is too large.
        let mut value = mantissa as f64 * f64::from_bits(1);
        for _ in 0..lowest {
            value *= 2.0;
        }
        if is_negative { -value } else { value }
    }

    /// Floats of all sizes, many of them near each other.
    fn float() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<u64>()
                .prop_map(f64::from_bits)
                .prop_filter("a number", |value| value.is_finite()),
            (any::<i64>(), -40..40i32).prop_map(|(number, scale)| number as f64 * 2f64.powi(scale)),
            (any::<i32>(), -1074..-1000i32)
                .prop_map(|(number, scale)| f64::from(number) * 2f64.powi(scale)),
            (-3..=3i32).prop_map(f64::from),
            Just(f64::MAX),
            Just(-f64::MAX),
            Just(f64::MIN_POSITIVE),
            Just(f64::from_bits(1)),
        ]
    }

    proptest! {
        #[test]
        fn a_sum_is_rounded_once(terms in vec(float(), 0..40)) {
            prop_assert_eq!(ExactSum::of(&terms).value().to_bits(), reference(&terms).to_bits());
        }

        #[test]
        fn terms_that_cancel_leave_the_rest(
            mut terms in vec(float(), 0..40),
            rest in float(),
        ) {
            let minus: Vec<f64> = terms.iter().rev().map(|term| -term).collect();
            terms.push(rest);
            terms.extend(minus);
            let sum = ExactSum::of(&terms).value();
            prop_assert_eq!(sum.to_bits(), (rest + 0.0).to_bits());
        }

        #[test]
        fn the_order_and_the_groups_do_not_matter(
            terms in vec(float(), 1..200),
            parts in 1..17usize,
            turned in any::<prop::sample::Index>(),
        ) {
            let whole = ExactSum::of(&terms);
            let mut other = terms.clone();
            other.rotate_left(turned.index(terms.len()));
            let mut merged = [ExactSum::new().to_words()];
            for part in other.chunks(terms.len().div_ceil(parts)) {
                MergeExact.combine(&mut merged, &[ExactSum::of(part).to_words()]);
            }
            prop_assert_eq!(merged[0], whole.to_words());
            let mut sum = ExactSum::from_words(&merged[0]);
            prop_assert_eq!(sum.value().to_bits(), whole.value().to_bits());
            sum.merge(&whole);
            let twice: ExactSum = terms.iter().chain(&terms).copied().collect();
            prop_assert_eq!(sum, twice);
        }

        #[test]
        fn any_words_are_taken_in(words in vec(any::<i64>(), ExactSum::WORDS)) {
            let words = ExactWords::try_from(words).unwrap();
            let mut sum = ExactSum::from_words(&words);
            sum.add(1.0);
            MergeExact.combine(&mut [words], &[sum.to_words()]);
            let _ = sum.value();
        }
    }

    #[test]
    fn two_terms_give_what_the_processor_gives() {
        let some = [
            0.1,
            0.2,
            -0.3,
            1e300,
            -1e300,
            5e-324,
            1.0,
            f64::EPSILON / 2.0,
            f64::MAX,
        ];
        for a in some {
            for b in some {
                assert_eq!(ExactSum::of(&[a, b]).value(), a + b, "{a} + {b}");
            }
        }
    }

    #[test]
    fn ties_go_to_the_even_neighbour() {
        let ulp = f64::EPSILON;
        for (terms, sum) in [
            (&[1.0, ulp / 2.0][..], 1.0),
            (&[1.0 + ulp, ulp / 2.0], 1.0 + 2.0 * ulp),
            (&[1.0, ulp / 2.0, f64::from_bits(1)], 1.0 + ulp),
            (&[-1.0, -ulp / 2.0, -f64::from_bits(1)], -1.0 - ulp),
            (&[2.0, -ulp / 2.0], 2.0),
        ] {
            assert_eq!(ExactSum::of(terms).value(), sum, "{terms:?}");
        }
    }

    #[test]
    fn what_is_no_number_counts_as_in_ieee_754() {
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        for (terms, sum) in [
            (&[inf, 1.0][..], inf),
            (&[-1.0, -inf, -inf], -inf),
            (&[inf, -inf], nan),
            (&[nan, 1.0], nan),
            (&[f64::MAX, f64::MAX], inf),
            (&[-f64::MAX, -f64::MAX], -inf),
            (&[f64::MAX, f64::MAX, -f64::MAX], f64::MAX),
            (&[-0.0, -0.0], 0.0),
            (&[], 0.0),
        ] {
            let found = ExactSum::of(terms).value();
            assert_eq!(found.to_bits(), sum.to_bits(), "{terms:?}: {found}");
        }
        let mut sum = ExactSum::of(&[inf]);
        sum.merge(&ExactSum::of(&[-inf]));
        assert!(sum.value().is_nan());
    }

    #[test]
    fn many_terms_are_carried_in_time() {
        let mut sum = ExactSum::new();
        for _ in 0..1_000_000 {
            sum.add(f64::MAX);
        }
        for _ in 0..999_999 {
            sum.add(-f64::MAX);
        }
        assert_eq!(sum.value(), f64::MAX);
        let mut sum = ExactSum::new();
        sum.extend(std::iter::repeat_n(0.1, 1_000_000));
        // A million times the float next to a tenth, and not what a million additions give.
        assert_eq!(sum.value(), 100_000.0);
    }
}
