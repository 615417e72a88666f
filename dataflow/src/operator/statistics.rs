//! What is asked of many numbers: their moments and how they are spread.

use std::sync::Arc;

use crate::{
    Record,
    operator::aggregate::{Aggregate, Of},
    record,
};

record! {
    /// What is known of many numbers: [`Of::statistics`].
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct Statistics {
        /// How many there are.
        pub count: u64,
        /// Their mean; 0 if there are none.
        pub mean: f64,
        /// The mean of the squares of what they differ from their mean by: the variance, of all there are, not of a sample.
        pub variance: f64,
        /// The least; infinite if there are none.
        pub min: f64,
        /// The greatest; minus infinite if there are none.
        pub max: f64,
    }
}

impl Statistics {
    /// The square root of the variance.
    pub fn standard_deviation(&self) -> f64 {
        self.variance.sqrt()
    }

    /// The sum of the numbers.
    pub fn sum(&self) -> f64 {
        self.mean * self.count as f64
    }
}

impl<T: Record> Of<T> {
    /// Count, mean, variance, least and greatest of what `function` makes of each, at once. One number that is not a number makes
    /// mean and variance none. (The moments are those of Chan, Golub and LeVeque, "Updating formulae and a pairwise
    /// algorithm for computing sample variances", 1979, which lose no digits where the mean is large.)
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection(vec![2u64, 4, 6]).aggregate(|of| of.statistics(|n| n as f64)).first();
    /// let found = inline(&job)?.unwrap();
    /// assert_eq!((found.count, found.mean, found.min, found.max), (3, 4.0, 2.0, 6.0));
    /// assert!((found.variance - 8.0 / 3.0).abs() < 1e-12);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn statistics<F>(&self, function: F) -> Moments<F>
    where
        F: Fn(T::View<'_>) -> f64 + Clone + Send + Sync + 'static,
    {
        Moments(function)
    }

    /// How many of what `function` makes of each lie between `bounds`, which have to rise: the first count is of those below the
    /// first bound, the next of those from there to below the second, and so on; the last of those from the last bound on. What is not a number is counted nowhere.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection(vec![0.5, 1.0, 7.0, 3.0]).aggregate(|of| of.histogram(&[1.0, 5.0], |x| x));
    /// assert_eq!(inline(&job.first())?, Some(vec![1, 2, 1]));
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn histogram<F>(&self, bounds: &[f64], function: F) -> Histogram<F>
    where
        F: Fn(T::View<'_>) -> f64 + Clone + Send + Sync + 'static,
    {
        Histogram {
            bounds: bounds.into(),
            function,
        }
    }
}

/// Count, mean, sum of squared differences from it, least and greatest.
type State = (u64, f64, f64, f64, f64);

/// Makes [`Statistics`].
#[derive(Debug, Clone, Copy)]
pub struct Moments<F>(F);

impl<T, F> Aggregate<T> for Moments<F>
where
    T: Record,
    F: Fn(T::View<'_>) -> f64 + Clone + Send + Sync + 'static,
{
    type State = State;
    type Out = Statistics;

    fn start(&self) -> State {
        (0, 0.0, 0.0, f64::INFINITY, f64::NEG_INFINITY)
    }

    #[inline]
    fn add(&self, (count, mean, squares, min, max): &mut State, value: T::View<'_>) {
        let value = (self.0)(value);
        *count += 1;
        let from_old = value - *mean;
        *mean += from_old / *count as f64;
        *squares += from_old * (value - *mean);
        *min = min.min(value);
        *max = max.max(value);
    }

    fn merge(&self, state: &mut State, other: State) {
        if other.0 == 0 {
            return;
        }
        let (count, mean, squares, min, max) = state;
        let all = *count + other.0;
        let between = other.1 - *mean;
        let share = other.0 as f64 / all as f64;
        *squares += other.2 + between * between * *count as f64 * share;
        *mean += between * share;
        *count = all;
        *min = min.min(other.3);
        *max = max.max(other.4);
    }

    fn finish(&self, (count, mean, squares, min, max): State) -> Statistics {
        Statistics {
            count,
            mean,
            variance: squares / count.max(1) as f64,
            min,
            max,
        }
    }
}

/// Counts by intervals.
#[derive(Debug, Clone)]
pub struct Histogram<F> {
    bounds: Arc<[f64]>,
    function: F,
}

impl<T, F> Aggregate<T> for Histogram<F>
where
    T: Record,
    F: Fn(T::View<'_>) -> f64 + Clone + Send + Sync + 'static,
{
    type State = Vec<u64>;
    type Out = Vec<u64>;

    fn start(&self) -> Vec<u64> {
        vec![0; self.bounds.len() + 1]
    }

    #[inline]
    fn add(&self, counts: &mut Vec<u64>, value: T::View<'_>) {
        let value = (self.function)(value);
        if !value.is_nan() {
            counts[self.bounds.partition_point(|&bound| bound <= value)] += 1;
        }
    }

    fn merge(&self, counts: &mut Vec<u64>, other: <Vec<u64> as Record>::View<'_>) {
        for (count, more) in counts.iter_mut().zip(other.iter()) {
            *count += more;
        }
    }

    fn finish(&self, counts: Vec<u64>) -> Vec<u64> {
        counts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::{collection, simulate};

    proptest! {
        #[test]
        fn statistics_of_parts_are_those_of_the_whole(
            numbers in prop::collection::vec(-1e3..1e3, 0..100),
            offset in prop::sample::select(vec![0.0, 1e9]),
            (seed, size) in (any::<u64>(), 1u32..5),
        ) {
            let numbers: Vec<f64> = numbers.into_iter().map(|x: f64| x + offset).collect();
            let job = collection(numbers.clone()).aggregate(|of| of.statistics(|x| x)).first();
            let found = simulate(&job, seed, size, 1).unwrap().unwrap();
            let count = numbers.len().max(1) as f64;
            let mean = numbers.iter().map(|x| x - offset).sum::<f64>() / count;
            let squares: f64 = numbers.iter().map(|x| (x - offset - mean).powi(2)).sum();
            prop_assert_eq!(found.count, numbers.len() as u64);
            prop_assert!(numbers.is_empty() || (found.mean - offset - mean).abs() < 1e-6);
            prop_assert!((found.variance - squares / count).abs() < 1e-6 * (1.0 + squares));
            prop_assert_eq!(found.min, numbers.iter().copied().fold(f64::INFINITY, f64::min));
            prop_assert_eq!(found.max, numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        }
    }
}
