//! From what fuzzers start: what is really written, in `tests/fuzz/seeds`.

use std::{env, fs, path::Path};

pub(crate) const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/seeds");

/// The fuzzer of `decoder` starts from `bytes`, among others. With `UPDRAFT_SEEDS=1 cargo test --workspace --lib the_seeds` it
/// does so from now on.
pub(crate) fn assert_seed(decoder: &str, name: &str, bytes: &[u8]) {
    let path = Path::new(SEEDS).join(decoder).join(name);
    if env::var_os("UPDRAFT_SEEDS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    let seed = fs::read(&path).unwrap_or_default();
    assert_eq!(
        seed,
        bytes,
        "{}: UPDRAFT_SEEDS makes it anew",
        path.display()
    );
}
