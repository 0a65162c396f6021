//! `cargo xtask fuzz`: the fuzz targets, one after the other.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::command::{program, run as run_program};

/// A target: its name, the folder that declares it, and what the engine is told.
struct Target {
    name: &'static str,
    folder: &'static str,
    limits: &'static [&'static str],
}

const fn aws(name: &'static str) -> Target {
    Target { name, folder: "crates/aws/fuzz", limits: &["-timeout=10", "-rss_limit_mb=2048"] }
}

/// The targets, as the Cargo.toml of their folders names them.
const TARGETS: &[Target] = &[
    aws("event_encode"),
    aws("response_unwrap"),
    aws("event_stream"),
    aws("credential_files"),
    aws("credential_answers"),
    aws("lambda_answers"),
    Target {
        name: "scripts",
        folder: "crates/lua/fuzz",
        limits: &["-timeout=60", "-max_len=2048", "-rss_limit_mb=4096"],
    },
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
        && !TARGETS.iter().any(|known| known.name == target)
    {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        bail!("there is no target {target:?}, but {}", names.join(", "));
    }
    for Target { name, folder, limits } in
        TARGETS.iter().filter(|known| target.is_none_or(|target| target == known.name))
    {
        println!("Fuzzing {name} for {seconds} s.");
        run_program(
            program(Path::new("cargo"))
                // The engine's flags are unstable; this takes them with any compiler.
                .env("RUSTC_BOOTSTRAP", "1")
                .args(["fuzz", "run", "--fuzz-dir", folder, name, "--"])
                .arg(format!("-max_total_time={seconds}"))
                .args(*limits),
        )
        .with_context(|| format!("{name}; what it failed on lies in {folder}/artifacts"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_in_the_list() {
        for (folder, manifest) in [
            ("crates/aws/fuzz", include_str!("../../crates/aws/fuzz/Cargo.toml")),
            ("crates/lua/fuzz", include_str!("../../crates/lua/fuzz/Cargo.toml")),
        ] {
            let declared = manifest
                .lines()
                .filter_map(|line| line.strip_prefix("path = \"targets/")?.strip_suffix(".rs\""));
            let listed = TARGETS.iter().filter(|target| target.folder == folder);
            let listed: Vec<_> = listed.map(|target| target.name).collect();
            assert_eq!(declared.collect::<Vec<_>>(), listed, "{folder}");
        }
    }
}
