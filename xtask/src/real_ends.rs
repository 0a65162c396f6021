//! `cargo xtask real-ends`: the tests against emulators of Lambda that are too large for every run.
//!
//! What they need is brought into the target folder once; the tests find it by a variable.

use std::fs;

use anyhow::{Context as _, Result};

use crate::command::{program, root, run, target};
use crate::tools::{bring_packages, make_environment, python_with_venv};

pub(crate) fn command() -> Result<()> {
    let folder = target().join("real-ends");
    let venv = folder.join("venv");
    if !venv.join("bin/moto_server").exists() {
        let python = python_with_venv()
            .context("no Python with its venv module: install python3-venv (Debian's name)")?;
        make_environment(&python, &venv, &MODULES)?;
    }
    let node = folder.join("node");
    if !node.join("node_modules/serverless-offline").exists() {
        bring_packages(&node, &PACKAGES)?;
    }
    let functions = root().join("crates/testkit/functions");
    let app = folder.join("app");
    fs::create_dir_all(app.join("src"))?;
    for file in ["Cargo.toml", "src/main.rs"] {
        fs::copy(functions.join("lambda-http").join(file), app.join(file))
            .with_context(|| format!("{file} of the function cannot be copied"))?;
    }
    fs::copy(functions.join("adapter_serverless_http.js"), node.join("app.js"))?;
    println!("Building the function.");
    run(program("cargo").arg("build").current_dir(&app).env_remove("CARGO_TARGET_DIR"))?;
    run(program("cargo")
        .args(["test", "-p", "sluicegate", "--test", "e2e", "real_ends::"])
        .current_dir(root())
        .env("SLUICEGATE_REAL_ENDS", &folder))
}

/// Python's packages, in the versions that the tests were checked with.
const MODULES: [(&str, &str); 3] =
    [("boto3", "1.44.5"), ("cargo-lambda", "1.9.2"), ("moto[server]", "5.2.5")];

/// npm's packages. A serverless of version 4 wants an account.
const PACKAGES: [(&str, &str); 3] =
    [("serverless", "3.40.0"), ("serverless-offline", "13.9.0"), ("serverless-http", "4.0.0")];
