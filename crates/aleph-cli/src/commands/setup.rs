//! `aleph setup`.

use crate::context::Context;
use crate::output::{print, print_json_line};
use crate::progress::Bars;
use aleph_image::release::{BASE_URL, Origin, Releases, Version};
use anyhow::Result;
use serde_json::json;
use std::path::PathBuf;

/// What to install.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Setup {
    /// Install a release of Firecracker with its jailer, beside others
    Firecracker(Firecracker),
}

/// Where a release comes from.
#[derive(Debug, clap::Args)]
pub(crate) struct Firecracker {
    /// Which version [default: what the file's name says, or 1.15.1]
    #[arg(value_name = "VERSION")]
    release: Option<String>,
    /// Take this archive, such as firecracker-v1.15.1-x86_64.tgz, instead of downloading it
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Download from this address; below it is vVERSION/firecracker-vVERSION-ARCH.tgz
    #[arg(long, value_name = "URL", default_value = BASE_URL, env = "ALEPH_FIRECRACKER_URL",
        hide_env_values = true)]
    base_url: String,
    /// The archive's SHA-256, for a version whose digest this program does not know
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Make it the version that VMs are run by; the first one is without asking
    #[arg(long)]
    set_default: bool,
    /// Print what was installed as a line of JSON
    #[arg(long)]
    json: bool,
}

impl Setup {
    /// Works on this host, which a node of this host shares.
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let Self::Firecracker(words) = self;
        let version = match (&words.release, &words.file) {
            (Some(version), _) => version.parse()?,
            (None, Some(file)) => Version::of_archive(file)?,
            (None, None) => Version::DEFAULT,
        };
        let from = match &words.file {
            Some(file) => Origin::File(file),
            None => Origin::Base(&words.base_url),
        };
        let releases = Releases::open(context.paths()?.state())?;
        let release = releases
            .install(version, from, words.sha256.as_deref(), &mut Bars::default())
            .await?;
        if words.set_default || releases.default_version().is_none() {
            releases.set_default(version)?;
        }
        let is_default = releases.default_version() == Some(version);
        let folder = releases.folder(version);
        if words.json {
            print_json_line(&json!({
                "version": release.version,
                "arch": release.arch,
                "archive": release.archive,
                "folder": folder,
                "default": is_default,
            }))?;
        } else {
            let mark = if is_default { " (default)" } else { "" };
            print(format!(
                "Firecracker {version}{mark} in {}",
                folder.display()
            ))?;
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Args;

    #[test]
    fn the_help_says_which_version_it_is() {
        let command = Firecracker::augment_args(clap::Command::new("firecracker"));
        let help = command.clone().render_help().to_string();
        assert!(
            help.contains(&format!("or {}]", Version::DEFAULT)),
            "{help}"
        );
    }
}
