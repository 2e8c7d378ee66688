//! `aleph fn` over the API of a daemon in this process, whose runner has no VMs.

mod support;

use aleph_control::lambda::{FunctionParts, Task, TaskBuilder};
use aleph_control::{Config, Daemon};
use aleph_executor::Node as Executed;
use aleph_testkit::{NoImages, ScriptedDriver, ScriptedRunner};
use aleph_types::{MiB, Problem};
use anyhow::{Context, Result};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use support::{Ended, Node};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Takes any archive as it is.
struct PlainTasks;

impl TaskBuilder for PlainTasks {
    fn build(&self, zip: &[u8], into: &Path) -> Result<Task, Problem> {
        let image = into.join(format!("{}.img", zip.len()));
        std::fs::write(&image, zip).map_err(|error| Problem {
            class: aleph_types::ErrorClass::Internal,
            code: "task".into(),
            message: error.to_string(),
            advice: None,
        })?;
        Ok(Task {
            image,
            digest: zip.len().to_string(),
        })
    }
}

struct Served {
    node: Node,
    runner: Arc<ScriptedRunner>,
    runtime: Runtime,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Served {
    fn up() -> Result<Self> {
        let node = Node::empty()?;
        let mut config = Config::default();
        config.node.root = Some(node.root.path().to_owned());
        config.network.enabled = Some(false);
        config.limits.reserved_memory = MiB(0);
        config.functions.listen = Some(([127, 0, 0, 1], 0).into());
        let runner = Arc::new(ScriptedRunner::default());
        let parts = FunctionParts {
            runner: Arc::clone(&runner) as _,
            tasks: Arc::new(PlainTasks),
        };
        let runtime = Runtime::new()?;
        let daemon = runtime.block_on(async {
            let driver = ScriptedDriver::new([]);
            let opened = config.node_config()?;
            let opened = Executed::with_driver(opened, Arc::new(NoImages), driver).await?;
            let daemon = Box::pin(Daemon::with_functions(&config, opened, parts)).await?;
            anyhow::Ok(daemon)
        })?;
        let (stop, stopped) = oneshot::channel::<()>();
        let running = runtime.spawn(daemon.run(async move {
            let _ = stopped.await;
        }));
        std::fs::write(node.root.path().join("code.zip"), "PK code")?;
        Ok(Self {
            node,
            runner,
            runtime,
            stop,
            running,
        })
    }

    fn zip(&self) -> String {
        let path = self.node.root.path().join("code.zip");
        path.display().to_string()
    }

    fn create(&self, name: &str, handler: &str, more: &[&str]) -> Result<Ended> {
        let zip = self.zip();
        let mut words = vec!["fn", "create", name, "--zip", &zip, "--handler", handler];
        words.extend(["--runtime", "python3.11"]);
        words.extend(more);
        self.node.aleph(&words)
    }

    fn ok(&self, words: &[&str]) -> Result<String> {
        let ran = self.node.aleph(words)?;
        anyhow::ensure!(ran.code == 0, "{words:?}: {ran:?}");
        Ok(ran.text().trim_end().to_owned())
    }

    fn end(self) -> Result<()> {
        let _ = self.stop.send(());
        self.runtime.block_on(self.running)?;
        Ok(())
    }
}

#[test]
fn a_function_lives_by_the_commands() -> Result<()> {
    let served = Served::up()?;
    let made = served.create(
        "hello",
        "app.handler",
        &["-m", "256m", "-t", "90s", "-e", "A=b", "--wait"],
    )?;
    assert_eq!(
        (made.code, made.text().as_str()),
        (0, "hello\n"),
        "{made:?}"
    );
    assert_eq!(served.runner.ready(), ["hello:$LATEST"]);
    let ran = served
        .node
        .aleph(&["fn", "invoke", "hello", "--payload", r#"{"name":"you"}"#])?;
    assert_eq!((ran.code, ran.text().as_str()), (0, "{\"name\":\"you\"}\n"));
    assert_eq!(
        ran.stderr,
        "aleph: warm · 2.7 ms (queue 0.1, resume 0, function 2.6)\n"
    );
    let words = ["fn", "invoke", "hello", "-p", "-", "--log"];
    let ran = served.node.fed(&words, b"[1,2]")?;
    assert_eq!(ran.text(), "[1,2]\n");
    assert!(ran.stderr.contains("hello from the log"), "{ran:?}");
    let file = served.node.root.path().join("event.json");
    std::fs::write(&file, "7")?;
    let event = format!("@{}", file.display());
    let text = served.ok(&["fn", "invoke", "hello", "--quiet", "-p", &event])?;
    assert_eq!(text, "7");
    let id = served.ok(&["fn", "invoke", "hello", "--async"])?;
    assert_eq!(id.len(), 36, "{id}");

    let table = served.ok(&["fn", "ls"])?;
    assert!(
        table.contains("hello") && table.contains("256 MiB"),
        "{table}"
    );
    assert!(
        table.contains("90 s") && table.contains("active"),
        "{table}"
    );
    let all: Value = serde_json::from_str(&served.ok(&["fn", "ls", "--json"])?)?;
    assert_eq!(all[0]["Environment"]["Variables"]["A"], "b");
    assert_eq!(served.ok(&["fn", "publish", "hello", "--wait"])?, "1");
    assert_eq!(served.ok(&["fn", "alias", "hello", "live", "1"])?, "live");
    assert_eq!(served.ok(&["fn", "alias", "hello", "live"])?, "1");
    let ran = served
        .node
        .aleph(&["fn", "invoke", "hello", "-q", "live"])?;
    assert!(ran.stderr.contains(" · version 1"), "{ran:?}");
    served.ok(&["fn", "update", "hello", "-m", "512m", "--wait"])?;
    assert_eq!(served.ok(&["fn", "publish", "hello", "--wait"])?, "2");
    served.ok(&["fn", "alias", "hello", "live", "1", "--weight", "2=1"])?;
    let ran = served.node.aleph(&["fn", "invoke", "hello:live"])?;
    assert!(ran.stderr.contains(" · version 2"), "{ran:?}");
    let table = served.ok(&["fn", "versions", "hello"])?;
    assert_eq!(table.lines().count(), 4, "{table}");
    let shown: Value = serde_json::from_str(&served.ok(&["fn", "inspect", "hello:1"])?)?;
    assert_eq!(shown[0]["Configuration"]["MemorySize"], 256);
    served.ok(&["fn", "alias", "hello", "live", "--rm"])?;
    assert_eq!(
        served.ok(&["fn", "rm", "hello:1", "hello"])?,
        "hello:1\nhello"
    );
    assert!(served.runner.ready().is_empty());
    served.end()
}

#[test]
fn a_function_gets_a_url() -> Result<()> {
    let served = Served::up()?;
    served.create("hello", "app.handler", &["--wait"])?;
    let inspect = || -> Result<Value> {
        let shown: Value = serde_json::from_str(&served.ok(&["fn", "inspect", "hello"])?)?;
        Ok(shown[0]["FunctionUrlConfigs"].clone())
    };
    assert_eq!(inspect()?, serde_json::json!([]));
    // Who may call it is not guessed.
    for words in [
        &["fn", "url", "hello"][..],
        &["fn", "url", "hello", "--stream"],
    ] {
        let ran = served.node.aleph(words)?;
        ran.assert_failed_with(&["hello has no URL", "--auth"]);
    }
    assert_eq!(inspect()?, serde_json::json!([]));
    let url = served.ok(&["fn", "url", "hello", "--auth", "none"])?;
    assert!(url.contains(".lambda-url.us-east-1.localhost:"), "{url}");
    let changed = ["fn", "url", "hello", "--auth", "iam", "--stream"];
    let page = ["--cors-origin", "https://app.example.com"];
    let how = ["--cors-method", "PUT", "--cors-header", "x-one"];
    let other = ["--cors-origin", "https://other.example.com"];
    served.ok(&[&changed[..], &other, &how].concat())?;
    assert_eq!(served.ok(&[&changed[..], &page].concat())?, url, "it stays");
    let shown = inspect()?;
    assert_eq!(shown[0]["FunctionUrl"], url.as_str());
    assert_eq!(shown[0]["AuthType"], "AWS_IAM");
    assert_eq!(shown[0]["InvokeMode"], "RESPONSE_STREAM");
    let cors = serde_json::json!({
        "AllowOrigins": [page[1]], "AllowMethods": ["PUT"], "AllowHeaders": ["x-one"],
    });
    assert_eq!(shown[0]["Cors"], cors, "what is not said stays");
    assert_eq!(
        served.ok(&["fn", "url", "hello"])?,
        url,
        "to look changes nothing"
    );
    assert_eq!(inspect()?, shown);
    assert_eq!(served.ok(&["fn", "url", "hello", "--delete"])?, "hello");
    assert_eq!(inspect()?, serde_json::json!([]));
    let ran = served
        .node
        .aleph(&["fn", "url", "absent", "--auth", "none"])?;
    assert!(ran.stderr.contains("Function not found"), "{ran:?}");
    let ran = served.node.aleph(&["fn", "url", "hello", "--delete"])?;
    assert_eq!(ran.code, 125, "{ran:?}");
    served.end()
}

#[test]
fn failures_of_functions_and_of_ours_have_codes_of_their_own() -> Result<()> {
    let served = Served::up()?;
    served.create("fail", "fail", &["--wait"])?;
    let ran = served.node.aleph(&["fn", "invoke", "fail"])?;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.text().contains("it failed"), "{ran:?}");
    assert!(ran.stderr.ends_with(" · failed (Handled)\n"), "{ran:?}");
    let ran = served.node.aleph(&["fn", "invoke", "absent"])?;
    assert_eq!(ran.code, 125, "{ran:?}");
    assert!(ran.stderr.contains("Function not found"), "{ran:?}");
    assert!(ran.stderr.contains("aleph fn ls"), "{ran:?}");
    let ran = served.create("broken", "broken.handler", &["--wait"])?;
    assert_eq!(ran.code, 125, "{ran:?}");
    assert!(ran.stderr.contains("Unable to import module"), "{ran:?}");
    let ran = served.create("fail", "fail", &[])?;
    assert!(ran.stderr.contains("already exist"), "{ran:?}");
    let ran = served.node.aleph(&["fn", "create", "none"])?;
    assert_eq!(ran.code, 125, "{ran:?}");
    assert!(ran.stderr.contains("--zip"), "{ran:?}");
    let ran = served.node.aleph(&["fn", "update", "fail"])?;
    assert!(ran.stderr.contains("nothing of fail"), "{ran:?}");
    served.end()
}

#[test]
fn an_event_waits_for_a_function_that_is_being_made_ready() -> Result<()> {
    let served = Served::up()?;
    let made = served.create("late", "slow", &[])?;
    assert_eq!(made.code, 0, "{made:?}");
    let mut command = served.node.command(&["fn", "invoke", "late", "-p", "1"]);
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut invoked = command.spawn()?;
    let mut said = BufReader::new(invoked.stderr.take().context("no standard error")?);
    let mut first = String::new();
    said.read_line(&mut first)?;
    served.runner.let_go();
    let mut rest = String::new();
    said.read_to_string(&mut rest)?;
    let ended = invoked.wait_with_output()?;
    assert_eq!(first, "aleph: waiting until late is ready\n", "{rest}");
    assert!(ended.status.success(), "{rest}");
    assert_eq!(ended.stdout, b"1\n");
    served.end()
}

#[test]
fn a_node_without_a_runner_says_so() -> Result<()> {
    let node = Node::empty()?;
    let runtime = Runtime::new()?;
    let mut config = Config::default();
    config.node.root = Some(node.root.path().to_owned());
    config.network.enabled = Some(false);
    let daemon = runtime.block_on(async {
        let opened = config.node_config()?;
        let driver = ScriptedDriver::new([]);
        let opened = Executed::with_driver(opened, Arc::new(NoImages), driver).await?;
        anyhow::Ok(Box::pin(Daemon::with_node(&config, opened)).await?)
    });
    let daemon = daemon.context("no daemon")?;
    let (stop, stopped) = oneshot::channel::<()>();
    let running = runtime.spawn(daemon.run(async move {
        let _ = stopped.await;
    }));
    let ran = node.aleph(&["fn", "ls"])?;
    assert_eq!(ran.code, 125, "{ran:?}");
    assert!(ran.stderr.contains("runs no functions"), "{ran:?}");
    let _ = stop.send(());
    runtime.block_on(running)?;
    Ok(())
}
