//! A node that is reached over TCP: tokens, accounts and TLS.

mod support;

use anyhow::{Context, Result};
use serde_json::Value;
use std::net::TcpListener;
use std::process::Command;
use support::{Daemon, Ended};

/// A port that nobody has now.
fn port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A client somewhere else: it knows nothing but the address and its token.
fn client(host: &str, token: &str, words: &[&str]) -> Result<Ended> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aleph"));
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command.env("ALEPH_HOST", host).env("ALEPH_TOKEN", token);
    Ended::of(command.args(words).output()?)
}

#[test]
fn an_account_has_its_own_jobs_by_its_token() -> Result<()> {
    let port = port()?;
    let daemon = Daemon::configured("", &["--listen", &format!("127.0.0.1:{port}")])?;
    let host = format!("http://127.0.0.1:{port}");
    let made = daemon.json(&["token", "create", "alice", "--label", "hers", "--json"])?;
    let alice = made["token"].as_str().context("no secret")?.to_owned();
    let bob = daemon.ok(&["token", "create", "bob", "--expires", "30d"])?;
    let table = daemon.ok(&["token", "ls"])?;
    assert!(
        table.contains("hers") && table.contains("in 4 weeks"),
        "{table}"
    );
    assert!(!table.contains(&alice) && !table.contains(&bob), "{table}");

    let words = ["run", "-d", "--name", "same", "busybox", "sleep", "1000"];
    assert_eq!(client(&host, &alice, &words)?.code, 0);
    assert_eq!(client(&host, &bob, &["ps", "-aq"])?.text(), "");
    client(&host, &bob, &["stop", "same"])?.assert_failed_with(&["same"]);
    let ran = client(
        &host,
        &alice,
        &["exec", "same", "sh", "-c", "echo over tcp; exit 9"],
    )?;
    assert_eq!(
        (ran.code, ran.text().as_str()),
        (9, "over tcp\n"),
        "{ran:?}"
    );
    client(&host, &alice, &["token", "ls"])?.assert_failed_with(&["aleph: "]);
    client(&host, "nonsense", &["ps"])?.assert_failed_with(&["aleph: "]);
    // An operator sees all, and acts for one.
    let seen = daemon.json(&["ps", "--json"])?;
    assert_eq!(seen[0]["account"], "alice");

    daemon.ok(&["token", "rm", made["id"].as_str().context("no id")?])?;
    client(&host, &alice, &["ps"])?.assert_failed_with(&["aleph: "]);
    daemon.end()
}

#[test]
fn tls_is_verified() -> Result<()> {
    let port = port()?;
    let folder = tempfile::tempdir()?;
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let (certificate, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    std::fs::write(&certificate, made.cert.pem())?;
    std::fs::write(&key, made.signing_key.serialize_pem())?;
    let config = format!(
        "[api]\nlisten = \"127.0.0.1:{port}\"\ntls_cert = {certificate:?}\ntls_key = {key:?}\n"
    );
    let daemon = Daemon::configured(&config, &[])?;
    let token = daemon.ok(&["token", "create", "alice"])?;
    let host = format!("https://localhost:{port}");
    let stranger = client(&host, &token, &["ps"])?;
    stranger.assert_failed_with(&["certificate"]);
    let trusted = ["--cacert", certificate.to_str().context("a path")?];
    let version = client(
        &host,
        &token,
        &[&trusted[..], &["version", "--json"]].concat(),
    )?;
    let version: Value = serde_json::from_str(&version.text())?;
    assert_eq!(
        version["node"]["version"],
        env!("CARGO_PKG_VERSION"),
        "{version}"
    );
    let words = ["run", "--rm", "-q", "busybox", "echo", "over tls"];
    let ran = client(&host, &token, &[&trusted[..], &words].concat())?;
    assert_eq!(
        (ran.code, ran.text().as_str()),
        (0, "over tls\n"),
        "{ran:?}"
    );
    // The name in the certificate is the host's.
    let other = format!("https://127.0.0.1:{port}");
    client(&other, &token, &[&trusted[..], &["ps"]].concat())?.assert_failed_with(&["certificate"]);
    daemon.end()
}
