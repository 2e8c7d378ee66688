//! `aleph setup firecracker`, killed in the middle too.

mod support;

use aleph_testkit::wait_until;
use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{LIMIT, Node};
use tar::{Builder, Header};

const ARCH: &str = std::env::consts::ARCH;

/// The archive of a version, and its SHA-256 as `sha256sum` says it.
fn archive(folder: &Path, version: &str) -> Result<(String, String)> {
    let mut tar = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for name in ["firecracker", "jailer"] {
        let text = format!("{name} {version}");
        let mut header = Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o755);
        let path = format!("release-v{version}-{ARCH}/{name}-v{version}-{ARCH}");
        tar.append_data(&mut header, path, text.as_bytes())?;
    }
    let bytes = tar.into_inner()?.finish()?;
    let path = folder.join(format!("firecracker-v{version}-{ARCH}.tgz"));
    fs::write(&path, bytes)?;
    let said = Command::new("sha256sum").arg(&path).output()?;
    let said = String::from_utf8(said.stdout)?;
    let hex = said.split(' ').next().context("a digest")?.to_owned();
    Ok((path.to_str().context("a path")?.to_owned(), hex))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name != ".lock");
    names.sort();
    Ok(names)
}

#[test]
fn releases_are_installed_from_files_and_servers() -> Result<()> {
    let node = Node::empty()?;
    let root = node.root.path();
    let folder = root.join("firecracker");
    let (file, hex) = archive(root, "1.13.1")?;
    let setup = |words: &[&str]| node.aleph(&[&["setup", "firecracker"], words].concat());

    let refused = setup(&["--file", &file])?;
    assert_eq!(refused.code, 125, "{refused:?}");
    ensure!(
        format!("{refused:?}").contains("--sha256 HEX"),
        "{refused:?}"
    );
    assert_eq!(names(&folder)?, [""; 0]);

    let done = setup(&["--file", &file, "--sha256", &hex, "--json"])?;
    assert_eq!(done.code, 0, "{done:?}");
    let said: Value = serde_json::from_str(&done.text())?;
    assert_eq!(
        (&said["version"], &said["default"]),
        (&"1.13.1".into(), &true.into())
    );
    let program = PathBuf::from(said["folder"].as_str().context("a folder")?).join("jailer");
    assert_eq!(fs::read_to_string(program)?, "jailer 1.13.1");

    // A second one beside it, from a server.
    let (file, hex) = archive(root, "1.14.4")?;
    let bytes = fs::read(&file)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let base = format!("http://{}", listener.local_addr()?);
    let server = std::thread::spawn(move || -> std::io::Result<String> {
        let (mut client, _) = listener.accept()?;
        let mut request = [0; 4096];
        let n = client.read(&mut request)?;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len());
        client.write_all(head.as_bytes())?;
        client.write_all(&bytes)?;
        Ok(String::from_utf8_lossy(&request[..n]).into_owned())
    });
    let done = setup(&["v1.14.4", "--base-url", &base, "--sha256", &hex])?;
    assert_eq!(done.code, 0, "{done:?}");
    let request = server
        .join()
        .map_err(|_| anyhow::anyhow!("the server panicked"))??;
    let line = format!("GET /v1.14.4/firecracker-v1.14.4-{ARCH}.tgz HTTP/1.1");
    ensure!(request.starts_with(&line), "{request}");
    assert_eq!(names(&folder)?, ["1.13.1", "1.14.4", "default"]);
    assert_eq!(fs::read_link(folder.join("default"))?, Path::new("1.13.1"));

    // Again, to be the default.
    let done = setup(&["--file", &file, "--sha256", &hex, "--set-default"])?;
    assert_eq!(done.code, 0, "{done:?}");
    ensure!(done.text().contains("(default)"), "{done:?}");
    assert_eq!(fs::read_link(folder.join("default"))?, Path::new("1.14.4"));
    Ok(())
}

#[test]
fn an_installation_that_is_killed_leaves_nothing_but_what_was_there() -> Result<()> {
    let node = Node::empty()?;
    let root = node.root.path();
    let folder = root.join("firecracker");
    let (first, hex_of_first) = archive(root, "1.13.1")?;
    let words = |file, hex| ["setup", "firecracker", "--file", file, "--sha256", hex];
    assert_eq!(node.aleph(&words(&first, &hex_of_first))?.code, 0);

    let (second, hex) = archive(root, "1.14.4")?;
    let paused = root.join("paused");
    let mut child = node
        .command(&words(&second, &hex))
        .env("ALEPH_RELEASE_PAUSE", &paused)
        .spawn()?;
    wait_until("the archive to be unpacked", LIMIT, || {
        paused.exists().then_some(())
    });
    child.kill()?;
    child.wait()?;
    let left = names(&folder)?;
    ensure!(
        left.iter().any(|name| name.starts_with(".tmp-")),
        "{left:?}"
    );
    ensure!(!folder.join("1.14.4").exists());

    // The next one, whatever it is about, finds the remains and removes them.
    let again = node.aleph(&words(&second, &hex))?;
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!(names(&folder)?, ["1.13.1", "1.14.4", "default"]);
    assert_eq!(fs::read_link(folder.join("default"))?, Path::new("1.13.1"));
    Ok(())
}
