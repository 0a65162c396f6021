//! The shared files as profiles.
//!
//! In the config file a profile is `[profile name]` (or `[default]`), an SSO session
//! `[sso-session name]`; in the credentials file every section is a profile. For most questions
//! the two are one, the credentials file going first; keys are looked for in one after the other.

use std::collections::BTreeMap;
use std::path::Path;

use super::ini::{self, Section};
use super::{CredentialError, FILE_BYTES_MAX, Surroundings};

/// What the shared files hold.
#[derive(Default)]
pub struct Profiles {
    config: BTreeMap<String, Section>,
    credentials: BTreeMap<String, Section>,
    merged: BTreeMap<String, Section>,
    sso_sessions: BTreeMap<String, Section>,
}

impl Profiles {
    /// Reads both files; one that is not there is empty.
    pub(crate) async fn load(surroundings: Surroundings<'_>) -> Result<Self, CredentialError> {
        let sources = surroundings.sources;
        let config = read(&sources.config_path(), surroundings).await?;
        let credentials = read(&sources.credentials_path(), surroundings).await?;
        Ok(Self::new(config, credentials))
    }

    /// Sorts the sections of the config file and of the credentials file.
    pub fn new(config: Vec<(String, Section)>, credentials: Vec<(String, Section)>) -> Self {
        let mut profiles = Self::default();
        for (name, section) in config {
            if name == "default" {
                profiles.config.insert(name, section);
                continue;
            }
            let (of, kind) = match name.as_str() {
                name if name.starts_with("profile") => (&mut profiles.config, "profile"),
                name if name.starts_with("sso-session") => {
                    (&mut profiles.sso_sessions, "sso-session")
                }
                _ => continue,
            };
            if let Some([word, name]) = ini::words(&name).as_deref()
                && word == kind
            {
                of.insert(name.clone(), section);
            }
        }
        profiles.merged = profiles.config.clone();
        for (name, section) in credentials {
            profiles.merged.entry(name.clone()).or_default().extend(section.clone());
            profiles.credentials.insert(name, section);
        }
        // A value that begins on the next line is a table of its own (`s3 =`), not a text.
        let all = [
            &mut profiles.config,
            &mut profiles.merged,
            &mut profiles.credentials,
            &mut profiles.sso_sessions,
        ];
        for section in all.into_iter().flat_map(BTreeMap::values_mut) {
            section.retain(|_, value| !value.starts_with('\n'));
        }
        profiles
    }

    /// A profile's settings from both files.
    pub(crate) fn of(&self, name: &str) -> Option<&Section> {
        self.merged.get(name)
    }

    pub(crate) fn in_config(&self, name: &str) -> Option<&Section> {
        self.config.get(name)
    }

    pub(crate) fn in_credentials(&self, name: &str) -> Option<&Section> {
        self.credentials.get(name)
    }

    pub(crate) fn sso_session(&self, name: &str) -> Option<&Section> {
        self.sso_sessions.get(name)
    }

    /// The names of all profiles.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.merged.keys().map(String::as_str)
    }
}

impl std::fmt::Debug for Profiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Profiles").field(&self.names().collect::<Vec<_>>()).finish()
    }
}

async fn read(
    path: &Path,
    surroundings: Surroundings<'_>,
) -> Result<Vec<(String, Section)>, CredentialError> {
    let bytes = surroundings.outside.read_file(path, FILE_BYTES_MAX).await;
    let bytes = bytes.map_err(|cause| CredentialError::Local { provider: PROVIDER, cause })?;
    let Some(bytes) = bytes else { return Ok(Vec::new()) };
    let unusable =
        |cause: String| CredentialError::unusable(PROVIDER, format!("{}: {cause}", path.display()));
    let text = String::from_utf8(bytes).map_err(|_| unusable("it is not UTF-8".to_owned()))?;
    ini::parse(&text).map_err(|error| unusable(error.to_string()))
}

const PROVIDER: &str = "profile";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_become_profiles_by_the_rules_of_their_file() {
        let config = "[default]\nregion=r0\n[profile \"a b\"]\nregion=r1\ns3 =\n  x = y\n\
                      [profile]\n[profiles x]\n[other]\nregion=no\n\
                      [sso-session s]\nsso_region=r2\n[profile two words]\n";
        let credentials = "[a b]\nregion=r3\n[other]\naws_access_key_id=A\n";
        let profiles = Profiles::new(ini::parse(config).unwrap(), ini::parse(credentials).unwrap());
        assert_eq!(profiles.names().collect::<Vec<_>>(), ["a b", "default", "other"]);
        assert_eq!(profiles.of("a b").unwrap()["region"], "r3", "the credentials file wins");
        assert!(!profiles.of("a b").unwrap().contains_key("s3"));
        assert_eq!(profiles.in_config("a b").unwrap()["region"], "r1");
        assert!(!profiles.of("other").unwrap().contains_key("region"));
        assert_eq!(profiles.sso_session("s").unwrap()["sso_region"], "r2");
        assert!(!format!("{profiles:?}").contains("r1"), "no value is printed");
    }
}
