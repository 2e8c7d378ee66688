//! SigV4: requests signed with a secret that both sides know
//! (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>).
//!
//! The hash of the body is always computed: clients of this API sign it and do not send it. The
//! path is encoded once more than it is on the wire. A session token is taken for what it is
//! worth: a header that may be signed like any other.

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
        headers: &HeaderMap,
        region: &str,
        now: Timestamp,
    ) -> Result<Claim<'_>, LambdaError> {
        let Some(header) = headers.get(AUTHORIZATION) else {
            let message = "Missing Authentication Token";
            return Err(LambdaError::new(Kind::MissingAuthenticationToken, message));
        };
        let text = header.to_str().unwrap_or_default();
        let parsed = Parsed::of(text).ok_or_else(|| {
            let message = "Authorization header is not of the form AWS4-HMAC-SHA256 \
                           Credential=…, SignedHeaders=…, Signature=…";
            LambdaError::new(Kind::IncompleteSignature, message)
        })?;
        let credential = self.0.get(parsed.key).ok_or_else(|| {
            let message = "The security token included in the request is invalid.";
            LambdaError::new(Kind::UnrecognizedClient, message)
        })?;
        let wrong = |message: String| LambdaError::new(Kind::InvalidSignature, message);
        let time = headers
            .get("x-amz-date")
            .and_then(|time| time.to_str().ok());
        let time = time.ok_or_else(|| {
            let message = "Authorization header requires existence of an 'X-Amz-Date' header.";
            LambdaError::new(Kind::IncompleteSignature, message)
        })?;
        let then = read_time(time).ok_or_else(|| {
            let message = "Date must be in ISO-8601 'basic format'";
            LambdaError::new(Kind::IncompleteSignature, message)
        })?;
        if now.duration_since(then).unsigned_abs() > SKEW {
            let (date, now) = (time, now.strftime("%Y%m%dT%H%M%SZ"));
            return Err(wrong(format!(
                "Signature not yet current or expired: {date} is more than 15 min from {now}"
            )));
        }
        let scope = parsed.scope.as_str();
        let expected = format!("{}/{region}/lambda/aws4_request", &time[..8]);
        if scope != expected {
            return Err(wrong(format!(
                "Credential should be scoped to {expected}, not to {scope}"
            )));
        }
        if !["host", "x-amz-date"]
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
            time: time.to_owned(),
        })
    }
}

struct Parsed<'h> {
    key: &'h str,
    scope: String,
    signed: Vec<String>,
    signature: Vec<u8>,
}

impl<'h> Parsed<'h> {
    fn of(header: &'h str) -> Option<Self> {
        let rest = header.strip_prefix("AWS4-HMAC-SHA256")?.trim_start();
        let (mut credential, mut signed, mut signature) = (None, None, None);
        for part in rest.split(',') {
            let (name, value) = part.trim().split_once('=')?;
            match name {
                "Credential" => credential = Some(value),
                "SignedHeaders" => signed = Some(value),
                "Signature" => signature = Some(value),
                _ => return None,
            }
        }
        let (key, scope) = credential?.split_once('/')?;
        let names = signed?.split(';').map(str::to_ascii_lowercase).collect();
        Some(Self {
            key,
            scope: scope.to_owned(),
            signed: names,
            signature: unhex(signature?).filter(|bytes| bytes.len() == 32)?,
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
        // Some clients sign the path as it is, and others without its dots and empty segments.
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
        let query = canonical_query(query.unwrap_or_default());
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

/// A path without dots and empty segments.
fn normal(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
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
fn canonical_query(query: &str) -> String {
    let again = |text: &str| {
        let text = text.replace('+', " ");
        let bytes: Vec<u8> = percent_decode_str(&text).collect();
        percent_encoding::percent_encode(&bytes, UNRESERVED).to_string()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
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
mod tests {
    use super::*;

    /// As botocore 1.44 signed it; see `tests/lambda_boto3.rs` for a client that signs now.
    fn signed() -> (Uri, HeaderMap) {
        let uri = "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction\
                   %3Ahello/invocations?Qualifier=%24LATEST"
            .parse()
            .unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "127.0.0.1:9000"),
            ("x-amz-date", "20261128T170000Z"),
            ("x-amz-log-type", "Tail"),
            ("authorization", SIGNATURE),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        (uri, headers)
    }

    const SIGNATURE: &str = "AWS4-HMAC-SHA256 \
        Credential=AKIDEXAMPLE/20261128/us-east-1/lambda/aws4_request, \
        SignedHeaders=host;x-amz-date;x-amz-log-type, \
        Signature=abca90abe6d21d4bde5472ce3e6e2ffca6a5019ef16a5f8f8e947216a5367845";

    fn keys() -> Keys {
        Keys::new(vec![Credential {
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            account: "team".into(),
        }])
    }

    fn check(
        headers: &HeaderMap,
        uri: &Uri,
        body: &[u8],
        now: &str,
    ) -> Result<String, LambdaError> {
        let keys = keys();
        let claim = keys.claim(headers, "us-east-1", now.parse().unwrap())?;
        claim.verify(&Method::POST, uri, headers, body)
    }

    const NOW: &str = "2026-11-28T17:05:00Z";

    #[test]
    fn what_botocore_signs_is_right() {
        let (uri, headers) = signed();
        assert_eq!(check(&headers, &uri, b"{\"a\": 1}", NOW).unwrap(), "team");
    }

    #[test]
    fn any_change_makes_it_wrong() {
        let (uri, headers) = signed();
        let refused = |headers: &HeaderMap, uri: &Uri, body: &[u8], now: &str| {
            check(headers, uri, body, now).unwrap_err().name()
        };
        assert_eq!(
            refused(&headers, &uri, b"{}", NOW),
            "InvalidSignatureException"
        );
        let other = "/2015-03-31/functions/hello/invocations".parse().unwrap();
        let body = b"{\"a\": 1}";
        assert_eq!(
            refused(&headers, &other, body, NOW),
            "InvalidSignatureException"
        );
        let late = "2026-11-28T17:15:01Z";
        assert_eq!(
            refused(&headers, &uri, body, late),
            "InvalidSignatureException"
        );
        let mut changed = headers.clone();
        changed.insert("x-amz-log-type", "None".parse().unwrap());
        assert_eq!(
            refused(&changed, &uri, body, NOW),
            "InvalidSignatureException"
        );
        for (from, to, name) in [
            ("AKIDEXAMPLE", "AKIDOTHER", "UnrecognizedClientException"),
            ("us-east-1", "eu-west-1", "InvalidSignatureException"),
            ("host;x-amz-date", "x-amz-date", "InvalidSignatureException"),
            ("AWS4-HMAC", "AWS3-HMAC", "IncompleteSignatureException"),
        ] {
            let mut changed = headers.clone();
            let value = SIGNATURE.replace(from, to).parse().unwrap();
            changed.insert(AUTHORIZATION, value);
            assert_eq!(refused(&changed, &uri, body, NOW), name, "{to}");
        }
        let mut none = headers;
        none.remove(AUTHORIZATION);
        assert_eq!(
            refused(&none, &uri, body, NOW),
            "MissingAuthenticationTokenException"
        );
    }

    #[test]
    fn paths_are_normal_without_dots_and_empty_segments() {
        for (path, expected) in [
            ("/", "/"),
            ("//", "/"),
            ("/a/b", "/a/b"),
            ("/a//b/", "/a/b/"),
            ("/a/./b/../c", "/a/c"),
            ("/../..", "/"),
        ] {
            assert_eq!(normal(path), expected, "{path}");
        }
    }

    #[test]
    fn queries_are_sorted_and_encoded_in_one_way() {
        assert_eq!(canonical_query("b=2&a=%7e+x&a=$"), "a=%24&a=~%20x&b=2");
        assert_eq!(canonical_query("List=ALL&flag"), "List=ALL&flag=");
        assert_eq!(canonical_query(""), "");
    }

    #[test]
    fn a_secret_is_not_shown() {
        let shown = format!("{:?}", keys());
        assert!(!shown.contains("wJalr"), "{shown}");
    }
}
