//! What tells identities apart.

use ring::digest::{Context, SHA256};

use crate::kept::Key;

/// Takes every input of an identity in, one after the other.
pub(crate) struct Hash(Context);

impl Hash {
    pub(crate) fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub(crate) fn count(&mut self, count: usize) {
        self.0.update(&count.to_le_bytes());
    }

    /// With its length, so that no two lists of texts look alike.
    pub(crate) fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.update(text.as_bytes());
    }

    pub(crate) fn optional(&mut self, text: Option<&str>) {
        self.count(usize::from(text.is_some()));
        self.text(text.unwrap_or_default());
    }

    pub(crate) fn finish(self) -> Key {
        self.0.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}
