//! Every command a person types, and that continuous integration calls: `cargo xtask test`,
//! `cargo xtask bench`.
//!
//! Arguments are taken apart by hand so that this crate needs next to no dependencies.

mod bench;
mod command;
mod conformance;
#[cfg(test)]
mod differs;
mod test;
mod tools;

use std::process::ExitCode;

use anyhow::{Result, bail};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(words: &[String]) -> Result<()> {
    let Some((name, rest)) = words.split_first() else {
        print!("{USAGE}");
        return Ok(());
    };
    if name == "help" || words.iter().any(|word| word == "-h" || word == "--help") {
        print!("{USAGE}");
        return Ok(());
    }
    match name.as_str() {
        "test" => test::run(&test::Options::parse(rest)?),
        "bench" => bench::run(&bench::Options::parse(rest)?),
        "conformance" => conformance::run_files(&conformance::Options::parse(rest)?),
        "tools" => no_arguments(name, rest).and_then(|()| tools::command()),
        _ => bail!("there is no command {name:?}; `cargo xtask help` lists them"),
    }
}

fn no_arguments(name: &str, rest: &[String]) -> Result<()> {
    match rest.first() {
        None => Ok(()),
        Some(word) => bail!("`{name}` takes no argument, got {word:?}"),
    }
}

const USAGE: &str = "\
cargo xtask COMMAND

  test [--no-tools] [--docs] [FILTER...]
        Formatting, clippy, the tests' tools, all tests, doc tests: in this order, up to the first
        that fails. FILTERs choose tests by a part of their name and leave the doc tests out.
        --no-tools  do not look for or install what only tests need (tests that lack a piece say so)
        --docs      also build the documentation, its warnings denied
  tools
        Only the tests' tools: installs what is missing where it may, otherwise says what to install.
        Under CI=true a missing piece is an error.
  bench [--rounds N] [--seconds N] [--bin FILE] [CASE...]
        CPU time per request of the release build beside nginx's, both pinned to one CPU. Cases: proxy,
        lambda-apikey, lambda-iam; all when none is named. Needs nginx, wrk and a quiet machine.
        --bin  measure this executable instead of building one
  conformance --apisix DIR [FILE...]
        Apache APISIX's own test files (those of aws-lambda and of the routers, or the FILEs) against a
        debug build. Needs a checkout of apache/apisix and the runner in ../shared/conformance.
  help
        This text.
";
