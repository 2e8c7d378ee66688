//! Gets an archive into a work folder: from a file, or over HTTP.
//!
//! What is checked is the copy, which nobody else can change any more.

use super::error::ReleaseError;
use crate::digest::{Digest, Hasher};
use crate::disk::Doing;
use crate::progress::Progress;
use reqwest::{Client, redirect};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

/// A release's archive is some 8 MB.
const MOST_ARCHIVE: u64 = 128 << 20;
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// How long a server may send nothing.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
const MOST_REDIRECTS: usize = 5;

/// The copy while it is written.
struct Copy<'a> {
    path: &'a Path,
    file: File,
    hasher: Hasher,
    bytes: u64,
}

impl<'a> Copy<'a> {
    fn new(path: &'a Path) -> Result<Self, ReleaseError> {
        Ok(Self {
            path,
            file: File::create_new(path).doing("create", path)?,
            hasher: Hasher::default(),
            bytes: 0,
        })
    }

    fn take(&mut self, bytes: &[u8], from: &str) -> Result<(), ReleaseError> {
        self.bytes += bytes.len() as u64;
        if self.bytes > MOST_ARCHIVE {
            return Err(too_large(from));
        }
        self.hasher.update(bytes);
        self.file.write_all(bytes).doing("write", self.path)?;
        Ok(())
    }
}

fn too_large(from: &str) -> ReleaseError {
    ReleaseError::TooLarge {
        what: from.to_owned(),
        most: MOST_ARCHIVE,
    }
}

/// Copies a file, and says which one it is.
pub(super) fn copy(
    from: &Path,
    to: &Path,
    progress: &mut dyn Progress,
) -> Result<Digest, ReleaseError> {
    let name = from.display().to_string();
    let mut file = File::open(from).doing("open", from)?;
    let total = file.metadata().doing("look at", from)?.len();
    progress.begin("copy the archive", Some(total));
    let mut copy = Copy::new(to)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer).doing("read", from)?;
        if n == 0 {
            break;
        }
        copy.take(&buffer[..n], &name)?;
        progress.advance(n as u64);
    }
    progress.end();
    Ok(copy.hasher.finish())
}

/// Downloads a file, and says which one came.
pub(super) async fn download(
    url: &str,
    to: &Path,
    progress: &mut dyn Progress,
) -> Result<Digest, ReleaseError> {
    let unreachable = |source: reqwest::Error| ReleaseError::Unreachable {
        url: url.to_owned(),
        // The address is told once.
        source: Box::new(source.without_url()),
    };
    let mut answer = client(url)
        .map_err(unreachable)?
        .get(url)
        .send()
        .await
        .map_err(unreachable)?;
    if answer.status() != reqwest::StatusCode::OK {
        return Err(ReleaseError::Answer {
            url: url.to_owned(),
            status: answer.status().as_u16(),
        });
    }
    if answer.content_length().is_some_and(|n| n > MOST_ARCHIVE) {
        return Err(too_large(url));
    }
    progress.begin("download the archive", answer.content_length());
    let mut copy = Copy::new(to)?;
    while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
        copy.take(&chunk, url)?;
        progress.advance(chunk.len() as u64);
    }
    progress.end();
    Ok(copy.hasher.finish())
}

fn client(url: &str) -> Result<Client, reqwest::Error> {
    // Without one, making a client panics; another part of the program may have chosen one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("aleph/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_LIMIT)
        .read_timeout(SILENCE_LIMIT)
        .redirect(redirect::Policy::custom(|attempt| {
            let was_plain = attempt.previous().iter().all(|url| url.scheme() == "http");
            let secure = attempt.url().scheme() == "https" || was_plain;
            if secure && attempt.previous().len() <= MOST_REDIRECTS {
                attempt.follow()
            } else {
                attempt.error("it leads to plain HTTP, or too far")
            }
        }));
    let host = reqwest::Url::parse(url).ok();
    let host = host.as_ref().and_then(reqwest::Url::host_str);
    if host.is_some_and(|host| matches!(host, "localhost" | "127.0.0.1" | "[::1]")) {
        builder = builder.no_proxy();
    }
    if url.starts_with("http://") {
        // Spares the reading of the system's certificates.
        builder = builder.tls_certs_only([]);
    }
    builder.build()
}
