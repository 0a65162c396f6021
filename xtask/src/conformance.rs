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
    /// The etcd that the gateway keeps its resources in; `None`: it keeps them itself.
    etcd: Option<String>,
    files: Vec<String>,
}

impl Options {
    /// Reads `--apisix DIR`, `--etcd URL` and test files.
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut apisix = None;
        let mut etcd = None;
        let mut files = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--apisix" => {
                    apisix = Some(words.next().context("--apisix needs a folder")?.into())
                }
                "--etcd" => etcd = Some(words.next().context("--etcd needs a URL")?.to_owned()),
                flag if flag.starts_with('-') => bail!("conformance has no option {flag:?}"),
                file => files.push(file.to_owned()),
            }
        }
        let apisix =
            apisix.context("conformance needs --apisix DIR, a checkout of apache/apisix")?;
        Ok(Self { apisix, etcd, files })
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
    let base = base_config(&runner, &work, options.etcd.as_deref())?;
    let etcd = options.etcd.iter().flat_map(|url| ["--etcd", url]);
    let result = run(Command::new(&python)
        .arg(runner.join("run.py"))
        .arg("--apisix")
        .arg(&apisix)
        .arg("--hook")
        .arg(&hook)
        .arg("--base-config")
        .arg(base)
        .arg("--calibration")
        .arg(runner.join("calibration.json"))
        .arg("--work")
        .arg(work.join("files"))
        .arg("--json")
        .arg(work.join("result.json"))
        .args(["--dns", "-v"])
        .args(etcd)
        .args(files)
        .envs(envs.clone()));
    let _ = Command::new(&hook).arg("stop").envs(envs).status();
    result
}

/// The runner's configuration of a gateway, with resources in etcd if there is one.
fn base_config(runner: &Path, work: &Path, etcd: Option<&str>) -> Result<PathBuf> {
    let embedded = runner.join("hooks/sluicegate-base.yaml");
    let Some(url) = etcd else { return Ok(embedded) };
    let text = std::fs::read_to_string(&embedded)?;
    let with_etcd = in_etcd(&text, url)
        .with_context(|| format!("{} names no store to replace", embedded.display()))?;
    let path = work.join("base.yaml");
    std::fs::write(&path, with_etcd)?;
    Ok(path)
}

/// A configuration that keeps its resources in etcd, in place of its own store.
fn in_etcd(base: &str, url: &str) -> Option<String> {
    const OWN: &str = "    config_provider: embedded\n";
    let theirs = format!("    config_provider: etcd\n  etcd:\n    host: [{url:?}]\n");
    base.contains(OWN).then(|| base.replace(OWN, &theirs))
}

/// The files of what this version has: the table in `docs/compatibility.md`.
fn listed_files(runner: &Path) -> Result<Vec<String>> {
    let list = std::fs::read_to_string(runner.join("files.txt"))?;
    let pages = std::fs::read_dir(root().join("docs/plugins"))?;
    let plugins: Vec<String> = pages
        .filter_map(|page| Some(page.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    let ours = |file: &&str| is_ours(file, &plugins);
    Ok(list.lines().map(str::trim).filter(ours).map(str::to_owned).collect())
}

/// Whether a file is about what is here: one of a plugin's is named for the plugin.
fn is_ours(file: &str, plugins: &[String]) -> bool {
    if file == SERVERLESS || FOLDERS.iter().any(|folder| file.starts_with(folder)) {
        return true;
    }
    let Some(name) = file.strip_prefix("t/plugin/") else { return false };
    plugins.iter().any(|plugin| {
        let rest = name.strip_prefix(plugin.as_str());
        rest.is_some_and(|rest| rest.starts_with(|c: char| "-./".contains(c) || c.is_numeric()))
    })
}

/// Of both plugins in Lua, which share a page of another name.
const SERVERLESS: &str = "t/plugin/serverless.t";
/// Folders of test files that are about the gateway itself.
const FOLDERS: [&str; 4] = ["t/admin/", "t/config-center-yaml/", "t/node/", "t/router/"];

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
        let files = vec!["t/x.t".to_owned()];
        assert_eq!(options, Options { apisix: "a".into(), etcd: None, files });
        let options = parse(&["--etcd", "http://h:1", "--apisix", "a"]).expect("well-formed");
        assert_eq!(options.etcd.as_deref(), Some("http://h:1"));
        for words in
            [&[][..], &["--apisix"], &["--apisix", "a", "--other"], &["--apisix", "a", "--etcd"]]
        {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn the_files_are_those_of_the_gateway_and_of_plugins_that_are_here() {
        let plugins = ["key-auth".to_owned(), "proxy-cache".to_owned()];
        for (file, ours) in [
            ("t/admin/routes2.t", true),
            ("t/config-center-yaml/ssl.t", true),
            ("t/node/vars.t", true),
            ("t/router/radixtree-sni.t", true),
            ("t/plugin/key-auth.t", true),
            ("t/plugin/serverless.t", true),
            ("t/plugin/key-auth2.t", true),
            ("t/plugin/key-auth-upstream.t", true),
            ("t/plugin/proxy-cache/memory.t", true),
            ("t/plugin/key-authority.t", false),
            ("t/plugin/prometheus.t", false),
            ("t/stream-node/sni.t", false),
        ] {
            assert_eq!(is_ours(file, &plugins), ours, "{file}");
        }
    }

    #[test]
    fn resources_may_lie_in_an_etcd() {
        let base = "a: 1\ndeployment:\n  role_traditional:\n    config_provider: embedded\nb: 2\n";
        let expected = "a: 1\ndeployment:\n  role_traditional:\n    config_provider: etcd\n  etcd:\n    host: [\"http://h:1\"]\nb: 2\n";
        assert_eq!(in_etcd(base, "http://h:1").as_deref(), Some(expected));
        assert_eq!(in_etcd("b: 2\n", "http://h:1"), None);
    }

    #[test]
    fn a_folder_that_is_no_checkout_is_named() {
        let options = Options { apisix: "no-such-folder".into(), etcd: None, files: Vec::new() };
        let error = run_files(&options).expect_err("there is nothing to run").to_string();
        assert!(
            error.contains("no-such-folder") || error.contains("runner is not there"),
            "{error}"
        );
    }
}
