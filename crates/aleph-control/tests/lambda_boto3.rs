//! A node's functions as boto3 sees them, over a runner without VMs. The client is the one from
//! PyPI, in an environment of its own in the build folder.

mod support;

use aleph_control::config::Config;
use aleph_testkit::{TestRoot, python_with_boto3};
use anyhow::{Result, ensure};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use support::functions::{Lambda, config};
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn boto3_finds_all_as_it_is_used_to() -> Result<()> {
    let python = tokio::task::block_in_place(python_with_boto3)?;
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
