//! A node with functions and real VMs, as the host of a test.
#![allow(dead_code, reason = "each test program uses a part of it")]

use aleph_executor::functions::{
    Code, Completed, Concurrency, Deployment, FunctionRuntime, FunctionsConfig, Invocation,
    InvokeError, Isolation, PoolConfig, ResponseStream, Runner, response_channel,
};
use aleph_executor::hypervisor::Driver;
use aleph_executor::{Node, NodeConfig, NodeError};
use aleph_testkit::{TestImages, TestRoot, wait_until};
use aleph_types::MiB;
use anyhow::{Result, ensure};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// What a function is: its files, each of which may be run, and its command.
pub(crate) struct Program<'a> {
    pub(crate) files: &'a [(&'a str, &'a [u8])],
    pub(crate) command: &'a [&'a str],
}

pub(crate) struct World {
    pub(crate) root: TestRoot,
    pub(crate) node: Node,
    pub(crate) runtime: FunctionRuntime,
    pub(crate) deployment: Deployment,
}

pub(crate) async fn open(
    root: &TestRoot,
    config: FunctionsConfig,
) -> Result<(Node, FunctionRuntime)> {
    open_over(root, None, config, |_| {}).await
}

pub(crate) fn pool() -> PoolConfig {
    PoolConfig {
        linger: Duration::from_secs(3600),
        spares: 0,
        ..PoolConfig::default()
    }
}

/// The same over this driver, where there is one.
pub(crate) async fn open_over(
    root: &TestRoot,
    driver: Option<Arc<dyn Driver>>,
    config: FunctionsConfig,
    change: impl FnOnce(&mut NodeConfig),
) -> Result<(Node, FunctionRuntime)> {
    let mut settings = NodeConfig::new(root.paths()?);
    change(&mut settings);
    let began = Instant::now();
    let node = loop {
        let images = Arc::new(TestImages::new(root)?);
        let opened = match &driver {
            Some(driver) => {
                let driver = Arc::clone(driver);
                Box::pin(Node::with_driver(settings.clone(), images, driver)).await
            }
            None => Box::pin(Node::open(settings.clone(), images)).await,
        };
        match opened {
            // The last tasks of the node before may still hold the lock for a moment.
            Err(NodeError::Owned(_)) if began.elapsed() < LIMIT => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            opened => break opened?,
        }
    };
    let runtime = FunctionRuntime::open(&node, config);
    Ok((node, runtime))
}

impl World {
    pub(crate) async fn new(config: FunctionsConfig, program: &Program<'_>) -> Result<Self> {
        Self::over(TestRoot::new()?, None, config, program).await
    }

    /// One in this root, over this driver, where there is one.
    pub(crate) async fn over(
        root: TestRoot,
        driver: Option<Arc<dyn Driver>>,
        config: FunctionsConfig,
        program: &Program<'_>,
    ) -> Result<Self> {
        let task = root.path().join("task");
        std::fs::create_dir(&task)?;
        for (name, content) in program.files {
            let path = task.join(name);
            std::fs::write(&path, content)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        }
        let image = root.path().join("task.erofs");
        let made = Command::new("mkfs.erofs")
            .args([
                "--quiet".as_ref(),
                "-T0".as_ref(),
                image.as_os_str(),
                task.as_os_str(),
            ])
            .output()?;
        ensure!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let (node, runtime) = open_over(&root, driver, config, |_| {}).await?;
        let deployment = Deployment {
            account: "default".into(),
            function: "shell".into(),
            version: "$LATEST".into(),
            code: Code::Task {
                image,
                digest: "sha256:1".into(),
                runtime: "busybox".into(),
            },
            handler: "handle".into(),
            env: [("GREETING".to_owned(), "hello".to_owned())].into(),
            command: program.command.iter().map(ToString::to_string).collect(),
            memory: MiB(128),
            timeout: Duration::from_secs(30),
            temporary: MiB(16),
            isolation: Isolation::Deployment,
        };
        Ok(Self {
            root,
            node,
            runtime,
            deployment,
        })
    }

    pub(crate) async fn invoke(&self, event: &str) -> Result<Completed, InvokeError> {
        self.invoke_as(&self.deployment, Concurrency::default(), event)
            .await
    }

    pub(crate) async fn invoke_as(
        &self,
        deployment: &Deployment,
        concurrency: Concurrency,
        event: &str,
    ) -> Result<Completed, InvokeError> {
        let deployment = Arc::new(deployment.clone());
        let invoked = self
            .runtime
            .invoke(deployment, concurrency, invocation(event));
        tokio::time::timeout(LIMIT, invoked)
            .await
            .map_err(|_| InvokeError::NotReady("no answer in time".into()))?
    }

    /// Begins an event whose answer comes as it is written, and gives what comes with what becomes
    /// of it.
    pub(crate) fn stream(
        &self,
        deployment: &Deployment,
        event: &str,
    ) -> (ResponseStream, JoinHandle<Result<Completed, InvokeError>>) {
        let (mut sink, stream) = response_channel();
        let (runtime, deployment) = (self.runtime.clone(), Arc::new(deployment.clone()));
        let invocation = invocation(event);
        let running = tokio::spawn(async move {
            let concurrency = Concurrency::default();
            let invoked = runtime.invoke_streaming(deployment, concurrency, invocation, &mut sink);
            tokio::time::timeout(LIMIT, invoked)
                .await
                .map_err(|_| InvokeError::NotReady("no answer in time".into()))?
        });
        (stream, running)
    }

    pub(crate) async fn end(self) -> Result<()> {
        self.runtime.shutdown().await;
        wait_until("nothing is left", LIMIT, || {
            let vms = std::fs::read_dir(self.root.paths().ok()?.vms()).ok()?;
            let left = vms.flatten().filter(|entry| entry.path().is_dir()).count();
            (left == 0).then_some(())
        });
        self.node.shutdown().await;
        Ok(())
    }
}

fn invocation(event: &str) -> Invocation {
    let id: String = event
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(32)
        .collect();
    Invocation {
        request_id: format!("id-{id}"),
        payload: event.to_owned().into(),
        arn: "arn:aws:lambda:us-east-1:000000000000:function:shell".into(),
        client_context: None,
        trace: None,
    }
}

pub(crate) fn text(completed: &Completed) -> String {
    String::from_utf8_lossy(&completed.payload).into_owned()
}

pub(crate) fn log(completed: &Completed) -> String {
    String::from_utf8_lossy(&completed.log_tail).into_owned()
}

/// Whether the runtime's end was heard of so late that only its response is said to have broken off, as it may be
/// where the machine is busy: then the event is tried again, a few times.
pub(crate) fn is_told_late(completed: &Completed, tries: u32) -> bool {
    tries < 5 && text(completed).contains("Runtime.TruncatedResponse")
}
