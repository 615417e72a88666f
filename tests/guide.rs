//! The guide holds together: its table of contents names every chapter, and no link leads nowhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The files of the guide, and what is in them.
fn pages() -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime/guide/src");
    let entries = fs::read_dir(folder).expect("the guide is there");
    let paths = entries.map(|entry| entry.expect("the folder can be read").path());
    let pages = paths.filter(|path| path.extension().is_some_and(|is| is == "md"));
    let pages = pages.map(|path| {
        let name = path.file_name().expect("it is a file").to_string_lossy();
        let text = fs::read_to_string(&path).expect("a page is text");
        (name.into_owned(), text)
    });
    pages.collect()
}

/// Whether the guide has a picture of this name.
fn is_picture(name: &str) -> bool {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime/guide/src");
    name.ends_with(".svg") && folder.join(name).is_file()
}

/// The lines of a page that are not in a block of code, and the language of each block.
fn prose(text: &str) -> (Vec<&str>, Vec<&str>) {
    let (mut lines, mut languages, mut in_code) = (Vec::new(), Vec::new(), false);
    for line in text.lines() {
        if let Some(language) = line.strip_prefix("```") {
            if !in_code {
                languages.push(language);
            }
            in_code = !in_code;
        } else if !in_code {
            lines.push(line);
        }
    }
    assert!(!in_code, "a block of code does not end");
    (lines, languages)
}

/// Where the links of a page lead.
fn links(text: &str) -> Vec<String> {
    let lines = prose(text).0.join("\n");
    let ends = lines
        .match_indices("](")
        .map(|(at, begin)| at + begin.len());
    let links = ends.map(|at| {
        let link = lines[at..].split(')').next();
        link.unwrap_or_default().to_owned()
    });
    links.collect()
}

/// The places in a page that a link can name, as mdBook makes them of headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text)
        .0
        .into_iter()
        .filter(|line| line.starts_with('#'));
    let anchors = headings.map(|heading| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter_map(|c| match c {
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            c if c.is_whitespace() => Some('-'),
            _ => None,
        });
        kept.collect()
    });
    anchors.collect()
}

#[test]
fn every_link_of_the_guide_leads_somewhere() {
    let pages = pages();
    let mut followed = 0;
    for (name, text) in &pages {
        for link in links(text).iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let file = if file.is_empty() { name } else { file };
            if is_picture(file) {
                continue;
            }
            let Some(target) = pages.get(file) else {
                panic!("{name} links to {file}, which is not there");
            };
            assert!(
                anchor.is_empty() || anchors(target).contains(anchor),
                "{name} links to {anchor} in {file}, which has only {:?}",
                anchors(target)
            );
            followed += 1;
        }
    }
    assert!(followed > pages.len(), "only {followed} links were found");
}

#[test]
fn the_table_of_contents_names_every_chapter_once() {
    let pages = pages();
    let named = links(&pages["SUMMARY.md"]);
    let once: BTreeSet<_> = named.iter().map(String::as_str).collect();
    assert_eq!(once.len(), named.len(), "a chapter is named twice");
    let there: BTreeSet<_> = pages.keys().map(String::as_str).collect();
    let chapters: BTreeSet<_> = there
        .into_iter()
        .filter(|name| *name != "SUMMARY.md")
        .collect();
    assert_eq!(once, chapters);
}

#[test]
fn every_program_of_the_guide_is_run_as_a_test() {
    let front = Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime/src/lib.rs");
    let front = fs::read_to_string(front).expect("the crate has a front page");
    for (name, text) in pages() {
        let languages = prose(&text).1;
        // What is not marked as another language, rustdoc takes for a program.
        for language in &languages {
            assert!(
                ["rust", "text", "sh"].contains(language),
                "{name} has a block of {language:?}"
            );
        }
        let has_programs = languages.contains(&"rust");
        let is_included = front.contains(&format!("include_str!(\"../guide/src/{name}\")"));
        assert_eq!(
            has_programs, is_included,
            "{name} has programs, or is included, but not both"
        );
    }
}
