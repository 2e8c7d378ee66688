//! What a reference leads to at one place: manifest and configuration, checked.

use super::document::{Configuration, Descriptor, Document, Fault, Manifest, Platform, choose};
use super::error::RegistryError;
use super::reference::Reference;
use super::remote::Remote;
use crate::digest::Digest;

/// What there is to pull.
#[derive(Debug)]
pub(super) struct Plan {
    /// The digest of the manifest of the image for this host.
    pub(super) digest: Digest,
    pub(super) manifest: Manifest,
    /// It knows as many layers as the manifest.
    pub(super) configuration: Configuration,
}

impl Plan {
    /// Asks `remote` for `reference`. Layers of more than `most_bytes` as they are, all
    /// together, are refused.
    pub(super) async fn of(
        reference: &Reference,
        remote: &Remote,
        most_bytes: u64,
    ) -> Result<Self, RegistryError> {
        let host = Platform::host();
        let fault = |what, fault| refusal(what, fault, reference, remote, &host);

        let which = reference.manifest();
        let (body, digest) = remote.manifest(&which, reference.digest()).await?;
        let document = Document::parse(&body).map_err(|f| fault("manifest", f))?;
        let (manifest, digest) = match document {
            Document::Manifest(manifest) => (manifest, digest),
            Document::Index(manifests) => {
                let chosen = choose(&manifests, &host).map_err(|f| fault("index", f))?;
                let which = chosen.digest.to_string();
                let (body, digest) = remote.manifest(&which, Some(chosen.digest)).await?;
                match Document::parse(&body).map_err(|f| fault("manifest", f))? {
                    Document::Manifest(manifest) => (manifest, digest),
                    Document::Index(_) => {
                        let why = "there is an index in its index".into();
                        return Err(fault("index", Fault::Unsupported(why)));
                    }
                }
            }
        };
        let Descriptor {
            digest: id, size, ..
        } = manifest.config;
        let text = remote.small_blob(id, size).await?;
        let configuration =
            Configuration::parse(&text, &host).map_err(|f| fault("configuration", f))?;
        let (layers, known) = (manifest.layers.len(), configuration.diff_ids.len());
        if layers != known {
            let why = format!("it has {layers} layers, and its configuration knows {known}");
            return Err(fault("manifest", Fault::Form(why)));
        }
        let compressed = manifest.layers.iter().map(|layer| layer.size);
        if compressed.fold(0, u64::saturating_add) > most_bytes {
            let why = format!("its layers have more than the {most_bytes} bytes that are allowed");
            return Err(fault("manifest", Fault::Unsupported(why)));
        }
        Ok(Self {
            digest,
            manifest,
            configuration,
        })
    }
}

fn refusal(
    what: &'static str,
    fault: Fault,
    reference: &Reference,
    remote: &Remote,
    host: &Platform,
) -> RegistryError {
    match fault {
        Fault::Form(why) => remote.form(what, why),
        Fault::Unsupported(why) => RegistryError::Unsupported {
            reference: reference.to_string(),
            why,
        },
        Fault::Platform(offered) => RegistryError::Platform {
            reference: reference.to_string(),
            wanted: host.shown(),
            offered,
        },
    }
}
