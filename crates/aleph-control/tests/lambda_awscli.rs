//! A node's functions as the AWS CLI of Debian sees them, over a runner without VMs.

mod support;

use aleph_testkit::TestRoot;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use support::functions::{Lambda, config};
use tokio::process::Command;

/// Debian's: another one may come first in the path.
const AWS: &str = "/usr/bin/aws";

struct Cli<'l> {
    endpoint: &'l str,
    folder: &'l Path,
}

impl Cli<'_> {
    async fn run(&self, words: &[&str]) -> Result<Output> {
        let ran = Command::new(AWS)
            .args(["--endpoint-url", self.endpoint, "lambda"])
            .args(words)
            .current_dir(self.folder)
            // No configuration of whoever runs the tests, and no question to a cloud.
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ACCESS_KEY_ID", "any")
            .env("AWS_SECRET_ACCESS_KEY", "any")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_MAX_ATTEMPTS", "1")
            .env("AWS_PAGER", "")
            .env("NO_PROXY", "*")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let ran = tokio::time::timeout(support::LIMIT, ran).await?;
        ran.context("is awscli installed?")
    }

    async fn json(&self, words: &[&str]) -> Result<Value> {
        let ran = self.run(words).await?;
        ensure!(ran.status.success(), "{words:?}: {ran:?}");
        match ran.stdout.is_empty() {
            true => Ok(Value::Null),
            false => Ok(serde_json::from_slice(&ran.stdout)?),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_aws_cli_finds_all_as_it_is_used_to() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = Lambda::start(&config(&root), Arc::default()).await?;
    let cli = Cli {
        endpoint: &lambda.endpoint,
        folder: root.path(),
    };
    // The CLI looks whether it is an archive: this is one with nothing in it.
    let mut archive = b"PK\x05\x06".to_vec();
    archive.resize(22, 0);
    std::fs::write(root.path().join("code.zip"), archive)?;
    let create = "create-function --function-name hello --runtime python3.11 --handler app.handler \
                  --role arn:aws:iam::000000000000:role/any --zip-file fileb://code.zip \
                  --environment Variables={A=b}";
    let made = cli.json(&words(create)).await?;
    assert_eq!(made["State"], "Pending");
    let wait = "wait function-active-v2 --function-name hello";
    cli.json(&words(wait)).await?;
    let arn = "arn:aws:lambda:us-east-1:000000000000:function:hello";
    for name in ["hello", arn] {
        let invoke = "invoke --cli-binary-format raw-in-base64-out --log-type Tail --payload [1,2] \
                      out.json --function-name";
        let mut invoke = words(invoke);
        invoke.push(name);
        let done = cli.json(&invoke).await?;
        assert_eq!(
            (&done["StatusCode"], &done["ExecutedVersion"]),
            (&json!(200), &json!("$LATEST"))
        );
        ensure!(done["LogResult"].is_string(), "{done}");
        assert_eq!(
            std::fs::read_to_string(root.path().join("out.json"))?,
            "[1,2]"
        );
    }
    let later = "invoke --function-name hello --invocation-type Event out.json";
    assert_eq!(cli.json(&words(later)).await?["StatusCode"], 202);
    let configure = "update-function-configuration --function-name hello --memory-size 256";
    cli.json(&words(configure)).await?;
    cli.json(&words("wait function-updated-v2 --function-name hello"))
        .await?;
    let published = cli
        .json(&words("publish-version --function-name hello"))
        .await?;
    assert_eq!(published["Version"], "1");
    let alias = "create-alias --function-name hello --name live --function-version 1";
    cli.json(&words(alias)).await?;
    let listed = cli.json(&words("list-functions")).await?;
    assert_eq!(listed["Functions"][0]["MemorySize"], 256);
    let settings = cli.json(&words("get-account-settings")).await?;
    assert_eq!(settings["AccountUsage"]["FunctionCount"], 1);
    let reserve =
        "put-function-concurrency --function-name hello --reserved-concurrent-executions 5";
    cli.json(&words(reserve)).await?;
    let sources = cli.json(&words("list-event-source-mappings")).await?;
    assert_eq!(sources["EventSourceMappings"], json!([]));
    cli.json(&words("delete-function --function-name hello"))
        .await?;
    let gone = cli
        .run(&words("get-function --function-name hello"))
        .await?;
    let says = String::from_utf8_lossy(&gone.stderr);
    ensure!(
        !gone.status.success() && says.contains("ResourceNotFoundException"),
        "{gone:?}"
    );
    lambda.server.close(&root).await
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}
