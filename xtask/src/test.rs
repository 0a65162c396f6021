//! `cargo xtask test`: everything a change must pass, in the order in which failing is cheapest.
//!
//! All steps but the last use the dev profile and the whole workspace: naming single packages would
//! choose other features for shared dependencies and build them again.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use crate::bench::check;
use crate::command::{cargo, in_ci, output, run as run_command, text};
use crate::tools;

/// What was asked for on the command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Neither look for nor install what only tests need.
    skip_tools: bool,
    /// Build the documentation too.
    docs: bool,
    /// Parts of test names; empty means all tests.
    filters: Vec<String>,
}

impl Options {
    /// Takes the words after `test`.
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self::default();
        for word in words {
            match word.as_str() {
                "--no-tools" => options.skip_tools = true,
                "--docs" => options.docs = true,
                option if option.starts_with('-') => bail!("`test` has no option {option}"),
                filter => options.filters.push(filter.to_owned()),
            }
        }
        Ok(options)
    }
}

/// Runs the steps up to the first that fails; the time of each is listed at the end.
pub(crate) fn run(options: &Options) -> Result<()> {
    let steps = steps(options);
    let count = steps.len();
    let mut times = Vec::new();
    let mut failure = None;
    for (index, step) in steps.into_iter().enumerate() {
        println!("==> {}/{count} {}: {}", index + 1, step.name, step.work.text());
        let start = Instant::now();
        let result = step.work.run();
        times.push((step.name, start.elapsed()));
        if let Err(error) = result {
            failure = Some(anyhow!("{} failed: {error:#}\n{}", step.name, step.advice));
            break;
        }
    }
    print_times(&times);
    failure.map_or(Ok(()), Err)
}

fn steps(options: &Options) -> Vec<Step> {
    let mut steps = vec![
        Step {
            name: "formatting",
            work: Work::Command(cargo(&["fmt", "--all", "--check"])),
            advice: "Run `cargo fmt --all`.",
        },
        Step {
            name: "clippy",
            work: Work::Command(cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ])),
            advice: "Follow the lint, or write #[expect(LINT, reason = \"...\")] where it is wrong.",
        },
    ];
    if options.filters.is_empty() {
        steps.push(Step {
            name: "without Lua",
            work: Work::Command(cargo(&["check", "--workspace", "--no-default-features"])),
            advice: "Something outside of `#[cfg(feature = \"lua\")]` needs Lua.",
        });
    }
    if !options.skip_tools {
        steps.push(Step {
            name: "tools",
            work: Work::Tools,
            advice: "Install what is named above, or leave this step out with --no-tools: tests that \
                     lack a piece then say that they were skipped.",
        });
    }
    steps.push(Step {
        name: "tests",
        work: Work::Command(with_tools(tests(options))),
        advice: "Run a part with `cargo xtask test FILTER`.",
    });
    if options.filters.is_empty() {
        steps.push(Step {
            name: "doc tests",
            work: Work::Command(with_tools(cargo(&["test", "--workspace", "--doc"]))),
            advice: "The example in the named doc comment no longer compiles or holds.",
        });
    }
    if options.filters.is_empty() && !options.skip_tools {
        steps.push(Step {
            name: "instructions",
            work: Work::Instructions,
            advice: "`cargo xtask bench --check` is this step alone.",
        });
    }
    if options.docs {
        let mut doc = cargo(&["doc", "--workspace", "--no-deps"]);
        doc.env("RUSTDOCFLAGS", "-D warnings");
        steps.push(Step {
            name: "documentation",
            work: Work::Command(doc),
            advice: "Mend the doc comment named above.",
        });
    }
    steps
}

/// The test runner: cargo-nextest where it is installed.
fn tests(options: &Options) -> Command {
    if output(&mut cargo(&["nextest", "--version"])).is_ok() {
        let mut command = cargo(&["nextest", "run", "--workspace", "--no-fail-fast"]);
        command.args(&options.filters);
        return command;
    }
    println!("cargo-nextest is not installed: `cargo test` runs the tests instead.");
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    // All but the doc tests, which have their own step.
    command.args(["--lib", "--bins", "--tests", "--examples", "--"]).args(&options.filters);
    command
}

fn with_tools(mut command: Command) -> Command {
    // Named even when the tools step was left out: an earlier run may have made it. What cannot be
    // run is what a test skips for.
    if std::env::var_os(tools::NODE_VARIABLE).is_none() {
        command.env(tools::NODE_VARIABLE, tools::node_modules());
    }
    if std::env::var_os(tools::PYTHON_VARIABLE).is_none() {
        command.env(tools::PYTHON_VARIABLE, tools::python());
    }
    command
}

fn print_times(times: &[(&str, Duration)]) {
    println!();
    for (name, time) in times {
        println!("{name:<14}{:>8.1} s", time.as_secs_f64());
    }
    let total: Duration = times.iter().map(|(_, time)| time).sum();
    println!("{:<14}{:>8.1} s", "all", total.as_secs_f64());
}

struct Step {
    name: &'static str,
    work: Work,
    /// What to do when it fails.
    advice: &'static str,
}

enum Work {
    Command(Command),
    Tools,
    Instructions,
}

impl Work {
    fn text(&self) -> String {
        match self {
            Self::Command(command) => text(command),
            Self::Tools => "what only tests need".to_owned(),
            Self::Instructions => "instructions per call against the baseline".to_owned(),
        }
    }

    fn run(self) -> Result<()> {
        match self {
            Self::Command(mut command) => run_command(&mut command),
            Self::Tools => tools::set_up(),
            Self::Instructions => match check::obstacle() {
                Some(why) if !in_ci() => {
                    println!("Left out: {why}");
                    Ok(())
                }
                _ => check::run(check::Work::Check),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Options::parse(&words)
    }

    #[test]
    fn steps_follow_the_options() {
        for (line, expected) in [
            ("", "formatting clippy without Lua tools tests doc tests instructions"),
            ("--no-tools", "formatting clippy without Lua tests doc tests"),
            (
                "--docs",
                "formatting clippy without Lua tools tests doc tests instructions documentation",
            ),
            ("sigv4 router", "formatting clippy tools tests"),
        ] {
            let steps = steps(&parsed(line).expect("the line is valid"));
            let names: Vec<&str> = steps.iter().map(|step| step.name).collect();
            assert_eq!(names.join(" "), expected, "test {line}");
        }
    }

    #[test]
    fn filters_end_the_runners_command_line() {
        let steps = steps(&parsed("sigv4 --no-tools router").expect("the line is valid"));
        let line = steps.last().expect("there are steps").work.text();
        assert!(line.contains("--workspace") && line.ends_with(" sigv4 router"), "{line}");
    }

    #[test]
    fn an_unknown_option_is_refused_by_name() {
        let error = parsed("--quick").expect_err("there is no such option").to_string();
        assert_eq!(error, "`test` has no option --quick");
    }
}
