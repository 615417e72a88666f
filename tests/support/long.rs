//! Runs that take as long as there is time.

use std::env;

/// How often something is done: `few` times, or `many` with `UPDRAFT_LONG`.
pub(crate) fn often<N>(few: N, many: N) -> N {
    if env::var_os("UPDRAFT_LONG").is_some() {
        many
    } else {
        few
    }
}
