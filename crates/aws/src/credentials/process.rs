//! `credential_process`: a command that prints credentials.

use super::ini::words;
use super::{AnswerKind, CredentialError, Issued, Surroundings, parse_answer};

/// Runs `line`, split as a shell would split it.
pub(crate) async fn load(
    line: &str,
    surroundings: Surroundings<'_>,
) -> Result<Issued, CredentialError> {
    let provider = AnswerKind::Process.origin();
    let command = words(line).filter(|words| !words.is_empty()).ok_or_else(|| {
        CredentialError::unusable(provider, "`credential_process` cannot be split into words")
    })?;
    let output = surroundings.outside.run(&command).await;
    let output = output.map_err(|cause| CredentialError::Local { provider, cause })?;
    parse_answer(AnswerKind::Process, &output)
}
