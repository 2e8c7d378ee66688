//! Which pages of others may call a URL (<https://fetch.spec.whatwg.org/#http-cors-protocol>).
//!
//! `*` with `AllowCredentials` lets every page call with its reader's cookies: its origin is said
//! back, as AWS does. That is for functions that take no cookie for a proof.

use crate::lambda::error::LambdaError;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde::Deserialize;
use serde_json::Value;

/// Seconds that a browser may keep an answer to a preflight.
const MOST_AGE: u32 = 86_400;
/// How many origins or headers there may be.
const MOST_ITEMS: usize = 100;

/// What a URL's `Cors` says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Cors {
    allow_credentials: bool,
    allow_headers: Vec<String>,
    allow_methods: Vec<String>,
    allow_origins: Vec<String>,
    expose_headers: Vec<String>,
    max_age: Option<u32>,
}

fn invalid(value: &str, at: &str, what: &str) -> LambdaError {
    LambdaError::invalid(format!(
        "1 validation error detected: Value '{value}' at 'cors.{at}' failed to satisfy \
         constraint: Member must {what}"
    ))
}

impl Cors {
    /// Reads what a client has set, and refuses what no browser would understand.
    pub(crate) fn read(value: &Value) -> Result<Self, LambdaError> {
        if !value.is_object() {
            return Err(LambdaError::invalid("Cors must be a structure"));
        }
        let cors = Self::deserialize(value)
            .map_err(|error| LambdaError::invalid(format!("Cors cannot be read: {error}")))?;
        let lists = [
            ("allowHeaders", &cors.allow_headers, MOST_ITEMS),
            ("allowMethods", &cors.allow_methods, 6),
            ("allowOrigins", &cors.allow_origins, MOST_ITEMS),
            ("exposeHeaders", &cors.expose_headers, MOST_ITEMS),
        ];
        for (at, list, most) in lists {
            if list.len() > most {
                let what = format!("have length less than or equal to {most}");
                return Err(invalid(&list.len().to_string(), at, &what));
            }
        }
        for method in &cors.allow_methods {
            let known = ["GET", "PUT", "HEAD", "POST", "PATCH", "DELETE", "*"];
            if !known.contains(&method.as_str()) {
                let what = "satisfy enum value set: [GET, PUT, HEAD, POST, PATCH, DELETE, *]";
                return Err(invalid(method, "allowMethods", what));
            }
        }
        for origin in &cors.allow_origins {
            if !is_origin(origin) {
                let what = "be * or an origin, such as https://www.example.com";
                return Err(invalid(origin, "allowOrigins", what));
            }
        }
        let headers = [
            ("allowHeaders", &cors.allow_headers),
            ("exposeHeaders", &cors.expose_headers),
        ];
        for (at, list) in headers {
            for name in list {
                let good = name.parse::<HeaderName>().is_ok() && name.len() <= 1024;
                if !good {
                    return Err(invalid(name, at, "be the name of a header"));
                }
            }
        }
        match cors.max_age {
            Some(age) if age > MOST_AGE => {
                let what = format!("have value less than or equal to {MOST_AGE}");
                Err(invalid(&age.to_string(), "maxAge", &what))
            }
            _ => Ok(cors),
        }
    }

    /// Whether a page of this origin may call.
    pub(super) fn allows(&self, origin: &HeaderValue) -> bool {
        let origin = origin.as_bytes();
        self.allow_origins
            .iter()
            .any(|one| one == "*" || one.as_bytes().eq_ignore_ascii_case(origin))
    }

    /// Says in an answer that the page which asked may read it. What the function said of that
    /// does not count.
    pub(super) fn apply(&self, request: &HeaderMap, answer: &mut HeaderMap) {
        for name in [
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_ALLOW_HEADERS,
            ACCESS_CONTROL_ALLOW_METHODS,
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_EXPOSE_HEADERS,
            ACCESS_CONTROL_MAX_AGE,
        ] {
            answer.remove(name);
        }
        self.allow_origin(request, answer);
        set(answer, ACCESS_CONTROL_EXPOSE_HEADERS, &self.expose_headers);
    }

    fn allow_origin(&self, request: &HeaderMap, answer: &mut HeaderMap) -> bool {
        answer.append(VARY, HeaderValue::from_static("Origin"));
        let origin = request.get(ORIGIN).filter(|origin| self.allows(origin));
        let Some(origin) = origin else {
            return false;
        };
        let any = !self.allow_credentials && self.allow_origins.iter().any(|one| one == "*");
        let allowed = match any {
            true => HeaderValue::from_static("*"),
            false => origin.clone(),
        };
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if self.allow_credentials {
            let yes = HeaderValue::from_static("true");
            answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        true
    }

    /// The headers that answer a preflight.
    pub(super) fn preflight(&self, request: &HeaderMap) -> HeaderMap {
        let mut answer = HeaderMap::new();
        if self.allow_origin(request, &mut answer) {
            set(
                &mut answer,
                ACCESS_CONTROL_ALLOW_METHODS,
                &self.allow_methods,
            );
            set(
                &mut answer,
                ACCESS_CONTROL_ALLOW_HEADERS,
                &self.allow_headers,
            );
            if let Some(age) = self.max_age {
                answer.insert(ACCESS_CONTROL_MAX_AGE, age.into());
            }
        }
        answer
    }
}

/// Whether a browser asks what it may ask.
pub(super) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

fn set(answer: &mut HeaderMap, name: HeaderName, values: &[String]) {
    if values.is_empty() {
        return;
    }
    if let Ok(value) = HeaderValue::from_str(&values.join(",")) {
        answer.insert(name, value);
    }
}

fn is_origin(text: &str) -> bool {
    if text == "*" || text == "null" {
        return true;
    }
    let uri = text.parse::<Uri>().ok();
    uri.is_some_and(|uri| {
        let bare = matches!(uri.path(), "" | "/") && uri.query().is_none() && !text.ends_with('/');
        text.len() <= 253 && uri.scheme().is_some() && uri.host().is_some() && bare
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            let name: HeaderName = name.parse().unwrap();
            (name, value.parse().unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn what_is_no_cors_is_refused() {
        Cors::read(&json!({})).unwrap();
        for wrong in [
            json!([]),
            json!({"AllowMethods": ["OPTIONS"]}),
            json!({"AllowMethods": "GET"}),
            json!({"AllowOrigins": ["example.com"]}),
            json!({"AllowOrigins": ["https://example.com/page"]}),
            json!({"AllowOrigins": ["https://example.com/"]}),
            json!({"AllowHeaders": ["two words"]}),
            json!({"ExposeHeaders": [""]}),
            json!({"MaxAge": 86_401}),
            json!({"AllowOrigins": vec!["*"; 101]}),
        ] {
            let error = Cors::read(&wrong).unwrap_err();
            assert_eq!(error.name(), "InvalidParameterValueException", "{wrong}");
        }
    }

    #[test]
    fn a_preflight_hears_what_is_allowed() {
        let cors = Cors::read(&json!({
            "AllowOrigins": ["https://app.example.com", "http://localhost:3000"],
            "AllowMethods": ["GET", "POST"], "AllowHeaders": ["x-one", "x-two"],
            "ExposeHeaders": ["x-seen"], "MaxAge": 60, "AllowCredentials": true,
        }));
        let cors = cors.unwrap();
        let asked = headers(&[
            ("origin", "http://localhost:3000"),
            ("access-control-request-method", "POST"),
        ]);
        assert!(is_preflight(&Method::OPTIONS, &asked));
        assert!(!is_preflight(&Method::POST, &asked));
        assert!(!is_preflight(&Method::OPTIONS, &headers(&[])));
        let answer = cors.preflight(&asked);
        let all = headers(&[
            ("vary", "Origin"),
            ("access-control-allow-origin", "http://localhost:3000"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "GET,POST"),
            ("access-control-allow-headers", "x-one,x-two"),
            ("access-control-max-age", "60"),
        ]);
        assert_eq!(answer, all);
        let other = cors.preflight(&headers(&[("origin", "https://evil.example.com")]));
        assert_eq!(other, headers(&[("vary", "Origin")]));
    }

    #[test]
    fn what_is_set_counts_and_not_what_the_function_says() {
        let cors = Cors::read(&json!({"AllowOrigins": ["*"], "ExposeHeaders": ["x-seen"]}));
        let cors = cors.unwrap();
        let said = || {
            headers(&[
                ("access-control-allow-origin", "https://other.example.com"),
                ("access-control-allow-credentials", "true"),
                ("x-seen", "1"),
            ])
        };
        let mut answer = said();
        cors.apply(
            &headers(&[("origin", "https://a.example.com")]),
            &mut answer,
        );
        let all = headers(&[
            ("vary", "Origin"),
            ("access-control-allow-origin", "*"),
            ("access-control-expose-headers", "x-seen"),
            ("x-seen", "1"),
        ]);
        assert_eq!(answer, all);
    }
}
