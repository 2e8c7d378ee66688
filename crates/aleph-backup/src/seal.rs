//! Encryption of what a repository stores. Pure, but for nonces, which are random.
//!
//! ```text
//! sealed = nonce: 24 bytes, ciphertext, tag: 16 bytes       XChaCha20-Poly1305
//! ```
//!
//! What an object is for goes into each tag, so that a store cannot pass one kind for another. A nonce of
//! 192 bits is drawn anew each time: no counter has to survive a crash, or be shared by hosts.

use crate::error::BackupError;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

const NONCE: usize = 24;
const TAG: usize = 16;

/// Bytes that a sealed text has more.
pub(crate) const OVERHEAD: usize = NONCE + TAG;

/// What is not sealed by this key, or was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it was not encrypted with the key of this repository, or it was changed")]
pub(crate) struct NotOurs;

/// Seals what is stored, where the repository is encrypted; else it leaves all as it is.
#[derive(Clone, Default)]
pub(crate) struct Seal(Option<Arc<XChaCha20Poly1305>>);

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.0.is_some() { "key" } else { "none" };
        f.debug_tuple("Seal").field(&what).finish()
    }
}

impl Seal {
    pub(crate) fn with_key(key: &[u8; 32]) -> Self {
        Self(Some(Arc::new(XChaCha20Poly1305::new(key.into()))))
    }

    pub(crate) const fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Bytes that what is stored has more.
    #[cfg(test)]
    pub(crate) const fn overhead(&self) -> usize {
        if self.0.is_some() { OVERHEAD } else { 0 }
    }

    /// What is stored for these bytes, which are for `purpose`.
    pub(crate) fn seal(&self, purpose: &[u8], plain: Vec<u8>) -> Result<Vec<u8>, BackupError> {
        let Some(cipher) = &self.0 else {
            return Ok(plain);
        };
        let random = |source: rustix::io::Errno| BackupError::Random {
            source: source.into(),
        };
        let mut nonce = [0; NONCE];
        crate::id::fill_random(&mut nonce).map_err(random)?;
        let mut sealed = Vec::with_capacity(plain.len() + OVERHEAD);
        sealed.extend(nonce);
        sealed.extend(plain);
        let text = sealed.get_mut(NONCE..).unwrap_or_default();
        let tag = cipher
            .encrypt_inout_detached(&XNonce::from(nonce), purpose, text.into())
            // Only beyond 256 GiB.
            .map_err(|_| BackupError::damaged("an object", "it is too large to be encrypted"))?;
        sealed.extend(tag);
        Ok(sealed)
    }

    /// The bytes that were sealed for `purpose`.
    pub(crate) fn open<'a>(
        &self,
        purpose: &[u8],
        sealed: &'a [u8],
    ) -> Result<Cow<'a, [u8]>, NotOurs> {
        let Some(cipher) = &self.0 else {
            return Ok(Cow::Borrowed(sealed));
        };
        let (nonce, rest) = sealed.split_first_chunk::<NONCE>().ok_or(NotOurs)?;
        let (text, tag) = rest.split_last_chunk::<TAG>().ok_or(NotOurs)?;
        let mut plain = text.to_vec();
        cipher
            .decrypt_inout_detached(
                &XNonce::from(*nonce),
                purpose,
                plain.as_mut_slice().into(),
                &Tag::from(*tag),
            )
            .map_err(|_| NotOurs)?;
        Ok(Cow::Owned(plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_changed_without_a_key() {
        let none = Seal::default();
        assert_eq!(none.seal(b"x", b"text".to_vec()).unwrap(), b"text");
        assert_eq!(none.open(b"x", b"text").unwrap().as_ref(), b"text");
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_for_its_purpose_alone(
            text in proptest::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
        ) {
            let seal = Seal::with_key(&[7; 32]);
            let sealed = seal.seal(b"a", text.clone()).unwrap();
            prop_assert_eq!(sealed.len(), text.len() + seal.overhead());
            prop_assert_ne!(&sealed, &seal.seal(b"a", text.clone()).unwrap(), "a nonce is used once");
            let opened = seal.open(b"a", &sealed).unwrap();
            prop_assert_eq!(opened.as_ref(), text.as_slice());
            prop_assert_eq!(seal.open(b"b", &sealed), Err(NotOurs));
            prop_assert_eq!(Seal::with_key(&[8; 32]).open(b"a", &sealed), Err(NotOurs));
            let mut changed = sealed.clone();
            changed[at.index(sealed.len())] ^= 1;
            prop_assert_eq!(seal.open(b"a", &changed), Err(NotOurs));
            prop_assert_eq!(seal.open(b"a", &sealed[..at.index(sealed.len())]), Err(NotOurs));
        }
    }
}
