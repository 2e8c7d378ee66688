//! A node's schedules and event sources as boto3 and the AWS CLI see them, over a runner without
//! VMs and a real server of NATS.

mod support;

use aleph_control::config::Config;
use aleph_control::lambda::NatsServer as Listed;
use aleph_testkit::{NatsServer, TestRoot, python_with_boto3};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use support::functions::{Lambda, config};
use tokio::process::Command;

/// Debian's: another one may come first in the path.
const AWS: &str = "/usr/bin/aws";

/// A client that knows nothing of who runs the tests. Gives what it printed.
async fn ran(command: &mut Command) -> Result<String> {
    let ran = command
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("NO_PROXY", "*")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ran = tokio::time::timeout(support::LIMIT, ran).await??;
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    let complained = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "{said}\n{complained}");
    Ok(said)
}

#[tokio::test(flavor = "multi_thread")]
async fn boto3_finds_schedules_and_sources_as_it_is_used_to() -> Result<()> {
    let python = tokio::task::block_in_place(python_with_boto3)?;
    let nats = tokio::task::block_in_place(NatsServer::start)?;
    let (open_root, signed_root) = (TestRoot::empty()?, TestRoot::empty()?);
    let listed = |accounts: &[&str]| Listed {
        server: nats.address(),
        accounts: accounts.iter().map(ToString::to_string).collect(),
        ..Listed::default()
    };
    let mut open = config(&open_root);
    open.functions.nats = vec![listed(&[])];
    let open = Lambda::start(&open, Arc::default()).await?;
    let keys = "[functions]\ncredentials = [\n\
        { access_key_id = 'AKIDTEAM', secret_access_key = 'se/cr+et', account = 'team' },\n\
        { access_key_id = 'AKIDOTHER', secret_access_key = 'secret', account = 'other' }]";
    let keys = Config::check(keys).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    let mut signed = config(&signed_root);
    signed.functions.credentials = keys.functions.credentials;
    signed.functions.nats = vec![listed(&["other"])];
    let signed = Lambda::start(&signed, Arc::default()).await?;
    let archive = open_root.path().join("code.zip");
    std::fs::write(&archive, b"PK archive")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sources_boto3.py");
    let mut client = Command::new(python);
    client.arg(script).args([&open.endpoint, &signed.endpoint]);
    ran(client.arg(&archive).arg(nats.address())).await?;
    open.server.close(&open_root).await?;
    signed.server.close(&signed_root).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_aws_cli_makes_a_schedule_that_fires() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = Lambda::start(&config(&root), Arc::default()).await?;
    // The CLI looks whether it is an archive: this is one with nothing in it.
    let mut archive = b"PK\x05\x06".to_vec();
    archive.resize(22, 0);
    std::fs::write(root.path().join("code.zip"), archive)?;
    let aws = async |line: &str| {
        let mut command = Command::new(AWS);
        // Debian's is of the time before the variable that names an endpoint.
        command.args(["--endpoint-url", &lambda.endpoint]);
        command.args(line.split_whitespace());
        let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        command.envs(keys.map(|key| (key, "any")));
        command.env("AWS_REGION", "us-east-1").env("AWS_PAGER", "");
        let said = ran(command.current_dir(root.path())).await?;
        match said.is_empty() {
            true => Ok(Value::Null),
            false => anyhow::Ok(serde_json::from_str(&said)?),
        }
    };
    let made = aws(
        "lambda create-function --function-name tick --runtime python3.11 --handler app.handler \
         --role arn:aws:iam::000000000000:role/any --zip-file fileb://code.zip",
    )
    .await?;
    aws("lambda wait function-active-v2 --function-name tick").await?;
    let arn = made["FunctionArn"].as_str().context("no ARN")?;
    let target = format!("Arn={arn},RoleArn=arn:aws:iam::000000000000:role/any");
    let create = "scheduler create-schedule --name now --schedule-expression-timezone Asia/Tokyo \
                  --flexible-time-window Mode=OFF --target";
    let rate = "--schedule-expression=rate(1hours)";
    let refused = aws(&format!("{create} {target} {rate}")).await;
    let refused = refused
        .err()
        .context("what is no rate was taken")?
        .to_string();
    ensure!(refused.contains("ValidationException"), "{refused}");
    let mut command = Command::new(AWS);
    command
        .args(["--endpoint-url", &lambda.endpoint])
        .args(create.split_whitespace())
        .args([&target, "--schedule-expression", "rate(1 hours)"])
        .envs([
            ("AWS_ACCESS_KEY_ID", "any"),
            ("AWS_SECRET_ACCESS_KEY", "any"),
        ])
        .env("AWS_REGION", "us-east-1");
    ran(&mut command).await?;
    let shown = aws("scheduler get-schedule --name now").await?;
    assert_eq!(shown["ScheduleExpressionTimezone"], "Asia/Tokyo");
    // A rate begins at once.
    let event = support::until("an event", async || Ok(lambda.runner.events().pop())).await?;
    let event: Value = serde_json::from_slice(&event.1)?;
    assert_eq!(event["detail-type"], "Scheduled Event");
    assert_eq!(event["resources"][0], shown["Arn"]);
    aws("scheduler delete-schedule --name now").await?;
    aws("lambda delete-function --function-name tick").await?;
    lambda.server.close(&root).await
}
