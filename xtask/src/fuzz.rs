//! `cargo xtask fuzz`: the fuzz targets of the AWS crate, one after the other.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::command::{program, run as run_program};

/// The targets, as crates/aws/fuzz/Cargo.toml names them.
const TARGETS: &[&str] = &[
    "event_encode",
    "response_unwrap",
    "event_stream",
    "credential_files",
    "credential_answers",
    "lambda_answers",
];

/// How long each runs where nothing is said.
const SECONDS: &str = "60";

pub(crate) fn run(words: &[String]) -> Result<()> {
    let (target, seconds) = match words {
        [] => (None, SECONDS),
        [word] if word.parse::<u32>().is_ok() => (None, word.as_str()),
        [target] => (Some(target.as_str()), SECONDS),
        [target, seconds] if seconds.parse::<u32>().is_ok() => {
            (Some(target.as_str()), seconds.as_str())
        }
        _ => bail!("`fuzz` takes a target and a number of seconds"),
    };
    if let Some(target) = target
        && !TARGETS.contains(&target)
    {
        bail!("there is no target {target:?}, but {}", TARGETS.join(", "));
    }
    for &name in TARGETS.iter().filter(|name| target.is_none_or(|target| target == **name)) {
        println!("Fuzzing {name} for {seconds} s.");
        run_program(
            program(Path::new("cargo"))
                // The engine's flags are unstable; this takes them with any compiler.
                .env("RUSTC_BOOTSTRAP", "1")
                .args(["fuzz", "run", "--fuzz-dir", "crates/aws/fuzz", name, "--"])
                .arg(format!("-max_total_time={seconds}"))
                .args(["-timeout=10", "-rss_limit_mb=2048"]),
        )
        .with_context(|| format!("{name}; what it failed on lies in crates/aws/fuzz/artifacts"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_in_the_list() {
        let manifest = include_str!("../../crates/aws/fuzz/Cargo.toml");
        let declared = manifest
            .lines()
            .filter_map(|line| line.strip_prefix("path = \"targets/")?.strip_suffix(".rs\""));
        assert_eq!(declared.collect::<Vec<_>>(), TARGETS);
    }
}
