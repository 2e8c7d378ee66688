//! What nobody prints.

use std::fmt;
use std::str::Utf8Error;

/// Bytes that a user gave for the guest alone. `Debug` says how many, and nothing else does.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// These bytes.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes, for whoever hands them on.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The same as text.
    ///
    /// # Errors
    /// Where they are no UTF-8. The error has places, not bytes.
    pub fn expose_text(&self) -> Result<&str, Utf8Error> {
        std::str::from_utf8(&self.0)
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}
