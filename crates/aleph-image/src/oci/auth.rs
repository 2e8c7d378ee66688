//! Answering a registry that wants a login: basic authentication and bearer tokens.
//!
//! The second is the token protocol of the distribution project: the registry names a token
//! service, which gives a token for one repository to those who log in there, and for what is
//! public to anybody.

use super::credentials::Login;
use super::error::RegistryError;
use super::remote::{Remote, may_lead_to};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_auth::ChallengeParser;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

const LARGEST_TOKEN: usize = 256 << 10;
/// Who we are to a token service.
const CLIENT: &str = "aleph";

/// How a registry wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
    /// In no way that is known.
    Other,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Challenge {
    /// The best way that a refusal offers: a token before a password.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut best = Self::Other;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let Ok(text) = value.to_str() else { continue };
            for challenge in ChallengeParser::new(text).map_while(Result::ok) {
                let parameter = |wanted: &str| {
                    let mut all = challenge.params.iter();
                    all.find(|(name, _)| name.eq_ignore_ascii_case(wanted))
                        .map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    if let Some(realm) = parameter("realm") {
                        return Self::Bearer {
                            realm,
                            service: parameter("service"),
                            scope: parameter("scope"),
                        };
                    }
                } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                    best = Self::Basic;
                }
            }
        }
        best
    }
}

/// The `Authorization` that answers a challenge; `None` where we have nothing to answer with.
pub(super) async fn answer(
    remote: &Remote,
    challenge: Challenge,
) -> Result<Option<HeaderValue>, RegistryError> {
    match challenge {
        Challenge::Other => Ok(None),
        Challenge::Basic => Ok(remote.login.as_ref().and_then(basic)),
        Challenge::Bearer {
            realm,
            service,
            scope,
        } => {
            let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", remote.repository));
            let token = token(remote, &realm, service.as_deref(), &scope).await?;
            secret(format!("Bearer {token}")).map_or_else(
                || Err(remote.form("token", "it has bytes that no header can have".into())),
                |value| Ok(Some(value)),
            )
        }
    }
}

fn basic(login: &Login) -> Option<HeaderValue> {
    match login {
        Login::Password { user, password } => secret(format!(
            "Basic {}",
            STANDARD.encode(format!("{user}:{password}"))
        )),
        Login::Identity(_) => None,
    }
}

fn secret(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

async fn token(
    remote: &Remote,
    realm: &str,
    service: Option<&str>,
    scope: &str,
) -> Result<String, RegistryError> {
    let registry = Url::parse(&remote.endpoint.base).ok();
    let mut url = Url::parse(realm)
        .ok()
        // A login is sent there: not in the clear, unless the registry itself is in the clear.
        .filter(|url| may_lead_to(registry.as_ref(), url, &remote.registries))
        .ok_or_else(|| remote.form("token service", "its address cannot be used".into()))?;
    let request = if let Some(Login::Identity(identity)) = &remote.login {
        let mut form = url.clone();
        form.set_query(None);
        form.query_pairs_mut()
            .append_pair("grant_type", "refresh_token")
            .append_pair("service", service.unwrap_or_default())
            .append_pair("client_id", CLIENT)
            .append_pair("scope", scope)
            .append_pair("refresh_token", identity);
        let body = form.query().unwrap_or_default().to_owned();
        remote
            .client
            .post(url)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body)
    } else {
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        url.query_pairs_mut().append_pair("scope", scope);
        let mut request = remote.client.get(url);
        if let Some(value) = remote.login.as_ref().and_then(basic) {
            request = request.header(AUTHORIZATION, value);
        }
        request
    };
    let sent = request.send().await;
    let response = sent.map_err(|source| remote.unreachable(source))?;
    if response.status() != StatusCode::OK {
        return Err(remote.refusal(response, "token service").await);
    }
    let body = remote.body(response, LARGEST_TOKEN, "token").await?;
    let answer: Option<Answer> = serde_json::from_slice(&body).ok();
    answer
        .and_then(|answer| answer.token.or(answer.access_token))
        .filter(|token| !token.is_empty())
        .ok_or_else(|| remote.form("token", "there is none in the answer".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&'static str]) -> Challenge {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(value));
        }
        Challenge::of(&headers)
    }

    #[test]
    fn challenges_are_read() {
        let bearer =
            "Bearer realm=\"https://a.b/token\",service=\"a.b\",scope=\"repository:x:pull\"";
        let expected = Challenge::Bearer {
            realm: "https://a.b/token".into(),
            service: Some("a.b".into()),
            scope: Some("repository:x:pull".into()),
        };
        assert_eq!(of(&[bearer]), expected);
        assert_eq!(of(&["Basic realm=\"x\"", bearer]), expected);
        assert_eq!(of(&["basic realm=\"Registry Realm\""]), Challenge::Basic);
        for nothing in [&[][..], &["Negotiate"], &["Bearer service=\"a\""], &["=,="]] {
            assert_eq!(of(nothing), Challenge::Other);
        }
    }
}
