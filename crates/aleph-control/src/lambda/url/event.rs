//! A request to a URL as its function gets it: payload format 2.0
//! (<https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html#urls-payloads>).
//!
//! The path and the query are as they are on the wire. A body is text where its type says that it
//! is and it is no encoded one; otherwise it comes in base64. Headers that speak of the connection
//! alone are left out, and so is what a request was signed with. Cookies are in `cookies`, one by
//! one, and in `headers.cookie`, all in one line, as with AWS. `x-forwarded-proto` is what a proxy in front says, and `http` without one.

use crate::lambda::invocation::MOST_EVENT;
use crate::lambda::trace::{Trace, XRAY};
use aleph_types::Timestamp;
use axum::http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::IpAddr;

/// What is known of a request beside what it says.
pub(super) struct Received<'r> {
    pub(super) parts: &'r Parts,
    /// Its path, below that of the function.
    pub(super) path: &'r str,
    pub(super) url_id: &'r str,
    pub(super) domain: &'r str,
    pub(super) request_id: &'r str,
    pub(super) trace: Trace,
    pub(super) from: Option<IpAddr>,
    /// The port that it came in by.
    pub(super) port: Option<u16>,
    pub(super) now: Timestamp,
    /// Who signed it.
    pub(super) signer: Option<Signer>,
}

/// Who signed a request.
#[derive(Debug, Clone)]
pub(super) struct Signer {
    pub(super) access_key: String,
    /// The number of the account.
    pub(super) account_id: String,
    pub(super) account: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'r> {
    version: &'static str,
    route_key: &'static str,
    raw_path: &'r str,
    raw_query_string: &'r str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cookies: Vec<Cow<'r, str>>,
    headers: BTreeMap<&'r str, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    query_string_parameters: BTreeMap<String, String>,
    request_context: Context<'r>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Cow<'r, str>>,
    is_base64_encoded: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Context<'r> {
    account_id: &'r str,
    api_id: &'r str,
    #[serde(skip_serializing_if = "Option::is_none")]
    authorizer: Option<Authorizer>,
    domain_name: &'r str,
    domain_prefix: &'r str,
    http: Http<'r>,
    request_id: &'r str,
    route_key: &'static str,
    stage: &'static str,
    time: String,
    time_epoch: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Http<'r> {
    method: &'r str,
    path: &'r str,
    protocol: String,
    source_ip: String,
    user_agent: Option<&'r str>,
}

#[derive(Serialize)]
struct Authorizer {
    iam: Iam,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Iam {
    access_key: String,
    account_id: String,
    caller_id: String,
    cognito_identity: Option<()>,
    principal_org_id: Option<()>,
    user_arn: String,
    user_id: String,
}

impl From<Signer> for Authorizer {
    fn from(signer: Signer) -> Self {
        let Signer {
            access_key,
            account_id,
            account,
        } = signer;
        Self {
            iam: Iam {
                user_arn: format!("arn:aws:iam::{account_id}:user/{account}"),
                caller_id: access_key.clone(),
                user_id: access_key.clone(),
                access_key,
                account_id,
                cognito_identity: None,
                principal_org_id: None,
            },
        }
    }
}

/// An event that is longer than a function takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLong;

/// The event of a request with this body.
pub(super) fn event(received: Received<'_>, body: &[u8]) -> Result<Vec<u8>, TooLong> {
    let Received {
        parts,
        path,
        url_id,
        domain,
        request_id,
        trace,
        from,
        port,
        now,
        signer,
    } = received;
    let ip = from.map(|ip| ip.to_canonical().to_string());
    let ip = ip.unwrap_or_default();
    let account_id = signer.as_ref().map(|signer| signer.account_id.clone());
    let (text, is_base64_encoded) = encoded(&parts.headers, body);
    let event = Event {
        version: "2.0",
        route_key: "$default",
        raw_path: path,
        raw_query_string: parts.uri.query().unwrap_or_default(),
        cookies: cookies(&parts.headers),
        headers: headers(parts, signer.is_some(), trace, &ip, port),
        query_string_parameters: parameters(parts.uri.query().unwrap_or_default()),
        request_context: Context {
            account_id: account_id.as_deref().unwrap_or("anonymous"),
            api_id: url_id,
            authorizer: signer.map(Authorizer::from),
            domain_name: domain,
            domain_prefix: url_id,
            http: Http {
                method: parts.method.as_str(),
                path,
                protocol: format!("{:?}", parts.version),
                source_ip: ip.clone(),
                user_agent: parts.headers.get(USER_AGENT).and_then(|v| v.to_str().ok()),
            },
            request_id,
            route_key: "$default",
            stage: "$default",
            time: now.strftime("%d/%b/%Y:%H:%M:%S +0000").to_string(),
            time_epoch: now.as_millisecond(),
        },
        body: text,
        is_base64_encoded,
    };
    let mut bounded = Bounded(Vec::with_capacity(1024 + body.len() / 3 * 4));
    match serde_json::to_writer(&mut bounded, &event) {
        Ok(()) => Ok(bounded.0),
        // Nothing else in it cannot be written.
        Err(_) => Err(TooLong),
    }
}

/// Takes no more than an event may have.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MOST_EVENT.saturating_sub(self.0.len()) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn cookies(headers: &HeaderMap) -> Vec<Cow<'_, str>> {
    let values = headers.get_all(COOKIE).iter();
    let all = values.map(|value| String::from_utf8_lossy(value.as_bytes()));
    let mut cookies = Vec::new();
    for line in all {
        let each = line.split(';').map(str::trim);
        cookies.extend(each.filter(|c| !c.is_empty()).map(|c| c.to_owned().into()));
    }
    cookies
}

/// Whether a header speaks of one connection, or of what is not the function's business.
fn is_left_out(name: &HeaderName, signed: bool) -> bool {
    // Cookies are joined by what joins cookies.
    let own = [CONNECTION, COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];
    own.contains(name)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection" | XRAY)
        || name.as_str() == "proxy-authorization"
        || signed && *name == AUTHORIZATION
}

fn headers<'r>(
    parts: &'r Parts,
    signed: bool,
    trace: Trace,
    ip: &str,
    port: Option<u16>,
) -> BTreeMap<&'r str, String> {
    let mut headers: BTreeMap<&str, String> = BTreeMap::new();
    for (name, value) in &parts.headers {
        if is_left_out(name, signed) {
            continue;
        }
        let value = String::from_utf8_lossy(value.as_bytes());
        match headers.get_mut(name.as_str()) {
            Some(before) => {
                before.push(',');
                before.push_str(&value);
            }
            None => {
                headers.insert(name.as_str(), value.into_owned());
            }
        }
    }
    let cookies = cookies(&parts.headers);
    if !cookies.is_empty() {
        headers.insert(COOKIE.as_str(), cookies.join("; "));
    }
    headers.insert(XRAY, trace.to_string());
    let forwarded = headers.entry("x-forwarded-for").or_default();
    if !forwarded.is_empty() {
        forwarded.push_str(", ");
    }
    forwarded.push_str(ip);
    headers
        .entry("x-forwarded-proto")
        .or_insert_with(|| "http".into());
    if let Some(port) = port {
        headers
            .entry("x-forwarded-port")
            .or_insert_with(|| port.to_string());
    }
    headers
}

/// The parameters of a query; what comes more than once is joined by a comma.
fn parameters(query: &str) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query).unwrap_or_default();
    for (name, value) in pairs {
        match all.get_mut(&name) {
            Some(before) => {
                before.push(',');
                before.push_str(&value);
            }
            None => {
                all.insert(name, value);
            }
        }
    }
    all
}

/// A body as text or in base64; and whether it is that.
fn encoded<'b>(headers: &HeaderMap, body: &'b [u8]) -> (Option<Cow<'b, str>>, bool) {
    if body.is_empty() {
        return (None, false);
    }
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let plain = !headers.contains_key(CONTENT_ENCODING) && kind.is_some_and(is_text);
    match std::str::from_utf8(body) {
        Ok(text) if plain => (Some(text.into()), false),
        _ => (Some(BASE64_STANDARD.encode(body).into()), true),
    }
}

/// Whether a media type is one of text.
pub(in crate::lambda) fn is_text(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let kind = kind.to_ascii_lowercase();
    kind.starts_with("text/")
        || kind.ends_with("+json")
        || kind.ends_with("+xml")
        || matches!(
            kind.as_str(),
            "application/json" | "application/xml" | "application/javascript"
        )
}

#[cfg(test)]
mod tests;
