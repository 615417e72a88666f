//! Which of several sources is first, again and again.

/// A tree of losers (Knuth, "The Art of Computer Programming" 3, 5.4.1): each inner node remembers who lost
/// there, so that when the winner has moved on, one comparison a level finds the next.
///
/// It knows the sources by number only. Whoever asks compares them, and has those that are used up come last.
#[derive(Debug)]
pub(crate) struct LoserTree {
    /// At 0 the winner, and at each inner node from 1 on who lost there. The children of node `n` are `2n` and
    /// `2n + 1`, and the leaf of a source is its number and as many as there are sources.
    losers: Vec<u32>,
}

impl LoserTree {
    /// Has `sources` play against each other. `before` says whether the first comes before the second.
    pub(crate) fn new(sources: usize, mut before: impl FnMut(usize, usize) -> bool) -> Self {
        // Without any, the first is said to win, which is not there.
        let mut losers = vec![0; sources.max(1)];
        let mut winners = vec![0; sources];
        let winner_at = |winners: &[u32], node: usize| {
            if node >= sources {
                (node - sources) as u32
            } else {
                winners[node]
            }
        };
        for node in (1..sources).rev() {
            let (left, right) = (
                winner_at(&winners, 2 * node),
                winner_at(&winners, 2 * node + 1),
            );
            (winners[node], losers[node]) = if before(right as usize, left as usize) {
                (right, left)
            } else {
                (left, right)
            };
        }
        if sources > 0 {
            losers[0] = winner_at(&winners, 1);
        }
        Self { losers }
    }

    /// The source that is first.
    #[inline]
    pub(crate) fn winner(&self) -> usize {
        self.losers[0] as usize
    }

    /// Finds the first source again after the winner has moved on.
    #[inline]
    pub(crate) fn replay(&mut self, mut before: impl FnMut(usize, usize) -> bool) {
        let mut winner = self.losers[0];
        let mut node = (winner as usize + self.losers.len()) / 2;
        while node > 0 {
            let loser = self.losers[node];
            if before(loser as usize, winner as usize) {
                self.losers[node] = winner;
                winner = loser;
            }
            node /= 2;
        }
        self.losers[0] = winner;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_merges_as_a_stable_sort_does(
            mut runs in prop::collection::vec(prop::collection::vec(0u8..20, 0..30), 1..20),
        ) {
            for run in &mut runs {
                run.sort();
            }
            let mut expected: Vec<(u8, usize)> = Vec::new();
            for (number, run) in runs.iter().enumerate() {
                expected.extend(run.iter().map(|&value| (value, number)));
            }
            expected.sort_by_key(|&(value, _)| value);

            let mut heads = vec![0; runs.len()];
            let before = |heads: &[usize]| {
                let key = |run: usize| (runs[run].get(heads[run]).map_or(u8::MAX, |&value| value), run);
                let keys: Vec<_> = (0..runs.len()).map(key).collect();
                move |a: usize, b: usize| keys[a] < keys[b]
            };
            let mut tree = LoserTree::new(runs.len(), before(&heads));
            let mut merged = Vec::new();
            while let Some(&value) = runs[tree.winner()].get(heads[tree.winner()]) {
                merged.push((value, tree.winner()));
                heads[tree.winner()] += 1;
                tree.replay(before(&heads));
            }
            prop_assert_eq!(merged, expected);
        }
    }
}
