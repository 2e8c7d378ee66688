//! What functions run on: small Debian roots with the client of a language's runtime in
//! `/var/runtime`, laid out as AWS Lambda's runtimes of these names are.
//!
//! Each has `/var/runtime/bootstrap`, which is its image's entry point: it loads the function
//! from `/var/task` and asks the runtime API for events. The files are Debian's, unconfigured:
//! no package's scripts have run, so what they would have made that a function needs is made here
//! ([`base`]). A shell, busybox and curl are there because programs called `bootstrap` use them.
//!
//! A native program's generators of random numbers are out of reach of all this: one that draws
//! before its snapshot is taken needs a hook of its own, as `lambda_runtime` has, where its
//! runtime client asks for `restore/next`.
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
use std::path::PathBuf;

pub use client::ClientError;

/// Where a runtime's own files are, in its root.
const RUNTIME: &str = "var/runtime";
/// What each runtime has: of what Amazon Linux 2023 has, what programs rely on.
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

const PYTHON: [&str; 2] = ["libpython3.11-stdlib", "python3.11-minimal"];
const NODE: [&str; 1] = ["nodejs"];

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
    let tree = root(recipe, &[], staging, progress)?;
    base::program(&tree, PROVIDED_BOOTSTRAP)?;
    Ok(finished(tree, recipe, &[]))
}

pub(super) fn python(staging: &Staging, progress: &mut dyn Progress) -> Result<Tree, ImageError> {
    let recipe = Recipe::Python311;
    let tree = root(recipe, &PYTHON, staging, progress)?;
    python::add(&tree, staging, progress)?;
    Ok(finished(tree, recipe, &python::ENV))
}

pub(super) fn node(staging: &Staging, progress: &mut dyn Progress) -> Result<Tree, ImageError> {
    let recipe = Recipe::Nodejs18;
    let tree = root(recipe, &NODE, staging, progress)?;
    node::add(&tree, staging, progress)?;
    Ok(finished(tree, recipe, &node::ENV))
}

/// A root of what all have and of a runtime's own packages.
fn root(
    recipe: Recipe,
    own: &[&'static str],
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<PathBuf, ImageError> {
    let packages = [&COMMON, own].concat();
    let tree = debian::install(recipe, &Variant::Files(packages), staging, progress)?;
    base::settle(&tree)?;
    Ok(tree)
}

fn finished(path: PathBuf, recipe: Recipe, env: &[(&str, &str)]) -> Tree {
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
