//! Groups whose members have neighbours: on a grid, or in any graph.
//!
//! A [`Cartesian`] or a [`Graph`] is a plain value that says who is next to whom. A group makes [`Neighbours`] of it, those of
//! this member, once all have agreed; and its operations with `neighbour` in their name go along them. So does MPI in its
//! chapters on process topologies and neighbourhood collectives.

use crate::{Element, Error, Group, Operation, Parts, call::Call, fate::Signature, op::Min};

use transport::{Buffer, Loan};

/// A dimension of a [`Cartesian`] grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dimension {
    /// Members along it.
    pub len: usize,
    /// Whether the last is next to the first.
    pub is_periodic: bool,
}

/// A grid of any number of dimensions, on which members have coordinates. The last dimension is that of members that
/// follow one another.
///
/// ```
/// use collectives::{Cartesian, Dimension};
///
/// let grid = Cartesian::new(&[
///     Dimension { len: 2, is_periodic: false },
///     Dimension { len: 3, is_periodic: true },
/// ]);
/// assert_eq!(grid.coordinates(4), Some(vec![1, 1]));
/// assert_eq!(grid.member(&[1, -1]), Some(5));
/// assert_eq!(grid.member(&[2, 0]), None);
/// // Who shifts its data by one to it along the first dimension, and to whom it shifts its own.
/// assert_eq!(grid.shift(4, 0, 1), (Some(1), None));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cartesian {
    dimensions: Vec<Dimension>,
}

impl Cartesian {
    /// A grid with these dimensions.
    pub fn new(dimensions: &[Dimension]) -> Self {
        Self {
            dimensions: dimensions.to_vec(),
        }
    }

    /// A grid for `members` members with as many dimensions as `periodic` has elements, which are as long as
    /// [`balanced_dims`] says.
    ///
    /// # Errors
    ///
    /// As [`balanced_dims`].
    pub fn balanced(members: usize, periodic: &[bool]) -> Result<Self, Error> {
        let mut lens = vec![0; periodic.len()];
        balanced_dims(members, &mut lens)?;
        let dimensions = (lens.into_iter().zip(periodic))
            .map(|(len, &is_periodic)| Dimension { len, is_periodic })
            .collect();
        Ok(Self { dimensions })
    }

    /// Its dimensions.
    pub fn dimensions(&self) -> &[Dimension] {
        &self.dimensions
    }

    /// Members on it.
    pub fn size(&self) -> usize {
        let lens = self.dimensions.iter().map(|dimension| dimension.len);
        lens.fold(1, usize::saturating_mul)
    }

    /// Where a member is; `None` for one that is not on the grid.
    pub fn coordinates(&self, member: usize) -> Option<Vec<usize>> {
        if member >= self.size() {
            return None;
        }
        let mut rest = member;
        let mut coordinates = vec![0; self.dimensions.len()];
        for (coordinate, dimension) in coordinates.iter_mut().zip(&self.dimensions).rev() {
            (*coordinate, rest) = (rest % dimension.len, rest / dimension.len);
        }
        Some(coordinates)
    }

    /// Who is at `coordinates`, which go round where the grid does; `None` if that is off the grid, or there are not as
    /// many coordinates as dimensions.
    pub fn member(&self, coordinates: &[isize]) -> Option<usize> {
        if coordinates.len() != self.dimensions.len() || self.size() == 0 {
            return None;
        }
        let mut member = 0;
        for (&coordinate, dimension) in coordinates.iter().zip(&self.dimensions) {
            let len = isize::try_from(dimension.len).ok()?;
            let coordinate = match dimension.is_periodic {
                true => coordinate.rem_euclid(len),
                false => coordinate,
            };
            let within = usize::try_from(coordinate).ok();
            member = member * dimension.len + within.filter(|&within| within < dimension.len)?;
        }
        Some(member)
    }

    /// Whom a member hears from, and whom it tells, when all shift what they have by `by` along a dimension. `None`
    /// off the grid.
    pub fn shift(
        &self,
        member: usize,
        dimension: usize,
        by: isize,
    ) -> (Option<usize>, Option<usize>) {
        let at = |by: Option<isize>| {
            let mut coordinates: Vec<isize> = (self.coordinates(member)?.into_iter())
                .map(usize::cast_signed)
                .collect();
            let coordinate = coordinates.get_mut(dimension)?;
            *coordinate = coordinate.checked_add(by?)?;
            self.member(&coordinates)
        };
        (at(by.checked_neg()), at(Some(by)))
    }
}

/// Fills in the dimensions that are 0, so that the product of all is `members` and the ones filled in are as near to each
/// other as they can be, the largest first: the least possible largest, then the least possible second, and so on
/// (`MPI_Dims_create`, as specified by Träff, Lübbe: "Specification guideline violations by MPI_Dims_create", EuroMPI 2015).
///
/// ```
/// let mut dims = [0, 3, 0];
/// collectives::balanced_dims(24, &mut dims)?;
/// assert_eq!(dims, [4, 3, 2]);
/// # Ok::<(), collectives::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Argument`] when `members` is no multiple of those given, or nothing is 0 and their product is not `members`.
pub fn balanced_dims(members: usize, dims: &mut [usize]) -> Result<(), Error> {
    let given =
        (dims.iter().filter(|&&len| len > 0)).try_fold(1usize, |all, &len| all.checked_mul(len));
    let count = dims.iter().filter(|&&len| len == 0).count();
    let factors = given
        .filter(|&given| members > 0 && members.is_multiple_of(given))
        .and_then(|given| factors(members / given, count, members));
    let Some(factors) = factors else {
        return Err(Error::Argument {
            call: "balanced_dims",
            reason: format!("{members} members do not fill a grid of {dims:?}"),
        });
    };
    let open = dims.iter_mut().filter(|len| **len == 0);
    open.zip(factors).for_each(|(len, factor)| *len = factor);
    Ok(())
}

/// `count` numbers, none larger than the one before it or than `most`, whose product is `number`: of all ways the one
/// whose first is least, and then whose second is, and so on.
fn factors(number: usize, count: usize, most: usize) -> Option<Vec<usize>> {
    if count == 0 {
        return (number == 1).then(Vec::new);
    }
    let is_enough = |largest: usize| {
        let mut product = 1u128;
        (0..count).any(|_| {
            product = product.saturating_mul(largest as u128);
            product >= number as u128
        })
    };
    divisors(number)
        .filter(|&largest| largest <= most && is_enough(largest))
        .find_map(|largest| {
            let mut found = factors(number / largest, count - 1, largest)?;
            found.insert(0, largest);
            Some(found)
        })
}

/// In rising order.
fn divisors(number: usize) -> impl Iterator<Item = usize> {
    let small = (1..).take_while(move |divisor: &usize| {
        divisor
            .checked_mul(*divisor)
            .is_some_and(|square| square <= number)
    });
    let small: Vec<usize> = small
        .filter(|&divisor| number.is_multiple_of(divisor))
        .collect();
    let large: Vec<usize> = (small.iter().rev().map(|divisor| number / divisor))
        .filter(|divisor| !small.contains(divisor))
        .collect();
    small.into_iter().chain(large)
}

/// Who sends to whom, edge by edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph {
    targets: Vec<Vec<usize>>,
}

impl Graph {
    /// A graph in which member *m* sends to each of `targets[m]`, in this order. Edges can be there twice, and lead back to
    /// where they come from.
    pub fn new(targets: Vec<Vec<usize>>) -> Self {
        Self { targets }
    }

    /// Members in it.
    pub fn size(&self) -> usize {
        self.targets.len()
    }

    /// Whom a member sends to.
    pub fn targets(&self, member: usize) -> &[usize] {
        self.targets.get(member).map_or(&[], Vec::as_slice)
    }

    /// Whom a member hears from, in the order of the members.
    pub fn sources(&self, member: usize) -> Vec<usize> {
        let edges = self.targets.iter().enumerate();
        edges
            .flat_map(|(from, targets)| {
                let ours = targets.iter().filter(move |&&to| to == member);
                ours.map(move |_| from)
            })
            .collect()
    }
}

/// The neighbours of this member, as all members of a group have agreed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbours {
    /// Members of the group.
    size: usize,
    sources: Vec<Option<usize>>,
    targets: Vec<Option<usize>>,
    /// Places of `sources`, so that messages on several edges from one member are taken as it sends them.
    arrivals: Vec<usize>,
}

impl Neighbours {
    /// Whom this member hears from. On a grid there are two places for each dimension, first the neighbour in negative
    /// direction, then the one in positive direction; `None` off the grid.
    pub fn sources(&self) -> &[Option<usize>] {
        &self.sources
    }

    /// Whom it sends to, likewise.
    pub fn targets(&self) -> &[Option<usize>] {
        &self.targets
    }

    fn to(&self) -> impl Iterator<Item = (usize, usize)> {
        let places = self.targets.iter().enumerate();
        places.filter_map(|(place, to)| Some((place, (*to)?)))
    }

    /// Places of sources and who is there, in the order in which messages are to be taken.
    fn from(&self) -> impl Iterator<Item = (usize, usize)> {
        let places = self.arrivals.iter();
        places.filter_map(|&place| Some((place, self.sources[place]?)))
    }
}

impl Group {
    /// The neighbours of this member on a grid, on which each member has to have a place. All have to call it with the same
    /// grid.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when the grid is of another size; as [`adjacent`](Self::adjacent).
    pub fn cartesian(
        &self,
        grid: &Cartesian,
    ) -> Operation<'_, impl Future<Output = Result<Neighbours, Error>>> {
        let size = grid.size();
        let shifts: Vec<_> = (0..grid.dimensions.len())
            .map(|dimension| grid.shift(self.rank(), dimension, 1))
            .collect();
        self.operation(async move {
            self.check_topology("cartesian", size)?;
            let both: Vec<_> = shifts
                .into_iter()
                .flat_map(|(low, high)| [low, high])
                .collect();
            let neighbours = Neighbours {
                size,
                // What the one above sends down comes first: so it does if both are the same.
                arrivals: (0..both.len()).map(|place| place ^ 1).collect(),
                sources: both.clone(),
                targets: both,
            };
            self.agree_on("cartesian", neighbours).await
        })
    }

    /// The neighbours of this member in a graph, in which each member has to have a place. All have to call it with the same
    /// graph.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when the graph is of another size or names members that do not exist; as
    /// [`adjacent`](Self::adjacent).
    pub fn graph(
        &self,
        graph: &Graph,
    ) -> Operation<'_, impl Future<Output = Result<Neighbours, Error>>> {
        let size = graph.size();
        let (sources, targets) = (
            graph.sources(self.rank()),
            graph.targets(self.rank()).to_vec(),
        );
        self.operation(async move {
            self.check_topology("graph", size)?;
            self.adjacent(&sources, &targets).await
        })
    }

    /// The neighbours of this member, each of which names its own: it hears from `sources` and sends to `targets`. Members can
    /// be named more than once.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`], at all members, when one sends to another that does not hear from it as often; or for members
    /// that do not exist. See [`Error`].
    pub fn adjacent(
        &self,
        sources: &[usize],
        targets: &[usize],
    ) -> Operation<'_, impl Future<Output = Result<Neighbours, Error>>> {
        let neighbours = Neighbours {
            size: self.size(),
            sources: sources.iter().copied().map(Some).collect(),
            targets: targets.iter().copied().map(Some).collect(),
            arrivals: (0..sources.len()).collect(),
        };
        self.operation(async move {
            for (_, member) in neighbours.to().chain(neighbours.from()) {
                self.check_member("adjacent", member)?;
            }
            self.agree_on("adjacent", neighbours).await
        })
    }

    fn check_topology(&self, call: &'static str, size: usize) -> Result<(), Error> {
        if size == self.size() {
            return Ok(());
        }
        let reason = format!(
            "{size} places are not one for each of {} members",
            self.size()
        );
        Err(self.argument(call, reason))
    }

    /// Makes sure that whoever sends is heard, and whoever listens is told, as often.
    async fn agree_on(
        &self,
        call: &'static str,
        neighbours: Neighbours,
    ) -> Result<Neighbours, Error> {
        let size = self.size();
        let mut told = vec![0u64; size];
        neighbours.to().for_each(|(_, to)| told[to] += 1);
        let mut heard = vec![0u64; size];
        self.all_to_all(&told, &mut heard).await?;
        neighbours
            .from()
            .for_each(|(_, from)| heard[from] = heard[from].wrapping_sub(1));
        let wrong = heard.iter().position(|&missed| missed != 0);
        let mut first = [wrong.map_or(u64::MAX, |from| (self.rank() * size + from) as u64)];
        self.all_reduce(&mut first, Min).await?;
        if first[0] == u64::MAX {
            return Ok(neighbours);
        }
        let (to, from) = (first[0] as usize / size, first[0] as usize % size);
        let reason = format!("member {from} does not send to member {to} as often as that says");
        Err(self.argument(call, reason))
    }

    /// Gives each member the vectors `mine` of those it hears from, all as long as `mine`: the block of `all` at the place of
    /// each. Blocks off the grid stay as they are.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when `all` has not a block for each place; see [`Error`].
    pub fn neighbour_all_gather<T: Element>(
        &self,
        neighbours: &Neighbours,
        mine: &[T],
        all: &mut [T],
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async move {
            let len = mine.len();
            self.check_places(neighbours, neighbours.sources.len(), len, all.len())?;
            let signature = Signature::of::<T>("neighbour_all_gather", None);
            let call = self.begin(signature).await?;
            let result = gather(&call, neighbours, mine, all).await;
            call.end(result)
        })
    }

    /// Gives each member it sends to the block of `data` at its place, and takes the blocks of those it hears from to theirs
    /// in `into`. All blocks of all members have the same length, and those off the grid stay as they are.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when there is not a block for each place; see [`Error`].
    pub fn neighbour_all_to_all<T: Element>(
        &self,
        neighbours: &Neighbours,
        data: &[T],
        into: &mut [T],
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async move {
            let places = [neighbours.targets.len(), neighbours.sources.len()];
            let len = match places {
                [0, 0] => 0,
                [0, sources] => into.len() / sources,
                [targets, _] => data.len() / targets,
            };
            self.check_places(neighbours, places[0], len, data.len())?;
            self.check_places(neighbours, places[1], len, into.len())?;
            let signature = Signature::of::<T>("neighbour_all_to_all", None);
            let call = self.begin(signature).await?;
            let result = exchange(&call, neighbours, len, data, into).await;
            call.end(result)
        })
    }

    /// The same with a part of any length for each place: the part off the grid is not sent, and what comes from there is
    /// empty.
    ///
    /// # Errors
    ///
    /// As [`neighbour_all_to_all`](Self::neighbour_all_to_all).
    pub fn neighbour_all_to_all_v<T: Element>(
        &self,
        neighbours: &Neighbours,
        parts: &[&[T]],
    ) -> Operation<'_, impl Future<Output = Result<Parts<T>, Error>>> {
        self.operation(async move {
            self.check_places(neighbours, neighbours.targets.len(), 1, parts.len())?;
            let signature = Signature::of::<T>("neighbour_all_to_all_v", None);
            let call = self.begin(signature).await?;
            let result = varied(&call, neighbours, parts).await;
            call.end(result)
        })
    }

    /// Sends the loan at each place to the neighbour there, and gives what those it hears from have sent, at their places:
    /// on shared memory nothing is copied. A neighbour for which there is no loan gets an empty buffer; a loan
    /// off the grid is dropped, and nothing comes from there.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when there is not one for each place; see [`Error`].
    pub fn neighbour_exchange(
        &self,
        neighbours: &Neighbours,
        loans: Vec<Option<Loan>>,
    ) -> Operation<'_, impl Future<Output = Result<Vec<Option<Buffer>>, Error>>> {
        self.operation(async move {
            self.check_places(neighbours, neighbours.targets.len(), 1, loans.len())?;
            let call = self.begin(Signature::new("neighbour_exchange")).await?;
            let result = exchange_buffers(&call, neighbours, loans).await;
            call.end(result)
        })
    }

    fn check_places(
        &self,
        neighbours: &Neighbours,
        places: usize,
        block: usize,
        len: usize,
    ) -> Result<(), Error> {
        let reason = if neighbours.size != self.size() {
            "these are neighbours in another group".to_owned()
        } else if len != places * block {
            format!("{len} elements are not {places} blocks of {block}")
        } else {
            return Ok(());
        };
        Err(self.argument("neighbour exchange", reason))
    }
}

/// One vector for all, a segment at a time.
async fn gather<T: Element>(
    call: &Call<'_>,
    neighbours: &Neighbours,
    mine: &[T],
    all: &mut [T],
) -> Result<(), Error> {
    let len = mine.len();
    for segment in call.segments::<T>(len) {
        let message = call.message(0, &mine[segment.clone()]).await?;
        for (_, to) in neighbours.to() {
            call.give_in_turn(to, message.clone()).await?;
        }
        for (place, from) in neighbours.from() {
            let block = &mut all[place * len..(place + 1) * len];
            call.receive_into(from, &mut block[segment.clone()]).await?;
        }
    }
    Ok(())
}

/// A block of `len` elements for each, a segment of all at a time.
async fn exchange<T: Element>(
    call: &Call<'_>,
    neighbours: &Neighbours,
    len: usize,
    data: &[T],
    into: &mut [T],
) -> Result<(), Error> {
    for segment in call.segments::<T>(len) {
        let of = |place: usize| place * len + segment.start..place * len + segment.end;
        for (place, to) in neighbours.to() {
            call.send(to, 0, &data[of(place)]).await?;
        }
        for (place, from) in neighbours.from() {
            call.receive_into(from, &mut into[of(place)]).await?;
        }
    }
    Ok(())
}

/// A part for each, after its length.
async fn varied<T: Element>(
    call: &Call<'_>,
    neighbours: &Neighbours,
    parts: &[&[T]],
) -> Result<Parts<T>, Error> {
    for (place, to) in neighbours.to() {
        call.send(to, 0, &[parts[place].len() as u64]).await?;
    }
    let mut lens = vec![0; neighbours.sources.len()];
    for (place, from) in neighbours.from() {
        lens[place] = call.receive_exactly::<u64>(from, 1).await?[0] as usize;
    }
    let mut into = Parts::with_lens(lens.iter().copied());
    let ours = neighbours.to().map(|(place, _)| parts[place].len());
    let longest = ours.chain(lens).max().unwrap_or(0);
    for segment in call.segments::<T>(longest) {
        let within = |len: usize| segment.start.min(len)..segment.end.min(len);
        for (place, to) in neighbours.to() {
            let range = within(parts[place].len());
            if !range.is_empty() {
                call.send(to, 1, &parts[place][range]).await?;
            }
        }
        for (place, from) in neighbours.from() {
            let part = into.part_mut(place);
            let range = within(part.len());
            if !range.is_empty() {
                call.receive_into(from, &mut part[range]).await?;
            }
        }
    }
    Ok(into)
}

async fn exchange_buffers(
    call: &Call<'_>,
    neighbours: &Neighbours,
    mut loans: Vec<Option<Loan>>,
) -> Result<Vec<Option<Buffer>>, Error> {
    for (place, to) in neighbours.to() {
        let message = match loans[place].take() {
            Some(loan) => call.seal(loan),
            None => call.message::<u8>(0, &[]).await?,
        };
        call.give(to, message)?;
    }
    drop(loans);
    let mut all = vec![None; neighbours.sources.len()];
    for (place, from) in neighbours.from() {
        all[place] = Some(call.receive(from).await?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same, of all factorisations there are.
    fn best(number: usize, count: usize) -> Vec<usize> {
        let mut all = vec![vec![]];
        for _ in 0..count {
            let longer = all.iter().flat_map(|some: &Vec<usize>| {
                (1..=number).map(move |next| [&some[..], &[next]].concat())
            });
            all = longer
                .filter(|some| number.is_multiple_of(some.iter().product()))
                .collect();
        }
        all.retain(|some| {
            some.iter().product::<usize>() == number && some.is_sorted_by(|a, b| a >= b)
        });
        all.sort();
        all.swap_remove(0)
    }

    #[test]
    fn dims_are_as_near_to_each_other_as_they_can_be() {
        for members in 1..=64 {
            for count in 1..=4 {
                let mut dims = vec![0; count];
                balanced_dims(members, &mut dims).unwrap();
                assert_eq!(dims, best(members, count), "{members} in {count}");
            }
        }
        let mut dims = [0; 3];
        balanced_dims(1 << 30, &mut dims).unwrap();
        assert_eq!(dims, [1 << 10; 3]);
        let mut dims = [2, 0, 5, 0];
        balanced_dims(120, &mut dims).unwrap();
        assert_eq!(dims, [2, 4, 5, 3]);
    }

    #[test]
    fn dims_that_cannot_be_are_refused() {
        for (members, mut dims) in [(6, [4, 0]), (6, [2, 2]), (0, [0, 0]), (6, [usize::MAX, 2])] {
            let error = balanced_dims(members, &mut dims).unwrap_err();
            assert!(matches!(error, Error::Argument { .. }), "{error}");
        }
        assert!(balanced_dims(6, &mut [3, 2]).is_ok());
        assert!(balanced_dims(6, &mut []).is_err());
        assert!(balanced_dims(1, &mut []).is_ok());
    }

    #[test]
    fn coordinates_and_members_are_the_same_said_twice() {
        let lens = [3, 1, 4, 2];
        for periodic in [[false; 4], [true; 4], [true, false, false, true]] {
            let dimensions: Vec<_> = (lens.iter().zip(periodic))
                .map(|(&len, is_periodic)| Dimension { len, is_periodic })
                .collect();
            let grid = Cartesian::new(&dimensions);
            assert_eq!(grid.size(), 24);
            for member in 0..24 {
                let at: Vec<isize> = (grid.coordinates(member).unwrap().iter())
                    .map(|&coordinate| coordinate as isize)
                    .collect();
                assert_eq!(grid.member(&at), Some(member));
                for dimension in 0..4 {
                    let mut round = at.clone();
                    round[dimension] -= 5 * lens[dimension] as isize;
                    let expected = periodic[dimension].then_some(member);
                    assert_eq!(grid.member(&round), expected);
                    let (from, to) = grid.shift(member, dimension, 1);
                    assert!(
                        from.is_none_or(|from| grid.shift(from, dimension, 1).1 == Some(member))
                    );
                    assert!(to.is_none_or(|to| grid.shift(to, dimension, 1).0 == Some(member)));
                    assert_eq!(grid.shift(member, dimension, -1), (to, from));
                }
            }
            assert_eq!(grid.coordinates(24), None);
            assert_eq!(grid.member(&[0, 0]), None);
            assert_eq!(grid.shift(0, 4, 1), (None, None));
            assert_eq!(grid.shift(24, 0, 1), (None, None));
        }
        let _ = Cartesian::balanced(12, &[true, false])
            .unwrap()
            .shift(3, 0, isize::MIN);
    }
}
