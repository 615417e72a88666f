//! Words that several ranks read and write at the same time, and copies between them and bytes of our own.
//!
//! # Invariant
//!
//! Exposed memory is touched in one way only, by whoever and on whatever path: as aligned words of eight
//! bytes, each an atomic. So no two accesses race in the sense of the language, which allows neither plain
//! accesses beside atomics nor atomics of different sizes, whatever peers do meanwhile. Bytes that do not
//! fill a word are merged into it by compare-and-swap, because the rest of it may be changing.
//!
//! A copy is relaxed (plain moves on every machine): it publishes nothing and may be seen in parts. What
//! publishes it is an atomic operation, or a message, that comes after it.
//!
//! Long copies move several words with one instruction, of a kind that the compiler never makes of atomics: it would
//! store eight bytes at a time, and whoever then loads sixteen or more of them waits until they have left the store buffer.

use std::{ptr::NonNull, rc::Rc, slice};

use crate::{
    arena::Mapping,
    sync::{AtomicU64, Ordering},
};

/// Bytes of a word.
pub(crate) const WORD_BYTES: usize = size_of::<u64>();

/// Exposed words of a mapped arena, ours or a peer's.
pub(crate) struct Words {
    start: NonNull<AtomicU64>,
    len: usize,
    /// Keeps them mapped.
    _mapping: Rc<Mapping>,
}

impl Words {
    /// The words at `offset` of the data of an arena; `None` if they are not whole or not in it.
    pub(crate) fn new(mapping: &Rc<Mapping>, offset: u64, bytes: u64) -> Option<Self> {
        let start = mapping.region().data(offset, bytes)?.cast::<AtomicU64>();
        let whole = bytes.is_multiple_of(WORD_BYTES as u64) && start.is_aligned();
        whole.then(|| Self {
            start,
            len: bytes as usize / WORD_BYTES,
            _mapping: mapping.clone(),
        })
    }

    /// All of them. While they are exposed, nobody in this process touches them in another way: the owner
    /// gave its loan up, and takes it back once no rank that has them mapped can touch them any more.
    #[inline]
    pub(crate) fn as_slice(&self) -> &[AtomicU64] {
        // SAFETY: the address was bounds-checked, is aligned, and stays mapped while `_mapping` lives; any
        // bits are a valid atomic; and by the contract above all other accesses are atomics of this size.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

/// How many of `bytes` bytes from `offset` on come before the first whole word.
fn before_words(offset: usize, bytes: usize) -> usize {
    (offset.next_multiple_of(WORD_BYTES) - offset).min(bytes)
}

/// Copies `bytes` to `offset` of `words`, which have to hold them.
#[inline]
pub(crate) fn store(words: &[AtomicU64], offset: usize, bytes: &[u8]) {
    let (head, rest) = bytes.split_at(before_words(offset, bytes.len()));
    let mut words = words[offset / WORD_BYTES..].iter();
    if !head.is_empty()
        && let Some(word) = words.next()
    {
        merge(word, offset % WORD_BYTES, head);
    }
    let lines = lines::store(words.as_slice(), rest);
    let mut words = words.skip(lines * lines::WORDS);
    let whole = rest[lines * lines::BYTES..].chunks_exact(WORD_BYTES);
    let tail = whole.remainder();
    for (chunk, word) in whole.zip(words.by_ref()) {
        let mut bytes = [0; WORD_BYTES];
        bytes.copy_from_slice(chunk);
        word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
    }
    if !tail.is_empty()
        && let Some(word) = words.next()
    {
        merge(word, 0, tail);
    }
}

/// Replaces the bytes of a word from `at` on, and leaves the others as they are at that moment.
fn merge(word: &AtomicU64, at: usize, bytes: &[u8]) {
    let (mut new, mut mask) = ([0; WORD_BYTES], [0; WORD_BYTES]);
    new[at..at + bytes.len()].copy_from_slice(bytes);
    mask[at..at + bytes.len()].fill(0xff);
    let (new, mask) = (u64::from_ne_bytes(new), u64::from_ne_bytes(mask));
    let mut old = word.load(Ordering::Relaxed);
    while let Err(now) =
        word.compare_exchange_weak(old, old & !mask | new, Ordering::Relaxed, Ordering::Relaxed)
    {
        old = now;
    }
}

/// Copies from `offset` of `words`, which have to hold so many, to `bytes`.
#[inline]
pub(crate) fn load(words: &[AtomicU64], offset: usize, bytes: &mut [u8]) {
    let (head, rest) = bytes.split_at_mut(before_words(offset, bytes.len()));
    let mut words = words[offset / WORD_BYTES..].iter();
    let bytes_of = |word: &AtomicU64| word.load(Ordering::Relaxed).to_ne_bytes();
    let start = offset % WORD_BYTES;
    if !head.is_empty()
        && let Some(word) = words.next()
    {
        head.copy_from_slice(&bytes_of(word)[start..start + head.len()]);
    }
    let lines = lines::load(words.as_slice(), rest);
    let mut words = words.skip(lines * lines::WORDS).map(bytes_of);
    let mut whole = rest[lines * lines::BYTES..].chunks_exact_mut(WORD_BYTES);
    for (chunk, word) in whole.by_ref().zip(words.by_ref()) {
        chunk.copy_from_slice(&word);
    }
    let tail = whole.into_remainder();
    if !tail.is_empty()
        && let Some(word) = words.next()
    {
        tail.copy_from_slice(&word[..tail.len()]);
    }
}

/// The same past the caches of this processor, as far as it goes.
#[inline]
pub(crate) fn load_streaming(words: &[AtomicU64], offset: usize, bytes: &mut [u8]) {
    let (head, rest) = bytes.split_at_mut(before_line(bytes));
    load(words, offset, head);
    let mut offset = offset + head.len();
    let mut streamed = 0;
    if offset.is_multiple_of(WORD_BYTES) {
        streamed = lines::stream(&words[offset / WORD_BYTES..], rest) * lines::BYTES;
        offset += streamed;
    }
    load(words, offset, &mut rest[streamed..]);
}

/// How many bytes come before the first line.
fn before_line(bytes: &[u8]) -> usize {
    bytes.as_ptr().align_offset(lines::BYTES).min(bytes.len())
}

/// Copies bytes to as many others past the caches of this processor, so that what is in them stays there: for copies that the
/// caches could not hold anyway, of which no line is fetched then to be written over. Where the processor has no such
/// stores, and at the ends, it is a copy as any other.
///
/// # Panics
///
/// If there are not as many bytes in both.
///
/// ```
/// let mut to = vec![0; 1000];
/// transport::copy_streaming(&mut to, &[7; 1000]);
/// assert_eq!(to, [7; 1000]);
/// ```
#[inline]
pub fn copy_streaming(to: &mut [u8], from: &[u8]) {
    assert_eq!(to.len(), from.len(), "a copy is as long as what is copied");
    let before = before_line(to);
    to[..before].copy_from_slice(&from[..before]);
    let (to, from) = (&mut to[before..], &from[before..]);
    let streamed = lines::stream_bytes(from, to) * lines::BYTES;
    to[streamed..].copy_from_slice(&from[streamed..]);
}

/// Copies of eight words at a time.
#[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
mod lines {
    use std::arch::{asm, x86_64::_mm_sfence};

    use super::{AtomicU64, WORD_BYTES};

    /// Words that are moved together, and their bytes.
    pub(super) const WORDS: usize = 8;
    pub(super) const BYTES: usize = WORDS * WORD_BYTES;

    /// Copies lines, at least one, by loads of 32 bytes and stores of a kind.
    macro_rules! copy_by {
        ($store:literal, $from:expr, $to:expr, $lines:expr) => {
            asm!(
                "2:",
                "vmovdqu ymm0, [{from}]",
                "vmovdqu ymm1, [{from} + 32]",
                concat!($store, " [{to}], ymm0"),
                concat!($store, " [{to} + 32], ymm1"),
                "add {from}, 64",
                "add {to}, 64",
                "dec {lines}",
                "jnz 2b",
                "vzeroupper",
                from = inout(reg) $from => _,
                to = inout(reg) $to => _,
                lines = inout(reg) $lines => _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nostack),
            )
        };
    }

    /// Copies the first bytes to the first words, as many lines of both as there are. How many these are.
    #[inline]
    pub(super) fn store(words: &[AtomicU64], bytes: &[u8]) -> usize {
        let lines = (words.len() / WORDS).min(bytes.len() / BYTES);
        let words = words.as_ptr().cast::<u8>().cast_mut();
        // SAFETY: so many lines may be read, and as many words, which may be written through a shared reference, written.
        unsafe { copy(bytes.as_ptr(), words, lines) };
        lines
    }

    /// Copies the first words to the first bytes in the same way.
    #[inline]
    pub(super) fn load(words: &[AtomicU64], bytes: &mut [u8]) -> usize {
        let lines = (words.len() / WORDS).min(bytes.len() / BYTES);
        // SAFETY: so many lines may be read, and as many bytes written.
        unsafe { copy(words.as_ptr().cast(), bytes.as_mut_ptr(), lines) };
        lines
    }

    /// Copies the first words past the caches to the first bytes. How many lines these are: none if the bytes do not begin
    /// with a line, or the processor cannot.
    #[inline]
    pub(super) fn stream(words: &[AtomicU64], bytes: &mut [u8]) -> usize {
        let lines = (words.len() / WORDS).min(bytes.len() / BYTES);
        // SAFETY: so many lines may be read, and as many bytes written.
        unsafe { copy_past_caches(words.as_ptr().cast(), bytes.as_mut_ptr(), lines) }
    }

    /// Copies the first bytes in the same way.
    #[inline]
    pub(super) fn stream_bytes(from: &[u8], to: &mut [u8]) -> usize {
        let lines = from.len().min(to.len()) / BYTES;
        // SAFETY: so many lines may be read, and as many written.
        unsafe { copy_past_caches(from.as_ptr(), to.as_mut_ptr(), lines) }
    }

    /// Copies lines by streaming stores; how many.
    ///
    /// # Safety
    ///
    /// As for [`copy`]; nobody else may look at what is written before this returns.
    #[inline]
    unsafe fn copy_past_caches(from: *const u8, to: *mut u8, lines: usize) -> usize {
        if lines == 0 || to.align_offset(BYTES) != 0 || !is_x86_feature_detected!("avx") {
            return 0;
        }
        // SAFETY: the processor has these instructions, and `to` is aligned as they demand; the rest is the contract.
        unsafe { copy_by!("vmovntdq", from, to, lines) };
        // SAFETY: every processor of this kind has it. Other stores are not ordered after such stores by themselves, as the
        // language expects them to be: the fence orders them.
        unsafe { _mm_sfence() };
        lines
    }

    /// Copies lines.
    ///
    /// # Safety
    ///
    /// So many lines of `from` may be read, and of `to` written. One of the two may be words that others access meanwhile, as
    /// aligned words: to the language this is a relaxed load and a relaxed store of each word, which is what
    /// processors make of it. They move at least eight aligned bytes as a whole, by whatever instruction.
    #[inline]
    unsafe fn copy(from: *const u8, to: *mut u8, lines: usize) {
        if lines == 0 {
            return;
        }
        if is_x86_feature_detected!("avx") {
            // SAFETY: the processor has these instructions; the rest is the contract of this function.
            unsafe { copy_by!("vmovdqu", from, to, lines) };
        } else {
            // SAFETY: as above; every processor of this kind has these instructions.
            unsafe {
                asm!(
                    "2:",
                    "movdqu xmm0, [{from}]",
                    "movdqu xmm1, [{from} + 16]",
                    "movdqu xmm2, [{from} + 32]",
                    "movdqu xmm3, [{from} + 48]",
                    "movdqu [{to}], xmm0",
                    "movdqu [{to} + 16], xmm1",
                    "movdqu [{to} + 32], xmm2",
                    "movdqu [{to} + 48], xmm3",
                    "add {from}, 64",
                    "add {to}, 64",
                    "dec {lines}",
                    "jnz 2b",
                    from = inout(reg) from => _,
                    to = inout(reg) to => _,
                    lines = inout(reg) lines => _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                    options(nostack),
                );
            }
        }
    }
}

/// None here: all is copied word by word.
#[cfg(not(all(target_arch = "x86_64", not(any(loom, miri)))))]
mod lines {
    use super::AtomicU64;

    pub(super) const WORDS: usize = 8;
    pub(super) const BYTES: usize = 64;

    pub(super) fn store(_: &[AtomicU64], _: &[u8]) -> usize {
        0
    }

    pub(super) fn load(_: &[AtomicU64], _: &mut [u8]) -> usize {
        0
    }

    pub(super) fn stream(_: &[AtomicU64], _: &mut [u8]) -> usize {
        0
    }

    pub(super) fn stream_bytes(_: &[u8], _: &mut [u8]) -> usize {
        0
    }
}

/// Adds to a word and returns what it was. It publishes what its rank wrote before, to whoever sees its
/// result, and sees what others published so.
#[inline]
pub(crate) fn fetch_add(word: &AtomicU64, value: u64) -> u64 {
    word.fetch_add(value, Ordering::AcqRel)
}

/// Replaces a word if it is `expected`, and returns what it was. It publishes, and sees, as [`fetch_add`].
#[inline]
pub(crate) fn compare_swap(word: &AtomicU64, expected: u64, new: u64) -> u64 {
    let swapping = Ordering::AcqRel;
    let failing = Ordering::Acquire;
    match word.compare_exchange(expected, new, swapping, failing) {
        Ok(old) | Err(old) => old,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BYTES: usize = 240;

    fn bytes_of(words: &[AtomicU64]) -> Vec<u8> {
        let mut bytes = vec![0; words.len() * WORD_BYTES];
        load(words, 0, &mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn copies_touch_the_bytes_they_name_and_no_others(
            before in prop::collection::vec(any::<u8>(), BYTES),
            (offset, bytes) in (0..=BYTES).prop_flat_map(|offset| {
                (Just(offset), prop::collection::vec(any::<u8>(), 0..=BYTES - offset))
            }),
        ) {
            let words: Vec<_> = (0..BYTES / WORD_BYTES).map(|_| AtomicU64::new(0)).collect();
            store(&words, 0, &before);
            prop_assert_eq!(bytes_of(&words), &before[..]);
            store(&words, offset, &bytes);
            let mut model = before;
            model[offset..offset + bytes.len()].copy_from_slice(&bytes);
            prop_assert_eq!(bytes_of(&words), model);
            for streaming in [false, true] {
                // Wherever the bytes lie within their line.
                let at = offset.min(BYTES - bytes.len());
                let mut back = vec![1; BYTES];
                let into = &mut back[at..at + bytes.len()];
                match streaming {
                    false => load(&words, offset, into),
                    true => load_streaming(&words, offset, into),
                }
                let mut model = vec![1; BYTES];
                model[at..at + bytes.len()].copy_from_slice(&bytes);
                prop_assert_eq!(&back, &model);
            }
        }

        #[test]
        fn streaming_copies_touch_what_they_are_given_and_nothing_beside_it(
            from in prop::collection::vec(any::<u8>(), 0..=BYTES),
            at in 0..=64_usize,
        ) {
            let mut all = vec![1; BYTES + 128];
            copy_streaming(&mut all[at..at + from.len()], &from);
            prop_assert!(all[..at].iter().chain(&all[at + from.len()..]).all(|byte| *byte == 1));
            prop_assert_eq!(&all[at..at + from.len()], &from[..]);
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{cell::UnsafeCell, sync::Arc, thread};

    use super::*;

    /// Exposed memory of one word, and a cell beside it that stands for the words of a copy: loom tells of
    /// cells, and not of relaxed atomics, when an access is not ordered after another.
    struct Memory {
        word: AtomicU64,
        copied: UnsafeCell<u32>,
    }

    // SAFETY: `copied` is only touched by the protocol under test; loom checks every access.
    unsafe impl Sync for Memory {}

    /// One thread puts and then does `publish`; another, whose look at the word `sees` that, has to see what was put.
    fn publishes(publish: fn(&AtomicU64), sees: fn(&AtomicU64) -> bool) {
        loom::model(move || {
            let memory = Arc::new(Memory {
                word: AtomicU64::new(0),
                copied: UnsafeCell::new(0),
            });
            let putter = {
                let memory = memory.clone();
                thread::spawn(move || {
                    memory.copied.with_mut(|copied| {
                        // SAFETY: loom fails the model if another thread touches it now.
                        unsafe { *copied = 7 };
                    });
                    publish(&memory.word);
                })
            };
            if sees(&memory.word) {
                let copied = memory.copied.with(|copied| {
                    // SAFETY: as above.
                    unsafe { *copied }
                });
                assert_eq!(copied, 7);
            }
            putter.join().unwrap();
        });
    }

    #[test]
    fn whoever_sees_an_addition_sees_what_was_put_before_it() {
        publishes(
            |word| assert_eq!(fetch_add(word, 1), 0),
            |word| fetch_add(word, 0) == 1,
        );
    }

    #[test]
    fn whoever_swaps_after_another_sees_what_it_put() {
        publishes(
            |word| assert_eq!(compare_swap(word, 0, 1), 0),
            |word| compare_swap(word, 1, 2) == 1,
        );
    }

    #[test]
    fn whoever_fails_to_swap_sees_what_was_put_before_the_word_changed() {
        publishes(
            |word| assert_eq!(fetch_add(word, 1), 0),
            |word| compare_swap(word, 9, 9) == 1,
        );
    }

    #[test]
    fn two_who_put_into_one_word_keep_each_others_bytes() {
        loom::model(|| {
            let words = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
            let other = {
                let words = words.clone();
                thread::spawn(move || store(&*words, 0, &[1; 3]))
            };
            store(&*words, 3, &[2; 8]);
            other.join().unwrap();
            let mut bytes = [0; 16];
            load(&*words, 0, &mut bytes);
            assert_eq!(bytes, [1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0]);
        });
    }
}
