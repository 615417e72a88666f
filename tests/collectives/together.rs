//! Several futures at once.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
};

/// A future that borrows.
pub(crate) type Task<'t, T> = Pin<Box<dyn Future<Output = T> + 't>>;

/// What all of `tasks` give, polled in turn until the last is done.
pub(crate) async fn together<T>(mut tasks: Vec<Task<'_, T>>) -> Vec<T> {
    let mut results: Vec<Option<T>> = tasks.iter().map(|_| None).collect();
    poll_fn(move |context| {
        for (task, result) in tasks.iter_mut().zip(&mut results) {
            if result.is_none()
                && let Poll::Ready(value) = task.as_mut().poll(context)
            {
                *result = Some(value);
            }
        }
        if results.iter().any(Option::is_none) {
            return Poll::Pending;
        }
        Poll::Ready(results.drain(..).flatten().collect())
    })
    .await
}
