//! Names of functions, in all the forms that clients use.
//!
//! ```text
//! NAME[:QUALIFIER]
//! ACCOUNT:function:NAME[:QUALIFIER]                      a partial ARN
//! arn:aws:lambda:REGION:ACCOUNT:function:NAME[:QUALIFIER]
//! ```

use super::error::LambdaError;
use sha2::{Digest, Sha256};

/// How a node is called in ARNs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The region that it says it is.
    pub region: String,
    /// The number of the account `default`: 12 digits.
    pub account_id: String,
}

/// A function that was named, and the version or alias of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) qualifier: Option<String>,
}

/// The longest name of a function.
const MOST_NAME: usize = 64;
/// The longest qualifier.
const MOST_QUALIFIER: usize = 128;

impl Identity {
    /// The number of an account. That of another account than `default` follows from its name.
    pub(crate) fn account_id(&self, account: &str) -> String {
        if account == crate::accounts::DEFAULT_ACCOUNT {
            return self.account_id.clone();
        }
        let hash = Sha256::digest(account.as_bytes());
        let number = hash
            .iter()
            .take(8)
            .fold(0_u64, |n, b| n << 8 | u64::from(*b));
        format!("{:012}", number % 1_000_000_000_000)
    }

    /// The ARN of a function, or of a version or alias of it.
    pub(crate) fn arn(&self, account: &str, function: &str, qualifier: Option<&str>) -> String {
        let (region, id) = (&self.region, self.account_id(account));
        let colon = if qualifier.is_some() { ":" } else { "" };
        let qualifier = qualifier.unwrap_or_default();
        format!("arn:aws:lambda:{region}:{id}:function:{function}{colon}{qualifier}")
    }

    /// Reads what a client calls a function.
    ///
    /// # Errors
    /// Where it is no name, or one of another account or region, where nothing can be found.
    pub(crate) fn target(&self, account: &str, text: &str) -> Result<Target, LambdaError> {
        let parts: Vec<&str> = text.split(':').collect();
        let (place, rest) = match parts.as_slice() {
            [
                "arn",
                partition,
                "lambda",
                region,
                id,
                "function",
                rest @ ..,
            ] if partition.starts_with("aws") => (Some((Some(*region), *id)), rest),
            [region, id, "function", rest @ ..] if is_account_id(id) => {
                (Some((Some(*region), *id)), rest)
            }
            [id, "function", rest @ ..] if is_account_id(id) => (Some((None, *id)), rest),
            ["function", rest @ ..] if !rest.is_empty() && parts.len() > 2 => (None, rest),
            rest => (None, rest),
        };
        let target = match rest {
            [name] => Target::new(name, None),
            [name, qualifier] => Target::new(name, Some(qualifier)),
            _ => None,
        };
        let Some(target) = target else {
            return Err(LambdaError::invalid(format!(
                "1 validation error detected: Value '{text}' at 'functionName' failed to satisfy \
                 constraint: Member must be a name, a name with a qualifier, or an ARN of a function"
            )));
        };
        if let Some((region, id)) = place {
            let here = region.is_none_or(|region| region == self.region);
            if !here || id != self.account_id(account) {
                return Err(LambdaError::no_function(text));
            }
        }
        Ok(target)
    }
}

impl Target {
    fn new(name: &str, qualifier: Option<&str>) -> Option<Self> {
        let qualified = qualifier.is_none_or(is_qualifier);
        (is_function_name(name) && qualified).then(|| Self {
            name: name.to_owned(),
            qualifier: qualifier.map(str::to_owned),
        })
    }

    /// Joins the qualifier of a query with that of the name; they must not say different things.
    pub(crate) fn qualified(mut self, query: Option<String>) -> Result<Self, LambdaError> {
        let Some(query) = query.filter(|query| !query.is_empty()) else {
            return Ok(self);
        };
        if !is_qualifier(&query) {
            return Err(LambdaError::invalid(format!(
                "1 validation error detected: Value '{query}' at 'qualifier' failed to satisfy \
                 constraint: Member must satisfy regular expression pattern: (|[a-zA-Z0-9$_-]+)"
            )));
        }
        if self.qualifier.as_ref().is_some_and(|own| *own != query) {
            return Err(LambdaError::invalid(
                "The derived qualifier from the function name does not match the specified \
                 qualifier.",
            ));
        }
        self.qualifier = Some(query);
        Ok(self)
    }
}

fn is_account_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_word(text: &str, most: usize) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    (1..=most).contains(&text.len()) && text.bytes().all(good)
}

/// Whether a function can be called that.
pub(crate) fn is_function_name(text: &str) -> bool {
    is_word(text, MOST_NAME)
}

fn is_qualifier(text: &str) -> bool {
    text == super::function::LATEST || is_word(text, MOST_QUALIFIER)
}

/// Whether an alias can be called that: a word that is no number.
pub(crate) fn is_alias_name(text: &str) -> bool {
    is_word(text, MOST_QUALIFIER) && !text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Identity {
        Identity {
            region: "us-east-1".into(),
            account_id: "000000000000".into(),
        }
    }

    #[test]
    fn all_forms_of_a_name_are_read() {
        for (text, name, qualifier) in [
            ("hello", "hello", None),
            ("hello:3", "hello", Some("3")),
            ("hello:$LATEST", "hello", Some("$LATEST")),
            ("function", "function", None),
            ("function:live", "function", Some("live")),
            ("function:hello:live", "hello", Some("live")),
            ("000000000000:function:hello", "hello", None),
            ("000000000000:function:hello:live", "hello", Some("live")),
            (
                "arn:aws:lambda:us-east-1:000000000000:function:hello",
                "hello",
                None,
            ),
            (
                "arn:aws:lambda:us-east-1:000000000000:function:hello:7",
                "hello",
                Some("7"),
            ),
        ] {
            let target = node().target("default", text).unwrap();
            assert_eq!(target.name, name, "{text}");
            assert_eq!(target.qualifier.as_deref(), qualifier, "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_invalid_and_what_is_elsewhere_is_not_found() {
        for (text, status) in [
            ("", 400),
            ("he llo", 400),
            ("hello:", 400),
            ("hello:a:b", 400),
            ("../hello", 400),
            (&"x".repeat(65), 400),
            ("arn:aws:s3:us-east-1:000000000000:function:hello", 400),
            ("arn:aws:lambda:eu-west-1:000000000000:function:hello", 404),
            ("arn:aws:lambda:us-east-1:000000000001:function:hello", 404),
            ("000000000001:function:hello", 404),
        ] {
            let error = node().target("default", text).unwrap_err();
            assert_eq!(error.status().as_u16(), status, "{text}");
        }
    }

    #[test]
    fn each_account_has_its_own_number() {
        let (a, b) = (node().account_id("team-a"), node().account_id("team-b"));
        assert_ne!(a, b);
        assert!(is_account_id(&a) && is_account_id(&b));
        let arn = node().arn("team-a", "f", Some("1"));
        assert_eq!(node().target("team-a", &arn).unwrap().name, "f");
        assert!(node().target("team-b", &arn).is_err());
    }

    #[test]
    fn two_qualifiers_have_to_agree() {
        let target = |text| node().target("default", text).unwrap();
        let same = target("f:1").qualified(Some("1".into())).unwrap();
        assert_eq!(same.qualifier.as_deref(), Some("1"));
        assert!(target("f:1").qualified(Some("2".into())).is_err());
        assert!(target("f").qualified(Some("a b".into())).is_err());
        assert_eq!(target("f:1").qualified(None).unwrap(), target("f:1"));
    }
}
