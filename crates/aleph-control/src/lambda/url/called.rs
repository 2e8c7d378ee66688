//! What a request calls: a URL, by its host or its path, or the API.

use crate::lambda::gate::host_name;
use axum::extract::Request;
use percent_encoding::percent_decode_str;

/// What begins the path of a request to a function.
pub(super) const PATH: &str = "/lambda-url/";

/// What a request calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Called {
    /// How it names the URL.
    pub(super) name: Name,
    /// What is left of its path.
    pub(super) path: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    /// A region and an id.
    Host { region: String, id: String },
    /// An id, or a function's name.
    Path(String),
}

impl Called {
    /// What a request calls; `None` where it is for the API.
    pub(super) fn of(request: &Request) -> Option<Self> {
        let path = request.uri().path();
        if let Some((id, region)) = host_name(request.headers()).and_then(labels) {
            return Some(Self {
                name: Name::Host { region, id },
                path: path.to_owned(),
            });
        }
        let rest = path.strip_prefix(PATH)?;
        let end = rest.find('/').unwrap_or(rest.len());
        let (name, path) = rest.split_at(end);
        Some(Self {
            name: Name::Path(percent_decode_str(name).decode_utf8_lossy().into_owned()),
            path: if path.is_empty() { "/" } else { path }.to_owned(),
        })
    }
}

/// Id and region of `ID.lambda-url.REGION.…`.
fn labels(host: &str) -> Option<(String, String)> {
    let mut labels = host.split('.');
    let (id, word, region) = (labels.next()?, labels.next()?, labels.next()?);
    let more = labels.next().is_some();
    let here = more && word.eq_ignore_ascii_case("lambda-url");
    here.then(|| (id.to_ascii_lowercase(), region.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::header::HOST;

    #[test]
    fn a_url_is_known_by_its_host_or_its_path() {
        let called = |host: &str, path: &str| {
            let request = Request::get(path).header(HOST, host).body(Body::empty());
            Called::of(&request.unwrap())
        };
        let by_host = |region: &str, path: &str| {
            Some(Called {
                name: Name::Host {
                    region: region.into(),
                    id: "abc".into(),
                },
                path: path.into(),
            })
        };
        let by_path = |name: &str, path: &str| {
            Some(Called {
                name: Name::Path(name.into()),
                path: path.into(),
            })
        };
        for (host, path, expected) in [
            (
                "abc.lambda-url.us-east-1.localhost:9000",
                "/a%20b",
                by_host("us-east-1", "/a%20b"),
            ),
            (
                "ABC.Lambda-URL.eu-west-3.on.aws",
                "/lambda-url/x",
                by_host("eu-west-3", "/lambda-url/x"),
            ),
            ("abc.lambda-url.us-east-1", "/", None),
            ("localhost:9000", "/2015-03-31/functions", None),
            ("localhost", "/lambda-url", None),
            ("localhost", "/lambda-url/hello", by_path("hello", "/")),
            ("[::1]:9000", "/lambda-url/hello/", by_path("hello", "/")),
            (
                "127.0.0.1:9000",
                "/lambda-url/hello%3Alive/a//b",
                by_path("hello:live", "/a//b"),
            ),
        ] {
            assert_eq!(called(host, path), expected, "{host} {path}");
        }
    }
}
