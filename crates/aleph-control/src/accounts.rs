//! Accounts, and the tokens that speak for them.
//!
//! A token is `aleph_ID_SECRET`: 16 hex digits that name it, and 256 random bits as 64 hex
//! digits. It is shown once, when it is made. What is kept is the SHA-256 of the secret, in the
//! node's journal; a secret of full entropy needs no slow hash. All tokens are held in memory,
//! so a request costs no disk access to tell whose it is.

use aleph_executor::journal::{Journal, JournalError, TokenRecord};
use aleph_types::{Classify, ErrorClass, Timestamp};
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;
use subtle::ConstantTimeEq;

/// The account of local operators.
pub const DEFAULT_ACCOUNT: &str = "default";

/// How many tokens a node keeps.
const MOST_TOKENS: usize = 10_000;

/// How long a token may last at most, where it ends by itself: 100 years.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);

/// The accounts of a node.
#[derive(Debug)]
pub struct Accounts {
    journal: Journal,
    tokens: RwLock<BTreeMap<String, TokenRecord>>,
}

/// A token that was just made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// What is kept of it.
    pub record: TokenRecord,
    /// The token itself. Nothing can show it again.
    pub token: String,
}

/// A request about tokens that did not work out.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// Not a name of an account.
    #[error("{0:?} cannot be an account's name")]
    BadAccount(String),
    /// A label that is too long or not printable.
    #[error("the label {0:?} is too long or not printable")]
    BadLabel(String),
    /// A life that is no time at all, or longer than anybody's.
    #[error("a token cannot last {} s", .0.as_secs())]
    BadLife(Duration),
    /// More than a node keeps.
    #[error("the node keeps {MOST_TOKENS} tokens and takes no more")]
    Full,
    /// There is no such token.
    #[error("there is no token {0:?}")]
    NoToken(String),
    /// They cannot be read or kept.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Classify for AccountError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::BadAccount(_) | Self::BadLabel(_) | Self::BadLife(_) => ErrorClass::Invalid,
            Self::Full => ErrorClass::Capacity,
            Self::NoToken(_) => ErrorClass::NotFound,
            Self::Journal(error) => error.class(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::BadAccount(_) => "bad_account",
            Self::BadLabel(_) => "bad_label",
            Self::BadLife(_) => "bad_life",
            Self::Full => "too_many_tokens",
            Self::NoToken(_) => "no_token",
            Self::Journal(error) => error.code(),
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::BadAccount(_) => Some(
                "Use 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit."
                    .into(),
            ),
            Self::BadLabel(_) => Some("Use at most 200 printable characters.".into()),
            Self::BadLife(_) => Some("Give it between a second and 100 years.".into()),
            Self::Full => Some("Revoke tokens that nobody uses.".into()),
            Self::NoToken(_) => Some("See aleph token ls for the tokens there are.".into()),
            Self::Journal(error) => error.advice(),
        }
    }
}

/// Whether `name` can be an account's: 1 to 63 of `a-z`, `0-9`, `-`, `_` and `.`, the first a
/// letter or digit.
///
/// ```
/// # use aleph_control::accounts::is_account_name;
/// assert!(is_account_name("team-7"));
/// assert!(!is_account_name("Team"));
/// assert!(!is_account_name(".."));
/// ```
#[must_use]
pub fn is_account_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut bytes = name.bytes();
    name.len() <= 63
        && bytes.next().is_some_and(plain)
        && bytes.all(|b| plain(b) || matches!(b, b'-' | b'_' | b'.'))
}

impl Accounts {
    /// Reads what the journal keeps.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn open(journal: Journal) -> Result<Self, JournalError> {
        let tokens = journal.tokens().await?;
        let tokens = tokens.into_iter().map(|t| (t.id.clone(), t)).collect();
        Ok(Self {
            journal,
            tokens: RwLock::new(tokens),
        })
    }

    /// Makes a token for an account.
    ///
    /// # Errors
    /// Where an argument is wrong, or the token cannot be kept.
    pub async fn issue(
        &self,
        account: &str,
        label: &str,
        life: Option<Duration>,
    ) -> Result<Issued, AccountError> {
        if !is_account_name(account) {
            return Err(AccountError::BadAccount(account.to_owned()));
        }
        if label.chars().count() > 200 || label.contains(char::is_control) {
            return Err(AccountError::BadLabel(label.to_owned()));
        }
        let created_at = Timestamp::now();
        let expires_at = match life {
            None => None,
            Some(life) if life.is_zero() || life > LONGEST => {
                return Err(AccountError::BadLife(life));
            }
            Some(life) => {
                let end = created_at.checked_add(life);
                Some(end.map_err(|_| AccountError::BadLife(life))?)
            }
        };
        let (id, secret) = (hex(&random::<8>()), hex(&random::<32>()));
        if self.read().len() >= MOST_TOKENS {
            return Err(AccountError::Full);
        }
        let record = TokenRecord {
            id: id.clone(),
            account: account.to_owned(),
            label: label.to_owned(),
            hash: hash(&secret),
            created_at,
            expires_at,
        };
        self.journal.add_token(record.clone()).await?;
        self.write().insert(id.clone(), record.clone());
        let token = format!("aleph_{id}_{secret}");
        Ok(Issued { record, token })
    }

    /// All tokens, the oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<TokenRecord> {
        let mut tokens: Vec<_> = self.read().values().cloned().collect();
        tokens.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        tokens
    }

    /// Ends a token. Requests that it has begun go on.
    ///
    /// # Errors
    /// Where there is none of this id, or the journal cannot forget it.
    pub async fn revoke(&self, id: &str) -> Result<(), AccountError> {
        // No longer valid from now on, whatever the journal says.
        let there = self.write().remove(id);
        match self.journal.revoke_token(id).await {
            Ok(true) => Ok(()),
            Ok(false) if there.is_some() => Ok(()),
            Ok(false) => Err(AccountError::NoToken(id.to_owned())),
            Err(error) => {
                // It is valid again after a restart, so it must not look revoked now.
                if let Some(record) = there {
                    self.write().insert(id.to_owned(), record);
                }
                Err(error.into())
            }
        }
    }

    /// The account that a token speaks for at a moment, if it is one of ours.
    #[must_use]
    pub fn account_of(&self, token: &str, now: Timestamp) -> Option<String> {
        let (id, secret) = token.strip_prefix("aleph_")?.split_once('_')?;
        let tokens = self.read();
        let record = tokens.get(id)?;
        // An id is no secret, so that only the comparison has to take the same time for all.
        let same: bool = record.hash.ct_eq(&hash(secret)).into();
        let valid = record.expires_at.is_none_or(|end| now < end);
        (same && valid).then(|| record.account.clone())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, TokenRecord>> {
        self.tokens.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, TokenRecord>> {
        self.tokens.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        // Only an interruption by a signal can fail for so few bytes: see getrandom(2).
        if let Ok(n) = getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            filled += n;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_accounts_are_plain() {
        for good in ["a", "default", "team-7", "x.y_z", &"a".repeat(63)] {
            assert!(is_account_name(good), "{good}");
        }
        for bad in ["", "-a", ".", "A", "a b", "a/b", "é", &"a".repeat(64)] {
            assert!(!is_account_name(bad), "{bad}");
        }
    }

    #[test]
    fn random_bits_differ() {
        assert_ne!(hex(&random::<32>()), hex(&random::<32>()));
        assert_eq!(hex(&[0, 15, 255]), "000fff");
    }
}
