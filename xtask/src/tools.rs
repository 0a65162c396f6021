//! What only tests need from the system: Python with botocore (judges signatures), boto3 (judges
//! where credentials come from), schemathesis (fuzzes the Admin API) and Google's Functions Framework,
//! which Node.js has too, etcd, the command-line clients that end-to-end tests use, and valgrind,
//! which counts instructions.
//!
//! On Debian, as root, missing packages are installed; anywhere else they are named. What PyPI and
//! npm bring goes into the target folder, never into the system.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::command::{in_ci, on_path, output, program, target};

/// Names, for the tests, the Python that has them.
pub(crate) const PYTHON_VARIABLE: &str = "SLUICEGATE_PYTHON";

/// Names, for the tests, the folder of the packages that npm brought.
pub(crate) const NODE_VARIABLE: &str = "SLUICEGATE_NODE_MODULES";

/// That folder, whether or not it exists yet.
pub(crate) fn node_modules() -> PathBuf {
    target().join("node/node_modules")
}

/// The Python of the tests' virtual environment, whether or not it exists yet.
pub(crate) fn python() -> PathBuf {
    target().join("venv/bin/python")
}

/// `cargo xtask tools`.
pub(crate) fn command() -> Result<()> {
    set_up()?;
    println!("The tests' Python: {}", python().display());
    Ok(())
}

/// Installs what is missing where that is allowed. What stays missing is an error in continuous
/// integration and a line of text elsewhere.
pub(crate) fn set_up() -> Result<()> {
    let mut missing = missing_pieces();
    if !missing.is_empty() && may_install() {
        install(&missing)?;
        missing = missing_pieces();
    }
    let mut problems = Vec::new();
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|piece| piece.name).collect();
        problems.push(format!(
            "missing: {}; install {} (Debian's names)",
            names.join(", "),
            packages(&missing).join(" ")
        ));
    }
    match python_with_venv() {
        Some(system_python) => {
            if let Err(error) = virtual_environment(&system_python) {
                problems.push(format!("no {}: {error:#}", names(&MODULES)));
            }
        }
        None => problems.push(format!("no {}: no Python to run them", names(&MODULES))),
    }
    if let Err(error) = node_packages() {
        problems.push(format!("no {}: {error:#}", names(&NODE_PACKAGES)));
    }
    if problems.is_empty() {
        return Ok(());
    }
    if in_ci() {
        bail!("{}", problems.join("\n"));
    }
    for problem in problems {
        println!("{problem}. Tests that need it will say that they were skipped.");
    }
    Ok(())
}

/// Makes the virtual environment, or leaves one that is already right alone.
fn virtual_environment(system_python: &Path) -> Result<()> {
    let has_all = || {
        MODULES.iter().all(|(name, version)| {
            let probe = format!("from importlib.metadata import version; print(version('{name}'))");
            output(program(python()).args(["-c", &probe])).is_ok_and(|text| text.trim() == *version)
        })
    };
    if has_all() {
        return Ok(());
    }
    make_environment(system_python, &target().join("venv"), &MODULES)?;
    if !has_all() {
        bail!("pip installed {}, but {} has not", names(&MODULES), python().display());
    }
    Ok(())
}

/// Has npm bring what the tests run on Node.js, unless it is there.
fn node_packages() -> Result<()> {
    let has_all = || {
        NODE_PACKAGES.iter().all(|(name, version)| {
            let manifest = node_modules().join(name).join("package.json");
            let manifest = std::fs::read_to_string(&manifest).unwrap_or_default();
            manifest.contains(&format!("\"version\": \"{version}\""))
        })
    };
    if has_all() {
        return Ok(());
    }
    bring_packages(&target().join("node"), &NODE_PACKAGES)?;
    if !has_all() {
        let folder = node_modules();
        bail!("npm brought {}, but {} has not", names(&NODE_PACKAGES), folder.display());
    }
    Ok(())
}

/// Makes a virtual environment, in place of one that is there, and has pip bring modules into it.
pub(crate) fn make_environment(
    system_python: &Path,
    folder: &Path,
    modules: &[(&str, &str)],
) -> Result<()> {
    println!("Making a virtual environment with {}.", names(modules));
    output(program(system_python).args(["-m", "venv", "--clear"]).arg(folder))?;
    let mut pip = program(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]);
    pip.args(modules.iter().map(|(name, version)| format!("{name}=={version}")));
    output(&mut pip).map(drop)
}

/// Has npm bring packages into a folder. No package's own scripts are run.
pub(crate) fn bring_packages(folder: &Path, packages: &[(&str, &str)]) -> Result<()> {
    println!("Having npm bring {}.", names(packages));
    let mut npm = program("npm");
    npm.args(["install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", "--prefix"]);
    npm.arg(folder).args(packages.iter().map(|(name, version)| format!("{name}@{version}")));
    output(&mut npm).map(drop)
}

fn names(pieces: &[(&str, &str)]) -> String {
    pieces.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" and ")
}

fn install(missing: &[&Piece]) -> Result<()> {
    let packages = packages(missing);
    println!("Installing {}.", packages.join(" "));
    let apt = || {
        let mut command = program("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
        command
    };
    output(apt().arg("update"))?;
    output(apt().args(["install", "-y", "--no-install-recommends"]).args(packages))?;
    Ok(())
}

/// Whether this is Debian (or made from it) and we are root.
fn may_install() -> bool {
    use std::os::unix::fs::MetadataExt;
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|data| data.uid() == 0);
    is_root && Path::new("/etc/debian_version").exists() && on_path("apt-get").is_some()
}

fn missing_pieces() -> Vec<&'static Piece> {
    PIECES.iter().filter(|piece| !(piece.is_there)()).collect()
}

fn packages(pieces: &[&Piece]) -> Vec<&'static str> {
    let mut packages: Vec<&str> = pieces.iter().map(|piece| piece.package).collect();
    packages.dedup();
    packages
}

/// A Python that can make virtual environments. The system's own comes second: the one first on the
/// path may be one that apt cannot complete.
pub(crate) fn python_with_venv() -> Option<PathBuf> {
    [on_path("python3"), Some(PathBuf::from("/usr/bin/python3"))]
        .into_iter()
        .flatten()
        .find(|python| output(program(python).args(["-c", "import venv, ensurepip"])).is_ok())
}

fn curl_speaks_http2() -> bool {
    on_path("curl").is_some()
        && output(program("curl").arg("--version")).is_ok_and(|text| text.contains("HTTP2"))
}

struct Piece {
    name: &'static str,
    /// The Debian package that brings it.
    package: &'static str,
    is_there: fn() -> bool,
}

// Pieces of one package stand next to each other.
const PIECES: [Piece; 9] = [
    Piece {
        name: "Python 3 with its venv module",
        package: "python3-venv",
        is_there: || python_with_venv().is_some(),
    },
    Piece { name: "h2load", package: "nghttp2-client", is_there: || on_path("h2load").is_some() },
    Piece { name: "nghttp", package: "nghttp2-client", is_there: || on_path("nghttp").is_some() },
    Piece { name: "curl with HTTP/2", package: "curl", is_there: curl_speaks_http2 },
    Piece { name: "openssl", package: "openssl", is_there: || on_path("openssl").is_some() },
    Piece { name: "etcd", package: "etcd-server", is_there: || on_path("etcd").is_some() },
    Piece { name: "Node.js", package: "nodejs", is_there: || on_path("node").is_some() },
    Piece { name: "npm", package: "npm", is_there: || on_path("npm").is_some() },
    Piece { name: "valgrind", package: "valgrind", is_there: || on_path("valgrind").is_some() },
];

/// Python's packages, in the versions that the tests were checked with: the judge of signatures, the
/// fuzzer of the Admin API, and what runs functions.
const MODULES: [(&str, &str); 5] = [
    ("boto3", "1.44.5"),
    ("botocore", "1.44.5"),
    ("functions-framework", "3.10.2"),
    ("mangum", "0.22.0"),
    ("schemathesis", "4.32.5"),
];

/// What runs functions on Node.js, in the version that the tests were checked with.
const NODE_PACKAGES: [(&str, &str); 2] =
    [("@google-cloud/functions-framework", "5.0.5"), ("serverless-http", "4.0.0")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_named_once_however_many_pieces_it_brings() {
        let pieces: Vec<&Piece> = PIECES.iter().collect();
        assert_eq!(
            packages(&pieces),
            [
                "python3-venv",
                "nghttp2-client",
                "curl",
                "openssl",
                "etcd-server",
                "nodejs",
                "npm",
                "valgrind"
            ]
        );
    }
}
