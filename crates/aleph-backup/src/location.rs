//! Where a repository is: a URL, and the store behind it.

use crate::error::BackupError;
use crate::objects::{CONFIG, DAMAGED, INDEX, LOCKS, PACKS, SNAPSHOTS, TRASH};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{ClientConfigKey, ObjectStore};
use std::fmt;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A place for backups. It prints without credentials: it has none, they come from the
/// environment of the process (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL_S3` or
/// `AWS_ENDPOINT_URL`, and others that AWS's own clients read). Profiles and files of AWS's clients are not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A folder of this host, `file:///path`.
    Folder(PathBuf),
    /// A prefix in a bucket, `s3://bucket/prefix`.
    Bucket {
        /// The bucket.
        bucket: String,
        /// The prefix, without slashes at its ends; may be empty.
        prefix: String,
    },
}

impl Location {
    /// The place that a URL means.
    ///
    /// # Errors
    /// [`BackupError::BadLocation`] for another scheme, a relative path, no bucket, or credentials
    /// in the URL.
    pub fn parse(text: &str) -> Result<Self, BackupError> {
        let bad = |why: &str| BackupError::BadLocation {
            text: redacted(text),
            why: why.to_owned(),
        };
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(bad("it has no scheme"));
        };
        if rest.contains(['?', '#']) {
            return Err(bad("it has a query or a fragment"));
        }
        match scheme {
            "file" => {
                let path = Path::new(rest);
                let plain = path
                    .components()
                    .all(|part| !matches!(part, std::path::Component::ParentDir));
                if !path.is_absolute() || !plain {
                    return Err(bad("the path is not absolute"));
                }
                Ok(Self::Folder(path.to_owned()))
            }
            "s3" => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.contains('@') {
                    return Err(bad("credentials have no place in it"));
                }
                let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
                if bucket.is_empty() || !bucket.chars().all(fine) {
                    return Err(bad("it names no bucket"));
                }
                Ok(Self::Bucket {
                    bucket: bucket.to_owned(),
                    prefix: prefix.trim_matches('/').to_owned(),
                })
            }
            _ => Err(bad("the scheme is neither file nor s3")),
        }
    }

    /// The folder, where it is one.
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        match self {
            Self::Folder(path) => Some(path.clone()),
            Self::Bucket { .. } => None,
        }
    }

    /// Makes the folders of a repository that is about to be made: nobody but their owner reads what will be in
    /// them, whoever may enter the folder that they are in.
    pub(crate) fn close(&self) -> Result<(), BackupError> {
        let Self::Folder(path) = self else {
            return Ok(());
        };
        for folder in [PACKS, INDEX, SNAPSHOTS, LOCKS, TRASH, DAMAGED] {
            let path = path.join(folder);
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(BackupError::Target {
                        operation: "make the folder",
                        path,
                        source,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The same for the configuration, once it is there: it has the key of ids, or its sealed one. Filesystems
    /// without permissions leave it as it is.
    pub(crate) fn close_config(&self) {
        let Self::Folder(path) = self else {
            return;
        };
        let path = path.join(CONFIG);
        if let Err(error) = std::fs::set_permissions(&path, Permissions::from_mode(0o600)) {
            tracing::warn!(path = %path.display(), %error, "others may read a repository's configuration");
        }
    }

    /// The store there. A folder is made where it is missing, a bucket is not.
    ///
    /// # Errors
    /// Where the folder cannot be made, or the environment's settings make no client.
    pub fn store(&self) -> Result<Arc<dyn ObjectStore>, BackupError> {
        match self {
            Self::Folder(path) => folder(path),
            Self::Bucket { bucket, prefix } => {
                self.bucket(AmazonS3Builder::from_env().with_bucket_name(bucket), prefix)
            }
        }
    }

    fn bucket(
        &self,
        builder: AmazonS3Builder,
        prefix: &str,
    ) -> Result<Arc<dyn ObjectStore>, BackupError> {
        // One provider of TLS in the whole program; who installed one before has the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // What the environment allows already stays allowed.
        let builder = match is_plain(&builder) {
            true => builder.with_allow_http(true),
            false => builder,
        };
        // The default counts half a minute for a request with its body, and a pack is 16 MiB.
        let limit = AmazonS3ConfigKey::Client(ClientConfigKey::Timeout);
        let builder = match std::env::var_os("AWS_TIMEOUT") {
            Some(_) => builder,
            None => builder.with_config(limit, "15 minutes"),
        };
        let store = builder
            .build()
            .map_err(|error| BackupError::store("reach", self, &error))?;
        Ok(if prefix.is_empty() {
            Arc::new(store)
        } else {
            Arc::new(PrefixStore::new(store, prefix))
        })
    }
}

/// Whether the endpoint that counts is one without TLS.
fn is_plain(builder: &AmazonS3Builder) -> bool {
    let endpoint = builder
        .get_config_value(&AmazonS3ConfigKey::S3Endpoint)
        .or_else(|| builder.get_config_value(&AmazonS3ConfigKey::Endpoint));
    endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"))
}

/// A folder as a store, whose writes are on the disk when they have been acknowledged.
fn folder(path: &Path) -> Result<Arc<dyn ObjectStore>, BackupError> {
    let failed = |source| BackupError::Target {
        operation: "make the folder",
        path: path.to_owned(),
        source,
    };
    // What is in it are whole volumes of tenants.
    if !path.is_dir() {
        std::fs::create_dir_all(path).map_err(failed)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed)?;
    }
    let store = LocalFileSystem::new_with_prefix(path)
        .map_err(|error| BackupError::store("open", path.display(), &error))?;
    Ok(Arc::new(store.with_fsync(true)))
}

/// The text without what stands where URLs have credentials, or a query with a signature.
fn redacted(text: &str) -> String {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), text),
    };
    match (rest.rsplit_once('@'), rest.find(['?', '#'])) {
        (Some((_, host)), None) => format!("{scheme}…@{host}"),
        // Nobody can tell which of the two is a part of the other.
        (Some(_), Some(_)) => format!("{scheme}…"),
        (None, Some(at)) => format!("{scheme}{}…", rest.get(..at).unwrap_or_default()),
        (None, None) => text.to_owned(),
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "file://{}", path.display()),
            Self::Bucket { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::Bucket { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_strictly() {
        assert_eq!(
            Location::parse("s3://b-1/a/b/").unwrap(),
            Location::Bucket {
                bucket: "b-1".to_owned(),
                prefix: "a/b".to_owned()
            }
        );
        for text in ["file:///srv/b", "s3://b", "s3://b/a/b"] {
            assert_eq!(Location::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            "/srv",
            "file://srv",
            "file:///a/../etc",
            "s3://",
            "s3:///a",
            "ftp://x/y",
            "s3://b?x=1",
            "s3://b c/x",
        ] {
            assert!(Location::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_secret_in_a_url_is_refused_and_not_repeated() {
        for text in [
            "s3://KEY:SECRET@bucket/x",
            "s3://KEY:SE?SECRET@bucket/x",
            "s3://bucket/x?signature=SECRET",
            "s3://bucket/x#SECRET",
            "s3://KEY@bucket/x?a=b@SECRET",
            "KEY:SECRET@bucket/x",
            "bucket?SECRET",
            "ftp://KEY:SECRET@host/x",
        ] {
            let error = Location::parse(text).unwrap_err().to_string();
            assert!(!error.contains("SECRET"), "{error}");
        }
        let error = Location::parse("KEY:SECRET@bucket/x").unwrap_err();
        assert!(error.to_string().contains("…@bucket/x"), "{error}");
    }

    #[test]
    fn the_endpoint_of_s3_counts_more_than_that_of_all_services() {
        use AmazonS3ConfigKey::{Endpoint, S3Endpoint};
        let (plain, sealed) = ("http://host:9000", "https://host");
        for (endpoints, wanted) in [
            (&[][..], false),
            (&[(Endpoint, plain)], true),
            (&[(Endpoint, sealed)], false),
            (&[(S3Endpoint, plain)], true),
            (&[(Endpoint, sealed), (S3Endpoint, plain)], true),
            (&[(Endpoint, plain), (S3Endpoint, sealed)], false),
        ] {
            let mut builder = AmazonS3Builder::new();
            for (key, endpoint) in endpoints {
                builder = builder.with_config(*key, *endpoint);
            }
            assert_eq!(is_plain(&builder), wanted, "{endpoints:?}");
        }
    }
}
