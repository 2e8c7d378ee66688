//! What becomes of preparations and of what they made: images that are pinned, deletions meanwhile,
//! templates of nobody. A real daemon over a runner without VMs.

mod support;

use aleph_control::config::Config;
use aleph_executor::functions::{Code, Deployment, Isolation, Runner};
use aleph_image::{NoProgress, Store};
use aleph_testkit::{ScriptedRunner, TestRoot};
use aleph_types::MiB;
use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use support::functions::{Lambda, config};
use support::{Client, until};

const FUNCTIONS: &str = "/2015-03-31/functions";

async fn create(client: &Client, function: Value) -> Result<()> {
    let made = client.post(FUNCTIONS, function).await?;
    ensure!(made.status == StatusCode::CREATED, "{made:?}");
    Ok(())
}

fn zip(name: &str, handler: &str) -> Value {
    json!({
        "FunctionName": name, "Runtime": "python3.11", "Handler": handler,
        "Role": "arn:aws:iam::000000000000:role/any",
        "Code": { "ZipFile": BASE64_STANDARD.encode(format!("PK {name}")) },
    })
}

fn image(name: &str, uri: &str) -> Value {
    json!({
        "FunctionName": name, "PackageType": "Image", "Code": { "ImageUri": uri },
        "Role": "arn:aws:iam::000000000000:role/any",
    })
}

/// The next daemon of a node. What another test starts has the lock of the last one for a moment.
async fn next(config: &Config, runner: &Arc<ScriptedRunner>) -> Result<Lambda> {
    until("the next daemon", async || {
        Ok(Lambda::start(config, Arc::clone(runner)).await.ok())
    })
    .await
}

/// What a function is once nothing is under way.
async fn settled(client: &Client, name: &str) -> Result<Value> {
    until("a function to settle", async || {
        let shown = client.get(&format!("{FUNCTIONS}/{name}")).await?;
        let shown: Value = shown.json()?;
        let done = shown["Configuration"]["LastUpdateStatus"] != "InProgress";
        Ok(done.then_some(shown))
    })
    .await
}

/// The digest that a function is shown with, in its two places.
async fn digest(client: &Client, name: &str) -> Result<String> {
    let shown = settled(client, name).await?;
    let resolved = shown["Code"]["ResolvedImageUri"].as_str();
    let resolved = resolved.with_context(|| shown.to_string())?;
    let digest = resolved.strip_prefix("registry.local:5000/app@sha256:");
    let digest = digest.with_context(|| shown.to_string())?.to_owned();
    assert_eq!(shown["Configuration"]["CodeSha256"], digest);
    assert_eq!(shown["Code"]["ImageUri"], URI);
    Ok(digest)
}

const URI: &str = "registry.local:5000/app:1";

#[tokio::test]
async fn an_image_stays_what_it_was_until_its_code_is_updated() -> Result<()> {
    let root = TestRoot::empty()?;
    let (one, two) = ("1".repeat(64), "2".repeat(64));
    let runner = Arc::new(ScriptedRunner::default());
    runner.tag(URI, &format!("sha256:{one}"));
    let config = config(&root);
    let lambda = Lambda::start(&config, Arc::clone(&runner)).await?;
    let client = &lambda.client;
    create(client, image("f", URI)).await?;
    assert_eq!(digest(client, "f").await?, one);

    // Whatever is prepared from now on has what it was, but for new code.
    runner.tag(URI, &format!("sha256:{two}"));
    let path = format!("{FUNCTIONS}/f/versions");
    let published = client.post(&path, json!({ "CodeSha256": one })).await?;
    ensure!(published.status == StatusCode::CREATED, "{published:?}");
    assert_eq!(digest(client, "f:1").await?, one);
    let path = format!("{FUNCTIONS}/f/configuration");
    let more = json!({ "MemorySize": 256 });
    client.call(Method::PUT, &path, Some(more)).await?;
    assert_eq!(digest(client, "f").await?, one);
    let path = format!("{FUNCTIONS}/f/code");
    let code = json!({ "ImageUri": URI });
    client.call(Method::PUT, &path, Some(code)).await?;
    assert_eq!(digest(client, "f").await?, two);
    assert_eq!(digest(client, "f:1").await?, one);
    let path = format!("{FUNCTIONS}/f/versions");
    let refused = client.post(&path, json!({ "CodeSha256": one })).await?;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused:?}");
    lambda.server.stop().await?;

    // The same is so for the next daemon, whose runner has no templates.
    let runner = Arc::new(ScriptedRunner::default());
    runner.tag(URI, "sha256:3");
    let lambda = next(&config, &runner).await?;
    let client = &lambda.client;
    for name in ["f", "f:1"] {
        let path = format!("{FUNCTIONS}/{name}/invocations");
        let answer = client.post(&path, json!(5)).await?;
        assert_eq!(answer.body, "5", "{answer:?}");
    }
    assert_eq!(digest(client, "f").await?, two);
    let pinned = runner.pinned();
    let pinned: Vec<_> = pinned.iter().map(|(name, d)| (&**name, &**d)).collect();
    let (one, two) = (format!("sha256:{one}"), format!("sha256:{two}"));
    assert_eq!(pinned, [("f:$LATEST", &*two), ("f:1", &*one)]);
    lambda.server.close(&root).await
}

#[tokio::test]
async fn what_is_deleted_is_no_longer_prepared() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = Lambda::start(&config(&root), Arc::default()).await?;
    let (client, runner) = (&lambda.client, &lambda.runner);
    let mut both = zip("f", "slow.handler");
    both["Publish"] = true.into();
    create(client, both).await?;
    let preparing = async |count| {
        until("preparations", async || {
            Ok((runner.preparing() == count).then_some(()))
        })
        .await
    };
    preparing(2).await?;
    let gone = client.delete(&format!("{FUNCTIONS}/f?Qualifier=1")).await?;
    assert_eq!(gone.status, StatusCode::NO_CONTENT, "{gone:?}");
    preparing(1).await?;
    let gone = client.delete(&format!("{FUNCTIONS}/f")).await?;
    assert_eq!(gone.status, StatusCode::NO_CONTENT, "{gone:?}");
    preparing(0).await?;
    // One that has its name is none of that.
    create(client, zip("f", "slow.handler")).await?;
    preparing(1).await?;
    runner.let_go();
    let shown = settled(client, "f").await?;
    assert_eq!(shown["Configuration"]["State"], "Active");
    assert_eq!(
        (runner.ready(), runner.prepared()),
        (vec!["f:$LATEST".into()], 1)
    );
    lambda.server.close(&root).await
}

#[tokio::test]
async fn at_the_start_the_runner_keeps_what_versions_name() -> Result<()> {
    let root = TestRoot::empty()?;
    let config = config(&root);
    let runner = Arc::new(ScriptedRunner::default());
    let lambda = Lambda::start(&config, Arc::clone(&runner)).await?;
    create(&lambda.client, zip("f", "app.handler")).await?;
    settled(&lambda.client, "f").await?;
    create(&lambda.client, image("g", URI)).await?;
    settled(&lambda.client, "g").await?;
    lambda.server.stop().await?;
    let stray = Deployment {
        account: "default".into(),
        function: "stray".into(),
        version: "1".into(),
        code: Code::Image {
            reference: "stray".into(),
            digest: "sha256:0".into(),
        },
        handler: String::new(),
        env: [].into(),
        command: Vec::new(),
        memory: MiB(128),
        timeout: Duration::from_secs(3),
        temporary: MiB(16),
        isolation: Isolation::Deployment,
    };
    let prepared = runner.prepare(Arc::new(stray)).await;
    ensure!(prepared.is_ok(), "{prepared:?}");
    assert_eq!(runner.ready(), ["f:$LATEST", "g:$LATEST", "stray:1"]);
    let lambda = next(&config, &runner).await?;
    assert_eq!(runner.ready(), ["f:$LATEST", "g:$LATEST"]);
    lambda.server.close(&root).await
}

#[tokio::test]
async fn images_of_functions_are_not_pruned() -> Result<()> {
    let root = TestRoot::empty()?;
    let tree = root.path().join("tree");
    std::fs::create_dir(&tree)?;
    let store = Store::open(root.path())?;
    let made = |name: &str| -> Result<String> {
        std::fs::write(tree.join("file"), name)?;
        let image = store.import(&tree, name, &mut NoProgress)?;
        Ok(image.digest().to_string())
    };
    let (pinned, runtime) = (made("app")?, made("python3.11")?);
    // The name leads elsewhere now.
    std::fs::write(tree.join("other"), "")?;
    let moved = made("app")?;
    let runner = Arc::new(ScriptedRunner::default());
    runner.tag("app", &pinned);
    let lambda = Lambda::start(&config(&root), runner).await?;
    create(&lambda.client, image("f", "app")).await?;
    create(&lambda.client, zip("g", "app.handler")).await?;
    for name in ["f", "g"] {
        settled(&lambda.client, name).await?;
    }
    let prune = async || -> Result<Vec<String>> {
        let what = json!({ "all_images": true, "dry_run": true });
        let pruned = lambda.server.local().post("/v1/prune", what).await?;
        let pruned: Value = pruned.json()?;
        Ok(serde_json::from_value(pruned["images"].clone())?)
    };
    assert_eq!(prune().await?, [&*moved]);
    for name in ["f", "g"] {
        let gone = lambda.client.delete(&format!("{FUNCTIONS}/{name}")).await?;
        ensure!(gone.status == StatusCode::NO_CONTENT, "{gone:?}");
    }
    let mut all = vec![pinned, runtime, moved];
    all.sort();
    let mut pruned = prune().await?;
    pruned.sort();
    assert_eq!(pruned, all);
    lambda.server.close(&root).await
}
