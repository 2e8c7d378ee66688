//! What functions run on: small Debian roots with the client of a language's runtime in
//! `/var/runtime`, laid out as AWS Lambda's runtimes of these names are.
//!
//! Each has `/var/runtime/bootstrap`, which is its image's entry point: it loads the function
//! from `/var/task` and asks the runtime API for events. The files are Debian's, unconfigured:
//! no package's scripts have run, so what they would have made that a function needs is made here
//! ([`base`]). A shell, busybox and curl are there because programs called `bootstrap` use them.
//!
//! Packages come from the host's own sources; a language's client comes from where the host's
//! pip or npm gets packages, in versions and with digests that are fixed here.

mod base;
mod client;
mod node;
mod python;

use super::debian::{self, Variant};
use super::{Recipe, Tree};
use crate::error::ImageError;
use crate::filesystem::Times;
use crate::image::{Config, Source};
use crate::progress::Progress;
use crate::staging::Staging;

pub use client::ClientError;

/// Where a runtime's own files are, in its root.
const RUNTIME: &str = "var/runtime";
/// What each runtime has. The last five are what Amazon Linux 2023 has that programs rely on:
/// a shell, the usual tools, and libraries of C++ and for compression.
const COMMON: [&str; 8] = [
    "base-files",
    "bash",
    "busybox-static",
    "ca-certificates",
    "curl",
    "libstdc++6",
    "tzdata",
    "zlib1g",
];

const PROVIDED_PACKAGES: &[&str] = &COMMON;
const PYTHON_PACKAGES: &[&str] = &[
    COMMON[0],
    COMMON[1],
    COMMON[2],
    COMMON[3],
    COMMON[4],
    COMMON[5],
    COMMON[6],
    COMMON[7],
    "libpython3.11-stdlib",
    "python3.11-minimal",
];
const NODE_PACKAGES: &[&str] = &[
    COMMON[0], COMMON[1], COMMON[2], COMMON[3], COMMON[4], COMMON[5], COMMON[6], COMMON[7],
    "nodejs",
];

const PROVIDED_BOOTSTRAP: &str = include_str!("provided/bootstrap.sh");

/// Variables that Lambda sets in every runtime, as far as they do not depend on the function.
const ENV: [(&str, &str); 6] = [
    ("LAMBDA_RUNTIME_DIR", "/var/runtime"),
    ("LAMBDA_TASK_ROOT", "/var/task"),
    ("LANG", "C.UTF-8"),
    (
        "LD_LIBRARY_PATH",
        "/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
    ),
    ("PATH", "/usr/local/bin:/usr/bin:/bin:/opt/bin"),
    ("TZ", ":UTC"),
];

pub(super) fn provided(staging: &Staging, progress: &mut dyn Progress) -> Result<Tree, ImageError> {
    let recipe = Recipe::ProvidedAl2023;
    let tree = debian::install(recipe, Variant::Files(PROVIDED_PACKAGES), staging, progress)?;
    base::settle(&tree)?;
    base::program(&tree, PROVIDED_BOOTSTRAP)?;
    Ok(finished(tree, recipe, &[]))
}

pub(super) fn python(staging: &Staging, progress: &mut dyn Progress) -> Result<Tree, ImageError> {
    let recipe = Recipe::Python311;
    let tree = debian::install(recipe, Variant::Files(PYTHON_PACKAGES), staging, progress)?;
    base::settle(&tree)?;
    python::add(&tree, staging, progress)?;
    Ok(finished(tree, recipe, &python::ENV))
}

pub(super) fn node(staging: &Staging, progress: &mut dyn Progress) -> Result<Tree, ImageError> {
    let recipe = Recipe::Nodejs18;
    let tree = debian::install(recipe, Variant::Files(NODE_PACKAGES), staging, progress)?;
    base::settle(&tree)?;
    node::add(&tree, staging, progress)?;
    Ok(finished(tree, recipe, &node::ENV))
}

fn finished(path: std::path::PathBuf, recipe: Recipe, env: &[(&str, &str)]) -> Tree {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Tree {
        path,
        // Compiled modules are found whatever their sources' times are.
        times: Times::Zero,
        source: Source::Recipe(recipe),
        config: Config {
            entrypoint: vec!["/var/runtime/bootstrap".into()],
            env: ENV.iter().chain(env).map(pair).collect(),
            workdir: Some("/var/task".into()),
            ..Config::default()
        },
    }
}
