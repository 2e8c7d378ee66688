//! A runtime of functions in this process, with a real node under it.

use aleph_executor::functions::{
    Code, Concurrency, Deployment, FunctionRuntime, FunctionsConfig, Invocation, Isolation, Runner,
    Temperature,
};
use aleph_executor::{Node, NodeConfig};
use aleph_testkit::{TestImages, TestRoot, functions};
use aleph_types::MiB;
use anyhow::{Context, Result, anyhow, ensure};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The event, and the answer to it.
pub(super) const EVENT: &str = r#"{"name":"you"}"#;

/// What a function is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    /// A program with the crate `lambda_runtime`.
    Native,
    /// Python with `awslambdaric`.
    Python,
}

impl Language {
    pub(super) fn zip(self) -> Result<Vec<u8>> {
        match self {
            Self::Native => functions::echo_zip(),
            Self::Python => functions::python_zip(),
        }
    }

    pub(super) fn runtime(self) -> &'static str {
        match self {
            Self::Native => "provided.al2023",
            Self::Python => "python3.11",
        }
    }

    pub(super) fn handler(self) -> &'static str {
        match self {
            Self::Native => "bootstrap",
            Self::Python => "app.echo",
        }
    }
}

/// A function that is ready.
pub(super) struct Pool {
    pub(super) root: TestRoot,
    node: Node,
    runtime: FunctionRuntime,
    deployment: Arc<Deployment>,
}

impl Pool {
    /// Deploys a function, whose clones serve one event each or one after another. Gives how long
    /// that took, too: most of it is the boot of its template.
    pub(super) async fn open(
        language: Language,
        isolation: Isolation,
        config: FunctionsConfig,
    ) -> Result<(Self, Duration)> {
        let root = TestRoot::new()?;
        let task = aleph_image::task::build(&language.zip()?, &root.path().join("tasks"))?;
        let images = Arc::new(TestImages::new(&root)?);
        let node = Node::open(NodeConfig::new(root.paths()?), images).await?;
        let config = FunctionsConfig {
            // What clones see; what they take of the host is one of the figures.
            memory: Some(MiB(96 * 1024)),
            ..config
        };
        let deployment = Arc::new(Deployment {
            account: "default".into(),
            function: "echo".into(),
            version: "1".into(),
            code: Code::Task {
                image: task.path,
                digest: task.digest,
                runtime: language.runtime().into(),
            },
            handler: language.handler().into(),
            env: [].into(),
            command: Vec::new(),
            memory: MiB(128),
            timeout: Duration::from_secs(60),
            temporary: MiB(64),
            isolation,
        });
        // The image of its runtime is built before the time counts.
        let recipe = language.runtime().parse();
        aleph_testkit::recipe_image(recipe.map_err(|_| anyhow!("no such recipe"))?)?;
        let runtime = FunctionRuntime::open(&node, config);
        let began = Instant::now();
        let prepared = runtime.prepare(Arc::clone(&deployment)).await;
        prepared.map_err(|problem| anyhow!("{}", problem.message))?;
        let pool = Self {
            root,
            node,
            runtime,
            deployment,
        };
        Ok((pool, began.elapsed()))
    }

    /// Runs an event through it; gives how long that took, and what served it.
    pub(super) async fn invoke(&self) -> Result<(Duration, Temperature)> {
        let began = Instant::now();
        let invocation = Invocation {
            request_id: "8476a536-e9f4-11e8-9739-2dfe598c3fcd".into(),
            payload: EVENT.into(),
            arn: "arn:aws:lambda:us-east-1:000000000000:function:echo".into(),
            client_context: None,
            trace: None,
        };
        let deployment = Arc::clone(&self.deployment);
        let run = self
            .runtime
            .invoke(deployment, Concurrency::default(), invocation);
        let run = run.await?;
        let took = began.elapsed();
        let answer: serde_json::Value = serde_json::from_slice(&run.payload)?;
        ensure!(
            run.error.is_none() && answer["name"] == "you",
            "the function failed: {answer}"
        );
        Ok((took, run.temperature))
    }

    /// The same where it has to be served so, in milliseconds.
    pub(super) async fn invoke_at(&self, wanted: Temperature) -> Result<f64> {
        let (took, temperature) = self.invoke().await?;
        ensure!(temperature == wanted, "it was {temperature:?}");
        Ok(took.as_secs_f64() * super::MILLI)
    }

    /// The same of a cold start for which a process waits that was launched ahead.
    pub(super) async fn invoke_in_a_process_that_waits(&self) -> Result<f64> {
        let began = Instant::now();
        let waits = loop {
            if let [vm] = self.runtime.waiting_processes()[..] {
                break vm;
            }
            let took = began.elapsed();
            // After one that could not be launched none is for a minute.
            ensure!(took < Duration::from_secs(180), "no process waits");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let took = self.invoke_at(Temperature::Cold).await?;
        let taken = !self.runtime.waiting_processes().contains(&waits);
        ensure!(taken, "it was launched when it was needed");
        Ok(took)
    }

    /// Keeps so many clones ready, and waits until they are and are paused.
    pub(super) async fn provide(&self, clones: usize) -> Result<()> {
        let count = u32::try_from(clones)?;
        self.runtime.provision(Arc::clone(&self.deployment), count);
        let began = Instant::now();
        while self.vmms()?.len() < clones {
            ensure!(
                began.elapsed() < Duration::from_secs(900),
                "only {} of {clones} clones came",
                self.vmms()?.len()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // Until the last one is paused.
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok(())
    }

    /// The processes of its VMMs.
    pub(super) fn vmms(&self) -> Result<Vec<u32>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(self.root.paths()?.vms())?.flatten() {
            if let Ok(record) = std::fs::read(entry.path().join("vmm.json")) {
                let record: serde_json::Value = serde_json::from_slice(&record)?;
                let pid = record["pid"].as_u64().context("a record without a pid")?;
                all.push(u32::try_from(pid)?);
            }
        }
        Ok(all)
    }

    /// The folder of its template.
    pub(super) fn template(&self) -> PathBuf {
        let id = self.deployment.id();
        self.root.path().join("templates").join(id.as_str())
    }

    /// The image of its runtime, and that of its code.
    pub(super) fn images(&self) -> Result<[PathBuf; 2]> {
        let Code::Task { image, runtime, .. } = &self.deployment.code else {
            anyhow::bail!("a function of another kind");
        };
        let recipe = runtime.parse().map_err(|_| anyhow!("no such recipe"))?;
        Ok([aleph_testkit::recipe_image(recipe)?.rootfs(), image.clone()])
    }

    pub(super) async fn close(self) -> Result<()> {
        self.runtime.shutdown().await;
        self.node.shutdown().await;
        Ok(())
    }
}
