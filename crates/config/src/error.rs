//! What can be wrong with a configuration, and what is only worth a warning.

use std::fmt;

/// Why a configuration is not taken. Nothing of it is used then.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {cause}")]
    Read {
        /// The file's name as it was given.
        file: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The file is larger than [`FILE_BYTES_MAX`](crate::FILE_BYTES_MAX).
    #[error("{file}: larger than {limit} bytes")]
    TooLarge {
        /// The file's name as it was given.
        file: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// The file is no text.
    #[error("{file}: not UTF-8 text (at byte {at})")]
    NotText {
        /// The file's name as it was given.
        file: String,
        /// Where the first wrong byte stands.
        at: usize,
    },
    /// The file is no YAML, or passes a limit of the reader.
    #[error("{file}:{line}:{column}: {reason}")]
    Syntax {
        /// The file's name as it was given.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// What is wrong there.
        reason: String,
    },
    /// Keys hold what they must not; every one of them is listed.
    #[error("{}", lines(.file, .problems))]
    Invalid {
        /// The file's name as it was given.
        file: String,
        /// What is wrong, in the file's order; never empty, at most
        /// [`PROBLEMS_MAX`](crate::PROBLEMS_MAX).
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong with one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line in the file, from 1, where the problem has one.
    pub line: Option<usize>,
    /// The key's path, as `apisix.node_listen[1].port`.
    pub path: String,
    /// What was expected and what was found; never a secret.
    pub reason: String,
}

/// Something to tell the operator; the configuration is used all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// Nobody knows this key.
    UnknownKey {
        /// `file:line`.
        place: String,
        /// The key's path.
        path: String,
        /// The nearest key that exists.
        suggestion: Option<String>,
    },
    /// APISIX knows these keys; Sluicegate does not act on them yet.
    NotActedOn {
        /// The keys' paths, in the file's order.
        paths: Vec<String>,
    },
    /// The key has another name now.
    Deprecated {
        /// `file:line`.
        place: String,
        /// The key's path.
        path: String,
        /// The key to use, and what happens with this one.
        instead: &'static str,
    },
    /// Something that will surprise, in a sentence that names the key.
    Surprise(String),
    /// An empty admin key was generated and written into the file.
    AdminKeyGenerated {
        /// The file that holds it now.
        file: String,
        /// The key's path in it.
        path: String,
    },
    /// An empty admin key was generated, but could not be written into the file.
    AdminKeyNotWritten {
        /// The file that still holds the empty key.
        file: String,
        /// The key's path in it.
        path: String,
        /// Why it was not written.
        reason: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKey { place, path, suggestion: Some(suggestion) } => {
                write!(f, "{place}: unknown key {path}; did you mean {suggestion}?")
            }
            Self::UnknownKey { place, path, suggestion: None } => {
                write!(f, "{place}: unknown key {path}")
            }
            Self::NotActedOn { paths } => {
                write!(f, "keys that Sluicegate does not act on yet: {}", paths.join(", "))
            }
            Self::Deprecated { place, path, instead } => {
                write!(f, "{place}: {path} is deprecated: {instead}")
            }
            Self::Surprise(text) => f.write_str(text),
            Self::AdminKeyGenerated { file, path } => {
                write!(f, "{path} was empty: a random key was generated and written into {file}")
            }
            Self::AdminKeyNotWritten { file, path, reason } => write!(
                f,
                "{path} is empty: a random key is used for this run only, because it could not be \
                 written into {file}: {reason}"
            ),
        }
    }
}

/// Problems found so far; stops counting at [`PROBLEMS_MAX`](crate::PROBLEMS_MAX).
#[derive(Default)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn add(&mut self, line: Option<usize>, path: &str, reason: impl Into<String>) {
        if self.0.len() < crate::PROBLEMS_MAX {
            self.0.push(Problem { line, path: path.into(), reason: reason.into() });
        }
    }

    pub(crate) fn into_result(mut self, file: &str) -> Result<(), ConfigError> {
        if self.0.is_empty() {
            return Ok(());
        }
        self.0.sort_by_key(|problem| problem.line);
        Err(ConfigError::Invalid { file: file.into(), problems: self.0 })
    }
}

fn lines(file: &str, problems: &[Problem]) -> String {
    let lines: Vec<String> = problems
        .iter()
        .map(|problem| match problem.line {
            Some(line) => format!("{file}:{line}: {problem}"),
            None => format!("{file}: {problem}"),
        })
        .collect();
    lines.join("\n")
}
