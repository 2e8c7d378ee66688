//! Status and headers of an HTTP response, before its body: JSON, then eight zero bytes.
//!
//! <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-custom.html#runtimes-custom-response-streaming>
//!
//! # Failure cases
//! A function may write anything: what is longer than [`MAX_PRELUDE`], is no such JSON or ends too
//! early is a [`PreludeError`].

use super::response::ResponseStream;
use aleph_types::{Classify, ErrorClass};
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// The most bytes of one.
pub const MAX_PRELUDE: usize = 64 * 1024;

/// What ends it.
const END: [u8; 8] = [0; 8];

/// Status, headers and cookies of an HTTP response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpPrelude {
    /// The status.
    pub status_code: u16,
    /// Headers of one value, which may be several with commas between them.
    #[serde(deserialize_with = "texts")]
    pub headers: BTreeMap<String, String>,
    /// Headers of several values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub multi_value_headers: BTreeMap<String, Vec<String>>,
    /// The values of `set-cookie`.
    pub cookies: Vec<String>,
}

impl Default for HttpPrelude {
    fn default() -> Self {
        Self {
            status_code: 200,
            headers: BTreeMap::new(),
            multi_value_headers: BTreeMap::new(),
            cookies: Vec::new(),
        }
    }
}

/// Values of headers, of which some functions have numbers and truths.
fn texts<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Scalar {
        Text(String),
        Number(serde_json::Number),
        Truth(bool),
    }
    let all = BTreeMap::<String, Scalar>::deserialize(from)?;
    let text = |scalar| match scalar {
        Scalar::Text(text) => text,
        Scalar::Number(number) => number.to_string(),
        Scalar::Truth(truth) => truth.to_string(),
    };
    Ok(all
        .into_iter()
        .map(|(name, value)| (name, text(value)))
        .collect())
}

/// A response that has no prelude where one should be.
#[derive(Debug, thiserror::Error)]
pub enum PreludeError {
    /// It does not end.
    #[error("the response's prelude has more than {MAX_PRELUDE} bytes")]
    TooLong,
    /// It ends too early.
    #[error("the response ended within its prelude")]
    Cut,
    /// It is something else.
    #[error("the response's prelude is not the JSON that it should be")]
    Malformed(#[source] serde_json::Error),
}

impl Classify for PreludeError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Invalid
    }

    fn code(&self) -> &'static str {
        "function_prelude"
    }

    fn advice(&self) -> Option<String> {
        Some(
            "Have the function write status and headers as JSON and eight zero bytes first.".into(),
        )
    }
}

impl HttpPrelude {
    /// As it is before a body.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        // Texts and numbers are JSON at all times.
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.extend(END);
        bytes.into()
    }

    /// Takes it off a response; what came of the body with it is beside it.
    ///
    /// # Errors
    /// [`PreludeError`].
    pub async fn read(response: &mut ResponseStream) -> Result<(Self, Bytes), PreludeError> {
        let mut bytes = BytesMut::new();
        while let Some(piece) = response.next().await {
            // The end may be in two pieces.
            let from = bytes.len().saturating_sub(END.len() - 1);
            bytes.extend_from_slice(&piece);
            if let Some(found) = Self::split(&bytes, from) {
                return found;
            }
            if bytes.len() > MAX_PRELUDE {
                return Err(PreludeError::TooLong);
            }
        }
        Err(PreludeError::Cut)
    }

    /// Takes it off a whole response; the body is beside it.
    ///
    /// # Errors
    /// [`PreludeError`].
    pub fn parse(response: &[u8]) -> Result<(Self, Bytes), PreludeError> {
        let most = response.len().min(MAX_PRELUDE + END.len());
        match Self::split(&response[..most], 0) {
            Some(Ok((prelude, rest))) => {
                let begins = most - rest.len();
                Ok((prelude, Bytes::copy_from_slice(&response[begins..])))
            }
            Some(Err(error)) => Err(error),
            None if most < response.len() => Err(PreludeError::TooLong),
            None => Err(PreludeError::Cut),
        }
    }

    fn split(bytes: &[u8], from: usize) -> Option<Result<(Self, Bytes), PreludeError>> {
        let end = from + bytes[from..].windows(END.len()).position(|at| at == END)?;
        let prelude = serde_json::from_slice(&bytes[..end]).map_err(PreludeError::Malformed);
        let rest = Bytes::copy_from_slice(&bytes[end + END.len()..]);
        Some(prelude.map(|prelude| (prelude, rest)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::response::channel;
    use super::*;

    async fn read(pieces: &[&[u8]]) -> Result<(HttpPrelude, Vec<u8>), PreludeError> {
        let (sink, mut stream) = channel();
        let write = async move {
            for piece in pieces {
                sink.write(Bytes::copy_from_slice(piece)).await;
            }
        };
        let read = async move {
            let (prelude, first) = HttpPrelude::read(&mut stream).await?;
            let mut body = first.to_vec();
            while let Some(piece) = stream.next().await {
                body.extend(piece);
            }
            Ok((prelude, body))
        };
        tokio::join!(write, read).1
    }

    #[tokio::test]
    async fn it_is_found_wherever_pieces_end() {
        let prelude = HttpPrelude {
            status_code: 404,
            headers: [("content-type".to_owned(), "text/plain".to_owned())].into(),
            cookies: vec!["a=b".into()],
            ..HttpPrelude::default()
        };
        let all = [&prelude.to_bytes()[..], b"\0body\0\0\0\0\0\0\0\0"].concat();
        let (parsed, body) = HttpPrelude::parse(&all).unwrap();
        assert_eq!(
            (&parsed, &body[..]),
            (&prelude, &b"\0body\0\0\0\0\0\0\0\0"[..])
        );
        for at in 1..all.len() {
            let (left, right) = all.split_at(at);
            let (found, body) = read(&[left, right]).await.unwrap();
            assert_eq!(
                (found, &body[..]),
                (prelude.clone(), &all[all.len() - 13..]),
                "{at}"
            );
        }
        let single: Vec<&[u8]> = all.chunks(1).collect();
        assert_eq!(read(&single).await.unwrap().0, prelude);
    }

    #[tokio::test]
    async fn what_is_left_out_is_as_always() {
        let (prelude, body) = read(&[b"{}\0\0\0\0\0\0\0\0"]).await.unwrap();
        assert_eq!((prelude, body), (HttpPrelude::default(), Vec::new()));
        let numbers = br#"{"statusCode":201,"headers":{"content-length":7,"x":true}}"#;
        let (prelude, _) = read(&[numbers, &END]).await.unwrap();
        assert_eq!(
            (prelude.status_code, &*prelude.headers["content-length"]),
            (201, "7")
        );
    }

    #[tokio::test]
    async fn what_is_none_is_refused() {
        assert!(matches!(read(&[b"{}"]).await, Err(PreludeError::Cut)));
        assert!(matches!(read(&[]).await, Err(PreludeError::Cut)));
        let text = read(&[b"hello\0\0\0\0\0\0\0\0"]).await;
        assert!(matches!(text, Err(PreludeError::Malformed(_))));
        let long = vec![b' '; MAX_PRELUDE + 1];
        assert!(matches!(read(&[&long]).await, Err(PreludeError::TooLong)));
        let long = vec![b' '; 2 * MAX_PRELUDE];
        assert!(matches!(
            HttpPrelude::parse(&long),
            Err(PreludeError::TooLong)
        ));
        assert!(matches!(HttpPrelude::parse(b"{"), Err(PreludeError::Cut)));
    }
}
