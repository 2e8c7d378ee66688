//! Images from registries: the OCI distribution and image specifications.
//!
//! ```text
//! Reference ─▶ Registries ─▶ Remote ─▶ Plan ─┬▶ Fetch ─▶ blobs ─┐ each layer
//!  (parse)     (mirrors,     (HTTP,   (index, │                  ▼
//!               logins)       tokens)  manifest, config)   Layers ─▶ tree ─▶ erofs ─▶ Store
//! ```
//!
//! - Layers are downloaded in parallel, and each is verified, decompressed and unpacked while
//!   it arrives (`growth`). What an unverified layer has unpacked is in a work folder that
//!   nobody sees, and goes with it.
//! - An image is **one** erofs file system, not one for each layer. A VM then has one device
//!   and one mount however many layers its image has, and boots as fast as with any other
//!   image; a stack of layers would have to be assembled in every guest at every start. The
//!   price is disk: images that share layers share their blobs, and so the download, but each
//!   has a file system of its own, unless all of their layers are the same. Then they share
//!   the file too (a hard link).
//! - An image is known by the digest of its configuration, as docker knows it, which covers the
//!   digests of its layers' content. [`ImageRecord::source`](crate::ImageRecord::source) has the
//!   digest of its manifest.
//! - The client is our own, over reqwest. The crate oci-client reads answers of any size into
//!   memory, takes a failed login for none, and knows no identity tokens.
//!
//! # When it fails
//! | what | then |
//! | --- | --- |
//! | a connection breaks | it is made again from where it broke, until four have not moved a MiB |
//! | a registry trickles | as if the connection broke; see [`PullOptions::patience`] |
//! | a mirror, or its login, fails or lacks something | the next one, and at last the registry itself |
//! | a digest or size is wrong | the blob is removed; one more try if a mirror or an old part did it |
//! | an archive is hostile or too large | it is refused, the tree goes, the verified blobs stay |
//! | the disk is full | the blob that met it is removed, the tree goes; class `Capacity` |
//! | the caller goes away | the download stops, its part stays, the tree goes |
//! | two pulls of one image | one works, the other waits for it, in other processes too |
//! | a crash | parts and a work folder stay; the next pull goes on, and prune removes parts |

mod auth;
mod blobs;
mod credentials;
mod document;
mod error;
mod event;
mod extraction;
mod fetch;
mod growth;
mod pace;
mod plan;
mod pull;
mod reference;
mod registries;
mod remote;

pub(crate) use blobs::{Blobs, Freed};
pub use credentials::Login;
pub use error::{CredentialError, RegistryError};
pub use event::{LayerInfo, LayerStep, PullEvent};
pub use pull::PullOptions;
pub use reference::{ParseReferenceError, Reference};
pub use registries::Registries;

/// Reads bytes as everything that a registry sends, for the fuzzer.
pub(crate) fn read_any(bytes: &[u8]) {
    let host = document::Platform::host();
    if let Ok(document::Document::Index(entries)) = document::Document::parse(bytes) {
        let _ = document::choose(&entries, &host);
    }
    let _ = document::Configuration::parse(bytes, &host);
    if let Ok(value) = reqwest::header::HeaderValue::from_bytes(bytes) {
        let name = reqwest::header::WWW_AUTHENTICATE;
        let _ = auth::Challenge::of(&[(name, value)].into_iter().collect());
    }
}
