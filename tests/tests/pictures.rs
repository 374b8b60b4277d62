//! The pictures in docs/pictures: whole, shown somewhere, and of the scripts that make them as they are.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A picture, and the document that shows it.
const PICTURES: [(&str, &str, &str); 2] = [
    ("docs/pictures/doctor.svg", "docs/doctor.md", "](pictures/doctor.svg)"),
    ("docs/pictures/top.svg", "README.md", "](docs/pictures/top.svg)"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

#[test]
fn pictures_are_made_by_the_scripts_as_they_are() {
    let mut sum =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("coreutils is there");
    let scripts = read("tests/pictures/make") + &read("tests/pictures/picture.py");
    sum.stdin.take().unwrap().write_all(scripts.as_bytes()).unwrap();
    let output = String::from_utf8(sum.wait_with_output().unwrap().stdout).unwrap();
    let hash = output.split(' ').next().unwrap();
    assert_eq!(hash.len(), 64);
    for (picture, document, link) in PICTURES {
        let made_by = format!("<!-- made by tests/pictures/make of sha256 {hash} -->");
        assert!(read(picture).contains(&made_by), "{picture} is of other scripts; run make pictures");
        assert!(read(document).contains(link), "{document} does not show {picture}");
    }
}

#[test]
fn pictures_are_well_formed() {
    for (picture, ..) in PICTURES {
        let text = read(picture);
        assert_eq!(well_formed(&text), Ok(()), "{picture}");
        assert!(text.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\"") && text.len() < 64 << 10, "{picture}");
    }
}

#[test]
fn the_picture_of_doctor_has_every_line_that_needs_no_netd() {
    let (picture, document) = (read("docs/pictures/doctor.svg"), read("docs/doctor.md"));
    let lines = document.split("\n## ").skip(1).filter(|section| !section.starts_with("`network`"));
    let ids: BTreeSet<&str> = lines
        .flat_map(|section| section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()))
        .collect();
    assert!(ids.len() > 20, "{ids:?}");
    for id in ids {
        assert!(picture.contains(&format!("{id} ")), "{id} is not in the picture; run make pictures");
    }
}

/// Elements that are closed in their order below one root, attributes that are quoted and there once, known entities: as much of
/// XML as the pictures use.
fn well_formed(text: &str) -> Result<(), String> {
    let (mut rest, mut open, mut roots) = (text, Vec::new(), 0);
    while let Some(at) = rest.find('<') {
        let (before, markup) = rest.split_at(at);
        is_text(before)?;
        if open.is_empty() && !before.trim().is_empty() {
            return Err(format!("text outside of the root: {before:?}"));
        }
        if let Some(comment) = markup.strip_prefix("<!--") {
            let (inside, after) = comment.split_once("--").ok_or("a comment without an end")?;
            is_text(inside)?;
            rest = after.strip_prefix('>').ok_or("-- in a comment")?;
            continue;
        }
        let (tag, after) = markup[1..].split_once('>').ok_or("a tag without an end")?;
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            let opened = open.pop();
            if opened != Some(name) {
                return Err(format!("</{name}> closes {opened:?}"));
            }
            continue;
        }
        let (tag, empty) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(format!("<{tag}>"));
        }
        are_attributes(attributes)?;
        roots += usize::from(open.is_empty());
        if !empty {
            open.push(name);
        }
    }
    match (open.as_slice(), roots, rest.trim()) {
        ([], 1, "") => Ok(()),
        (open, roots, rest) => Err(format!("open: {open:?}, roots: {roots}, behind them: {rest:?}")),
    }
}

fn are_attributes(mut text: &str) -> Result<(), String> {
    let mut names = BTreeSet::new();
    while !text.trim().is_empty() {
        let (name, rest) = text.trim_start().split_once("=\"").ok_or(format!("an attribute: {text:?}"))?;
        let (value, rest) = rest.split_once('"').ok_or(format!("a value without an end: {text:?}"))?;
        is_text(value)?;
        let proper = name.chars().all(|c| c.is_ascii_alphanumeric() || "-:".contains(c));
        if !proper || !names.insert(name) || !(rest.is_empty() || rest.starts_with(' ')) {
            return Err(format!("the attribute {name:?}"));
        }
        text = rest;
    }
    Ok(())
}

fn is_text(text: &str) -> Result<(), String> {
    let entity = |after: &str| ["amp;", "lt;", "gt;", "quot;"].iter().any(|entity| after.starts_with(entity));
    let bad = |c: char| c.is_control() && c != '\n';
    if text.contains('<') || text.contains(bad) || !text.split('&').skip(1).all(entity) {
        return Err(format!("text: {text:?}"));
    }
    Ok(())
}

#[test]
fn what_is_not_well_formed_is_found() {
    for good in ["<a/>", "<a b=\"&lt;\" c=\"1\"><!-- x --><b>&amp;</b> ü</a>\n", "<a><b/><b/></a>"] {
        assert_eq!(well_formed(good), Ok(()), "{good}");
    }
    for bad in [
        "",
        "<a>",
        "<a/><b/>",
        "<a></b>",
        "<a><b></a></b>",
        "<a b=c/>",
        "<a b=\"1\" b=\"2\"/>",
        "<a b=\"1/>",
        "<a b=\"<\"/>",
        "<a>&</a>",
        "<a>&nbsp;</a>",
        "<a>\u{1b}[m</a>",
        "<a><!-- -- --></a>",
        "x<a/>",
        "<a/>x",
    ] {
        assert!(well_formed(bad).is_err(), "{bad}");
    }
}
