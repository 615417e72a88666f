//! Building programs of this workspace from one of its tests or benches.

use std::{env, process::Command};

/// A command that builds targets of the whole workspace as the caller was built. A test is among them: so all is built
/// with the features that tests have, and what was built for them is found.
pub(crate) fn build() -> Command {
    let profile = if cfg!(debug_assertions) {
        "dev"
    } else {
        "release"
    };
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "--workspace", "--test", "layers"])
        .args(["--profile", profile])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo tells the caller of its own package: a dependency takes a change of that for a reason to be built again,
    // and then all that stands on it is.
    for (name, _) in env::vars_os() {
        let told = name.to_string_lossy();
        if told.starts_with("CARGO_PKG_") || told.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    cargo
}
