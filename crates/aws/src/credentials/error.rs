//! Why there are no credentials.

use super::{FetchError, OutsideError};

/// Why a source has no credentials. The text names variables, files and hosts, never a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The source was never set up here; the chain goes on to the next.
    #[error("{provider}: {missing}")]
    NotConfigured {
        /// The source.
        provider: &'static str,
        /// What it would need.
        missing: String,
    },
    /// It is set up, and wrongly, or what it answered cannot be used.
    #[error("{provider}: {cause}")]
    Unusable {
        /// The source.
        provider: &'static str,
        /// What is wrong.
        cause: String,
    },
    /// Its server did not answer.
    #[error("{provider}: {cause}")]
    Unreachable {
        /// The source.
        provider: &'static str,
        /// What the network says.
        cause: FetchError,
    },
    /// A file or a process it needs is not as it should be.
    #[error("{provider}: {cause}")]
    Local {
        /// The source.
        provider: &'static str,
        /// What the system says.
        cause: OutsideError,
    },
    /// Its server refused.
    #[error("{provider}: refused with {status}{reason}")]
    Refused {
        /// The source.
        provider: &'static str,
        /// The HTTP status.
        status: u16,
        /// AWS's code and message, with `: ` in front, if it gave any.
        reason: String,
    },
    /// No source of the chain is set up.
    #[error("no source of the chain is configured ({0})")]
    NothingConfigured(
        /// What each of them misses.
        String,
    ),
}

impl CredentialError {
    /// A refusal; of the server's words only the beginning is kept, and no control characters.
    pub(crate) fn refused(provider: &'static str, status: u16, words: &str) -> Self {
        let words: String = words
            .chars()
            .take(REFUSAL_CHARS_MAX)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let reason = if words.is_empty() { words } else { format!(": {words}") };
        Self::Refused { provider, status, reason }
    }

    pub(crate) fn unusable(provider: &'static str, cause: impl Into<String>) -> Self {
        Self::Unusable { provider, cause: cause.into() }
    }

    pub(crate) fn not_configured(provider: &'static str, missing: impl Into<String>) -> Self {
        Self::NotConfigured { provider, missing: missing.into() }
    }

    /// Whether the source was never set up, rather than failing.
    pub fn is_not_configured(&self) -> bool {
        matches!(self, Self::NotConfigured { .. } | Self::NothingConfigured(_))
    }
}

/// Characters of a server's refusal that are told.
const REFUSAL_CHARS_MAX: usize = 300;
