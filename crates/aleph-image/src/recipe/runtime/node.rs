//! Node.js 18: AWS's own client, `aws-lambda-ric`, without its native module.
//!
//! The client comes from where the host's npm gets packages, pinned by version and digest. It is
//! not built: its native module takes a compiler, cmake and two libraries' sources, for what
//! `rapid_client.js` does over the HTTP client that Node.js has. `reseed.node` is ours, and
//! compiled with this crate.

use super::client::ClientError;
use super::{RUNTIME, base};
use crate::digest::Digest;
use crate::disk::Doing;
use crate::error::ImageError;
use crate::program::{Program, ProgramError};
use crate::progress::Progress;
use crate::staging::Staging;
use flate2::read::GzDecoder;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

const CLIENT: &str = "aws-lambda-ric";
/// The last version for Node.js 18.
const VERSION: &str = "3.3.0";
/// Of the package as it is in the registry.
const SHA256: &str = "fb6cd346ec91301e6a02921e60bea1cc8d73cc7ec301191416b95f7d1295e09a";
const FETCH_LIMIT: Duration = Duration::from_secs(600);

const BOOTSTRAP: &str = include_str!("node/bootstrap.sh");
const FILES: [(&str, &[u8]); 3] = [
    ("aleph_start.js", include_bytes!("node/aleph_start.js")),
    ("rapid_client.js", include_bytes!("node/rapid_client.js")),
    (
        "reseed.node",
        include_bytes!(concat!(env!("OUT_DIR"), "/reseed.node")),
    ),
];
/// What of the client runs, and who wrote it.
const CLIENT_FILES: [&str; 5] = [
    "dist/index.mjs",
    "package.json",
    "LICENSE",
    "NOTICE",
    "THIRD-PARTY-LICENSES",
];
/// Where functions find modules of layers, as in Lambda.
pub(super) const ENV: [(&str, &str); 1] = [(
    "NODE_PATH",
    "/opt/nodejs/node18/node_modules:/opt/nodejs/node_modules:/var/runtime/node_modules:\
     /var/runtime:/var/task",
)];

pub(super) fn add(
    tree: &Path,
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<(), ImageError> {
    let runtime = tree.join(RUNTIME);
    let package = fetch(staging, progress)?;
    let modules = runtime.join("node_modules").join(CLIENT);
    for (name, content) in unpack(&package).doing("unpack", &package)? {
        base::write(&modules.join(name), &content, 0o644)?;
    }
    for (name, content) in FILES {
        base::write(&runtime.join(name), content, 0o644)?;
    }
    Ok(base::program(tree, BOOTSTRAP)?)
}

/// The client's files, of a package that was checked. Owners are left empty in it, which the
/// reader of archives that nobody vouches for does not take.
fn unpack(package: &Path) -> io::Result<Vec<(&'static str, Vec<u8>)>> {
    let mut files = Vec::new();
    let plain = GzDecoder::new(File::open(package)?);
    for entry in tar::Archive::new(plain).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let Some(name) = CLIENT_FILES
            .into_iter()
            .find(|name| path == Path::new("package").join(name))
        else {
            continue;
        };
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        files.push((name, content));
    }
    Ok(files)
}

/// Fetches the client's package, checked.
fn fetch(staging: &Staging, progress: &mut dyn Progress) -> Result<PathBuf, ImageError> {
    let wanted = format!("{CLIENT}@{VERSION}");
    progress.begin(&format!("get {wanted}"), None);
    let dir = staging.folder("npm")?;
    let packed = Program::find("npm", "npm", FETCH_LIMIT).and_then(|npm| {
        npm.args(["pack", "--loglevel=error", "--ignore-scripts", &wanted, "--pack-destination"])
            .arg(&dir)
            // Beside no package of the caller's, whose settings it would take.
            .in_dir(&dir)
            .run(|| {})
    });
    let refused = |source| ClientError {
        client: wanted.clone(),
        program: "npm",
        source,
    };
    packed.map_err(refused)?;
    progress.end();
    let package = dir.join(format!("{CLIENT}-{VERSION}.tgz"));
    let (found, _) = Digest::of_file(&package, "check the package", progress)?;
    if found.hex() != SHA256 {
        return Err(refused(ProgramError::Output {
            program: "npm".into(),
            source: io::Error::other(format!(
                "the package has the digest {found} instead of sha256:{SHA256}"
            )),
        })
        .into());
    }
    Ok(package)
}
