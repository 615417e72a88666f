//! Stochastic gradient descent on the ratings of some users of some items.

/// Factors that are multiplied beside one another: vectors of factors are padded with zeros to a multiple of this.
pub(crate) const LANES: usize = 8;

/// What a user thinks of an item; both are numbered among those whose factors lie together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rating {
    pub(crate) user: u32,
    pub(crate) item: u32,
    pub(crate) value: f32,
}

/// How factors approach the ratings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descent {
    /// Factors of a user or an item, with their padding.
    pub(crate) factors: usize,
    /// How far a step goes.
    pub(crate) rate: f32,
    /// How strongly factors are drawn to zero.
    pub(crate) regularization: f32,
}

impl Descent {
    /// A step for each rating, in this order.
    pub(crate) fn train(&self, ratings: &[Rating], users: &mut [f32], items: &mut [f32]) {
        let (rate, regularization) = (self.rate, self.regularization);
        for rating in ratings {
            let user = &mut users[rating.user as usize * self.factors..][..self.factors];
            let item = &mut items[rating.item as usize * self.factors..][..self.factors];
            let error = rating.value - dot(user, item);
            for (w, h) in user.iter_mut().zip(item) {
                let (old_w, old_h) = (*w, *h);
                *w += rate * (error * old_h - regularization * old_w);
                *h += rate * (error * old_w - regularization * old_h);
            }
        }
    }

    /// The sum of the squares of the errors.
    pub(crate) fn square_error(&self, ratings: &[Rating], users: &[f32], items: &[f32]) -> f64 {
        let square = |rating: &Rating| {
            let user = &users[rating.user as usize * self.factors..][..self.factors];
            let item = &items[rating.item as usize * self.factors..][..self.factors];
            f64::from(rating.value - dot(user, item)).powi(2)
        };
        ratings.iter().map(square).sum()
    }
}

#[inline]
fn dot(one: &[f32], other: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    for (one, other) in one.chunks_exact(LANES).zip(other.chunks_exact(LANES)) {
        for ((sum, a), b) in sums.iter_mut().zip(one).zip(other) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}
