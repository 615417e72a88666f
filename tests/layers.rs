//! The picture of the README is a test: each layer knows the ones under it, and none above it.

use std::{fs, path::Path};

/// Each layer knows the ones before it, and none after it. (`updraft` is the package of `runtime`.)
const LAYERS: [(&str, &str); 5] = [
    ("transport", "updraft-transport"),
    ("collectives", "updraft-collectives"),
    ("dataflow", "updraft-dataflow"),
    ("runtime", "updraft"),
    ("launchers", "updraft-launchers"),
];

/// The names of the packages a manifest depends on, in any kind of dependency.
fn dependencies(layer: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(layer)
        .join("Cargo.toml");
    let manifest = fs::read_to_string(path).expect("every layer has a manifest");
    let mut in_dependencies = false;
    let mut names = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_dependencies = line.contains("dependencies");
        } else if in_dependencies && let Some((name, _)) = line.split_once(['.', ' ', '=']) {
            names.push(name.to_owned());
        }
    }
    names
}

#[test]
fn layers_depend_downwards_only() {
    for (height, (layer, _)) in LAYERS.iter().enumerate() {
        let known = dependencies(layer);
        for (above, package) in &LAYERS[height..] {
            for name in [above, package] {
                assert!(
                    !known.iter().any(|known| known == name),
                    "{layer} must not know {name}"
                );
            }
        }
    }
}

#[test]
fn every_layer_knows_the_one_it_stands_on() {
    for pair in LAYERS.windows(2) {
        let [(below, package), (layer, _)] = pair else {
            unreachable!("windows of two")
        };
        let known = dependencies(layer);
        assert!(
            known.iter().any(|known| known == below || known == package),
            "{layer} stands on {below}, and its manifest does not say so"
        );
    }
}

#[test]
fn unsafe_code_stays_where_it_is_argued() {
    for layer in ["collectives", "launchers"] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(layer)
            .join("src/lib.rs");
        let source = fs::read_to_string(root).expect("every layer has a library");
        assert!(
            source.contains("#![forbid(unsafe_code)]"),
            "{layer} must forbid unsafe code"
        );
    }
}
