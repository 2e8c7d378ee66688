//! A daemon with functions, and what is made for it.

use crate::support::{Daemon, LIMIT};
use aleph_image::Recipe;
use aleph_testkit::{functions, python_with_boto3, recipe_image, wait_until};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the functions of these tests do.
const APP: &[u8] = include_bytes!("app.py");

/// A daemon that clients of AWS Lambda reach.
pub(crate) struct World {
    pub(crate) daemon: Daemon,
    pub(crate) endpoint: String,
}

impl World {
    /// A daemon with images of these runtimes.
    pub(crate) fn up(runtimes: &[Recipe]) -> Result<Self> {
        Self::configured(runtimes, "")
    }

    /// The same with more of `[functions]`.
    pub(crate) fn configured(runtimes: &[Recipe], more: &str) -> Result<Self> {
        for recipe in runtimes {
            recipe_image(*recipe)?;
        }
        let address = free_address()?;
        let config = format!("[functions]\nlisten = '{address}'\n{more}\n");
        let daemon = Daemon::configured(&config, &[])?;
        Ok(Self {
            daemon,
            endpoint: format!("http://{address}"),
        })
    }

    /// The folder of the node.
    pub(crate) fn folder(&self) -> &Path {
        self.daemon.node.root.path()
    }

    /// Puts an archive into the folder of the node, and gives its path.
    pub(crate) fn archive(&self, name: &str, zip: &[u8]) -> Result<String> {
        let path = self.folder().join(format!("{name}.zip"));
        fs::write(&path, zip)?;
        Ok(path.to_str().context("a path that is no text")?.to_owned())
    }

    /// A command that speaks with the node as with AWS, and knows nothing of who runs the tests.
    pub(crate) fn client(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.folder())
            .env("AWS_ENDPOINT_URL_LAMBDA", &self.endpoint)
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ACCESS_KEY_ID", "any")
            .env("AWS_SECRET_ACCESS_KEY", "any")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_MAX_ATTEMPTS", "1")
            .env("AWS_PAGER", "")
            .env("NO_PROXY", "*")
            .stdin(Stdio::null());
        command
    }

    /// A script of these tests on a Python with boto3.
    pub(crate) fn script(&self, name: &str) -> Result<Command> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lambda");
        let mut command = self.client(python_with_boto3()?);
        command.arg(script.join(name)).arg(&self.endpoint);
        Ok(command)
    }

    /// The VMs that there are: clones, and guests that become templates.
    pub(crate) fn vms(&self) -> Result<BTreeSet<PathBuf>> {
        names_in(&self.daemon.node.root.paths()?.vms())
    }

    /// What there is of templates, half-made ones included.
    pub(crate) fn templates(&self) -> Result<BTreeSet<PathBuf>> {
        names_in(&self.folder().join("templates"))
    }

    /// Waits until nothing of functions is left but the daemon, and ends that.
    pub(crate) fn end(self) -> Result<()> {
        let left = wait_until("functions without residue", LIMIT, || {
            let left = self.vms().and_then(|vms| Ok((vms, self.templates()?)));
            match left {
                Ok((vms, templates)) if !vms.is_empty() || !templates.is_empty() => None,
                left => Some(left),
            }
        });
        left?;
        let code = names_in(&self.folder().join("functions/tasks"))?;
        ensure!(code.is_empty(), "code of nobody: {code:?}");
        self.daemon.end()
    }
}

/// What is in a folder, but for what names its locks.
fn names_in(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if !path.ends_with(".birth.lock") {
            names.insert(path);
        }
    }
    Ok(names)
}

/// An address of this host's that nobody listens on.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}

/// The archive of `app.py`, as it says this version.
pub(crate) fn app_zip(version: &str) -> Result<Vec<u8>> {
    let source = std::str::from_utf8(APP)?;
    let source = source.replace("VERSION = \"one\"", &format!("VERSION = {version:?}"));
    functions::zip(&[("app.py", 0o644, source.as_bytes())])
}

/// Runs a client to its end, which has to be a good one, and gives what it printed.
pub(crate) fn ran(command: &mut Command) -> Result<String> {
    let ran = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8(ran.stdout)?;
    let complained = String::from_utf8_lossy(&ran.stderr);
    ensure!(
        ran.status.success(),
        "{command:?}: {}\n{said}\n{complained}",
        ran.status
    );
    Ok(said)
}
