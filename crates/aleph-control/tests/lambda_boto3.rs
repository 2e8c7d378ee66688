//! A node's functions as boto3 sees them, over a runner without VMs. The client is the one from
//! PyPI, in an environment of its own in the build folder.

mod support;

use aleph_control::config::Config;
use aleph_testkit::TestRoot;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use support::functions::{Lambda, config};
use tokio::process::Command;

/// What is installed; its dependencies follow from it.
const CLIENT: &str = "boto3==1.44.8";

#[tokio::test(flavor = "multi_thread")]
async fn boto3_finds_all_as_it_is_used_to() -> Result<()> {
    let python = python().await?;
    let (open_root, signed_root) = (TestRoot::empty()?, TestRoot::empty()?);
    let open = Lambda::start(&config(&open_root), Arc::default()).await?;
    let keys = "[functions]\ncredentials = [\n\
        { access_key_id = 'AKIDTEAM', secret_access_key = 'se/cr+et', account = 'team' },\n\
        { access_key_id = 'AKIDOTHER', secret_access_key = 'secret', account = 'other' }]";
    let keys = Config::check(keys).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    let mut config = config(&signed_root);
    config.functions.credentials = keys.functions.credentials;
    let signed = Lambda::start(&config, Arc::default()).await?;
    let archive = open_root.path().join("code.zip");
    std::fs::write(&archive, b"PK archive")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lambda_boto3.py");
    let ran = Command::new(python)
        .arg(script)
        .args([&open.endpoint, &signed.endpoint])
        .arg(&archive)
        // No configuration of whoever runs the tests, and no question to a cloud.
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("NO_PROXY", "*")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ran = tokio::time::timeout(support::LIMIT, ran).await??;
    ensure!(
        ran.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr)
    );
    // All that was made was deleted.
    assert_eq!(open.runner.ready(), Vec::<String>::new());
    assert_eq!(signed.runner.ready(), Vec::<String>::new());
    open.server.close(&open_root).await?;
    signed.server.close(&signed_root).await
}

/// A Python with the client, made at the first call.
async fn python() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
        PathBuf::from,
    );
    std::fs::create_dir_all(&target)?;
    let (venv, lock) = (target.join("boto3"), target.join("boto3.lock"));
    let lock = File::create(lock)?;
    // Tests of several runs share it.
    tokio::task::block_in_place(|| {
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
    })?;
    let python = venv.join("bin/python");
    let done = venv.join(CLIENT);
    if !done.exists() {
        let venv = venv.to_str().context("a path that is no text")?;
        run("python3", &["-m", "venv", "--clear", venv]).await?;
        let program = python.to_str().context("a path that is no text")?;
        run(program, &["-m", "pip", "install", "--quiet", CLIENT]).await?;
        File::create(done)?;
    }
    Ok(python)
}

async fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let ran = Command::new(program).args(arguments).output().await;
    let ran = ran.with_context(|| format!("cannot run {program}"))?;
    ensure!(
        ran.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&ran.stderr)
    );
    Ok(())
}
