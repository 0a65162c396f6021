//! The published SigV4 vectors, stage by stage.
//!
//! They are read where they are published: in the package of the `aws-sigv4` crate, which cargo has
//! unpacked for these tests, and in `../shared/sigv4-suite` beside the repository, whose README
//! lists the known faults in them. What is absent is skipped with a line that says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sluicegate_aws::Secret;
use sluicegate_aws::sigv4::{
    Credentials, Explanation, PathRule, PayloadHash, RequestToSign, Signer,
};

#[test]
fn vectors_in_the_aws_sigv4_package_hold() {
    let Some(package) = aws_sigv4_package() else {
        return println!("skipped: cargo metadata names no folder for aws-sigv4");
    };
    let suite = package.join("aws-signing-test-suite/v4");
    if !suite.is_dir() {
        return println!("skipped: the aws-sigv4 package carries no vectors");
    }
    let counts = check_crt_suite(&suite);
    // 38 whole cases; its two `double-*` cases are canonical requests only.
    assert_eq!(counts, Counts { whole: 38, paths: 2 });
}

#[test]
fn crt_vectors_beside_the_repository_hold() {
    let Some(suite) = shared_suite("crt-v4") else { return };
    assert_eq!(check_crt_suite(&suite), Counts { whole: 38, paths: 0 });
}

#[test]
fn path_vectors_beside_the_repository_hold() {
    let Some(suite) = shared_suite("smithy-extra") else { return };
    assert_eq!(check_crt_suite(&suite), Counts { whole: 0, paths: 2 });
}

#[test]
fn classic_vectors_beside_the_repository_hold() {
    let Some(suite) = shared_suite("classic") else { return };
    let mut folders = subfolders(&suite);
    for nested in ["normalize-path", "post-sts-token"] {
        folders.extend(subfolders(&suite.join(nested)));
    }
    let mut checked = 0;
    for folder in folders {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let read = |kind: &str| fs::read_to_string(folder.join(format!("{name}.{kind}")));
        let Ok(text) = read("req") else { continue };
        let stored = Stored::parse(&text);
        // A token in the stored request is signed like any other x-amz header; one case has it
        // in the credentials only.
        let token = (name == "get-vanilla-with-session-token")
            .then_some("6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267");
        let signer = signer("AKIDEXAMPLE", EXAMPLE_SECRET, token, "us-east-1", "service");
        let explained = stored.explain(&signer, EXAMPLE_TIME);
        assert_eq!(explained.canonical_request, read("creq").unwrap(), "{name}");
        assert_eq!(explained.string_to_sign, read("sts").unwrap(), "{name}");
        assert_eq!(explained.authorization, read("authz").unwrap().trim_end(), "{name}");
        checked += 1;
    }
    assert_eq!(checked, 34);
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Cases with every stage.
    whole: usize,
    /// Cases of which only the canonical path is usable.
    paths: usize,
}

fn check_crt_suite(suite: &Path) -> Counts {
    let mut counts = Counts::default();
    for folder in subfolders(suite) {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
        let mut stored = Stored::parse(&read("request.txt"));
        let canonical = read("header-canonical-request.txt");
        if !folder.join("context.json").exists() {
            // Their dates and keys contradict each other; the path shows the double encoding.
            let signer = signer("AKIDEXAMPLE", EXAMPLE_SECRET, None, "us-east-1", "execute-api");
            let explained = stored.explain(&signer, EXAMPLE_TIME);
            let path = |text: &str| text.lines().nth(1).unwrap().to_owned();
            assert_eq!(path(&explained.canonical_request), path(&canonical), "{name}");
            counts.paths += 1;
            continue;
        }
        if name == "get-space-normalized" {
            // One copy stores `%20` here, whose canonical form is not the one given beside it.
            stored.path = stored.path.replace("%20", " ");
        }
        let context: Value = serde_json::from_str(&read("context.json")).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let credentials = &context["credentials"];
        let omit_token = context["omit_session_token"] == true;
        let token = credentials["token"].as_str().filter(|_| !omit_token);
        let mut signer = signer(
            &text(&credentials["access_key_id"]),
            &text(&credentials["secret_access_key"]),
            token,
            &text(&context["region"]),
            &text(&context["service"]),
        );
        if context["normalize"] == false {
            signer = signer.with_path_rule(PathRule::ObjectKey);
        }
        if context["sign_body"] == true {
            signer = signer.with_payload_hash_stated();
        }
        assert_eq!(context["timestamp"], "2015-08-30T12:36:00Z", "{name}");
        let explained = stored.explain(&signer, EXAMPLE_TIME);
        assert_eq!(explained.canonical_request, canonical, "{name}");
        assert_eq!(explained.string_to_sign, read("header-string-to-sign.txt"), "{name}");
        assert_eq!(explained.signature, read("header-signature.txt").trim_end(), "{name}");
        counts.whole += 1;
    }
    counts
}

/// A request as the suites store it: LF lines, folded headers, raw spaces and UTF-8 in the target.
struct Stored {
    method: String,
    path: String,
    query: Option<String>,
    headers: Vec<(String, String)>,
    body: String,
}

impl Stored {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
        let mut lines = head.lines();
        let (method, rest) = lines.next().unwrap().split_once(' ').unwrap();
        let target = match rest.rsplit_once(' ') {
            Some((target, version)) if version.starts_with("HTTP/") => target,
            _ => rest,
        };
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let mut headers: Vec<(String, String)> = Vec::new();
        for line in lines.filter(|line| !line.is_empty()) {
            match headers.last_mut() {
                Some((_, value)) if line.starts_with([' ', '\t']) => {
                    value.push('\n');
                    value.push_str(line);
                }
                _ => {
                    let (name, value) = line.split_once(':').unwrap();
                    headers.push((name.to_owned(), value.to_owned()));
                }
            }
        }
        let (method, path, body) = (method.to_owned(), path.to_owned(), body.to_owned());
        Self { method, path, query, headers, body }
    }

    fn explain(&self, signer: &Signer, now: u64) -> Explanation {
        let headers = self.headers.iter().map(|(name, value)| (&**name, value.as_bytes()));
        signer.explain(
            now,
            RequestToSign {
                method: &self.method,
                path: &self.path,
                query: self.query.as_deref(),
                headers,
                payload: PayloadHash::Bytes(self.body.as_bytes()),
            },
        )
    }
}

fn signer(key: &str, secret: &str, token: Option<&str>, region: &str, service: &str) -> Signer {
    let credentials = Credentials {
        access_key: key.to_owned(),
        secret_key: Secret::from(secret),
        session_token: token.map(Secret::from),
    };
    Signer::new(credentials, region, service).unwrap()
}

fn aws_sigv4_package() -> Option<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--offline", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .ok()?;
    let metadata: Value = serde_json::from_slice(&output.stdout).ok()?;
    let package = metadata["packages"].as_array()?.iter().find(|p| p["name"] == "aws-sigv4")?;
    Some(Path::new(package["manifest_path"].as_str()?).parent()?.to_owned())
}

fn shared_suite(name: &str) -> Option<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let suite = repository.join("../shared/sigv4-suite").join(name);
    if !suite.is_dir() {
        println!("skipped: ../shared/sigv4-suite/{name} is not there");
        return None;
    }
    Some(suite)
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

const EXAMPLE_SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const EXAMPLE_TIME: u64 = 1_440_938_160;
