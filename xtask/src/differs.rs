//! Deliberate differences from APISIX are told twice: in a `Differs:` comment where the code is, and
//! in a row of docs/compatibility.md, whose last column names that file.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

#[test]
fn every_differs_comment_has_its_row_and_every_row_its_comment() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let crates = root.join("crates");
    let mut comments = BTreeMap::new();
    count_comments(&crates, &crates, &mut comments);
    let page =
        std::fs::read_to_string(root.join("docs/compatibility.md")).expect("the page is there");
    let mut rows: BTreeMap<String, usize> = BTreeMap::new();
    for row in page.lines().filter_map(|line| line.trim_end().strip_suffix("` |")) {
        let file = row.rsplit('`').next().unwrap_or_default();
        if Path::new(file).extension().and_then(comment_opening).is_some() {
            *rows.entry(file.to_owned()).or_default() += 1;
        }
    }
    assert!(!rows.is_empty());
    assert_eq!(rows, comments, "rows of docs/compatibility.md, comments under crates/");
}

/// Counts the `Differs:` comments of every source file below `folder`, by its path below `crates`.
fn count_comments(crates: &Path, folder: &Path, found: &mut BTreeMap<String, usize>) {
    for entry in std::fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            count_comments(crates, &path, found);
        } else if let Some(opening) = path.extension().and_then(comment_opening) {
            let text = std::fs::read_to_string(&path).expect("sources are text");
            let comments = text.lines().filter_map(|line| line.trim_start().strip_prefix(opening));
            let count = comments
                .filter(|text| text.trim_start_matches(['/', '!']).starts_with(" Differs: "))
                .count();
            if count > 0 {
                let below = path.strip_prefix(crates).expect("it lies below");
                found.insert(below.display().to_string(), count);
            }
        }
    }
}

/// What opens a comment in files with this extension, if they are sources of ours.
fn comment_opening(extension: &OsStr) -> Option<&'static str> {
    match extension.to_str()? {
        "rs" => Some("//"),
        "lua" => Some("--"),
        _ => None,
    }
}
