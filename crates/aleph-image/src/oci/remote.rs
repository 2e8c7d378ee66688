//! A repository at one registry or mirror: the requests of the distribution specification.

use super::auth::{self, Challenge};
use super::credentials::{self, Login};
use super::document::{INDEX_TYPES, MANIFEST_TYPES, escaped};
use super::error::RegistryError;
use super::pace::Pace;
use super::reference::{Reference, is_loopback};
use super::registries::{Endpoint, Registries};
use crate::digest::Digest;
use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A manifest, an index or a configuration is at most this large.
const LARGEST_DOCUMENT: usize = 4 << 20;
const LARGEST_MESSAGE: usize = 64 << 10;
const MOST_REDIRECTS: usize = 10;
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection may be silent.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// A repository at one place.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) client: Client,
    pub(super) endpoint: Endpoint,
    pub(super) repository: String,
    pub(super) login: Option<Login>,
    /// Which hosts may be spoken to by plain HTTP.
    pub(super) registries: Arc<Registries>,
    /// How long an answer may take, however it is spread.
    patience: Duration,
    /// What the registry let us in with last.
    authorization: Mutex<Option<HeaderValue>>,
}

/// Bytes of a blob, from an offset on.
#[derive(Debug)]
pub(super) struct BlobBytes {
    response: Response,
    pace: Pace,
    host: String,
    /// To be dropped before the first byte that was asked for: not every registry knows ranges.
    skip: u64,
}

impl Remote {
    /// Blocks: it reads certificates and logins.
    pub(super) fn new(
        endpoint: Endpoint,
        reference: &Reference,
        registries: &Arc<Registries>,
        patience: Duration,
    ) -> Result<Self, RegistryError> {
        Ok(Self {
            client: client(&endpoint, registries)?,
            login: credentials::login(registries, &endpoint.host)?,
            endpoint,
            repository: reference.repository().to_owned(),
            registries: Arc::clone(registries),
            patience,
            authorization: Mutex::new(None),
        })
    }

    pub(super) fn host(&self) -> &str {
        &self.endpoint.host
    }

    /// The manifest or index of a tag or digest, and its digest, which is `expected` if there is
    /// something to expect.
    pub(super) async fn manifest(
        &self,
        which: &str,
        expected: Option<Digest>,
    ) -> Result<(Bytes, Digest), RegistryError> {
        let url = self.url("manifests", which)?;
        let kinds = [INDEX_TYPES, MANIFEST_TYPES].concat().join(", ");
        let kinds = HeaderValue::try_from(kinds).map_err(|e| self.form("type", e.to_string()))?;
        let headers = HeaderMap::from_iter([(ACCEPT, kinds)]);
        let what = format!("{}:{which}", self.repository);
        let response = self.get(url, &headers, &what).await?;
        let body = self.body(response, LARGEST_DOCUMENT, "manifest").await?;
        let digest = Digest::of(&body);
        match expected {
            Some(expected) if expected != digest => Err(self.mismatch(expected, digest)),
            _ => Ok((body, digest)),
        }
    }

    /// A blob that is small: a configuration.
    pub(super) async fn small_blob(
        &self,
        digest: Digest,
        size: u64,
    ) -> Result<Bytes, RegistryError> {
        if size > LARGEST_DOCUMENT as u64 {
            return Err(self.form("configuration", format!("it has {size} bytes")));
        }
        let name = digest.to_string();
        let url = self.url("blobs", &name)?;
        let response = self.get(url, &HeaderMap::new(), &name).await?;
        let body = self
            .body(response, LARGEST_DOCUMENT, "configuration")
            .await?;
        match Digest::of(&body) {
            found if found == digest => Ok(body),
            found => Err(self.mismatch(digest, found)),
        }
    }

    /// The bytes of a blob from `offset` on.
    pub(super) async fn blob(
        &self,
        digest: Digest,
        offset: u64,
    ) -> Result<BlobBytes, RegistryError> {
        let url = self.url("blobs", &digest.to_string())?;
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = HeaderValue::try_from(format!("bytes={offset}-"));
            headers.insert(RANGE, range.map_err(|e| self.form("range", e.to_string()))?);
        }
        let name = digest.to_string();
        let response = self.in_time(self.get(url, &headers, &name)).await?;
        let skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let start = format!("bytes {offset}-");
                let range = response.headers().get(CONTENT_RANGE);
                if !range.is_some_and(|r| r.as_bytes().starts_with(start.as_bytes())) {
                    return Err(self.form("part", "it is of another range".into()));
                }
                0
            }
            _ => offset,
        };
        Ok(BlobBytes {
            response,
            pace: Pace::new(self.patience),
            host: self.host().to_owned(),
            skip,
        })
    }

    /// Does `work` unless it takes too long: that each read is in time bounds nothing, where one
    /// byte is a read.
    pub(super) async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let ended = tokio::time::timeout(self.patience, work).await;
        ended.unwrap_or_else(|_| {
            Err(RegistryError::Stalled {
                host: self.host().to_owned(),
            })
        })
    }

    fn url(&self, kind: &str, which: &str) -> Result<Url, RegistryError> {
        let Endpoint {
            base, mirror_of, ..
        } = &self.endpoint;
        let text = format!("{base}/v2/{}/{kind}/{which}", self.repository);
        let mut url = Url::parse(&text).map_err(|e| self.form("address", e.to_string()))?;
        if let Some(registry) = mirror_of {
            // As containerd does: one mirror can stand in for several registries.
            url.query_pairs_mut().append_pair("ns", registry);
        }
        Ok(url)
    }

    /// Asks, and logs in where the registry wants that first.
    async fn get(
        &self,
        url: Url,
        headers: &HeaderMap,
        what: &str,
    ) -> Result<Response, RegistryError> {
        let mut known = self.authorization().clone();
        let mut asked_again = false;
        loop {
            let mut request = self.client.get(url.clone()).headers(headers.clone());
            if let Some(value) = &known {
                request = request.header(AUTHORIZATION, value.clone());
            }
            let sent = request.send().await;
            let response = sent.map_err(|source| self.unreachable(source))?;
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::UNAUTHORIZED if !asked_again => {
                    let challenge = Challenge::of(response.headers());
                    let Some(value) = auth::answer(self, challenge).await? else {
                        return Err(self.refusal(response, what).await);
                    };
                    *self.authorization() = Some(value.clone());
                    known = Some(value);
                    asked_again = true;
                }
                _ => return Err(self.refusal(response, what).await),
            }
        }
    }

    fn authorization(&self) -> std::sync::MutexGuard<'_, Option<HeaderValue>> {
        self.authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The error that an answer means.
    pub(super) async fn refusal(&self, response: Response, what: &str) -> RegistryError {
        let status = response.status();
        let body = self.body(response, LARGEST_MESSAGE, "message").await;
        let message = body.map(|body| message_of(&body)).unwrap_or_default();
        let host = self.host().to_owned();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Unauthorized {
                host,
                repository: self.repository.clone(),
                logged_in: self.login.is_some(),
                message,
            },
            StatusCode::NOT_FOUND => RegistryError::NotFound {
                host,
                what: what.to_owned(),
            },
            StatusCode::TOO_MANY_REQUESTS => RegistryError::Limited { host, message },
            status => RegistryError::Answer {
                host,
                status: status.as_u16(),
                message,
            },
        }
    }

    /// An answer's body, if it is not larger than it may be.
    pub(super) async fn body(
        &self,
        mut response: Response,
        most: usize,
        what: &'static str,
    ) -> Result<Bytes, RegistryError> {
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|source| self.unreachable(source))?
        {
            if body.len() + chunk.len() > most {
                return Err(self.form(what, format!("it has more than {most} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.into())
    }

    pub(super) fn unreachable(&self, source: reqwest::Error) -> RegistryError {
        RegistryError::Unreachable {
            host: self.host().to_owned(),
            // The address has been said, and may have a token in it.
            source: source.without_url(),
        }
    }

    pub(super) fn form(&self, what: &'static str, why: String) -> RegistryError {
        RegistryError::Form {
            host: self.host().to_owned(),
            what,
            why,
        }
    }

    fn mismatch(&self, expected: Digest, found: Digest) -> RegistryError {
        RegistryError::Mismatch {
            host: self.host().to_owned(),
            expected,
            found: format!("its digest is {found}"),
            kept: false,
        }
    }
}

impl BlobBytes {
    /// The next bytes; `None` at the end of what the registry sends.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let chunk = self.pace.next(&mut self.response).await;
            let chunk = chunk.ok_or_else(|| RegistryError::Stalled {
                host: self.host.clone(),
            })?;
            let chunk = chunk.map_err(|source| RegistryError::Unreachable {
                host: self.host.clone(),
                source: source.without_url(),
            })?;
            let Some(mut chunk) = chunk else {
                return Ok(None);
            };
            let drop = usize::try_from(self.skip).map_or(chunk.len(), |n| n.min(chunk.len()));
            self.skip -= drop as u64;
            let rest = chunk.split_off(drop);
            if !rest.is_empty() {
                return Ok(Some(rest));
            }
        }
    }
}

/// What a registry says in its form of an error, or in any other.
fn message_of(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Envelope {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    if let Ok(envelope) = serde_json::from_slice::<Envelope>(body) {
        let first = envelope.errors.first();
        return escaped(&first.map_or(String::new(), |entry| match &*entry.message {
            "" => entry.code.clone(),
            message => message.to_owned(),
        }));
    }
    let text = String::from_utf8_lossy(body);
    if text.trim_start().starts_with('<') {
        // A page for people, of whatever is there instead of a registry.
        return String::new();
    }
    escaped(text.trim())
}

fn client(endpoint: &Endpoint, registries: &Arc<Registries>) -> Result<Client, RegistryError> {
    // Without one, making a client panics; another part of the program may have chosen one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let for_redirects = Arc::clone(registries);
    let mut builder = Client::builder()
        .user_agent(concat!("aleph/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_LIMIT)
        .read_timeout(SILENCE_LIMIT)
        .redirect(redirect::Policy::custom(move |attempt| {
            let may = attempt.previous().len() <= MOST_REDIRECTS
                && may_lead_to(attempt.previous().first(), attempt.url(), &for_redirects);
            if may {
                attempt.follow()
            } else {
                attempt.error("it leads to plain HTTP, or too far")
            }
        }));
    if is_loopback(&endpoint.host) {
        builder = builder.no_proxy();
    }
    if endpoint.base.starts_with("http://") {
        // Spares the reading of the system's certificates.
        builder = builder.tls_certs_only([]);
    } else {
        for path in &registries.certificates {
            let bad = |source| RegistryError::Certificates {
                path: path.clone(),
                source,
            };
            let pem = std::fs::read(path).map_err(bad)?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|error| bad(std::io::Error::other(error)))?;
            builder = builder.tls_certs_merge(certificates);
        }
    }
    builder
        .build()
        .map_err(|source| RegistryError::Unreachable {
            host: endpoint.host.clone(),
            source,
        })
}

/// Plain HTTP is only for hosts that are allowed it, and never where TLS was spoken before.
pub(super) fn may_lead_to(from: Option<&Url>, to: &Url, registries: &Registries) -> bool {
    match to.scheme() {
        "https" => true,
        "http" => {
            let host = to.host_str().unwrap_or_default();
            let with_port = to.port().map(|port| format!("{host}:{port}"));
            from.is_none_or(|from| from.scheme() == "http")
                && (registries.is_plain(host)
                    || with_port.is_some_and(|host| registries.is_plain(&host)))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leads_from_tls_to_plain_http() {
        let registries = Registries::default();
        let url = |text: &str| Url::parse(text).unwrap();
        for (from, to, may) in [
            ("https://a.b", "https://c.d/x", true),
            ("https://a.b", "http://a.b/x", false),
            ("https://a.b", "http://127.0.0.1/x", false),
            ("http://localhost:5000", "http://127.0.0.1:1/x", true),
            ("http://localhost:5000", "http://a.b/x", false),
            ("http://localhost:5000", "https://a.b/x", true),
            ("http://localhost:5000", "http://[::1]:7/x", true),
            ("http://localhost:5000", "file:///etc/passwd", false),
        ] {
            let led = may_lead_to(Some(&url(from)), &url(to), &registries);
            assert_eq!(led, may, "{from} {to}");
        }
    }

    #[test]
    fn what_a_registry_says_is_shown_in_one_short_line() {
        let envelope = br#"{"errors":[{"code":"DENIED","message":"no\nway"}]}"#;
        assert_eq!(message_of(envelope), "no\\nway");
        assert_eq!(message_of(br#"{"errors":[{"code":"DENIED"}]}"#), "DENIED");
        assert_eq!(message_of(b" plain \x1b[31m"), "plain \\u{1b}[31m");
        assert_eq!(message_of(b"<html>"), "");
        assert_eq!(message_of(&[b'x'; 5000]).len(), 300);
    }
}
