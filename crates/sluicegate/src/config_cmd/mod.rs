//! `sluicegate config export` and `import`: all resources as one file, in APISIX's standalone form.
//!
//! While a gateway runs it is asked through its Admin API; otherwise the store is opened, and with
//! `--etcd` an etcd directly. Secrets are exported as they are stored (encrypted, where there is a
//! keyring) unless `--decrypt` is given; an import opens them with the keyring of config.yaml, and
//! stores them encrypted by it. An import checks everything before it changes anything.

mod api;
mod resources;
mod side;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::Value;
use sluicegate_admin::configs::declaration;
use sluicegate_model::Kind;
use sluicegate_model::resource::Key;
use sluicegate_store::file::Format;
use sluicegate_store::yaml;
use tempfile::NamedTempFile;

use self::resources::{Resource, Resources, Rules, format_of};
use self::side::Side;
use crate::cli::Place;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write all resources to a file (YAML, or JSON by its name); `-` is the standard output
    Export(Export),
    /// Check a file of resources, then store what it holds; `-` is the standard input
    Import(Import),
}

#[derive(Args)]
pub(crate) struct Export {
    /// The file; a name that ends with .json makes it JSON
    file: PathBuf,
    /// Write secrets and private keys in the clear
    #[arg(long)]
    decrypt: bool,
    #[command(flatten)]
    from: Where,
}

#[derive(Args)]
pub(crate) struct Import {
    /// The file; a name that ends with .json means JSON
    file: PathBuf,
    /// Delete resources that are not in the file
    #[arg(long)]
    replace: bool,
    /// Check the file and say what would change, without changing it
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    to: Where,
}

/// Which configuration is meant.
#[derive(Args)]
struct Where {
    #[command(flatten)]
    place: Place,
    /// An etcd instead of the gateway's store; may be given several times. A user and a password
    /// stand in the URL (https://USER:PASSWORD@HOST:PORT): those of config.yaml are not sent there
    #[arg(long, value_name = "URL")]
    etcd: Vec<String>,
    /// The prefix of keys in that etcd
    #[arg(long, value_name = "PREFIX", default_value = "/apisix", requires = "etcd")]
    etcd_prefix: String,
    /// Address of the running gateway's Admin API [default: as in config.yaml]
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "etcd")]
    admin: Option<SocketAddr>,
    /// The certificate to show to an Admin API that asks for one (admin_ssl_ca_cert): a PEM file
    #[arg(long, value_name = "FILE", requires = "admin_cert_key", conflicts_with = "etcd")]
    admin_cert: Option<PathBuf>,
    /// The private key of that certificate: a PEM file
    #[arg(long, value_name = "FILE", requires = "admin_cert")]
    admin_cert_key: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Export(export) => export.run(),
        Command::Import(import) => import.run(),
    }
}

impl Export {
    fn run(&self) -> anyhow::Result<()> {
        let rules = Rules::load(&self.from.place)?;
        let mut side = Side::open(&self.from, &rules.config)?;
        let mut all = side.all()?;
        if matches!(side, Side::Api(_)) && rules.config.redact_secrets {
            eprintln!(
                "sluicegate: warning: sluicegate.admin.redact_secrets: the Admin API answers \"***\" for every secret, and so reads the file; stop the gateway to export what is stored"
            );
        }
        if self.decrypt {
            for resource in all.values_mut() {
                rules.open(resource);
            }
        }
        let hidden: Vec<_> = all.values().filter(|one| one.hides_its_key()).collect();
        for one in &hidden {
            eprintln!(
                "sluicegate: warning: {} is written without its private key: it is stored in the clear, and the Admin API never shows such keys; stop the gateway to export it",
                one.key
            );
        }
        let format = format_of(&self.file);
        if let (Format::Json, Some(one)) = (format, all.values().find(|one| one.has_variable())) {
            bail!(
                "{}: a text in it reads ${{{{NAME}}}}, which an import from JSON would fill in from the environment, and JSON has no way to say that it must not: export to YAML",
                one.key
            );
        }
        let count = all.len();
        let entries = all.into_iter().map(|(key, one)| (key, one.value)).collect::<Vec<_>>();
        let whole = declaration(entries.iter().map(|(key, value)| (key.as_str(), value.clone())));
        let text = match format {
            Format::Json => format!("{:#}\n", Value::Object(whole)),
            Format::Yaml if whole.is_empty() => "#END\n".to_owned(),
            Format::Yaml => format!("{}#END\n", yaml::write(&Value::Object(whole))),
        };
        if self.file == Path::new("-") {
            std::io::stdout().write_all(text.as_bytes())?;
            return Ok(());
        }
        write_file(&self.file, &text)
            .with_context(|| format!("{} cannot be written", self.file.display()))?;
        println!("exported {count} resources to {}", self.file.display());
        Ok(())
    }
}

impl Import {
    fn run(&self) -> anyhow::Result<()> {
        let rules = Rules::load(&self.to.place)?;
        let wanted = rules.read(&self.file)?;
        let mut side = Side::open(&self.to, &rules.config)?;
        let mut found = side.all()?;
        for resource in found.values_mut() {
            rules.open(resource);
        }
        rules.check(&wanted, if self.replace { None } else { Some(&found) })?;

        let plan = Plan::new(wanted, &found, self.replace);
        let told = plan.told();
        if self.dry_run {
            println!("{} would be: {told}", self.file.display());
            return Ok(());
        }
        side.apply(plan, &rules)?;
        println!("imported {}: {told}", self.file.display());
        Ok(())
    }
}

/// What an import does.
struct Plan {
    created: Vec<Resource>,
    changed: Vec<Resource>,
    deleted: Vec<Key>,
    same: usize,
}

impl Plan {
    fn new(wanted: Resources, found: &Resources, replace: bool) -> Self {
        let is_left = |one: &Resource| {
            let owner = one.key.kind.parent().zip(one.key.parent.as_deref());
            owner.is_some_and(|(kind, id)| !found.contains_key(&Key::new(kind, id).to_string()))
        };
        let mut plan =
            Self { created: Vec::new(), changed: Vec::new(), deleted: Vec::new(), same: 0 };
        if replace {
            let gone = found.iter().filter(|(name, _)| !wanted.contains_key(*name));
            plan.deleted = gone.map(|(_, one)| one.key.clone()).collect();
        }
        for (name, one) in wanted {
            match found.get(&name) {
                None => plan.created.push(one),
                // What an owner left behind goes when the owner comes again.
                Some(old) if old.says_the_same(&one) && !is_left(old) => plan.same += 1,
                Some(_) => plan.changed.push(one),
            }
        }
        // What is named comes before what names it, and goes after it.
        plan.created.sort_by_key(|one| rank(one.key.kind));
        plan.changed.sort_by_key(|one| rank(one.key.kind));
        plan.deleted.sort_by_key(|key| std::cmp::Reverse(rank(key.kind)));
        plan
    }

    fn told(&self) -> String {
        format!(
            "{} created, {} changed, {} unchanged, {} deleted",
            self.created.len(),
            self.changed.len(),
            self.same,
            self.deleted.len()
        )
    }
}

fn rank(kind: Kind) -> usize {
    let order = [
        Kind::Secrets,
        Kind::Ssls,
        Kind::Protos,
        Kind::PluginMetadata,
        Kind::Upstreams,
        Kind::Services,
        Kind::GraphqlCostDecorations,
        Kind::PluginConfigs,
        Kind::ConsumerGroups,
        Kind::Consumers,
        Kind::Credentials,
        Kind::GlobalRules,
    ];
    order.iter().position(|one| *one == kind).unwrap_or(order.len())
}

/// Writes a file that only its owner can read, whole or not at all.
fn write_file(path: &Path, text: &str) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    // Its name is nobody's guess, its mode 0600.
    let mut file = NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_file_is_written_through_nothing_that_was_there_before() {
        let folder = tempfile::tempdir().unwrap();
        let [file, other, bait] =
            ["all.yaml", "other", "all.yaml.new"].map(|n| folder.path().join(n));
        std::fs::write(&other, "untouched").unwrap();
        std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o666)).unwrap();
        symlink(&other, &bait).unwrap();
        // The second time, the file itself is a link.
        for _ in 0..2 {
            write_file(&file, "secret").unwrap();
            let found = std::fs::symlink_metadata(&file).unwrap();
            assert!(found.is_file());
            assert_eq!(found.permissions().mode() & 0o777, 0o600);
            assert_eq!(std::fs::read_to_string(&file).unwrap(), "secret");
            assert_eq!(std::fs::read_to_string(&other).unwrap(), "untouched");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
            std::fs::remove_file(&file).unwrap();
            symlink(&other, &file).unwrap();
        }
        assert!(write_file(&folder.path().join("none/all.yaml"), "").is_err());
    }
}
