//! The same answers by a loop over the rows and a map of the groups.

use std::{collections::HashMap, hash::Hash};

use crate::{Answer, LEAST_TWO, add_to_two, deviation, median, r_squared, table::Table};

/// The answer to a question.
pub(crate) fn answer(question: u8, table: Table) -> Answer {
    let t = table;
    match question {
        1 => sums(
            t,
            |n| t.id1(n),
            0,
            |v1, n| *v1 += t.v1(n),
            |v1| (v1 as f64, 0.0, 0.0),
        ),
        2 => sums(
            t,
            |n| (t.id1(n), t.id2(n)),
            0,
            |v1, n| *v1 += t.v1(n),
            |v1| (v1 as f64, 0.0, 0.0),
        ),
        3 => sums(
            t,
            |n| t.id3(n),
            (0, 0.0, 0.0),
            |(v1, v3, rows), n| (*v1, *v3, *rows) = (*v1 + t.v1(n), *v3 + t.v3(n), *rows + 1.0),
            |(v1, v3, rows)| (v1 as f64, v3 / rows, 0.0),
        ),
        4 => of_values(
            t,
            |n| t.id4(n),
            |(v1, v2, v3), rows| (v1 / rows, v2 / rows, v3 / rows),
        ),
        5 => of_values(t, |n| t.id6(n), |sums, _| sums),
        6 => sums(
            t,
            |n| (t.id4(n), t.id5(n)),
            Vec::new(),
            |values, n| values.push(t.v3(n)),
            |mut values| (median(&mut values), deviation(&values), 0.0),
        ),
        7 => sums(
            t,
            |n| t.id3(n),
            (u64::MIN, u64::MAX),
            |(max, min), n| (*max, *min) = ((*max).max(t.v1(n)), (*min).min(t.v2(n))),
            |(max, min)| (max as f64 - min as f64, 0.0, 0.0),
        ),
        8 => sums(
            t,
            |n| t.id6(n),
            LEAST_TWO,
            |two, n| add_to_two(two, t.v3(n)),
            |(first, second)| {
                let both = if second.is_finite() {
                    first + second
                } else {
                    first
                };
                (both, 0.0, 0.0)
            },
        ),
        9 => sums(
            t,
            |n| (t.id2(n), t.id4(n)),
            (0, 0.0, 0.0, 0.0, 0.0, 0.0),
            |(number, x, y, xx, yy, xy), n| {
                let (a, b) = (t.v1(n) as f64, t.v2(n) as f64);
                *number += 1;
                (*x, *y) = (*x + a, *y + b);
                (*xx, *yy, *xy) = (*xx + a * a, *yy + b * b, *xy + a * b);
            },
            |moments| (r_squared(moments), 0.0, 0.0),
        ),
        _ => sums(
            t,
            |n| t.all_ids(n),
            (0.0, 0.0),
            |(v3, rows), n| (*v3, *rows) = (*v3 + t.v3(n), *rows + 1.0),
            |(v3, rows)| (v3, rows, 0.0),
        ),
    }
}

/// Sums of the three values of each group, and what is made of them and of the number of rows.
fn of_values<K: Hash + Eq>(
    table: Table,
    key: impl Fn(u64) -> K,
    finish: impl Fn((f64, f64, f64), f64) -> (f64, f64, f64),
) -> Answer {
    sums(
        table,
        key,
        ((0.0, 0.0, 0.0), 0.0),
        |((a, b, c), rows), n| {
            let (v1, v2, v3) = table.values(n);
            (*a, *b, *c) = (*a + v1 as f64, *b + v2 as f64, *c + v3);
            *rows += 1.0;
        },
        |(sums, rows)| finish(sums, rows),
    )
}

/// Adds each row to what is kept of its group, and sums up what is made of that in the end.
fn sums<K: Hash + Eq, A: Clone>(
    table: Table,
    key: impl Fn(u64) -> K,
    start: A,
    add: impl Fn(&mut A, u64),
    finish: impl Fn(A) -> (f64, f64, f64),
) -> Answer {
    let mut groups = HashMap::<K, A>::new();
    for row in 0..table.rows {
        add(groups.entry(key(row)).or_insert_with(|| start.clone()), row);
    }
    let number = groups.len() as u64;
    let sums = groups.into_values().map(finish);
    let sums = sums.fold((0.0, 0.0, 0.0), |(a, b, c), (x, y, z)| {
        (a + x, b + y, c + z)
    });
    (number, sums)
}
