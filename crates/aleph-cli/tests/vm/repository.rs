//! A repository of Debian packages on the other end of the node's cable, for guests' own apt.

use crate::support::namespace::{OUTSIDE, World};
use aleph_image::Digest;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package that it has, and the file in that.
pub(crate) const PACKAGE: &str = "aleph-word";
pub(crate) const FILE: &str = "/usr/share/aleph-word";
pub(crate) const CONTENT: &str = "of the package";

const CONTROL: &str = "Package: aleph-word\nVersion: 1.0\nArchitecture: all\n\
    Maintainer: Nobody <nobody@example.org>\nDescription: one file\n";
const ARCHIVE: &str = "aleph-word_1.0_all.deb";

/// One that is served until the test ends.
pub(crate) struct Repository {
    port: u16,
}

impl Repository {
    /// Makes the package in this folder, and serves it.
    pub(crate) fn serve(world: &World, folder: &Path) -> Result<Self> {
        let folder = folder.join("repository");
        make(&folder)?;
        let listener = world.within(&world.outside, || Ok(TcpListener::bind((OUTSIDE, 0))?))?;
        let port = listener.local_addr()?.port();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A client that goes away is no concern of the others.
                let _ = answer(&client, &folder);
            }
        });
        Ok(Self { port })
    }

    /// Its line in a guest's `sources.list`.
    pub(crate) fn source(&self) -> String {
        format!("deb [trusted=yes] http://{OUTSIDE}:{} ./", self.port)
    }
}

fn make(folder: &Path) -> Result<()> {
    let tree = folder.join("tree");
    let file = tree.join(FILE.trim_start_matches('/'));
    fs::create_dir_all(tree.join("DEBIAN"))?;
    fs::create_dir_all(file.parent().context("a folder")?)?;
    fs::write(tree.join("DEBIAN/control"), CONTROL)?;
    fs::write(file, CONTENT)?;
    let archive = folder.join(ARCHIVE);
    let built = Command::new("dpkg-deb")
        .args(["--root-owner-group", "-b"])
        .args([&tree, &archive])
        .output()?;
    ensure!(built.status.success(), "dpkg-deb: {built:?}");
    let bytes = fs::read(&archive)?;
    let digest = Digest::of(&bytes).to_string();
    let digest = digest.trim_start_matches("sha256:");
    let size = bytes.len();
    let index = format!("{CONTROL}Filename: ./{ARCHIVE}\nSize: {size}\nSHA256: {digest}\n");
    Ok(fs::write(folder.join("Packages"), index)?)
}

/// One request and its answer (RFC 9112), and the connection ends.
fn answer(client: &TcpStream, folder: &Path) -> Result<()> {
    let mut lines = BufReader::new(client).lines();
    let request = lines.next().context("nothing was asked")??;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = request.split(' ').nth(1).context("no path")?;
    let name = path.rsplit('/').next().unwrap_or_default();
    let found = ["Packages", ARCHIVE].contains(&name);
    let file: Option<PathBuf> = found.then(|| folder.join(name));
    let (status, body) = match file {
        Some(file) => ("200 OK", fs::read(file)?),
        None => ("404 Not Found", Vec::new()),
    };
    let mut to = client;
    let length = body.len();
    write!(
        to,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    Ok(to.write_all(&body)?)
}
