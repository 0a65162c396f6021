//! `cargo xtask fuzz`: the fuzz targets, one after the other.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{cargo, output, run as run_program};

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
    must_have_engine(&mut cargo(ENGINE_PROBE))?;
    for Target { name, folder, limits } in
        TARGETS.iter().filter(|known| target.is_none_or(|target| target == known.name))
    {
        println!("Fuzzing {name} for {seconds} s.");
        run_program(
            cargo(&["fuzz", "run", "--fuzz-dir", folder, name, "--"])
                // The engine's flags are unstable; this takes them with any compiler.
                .env("RUSTC_BOOTSTRAP", "1")
                .arg(format!("-max_total_time={seconds}"))
                .args(*limits),
        )
        .with_context(|| format!("{name}; what it failed on lies in {folder}/artifacts"))?;
    }
    Ok(())
}

/// Fails with the next step unless cargo has the subcommand that the probe calls.
fn must_have_engine(probe: &mut Command) -> Result<()> {
    output(probe).map(drop).context(
        "cargo-fuzz is missing: `cargo install cargo-fuzz --locked` brings it (what it builds needs a \
         C++ compiler)",
    )
}

const ENGINE_PROBE: &[&str] = &["fuzz", "--version"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_cargo_fuzz_the_error_says_how_to_get_it() {
        let mut probe = cargo(ENGINE_PROBE);
        // Cargo looks for its subcommands in both.
        probe.env("PATH", "").env("CARGO_HOME", "/nowhere");
        let error = must_have_engine(&mut probe).expect_err("there is none").to_string();
        assert!(error.contains("`cargo install cargo-fuzz"), "{error}");
        must_have_engine(&mut Command::new("true")).expect("a probe that succeeds is enough");
    }

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
