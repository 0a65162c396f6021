//! `cargo xtask conformance`: Apache APISIX's own test files against this gateway.
//!
//! Neither the test files nor the runner that reads them belong to this project: the runner is
//! looked for in `../shared/conformance`, the checkout of APISIX is named on the command line.
//! Without them this command says so and does nothing.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result, bail, ensure};

use crate::command::{cargo, root, run, target};

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    apisix: PathBuf,
    files: Vec<String>,
}

impl Options {
    /// Reads `--apisix DIR` and test files.
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut apisix = None;
        let mut files = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--apisix" => {
                    apisix = Some(words.next().context("--apisix needs a folder")?.into())
                }
                flag if flag.starts_with('-') => bail!("conformance has no option {flag:?}"),
                file => files.push(file.to_owned()),
            }
        }
        let apisix =
            apisix.context("conformance needs --apisix DIR, a checkout of apache/apisix")?;
        Ok(Self { apisix, files })
    }
}

/// The services that test files expect, ended when dropped.
struct Services(Child);

impl Drop for Services {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs test files and prints what passed, also measured by what real APISIX passes.
pub(crate) fn run_files(options: &Options) -> Result<()> {
    let runner = root().join("../shared/conformance");
    ensure!(
        runner.join("run.py").is_file(),
        "the conformance runner is not there (../shared/conformance, beside this project's folder)"
    );
    ensure!(
        options.apisix.join("t/APISIX.pm").is_file(),
        "{} is no checkout of apache/apisix",
        options.apisix.display()
    );
    let apisix = std::path::absolute(&options.apisix)?;
    run(&mut cargo(&["build", "--package", "sluicegate"]))?;
    let work = target().join("conformance");
    std::fs::create_dir_all(work.join("prefix"))?;
    let listed = listed_files(&runner)?;
    let files = if options.files.is_empty() { &listed } else { &options.files };
    let python = python();
    let services = Command::new(&python)
        .arg(runner.join("services.py"))
        .arg("--apisix")
        .arg(&apisix)
        .current_dir(&work)
        .spawn()
        .with_context(|| format!("{} cannot be started", python.display()))?;
    let _services = Services(services);
    let hook = runner.join("hooks/sluicegate.sh");
    let envs = [
        ("SLUICEGATE_BIN", target().join("debug/sluicegate")),
        ("SLUICEGATE_PREFIX", work.join("prefix")),
    ];
    let result = run(Command::new(&python)
        .arg(runner.join("run.py"))
        .arg("--apisix")
        .arg(&apisix)
        .arg("--hook")
        .arg(&hook)
        .arg("--base-config")
        .arg(runner.join("hooks/sluicegate-base.yaml"))
        .arg("--calibration")
        .arg(runner.join("calibration.json"))
        .arg("--work")
        .arg(work.join("files"))
        .arg("--json")
        .arg(work.join("result.json"))
        .args(["--dns", "-v"])
        .args(files)
        .envs(envs.clone()));
    let _ = Command::new(&hook).arg("stop").envs(envs).status();
    result
}

/// The files that run where none are named: those of the function plugins and the routers'.
fn listed_files(runner: &Path) -> Result<Vec<String>> {
    let list = std::fs::read_to_string(runner.join("files.txt"))?;
    Ok(ours(&list))
}

fn ours(list: &str) -> Vec<String> {
    let ours = |file: &&str| FUNCTION_FILES.contains(file) || file.starts_with("t/router/");
    list.lines().map(str::trim).filter(ours).map(str::to_owned).collect()
}

/// Of the function plugins, as far as the list has them.
const FUNCTION_FILES: [&str; 5] = [
    "t/plugin/aws-lambda.t",
    "t/plugin/azure-functions.t",
    "t/plugin/openfunction.t",
    "t/plugin/openwhisk.t",
    "t/plugin/serverless.t",
];

/// The system's Python, whose Debian packages the runner needs, where there is one.
fn python() -> PathBuf {
    let system = PathBuf::from("/usr/bin/python3");
    if system.is_file() { system } else { PathBuf::from("python3") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options> {
        Options::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_checkout_is_needed_and_files_may_be_named() {
        let options = parse(&["--apisix", "a", "t/x.t"]).expect("well-formed");
        assert_eq!(options, Options { apisix: "a".into(), files: vec!["t/x.t".into()] });
        for words in [&[][..], &["--apisix"], &["--apisix", "a", "--other"]] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn the_function_plugins_and_the_routers_run_where_no_file_is_named() {
        let list = "t/admin/ssl.t\nt/plugin/aws-lambda.t\nt/plugin/key-auth.t\nt/plugin/openwhisk.t\n\
                    t/plugin/serverless.t\nt/router/radixtree-uri.t\n";
        let expected =
            ["aws-lambda", "openwhisk", "serverless"].map(|name| format!("t/plugin/{name}.t"));
        let mut expected = expected.to_vec();
        expected.push("t/router/radixtree-uri.t".to_owned());
        assert_eq!(ours(list), expected);
    }

    #[test]
    fn a_folder_that_is_no_checkout_is_named() {
        let options = Options { apisix: "no-such-folder".into(), files: Vec::new() };
        let error = run_files(&options).expect_err("there is nothing to run").to_string();
        assert!(
            error.contains("no-such-folder") || error.contains("runner is not there"),
            "{error}"
        );
    }
}
