//! docs/lambda.md sets the gateway beside others: what it has there, a test proves that the row names.

use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn every_feature_beside_other_gateways_names_tests_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut tests = BTreeSet::new();
    collect_tests(&root.join("crates"), &mut tests);
    let page = std::fs::read_to_string(root.join("docs/lambda.md")).expect("the page is there");
    let (_, table) = page.split_once("## Beside other gateways").expect("it has the table");
    let mut proven = 0;
    for row in table.lines().take_while(|line| !line.starts_with("## ")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, feature, ours, .., named, _] = cells[..] else { continue };
        let named: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        for name in &named {
            assert!(tests.contains(*name), "{feature}: there is no test {name}");
        }
        if ours.starts_with(['+', 'o']) {
            assert!(!named.is_empty(), "{feature}: nothing proves it");
            proven += 1;
        }
    }
    assert!(proven > 40, "{proven} rows");
}

/// The names of all functions that are tests in the Rust files below `folder`.
fn collect_tests(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            collect_tests(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("sources are text");
            let mut is_test = false;
            for line in text.lines().map(str::trim_start) {
                let declared = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
                if line.starts_with("#[test") || line.starts_with("#[tokio::test") {
                    is_test = true;
                } else if let Some(rest) = declared {
                    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                    if std::mem::take(&mut is_test) {
                        found.insert(rest[..end.unwrap_or(rest.len())].to_owned());
                    }
                } else if !line.starts_with(['#', '/']) {
                    is_test = false;
                }
            }
        }
    }
}
