//! SigV4: requests signed with a secret that both sides know
//! (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>).
//!
//! The hash of the body is always computed: clients of this API sign it and do not send it. The
//! path is encoded once more than it is on the wire. A session token is taken for what it is
//! worth: a header that may be signed like any other. A URL may be signed, too, for a time: then all
//! that a header would say is in its query.
//!
//! Clients sign a path without its dots, and what routes a request takes it as it is. So one
//! signature would be good for several paths: a path with dots is refused where it is signed.

use super::code::{hex, unhex};
use super::error::{Kind, LambdaError};
use aleph_types::Timestamp;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Method, Uri};
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use subtle::ConstantTimeEq;

/// The most seconds that a URL can be signed for.
const MOST_EXPIRES: u64 = 7 * 24 * 3600;
/// How far a client's clock may be from ours.
const SKEW: Duration = Duration::from_secs(15 * 60);
/// What is not encoded in a query.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// What is not encoded in a path.
const PATH: &AsciiSet = &UNRESERVED.remove(b'/');

/// A secret that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A key by which an account signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Names the key.
    pub access_key_id: String,
    /// What requests are signed with.
    pub secret_access_key: Secret,
    /// Whose requests they are.
    pub account: String,
}

/// All keys.
#[derive(Debug)]
pub(crate) struct Keys(BTreeMap<String, Credential>);

impl Keys {
    pub(crate) fn new(credentials: Vec<Credential>) -> Self {
        let named = |credential: Credential| (credential.access_key_id.clone(), credential);
        Self(credentials.into_iter().map(named).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What a request's head claims. Only who has a key gets as far as sending a body.
    pub(crate) fn claim(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        (region, service): (&str, &str),
        now: Timestamp,
    ) -> Result<Claim<'_>, LambdaError> {
        let parsed = match headers.get(AUTHORIZATION) {
            Some(header) => Parsed::of_header(header.to_str().unwrap_or_default(), headers),
            None => Parsed::of_query(uri.query().unwrap_or_default()),
        }?;
        let credential = self.0.get(&parsed.key).ok_or_else(|| {
            let message = "The security token included in the request is invalid.";
            LambdaError::new(Kind::UnrecognizedClient, message)
        })?;
        let wrong = |message: String| LambdaError::new(Kind::InvalidSignature, message);
        let time = parsed.time.as_str();
        if time.is_empty() {
            let message = "Authorization header requires existence of an 'X-Amz-Date' header.";
            return Err(incomplete(message));
        }
        let then =
            read_time(time).ok_or_else(|| incomplete("Date must be in ISO-8601 'basic format'"))?;
        let after = now.duration_since(then);
        let late = match parsed.expires {
            Some(expires) => after.is_positive() && after.unsigned_abs() > expires,
            None => after.unsigned_abs() > SKEW,
        };
        if late || after.is_negative() && after.unsigned_abs() > SKEW {
            let now = now.strftime("%Y%m%dT%H%M%SZ");
            return Err(wrong(format!(
                "Signature not yet current or expired: it is of {time}, and now is {now}"
            )));
        }
        let scope = parsed.scope.as_str();
        let expected = format!("{}/{region}/{service}/aws4_request", &time[..8]);
        if scope != expected {
            return Err(wrong(format!(
                "Credential should be scoped to {expected}, not to {scope}"
            )));
        }
        // The date of a signed URL is in its query, all of which is signed.
        let needed = match parsed.expires {
            Some(_) => &["host"][..],
            None => &["host", "x-amz-date"],
        };
        if !needed
            .iter()
            .all(|name| parsed.signed.iter().any(|s| s == name))
        {
            return Err(wrong("'Host' and 'X-Amz-Date' must be signed".into()));
        }
        Ok(Claim {
            credential,
            signed: parsed.signed,
            signature: parsed.signature,
            scope: expected,
            time: parsed.time,
            in_query: parsed.expires.is_some(),
        })
    }
}

fn incomplete(message: &str) -> LambdaError {
    LambdaError::new(Kind::IncompleteSignature, message)
}

/// What says who signed.
struct Parsed {
    key: String,
    scope: String,
    signed: Vec<String>,
    signature: Vec<u8>,
    time: String,
    /// How long it is good for, where it is in a URL.
    expires: Option<Duration>,
}

impl Parsed {
    fn of_header(header: &str, headers: &HeaderMap) -> Result<Self, LambdaError> {
        let form = || {
            incomplete(
                "Authorization header is not of the form AWS4-HMAC-SHA256 Credential=…, \
                 SignedHeaders=…, Signature=…",
            )
        };
        let rest = header.strip_prefix("AWS4-HMAC-SHA256").ok_or_else(form)?;
        let (mut credential, mut signed, mut signature) = (None, None, None);
        for part in rest.trim_start().split(',') {
            match part.trim().split_once('=').ok_or_else(form)? {
                ("Credential", value) => credential = Some(value),
                ("SignedHeaders", value) => signed = Some(value),
                ("Signature", value) => signature = Some(value),
                _ => return Err(form()),
            }
        }
        let parts = [credential, signed, signature];
        let [Some(credential), Some(signed), Some(signature)] = parts else {
            return Err(form());
        };
        let parsed = Self::new(credential, signed, signature).ok_or_else(form)?;
        let time = headers.get("x-amz-date");
        let time = time.and_then(|time| time.to_str().ok());
        Ok(Self {
            time: time.unwrap_or_default().to_owned(),
            ..parsed
        })
    }

    fn of_query(query: &str) -> Result<Self, LambdaError> {
        let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query).unwrap_or_default();
        let said = |name: &str| {
            let mut found = pairs.iter().filter(|(other, _)| other == name);
            found.next().map(|(_, value)| value.as_str())
        };
        if said("X-Amz-Algorithm") != Some("AWS4-HMAC-SHA256") {
            let message = "Missing Authentication Token";
            return Err(LambdaError::new(Kind::MissingAuthenticationToken, message));
        }
        let all = || {
            let expires = said("X-Amz-Expires")?.parse::<u64>().ok()?;
            let expires = (1..=MOST_EXPIRES).contains(&expires).then_some(expires)?;
            let signed = said("X-Amz-SignedHeaders")?;
            let parsed = Self::new(said("X-Amz-Credential")?, signed, said("X-Amz-Signature")?)?;
            Some(Self {
                time: said("X-Amz-Date")?.to_owned(),
                expires: Some(Duration::from_secs(expires)),
                ..parsed
            })
        };
        all().ok_or_else(|| {
            incomplete(
                "A URL that is signed has X-Amz-Credential, X-Amz-Date, X-Amz-Expires (up to a \
                 week), X-Amz-SignedHeaders and X-Amz-Signature",
            )
        })
    }

    fn new(credential: &str, signed: &str, signature: &str) -> Option<Self> {
        let (key, scope) = credential.split_once('/')?;
        Some(Self {
            key: key.to_owned(),
            scope: scope.to_owned(),
            signed: signed.split(';').map(str::to_ascii_lowercase).collect(),
            signature: unhex(signature).filter(|bytes| bytes.len() == 32)?,
            time: String::new(),
            expires: None,
        })
    }
}

/// Reads `20261128T165158Z`.
fn read_time(text: &str) -> Option<Timestamp> {
    let digits = text.len() == 16 && text.is_ascii();
    let (date, rest) = digits.then(|| text.split_at(8))?;
    let time = rest.strip_prefix('T')?.strip_suffix('Z')?;
    let iso = format!(
        "{}-{}-{}T{}:{}:{}Z",
        &date[..4],
        &date[4..6],
        &date[6..],
        &time[..2],
        &time[2..4],
        &time[4..]
    );
    iso.parse().ok()
}

/// A request that says whose it is, before that is verified.
#[derive(Debug)]
pub(crate) struct Claim<'k> {
    credential: &'k Credential,
    signed: Vec<String>,
    signature: Vec<u8>,
    scope: String,
    time: String,
    /// Whether the signature is in the query, which is signed without it.
    in_query: bool,
}

impl Claim<'_> {
    /// The key that it says it is signed with.
    pub(crate) fn key(&self) -> &str {
        &self.credential.access_key_id
    }

    /// Whose request it says that it is.
    pub(crate) fn account(&self) -> &str {
        &self.credential.account
    }

    /// Whose request it is, where its signature is right.
    pub(crate) fn verify(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<String, LambdaError> {
        let Self { scope, time, .. } = self;
        let secret = format!("AWS4{}", self.credential.secret_access_key.0);
        let mut key = secret.into_bytes();
        for part in scope.split('/') {
            key = mac(&key, part.as_bytes());
        }
        let body = hex(&Sha256::digest(body));
        let is_right = |path: &str| {
            let canonical = self.canonical((method, path, uri.query()), headers, &body);
            let hash = hex(&Sha256::digest(canonical.as_bytes()));
            let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hash}");
            let right = mac(&key, text.as_bytes());
            bool::from(right.ct_eq(self.signature.as_slice()))
        };
        if has_dots(uri.path()) {
            let message = "A path that is signed has no segments '.' and '..'";
            return Err(LambdaError::new(Kind::InvalidSignature, message));
        }
        // Some clients sign the path as it is, and others without its empty segments.
        let (path, normal) = (uri.path(), normal(uri.path()));
        if is_right(&normal) || normal != path && is_right(path) {
            return Ok(self.credential.account.clone());
        }
        let message = "The request signature we calculated does not match the signature you \
                       provided. Check your AWS Secret Access Key and signing method.";
        Err(LambdaError::new(Kind::InvalidSignature, message))
    }

    fn canonical(
        &self,
        (method, path, query): (&Method, &str, Option<&str>),
        headers: &HeaderMap,
        body: &str,
    ) -> String {
        let path = utf8_percent_encode(path, PATH);
        let query = canonical_query(query.unwrap_or_default(), self.in_query);
        let mut text = format!("{method}\n{path}\n{query}\n");
        for name in &self.signed {
            let values = headers.get_all(name.as_str()).iter();
            let values = values.map(|value| {
                let text = String::from_utf8_lossy(value.as_bytes());
                text.split_whitespace().collect::<Vec<_>>().join(" ")
            });
            text.push_str(&format!(
                "{name}:{}\n",
                values.collect::<Vec<_>>().join(",")
            ));
        }
        let names = self.signed.join(";");
        text.push_str(&format!("\n{names}\n{body}"));
        text
    }
}

/// Whether a segment of a path, however it is encoded, leads elsewhere.
fn has_dots(path: &str) -> bool {
    let mut segments = path.split(['/', '\\']);
    segments.any(|segment| {
        let plain: Vec<u8> = percent_decode_str(segment).collect();
        let mut parts = plain.split(|byte| matches!(byte, b'/' | b'\\'));
        parts.any(|part| matches!(part, b"." | b".."))
    })
}

/// A path without empty segments.
fn normal(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" => {}
            segment => segments.push(segment),
        }
    }
    let end = if path.ends_with('/') && !segments.is_empty() {
        "/"
    } else {
        ""
    };
    format!("/{}{end}", segments.join("/"))
}

/// A query, sorted, with each part encoded in one way.
fn canonical_query(query: &str, signed: bool) -> String {
    let again = |text: &str| {
        let text = text.replace('+', " ");
        let bytes: Vec<u8> = percent_decode_str(&text).collect();
        percent_encoding::percent_encode(&bytes, UNRESERVED).to_string()
    };
    let pairs = query.split('&').filter(|pair| {
        let signature = signed && pair.starts_with("X-Amz-Signature=");
        !pair.is_empty() && !signature
    });
    let mut pairs: Vec<_> = pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (again(name), again(value))
        })
        .collect();
    pairs.sort();
    let pairs = pairs.iter().map(|(name, value)| format!("{name}={value}"));
    pairs.collect::<Vec<_>>().join("&")
}

fn mac(key: &[u8], text: &[u8]) -> Vec<u8> {
    // A key of any length will do, so that this cannot fail.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return Vec::new();
    };
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests;
